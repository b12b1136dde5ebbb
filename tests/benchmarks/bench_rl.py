"""Measure GRPO with groups from one row a prompt against rows of their own, both sides in one run.

    python tests/benchmarks/bench_rl.py --figure 1 --threads 2 --out recipes/results/rl/figure_1.json
    python tests/benchmarks/bench_rl.py --figure 2 --threads 2 --out recipes/results/rl/figure_2.json
    python tests/benchmarks/bench_rl.py --figure 5 --device cuda --out recipes/results/rl/figure_5.json
    python tests/benchmarks/bench_rl.py --figure 5 --hidden 32 --layers 2 --vocab_sizes 1200 --prompt 16 --repeats 1

1  steps: a rollout, log-probabilities of policy, old policy and reference, and the backward pass; and alone: forward
   and backward of the policy's log-probabilities. By vocabulary and softmax.
2  peak memory of the policy's forward and backward, and prompts a second, by the size of the group.
5  the steps of figure 1 on a GPU, bfloat16, at the shape of Qwen3-0.6B, with tokens a second and peak memory.

The sides: ``groups``, ours: one row a prompt, and the decoding engine's rollouts. ``rows``, a fair twin: a row a
candidate, stock ``transformers`` with the head at completion positions alone, and stock ``generate`` with our
vectorised processor. ``trl``: GRPOTrainer's own method for log-probabilities, fed like ``rows``; on a CPU it
multiplies the head at every position, on a GPU where a label stands, so that on a CPU its ratio is not to be quoted.
Rollouts are beam searches (stock ``generate`` by ``full`` where our side goes by ``sids``, which it does not know); in
figure 5 samples: without replacement on our side, TRL's rows of ``generate`` on the other. Weights and prompts are
random. Each side runs once to warm up, then they take turns.
"""

import argparse
import contextlib
import inspect
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessorList, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, set_seed
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head, entropy_from_logits, selective_log_softmax

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bench_decoding import at_the_end, peak_bytes, random_sids, reset_peak, resident_bytes
from reference.peer_decoding import StockGenerate

from llmrec.artifacts import made_by, write_json
from llmrec.decoding.beam import constrained_beam_search
from llmrec.decoding.logits_processor import SIDLogitsProcessor
from llmrec.decoding.sampling import sample_without_replacement
from llmrec.decoding.trie import SIDTrie
from llmrec.errors import InputError, run_command
from llmrec.training.group_softmax import GroupSoftmax
from llmrec.training.shared_prefix import add_group_forward

Row = dict[str, Any]

END = 0
"""The end token; random SIDs stand at the end of the vocabulary."""

SHAPES = {
    "small": {"hidden": 256, "layers": 6, "heads": 4, "kv_heads": 2, "head_dim": 64, "intermediate": 768},
    "qwen3-0.6b": {
        "hidden": 1024, "layers": 28, "heads": 16, "kv_heads": 8, "head_dim": 128, "intermediate": 3072
    },
}  # fmt: skip
DEFAULTS: dict[int, Row] = {
    1: {"shape": "small", "prompt": 256, "prompts": 1, "vocab_sizes": [8192, 151936], "dtype": "float32"},
    2: {"shape": "small", "prompt": 256, "prompts": 1, "vocab_sizes": [8192], "dtype": "float32"},
    5: {"shape": "qwen3-0.6b", "prompt": 512, "prompts": 8, "vocab_sizes": [151936], "dtype": "bfloat16"},
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=int, choices=sorted(DEFAULTS), default=1)
    parser.add_argument("--out", type=Path, help="JSON file (default: print alone)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32; figure 5 bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trl_repeats", type=int, help="of the side trl (default: 1, figure 5 as --repeats; 0: not)")
    parser.add_argument("--parts", nargs="+", choices=("step", "log_probs"), default=["step", "log_probs"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", choices=SHAPES, help="default: small; figure 5 qwen3-0.6b")
    for name in SHAPES["small"]:
        parser.add_argument(f"--{name}", type=int, help="in place of the shape's")
    parser.add_argument("--vocab_sizes", type=int, nargs="+", help="default: 8192 151936; 2: 8192; 5: 151936")
    parser.add_argument("--softmaxes", nargs="+", choices=("full", "sids", "allowed"),
                        default=["full", "sids", "allowed"])  # fmt: skip
    parser.add_argument("--prompts", type=int, help="of a step (default: 1; figure 5: 8)")
    parser.add_argument("--prompt", type=int, help="tokens of a prompt (default: 256; figure 5: 512)")
    parser.add_argument("--group", type=int, default=16, help="candidates of a prompt")
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 8, 16, 32, 64], help="of figure 2")
    parser.add_argument("--levels", type=int, default=4, help="tokens of a SID")
    parser.add_argument("--codes", type=int, default=256, help="of a level")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing on all sides")
    parser.add_argument("--probe", help=argparse.SUPPRESS)  # one measurement of figure 2, in its own process
    args = parser.parse_args(argv)
    chosen = {name: getattr(args, name) or value for name, value in DEFAULTS[args.figure].items()}
    shape = {name: getattr(args, name) or value for name, value in SHAPES[chosen["shape"]].items()}
    return argparse.Namespace(**{**vars(args), **chosen, **shape})


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    args = parse(argv)
    if args.repeats < 1 or args.threads < 1:
        raise InputError(f"--repeats {args.repeats} --threads {args.threads}: at least 1")
    tokens = args.levels * args.codes
    if min(args.vocab_sizes) <= tokens:
        raise InputError(f"--vocab_sizes {min(args.vocab_sizes)}: there are {tokens} SID tokens; give more rows")
    torch.set_num_threads(args.threads)
    if args.probe:
        print(json.dumps(memory_probe(args, **json.loads(args.probe))))
        return
    rows = figure_2(args) if args.figure == 2 else steps(args)
    for row in rows:
        print("  ".join(f"{name} {_short(value)}" for name, value in row.items()))
    said = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    written = {
        "figure": args.figure,
        "rows": rows,
        "note": "trl on a CPU multiplies the head at every position; quote the ratios to rows",
        "settings": said,
        "made_by": made_by(),
        "threads": args.threads,
        "device": torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else args.device,
    }
    if args.out:
        write_json(args.out, written)


@dataclass(frozen=True)
class Setting:
    """A model, prompts, a catalogue and what the group's candidates are weighed by, on their device."""

    args: argparse.Namespace
    model: PreTrainedModel
    input_ids: Tensor
    mask: Tensor
    token_ids: np.ndarray
    trie: SIDTrie
    advantages: Tensor

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return nothing: weights are in the dtype that is measured."""
        return contextlib.nullcontext()


def make_setting(args: argparse.Namespace, vocab: int, group: int) -> Setting:
    """Return a random Qwen3 with tied embeddings, random prompts without padding, and random SIDs."""
    set_seed(args.seed)
    config = Qwen3Config(
        vocab_size=vocab, hidden_size=args.hidden, num_hidden_layers=args.layers, num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads, head_dim=args.head_dim, intermediate_size=args.intermediate,
        tie_word_embeddings=True, max_position_embeddings=4096, bos_token_id=None, eos_token_id=END,
        pad_token_id=END,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).to(device=args.device, dtype=getattr(torch, args.dtype)).train()
    if args.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    token_ids = at_the_end(random_sids(args.items, [args.codes] * args.levels, seed=args.seed), vocab)
    generator = torch.Generator().manual_seed(args.seed)
    ids = torch.randint(1, vocab, (args.prompts, args.prompt), generator=generator).to(args.device)
    advantages = torch.randn(args.prompts, group, generator=generator).to(args.device)
    trie = SIDTrie.from_token_ids(token_ids).to(args.device)
    return Setting(args, model, ids, torch.ones_like(ids), token_ids, trie, advantages)


Scores = tuple[Tensor, Tensor | None]
"""Log-probabilities and entropies, both ``(prompts, group, levels)``."""


class Groups:
    """Our side: one row a prompt."""

    def __init__(self, setting: Setting, kind: str) -> None:
        self.setting, self.kind = setting, kind
        self.plain = setting.model.forward
        add_group_forward(setting.model, GroupSoftmax(kind, trie=setting.trie, end_token_id=END))
        self.forward, setting.model.forward = setting.model.forward, self.plain  # type: ignore[method-assign]

    def rollout(self, group: int, *, sample: bool = False) -> Tensor:
        """Return ``(prompts, group, levels)`` distinct SIDs."""
        setting = self.setting
        given = (setting.model, setting.input_ids, setting.mask)
        with torch.inference_mode(), evaluating(setting.model):
            if sample:
                generator = torch.Generator(setting.args.device).manual_seed(setting.args.seed)
                drawn = sample_without_replacement(*given, trie=setting.trie, num_samples=group, generator=generator)
                found = drawn.token_ids
            else:
                search = {"num_beams": group, "score": self.kind, "end_token_id": END}
                found = constrained_beam_search(*given, trie=setting.trie, **search).token_ids
        return found.clone()

    def log_probs(self, completions: Tensor, *, entropy: bool) -> Scores:
        """Return the scores of candidates."""
        output = self.forward(
            input_ids=self.setting.input_ids, attention_mask=self.setting.mask, completions=completions,
            entropy=entropy,
        )  # fmt: skip
        return output.log_probs, output.entropies


class Rows:
    """A fair twin: a row a candidate, the head at completion positions alone.

    ``kind`` is ``full`` or ``sids``, of which the latter multiplies the rows of SID tokens and the end token alone.
    """

    def __init__(self, setting: Setting, kind: str) -> None:
        self.setting, self.kind = setting, kind
        self.generate = StockGenerate(
            setting.model, [list(sid) for sid in setting.token_ids.tolist()], peer="vectorised", trie=setting.trie,
            end_token_id=END,
        )  # fmt: skip
        self.tokens = torch.cat([setting.trie.sid_token_ids, setting.trie.sid_token_ids.new_tensor([END])]).unique()

    def rollout(self, group: int, *, sample: bool = False) -> Tensor:
        """Return ``(prompts, group, levels)`` SIDs of stock ``generate``."""
        setting = self.setting
        with evaluating(setting.model):
            if not sample:
                score = "allowed" if self.kind == "allowed" else "full"
                found = self.generate(
                    setting.input_ids, setting.mask, num_beams=group, score=score, with_scores=False
                )[0]
                return found.clone()
            length, levels = setting.input_ids.shape[1], setting.args.levels
            with torch.inference_mode():
                rows = setting.model.generate(
                    input_ids=setting.input_ids.repeat_interleave(group, dim=0),
                    attention_mask=setting.mask.repeat_interleave(group, dim=0), do_sample=True,
                    max_new_tokens=levels, min_new_tokens=levels, top_k=0, eos_token_id=None, pad_token_id=END,
                    logits_processor=LogitsProcessorList([
                        SIDLogitsProcessor(setting.trie, length, end_token_id=END)
                    ]),
                )  # fmt: skip
            return rows[:, length:].unflatten(0, (-1, group)).clone()

    def rows(self, completions: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(prompts * group, length)`` token ids and their mask."""
        group = completions.shape[1]
        ids = torch.cat([self.setting.input_ids.repeat_interleave(group, dim=0), completions.flatten(0, 1)], dim=1)
        return ids, torch.ones_like(ids)

    def log_probs(self, completions: Tensor, *, entropy: bool) -> Scores:
        """Return the scores of candidates."""
        ids, mask = self.rows(completions)
        model, levels = self.setting.model, completions.shape[-1]
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        hidden, targets = hidden[:, -levels - 1 : -1], completions.flatten(0, 1)
        weight = model.get_output_embeddings().weight
        if self.kind == "sids":
            weight, targets = weight[self.tokens], torch.searchsorted(self.tokens, targets)
        logits = (hidden @ weight.T).float()
        found = selective_log_softmax(logits, targets).unflatten(0, completions.shape[:2])
        return found, entropy_from_logits(logits.detach()).view_as(found) if entropy else None


class TRL(Rows):
    """GRPOTrainer's own method, fed as the fair twin is."""

    method = staticmethod(inspect.unwrap(GRPOTrainer._get_per_token_logps_and_entropies))

    def log_probs(self, completions: Tensor, *, entropy: bool) -> Scores:
        """Return the scores of candidates."""
        ids, mask = self.rows(completions)
        trainer = SimpleNamespace(accelerator=self.setting)
        found, entropies, _ = self.method(
            trainer, self.setting.model, ids, mask, completions.shape[-1], compute_entropy=entropy
        )
        return found.view_as(completions), None if entropies is None else entropies.view_as(completions)


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Any:
    """Put a model into evaluation mode for a while."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def step(side: Groups | Rows, args: argparse.Namespace) -> None:
    """Do what a step of GRPO does up to the optimiser."""
    completions = side.rollout(args.group, sample=args.figure == 5)
    with torch.no_grad():
        old, _ = side.log_probs(completions, entropy=False)
        reference, _ = side.log_probs(completions, entropy=False)
    found, _ = side.log_probs(completions, entropy=True)
    ratio = (found - old).exp()
    gap = reference - found
    loss = -ratio * side.setting.advantages[..., None] + 0.04 * (gap.exp() - gap - 1)
    loss.mean().backward()
    side.setting.model.zero_grad(set_to_none=True)


def policy_pass(side: Groups | Rows, completions: Tensor) -> None:
    """Do the forward and backward of the policy's log-probabilities."""
    found, _ = side.log_probs(completions, entropy=False)
    (found * side.setting.advantages[:, : completions.shape[1], None]).mean().backward()
    side.setting.model.zero_grad(set_to_none=True)


def steps(args: argparse.Namespace) -> list[Row]:
    """Time the steps and the passes of each side, by vocabulary."""
    rows = []
    for vocab in args.vocab_sizes:
        setting = make_setting(args, vocab, args.group)
        sides: dict[tuple[str, str], Groups | Rows] = {
            **{("groups", kind): Groups(setting, kind) for kind in args.softmaxes},
            **{("rows", kind): Rows(setting, kind) for kind in args.softmaxes if kind != "allowed"},
        }
        completions = next(iter(sides.values())).rollout(args.group)
        difference = agreement(sides, completions)
        trl_repeats = (args.repeats if args.figure == 5 else 1) if args.trl_repeats is None else args.trl_repeats
        for part in args.parts:
            run = partial(step, args=args) if part == "step" else partial(policy_pass, completions=completions)
            jobs = {name: partial(run, side) for name, side in sides.items()}
            times = take_turns(jobs, args, args.repeats, desc=f"{part}, {vocab}")
            if trl_repeats:
                other = {("trl", "full"): partial(run, TRL(setting, "full"))}
                # On a CPU a minute each at the larger vocabulary: no round to warm up.
                times |= take_turns(other, args, trl_repeats, desc=f"{part}, trl", warm=args.figure == 5)
            rows += [{"part": part, "vocab": vocab, "log_prob_difference": difference, **row}
                     for row in with_ratios(times, args)]  # fmt: skip
    return rows


def agreement(sides: dict[tuple[str, str], Groups | Rows], completions: Tensor) -> float:
    """Return how far our log-probabilities are from those of the fair twin, at most."""
    with torch.no_grad():
        found = {name: side.log_probs(completions, entropy=False)[0] for name, side in sides.items()}
    pairs = [(values, found["groups", kind]) for (side, kind), values in found.items() if side == "rows"]
    return max(((left - right).abs().max().item() for left, right in pairs), default=0.0)


def with_ratios(times: dict[tuple[str, str], Row], args: argparse.Namespace) -> list[Row]:
    """Return a row a side, and how much faster ours is than the twin of the same softmax and that of ``full``."""
    rows = []
    for (side, kind), timing in times.items():
        row: Row = {"side": side, "softmax": kind, **timing}
        row["prompts_per_second"] = args.prompts / timing["seconds"]
        tokens = args.prompts * (args.prompt + args.group * args.levels)
        row["distinct_tokens_per_second"] = tokens / timing["seconds"]
        if side == "groups":
            for name, other in (("rows", kind), ("rows", "full"), ("trl", "full")):
                if (name, other) in times:
                    for clock, before in (("seconds", "faster_than"), ("cpu_seconds", "cpu_ratio_to")):
                        row[f"{before}_{name}_{other}"] = times[name, other][clock] / timing[clock]
        rows.append(row)
    return rows


def take_turns(
    jobs: dict[tuple[str, str], Callable[[], None]], args: argparse.Namespace, repeats: int, *, desc: str,
    warm: bool = True,
) -> dict[tuple[str, str], Row]:  # fmt: skip
    """Run each once, then all of them in turn; return the least seconds, of the clock and of the processors.

    Also the median by the clock, and a GPU's peak memory. The processors' seconds hold on a machine that is not quiet.
    """
    cuda = args.device.startswith("cuda")
    taken: dict[tuple[str, str], list[float]] = {name: [] for name in jobs}
    worked: dict[tuple[str, str], list[float]] = {name: [] for name in jobs}
    peaks: dict[tuple[str, str], int] = dict.fromkeys(jobs, 0)
    for repeat in tqdm(range(-1 if warm else 0, repeats), desc=desc, unit="round", disable=None):
        for name, job in jobs.items():
            if cuda:
                torch.cuda.synchronize()
                reset_peak(args.device)
            began, began_work = time.perf_counter(), time.process_time()
            job()
            if cuda:
                torch.cuda.synchronize()
                peaks[name] = max(peaks[name], peak_bytes(args.device))
            if repeat >= 0:
                taken[name].append(time.perf_counter() - began)
                worked[name].append(time.process_time() - began_work)
    return {
        name: {"seconds": min(seconds), "median": statistics.median(seconds), "cpu_seconds": min(worked[name])}
        | ({"peak_mib": peaks[name] / 2**20} if cuda else {})
        for name, seconds in taken.items()
    }


def figure_2(args: argparse.Namespace) -> list[Row]:
    """Take peak memory and time of the policy's pass, each in a process of its own."""
    rows = []
    jobs = [(side, group) for group in args.groups for side in ("groups", "rows")]
    for side, group in tqdm(jobs, desc="figure 2", unit="probe", disable=None):
        names = ("device", "dtype", "threads", "repeats", "seed", "prompts", "prompt", "levels", "codes", "items",
                 *SHAPES["small"])  # fmt: skip
        command = [sys.executable, str(Path(__file__).resolve()), "--figure=2"]
        command += [f"--{name}={getattr(args, name)}" for name in names]
        command += [f"--vocab_sizes={args.vocab_sizes[0]}", *(["--checkpointing"] if args.checkpointing else [])]
        command.append(f"--probe={json.dumps({'side': side, 'group': group, 'kind': args.softmaxes[0]})}")
        # A fixed threshold gives each large tensor back to the system when it goes, so that the peak is its own.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"figure 2, {side} of {group}: {done.stderr.strip()[-500:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def memory_probe(args: argparse.Namespace, *, side: str, group: int, kind: str) -> Row:
    """Return what one pass adds to the memory of this process, and how many prompts a second it takes."""
    setting = make_setting(args, args.vocab_sizes[0], group)
    chosen = Groups(setting, kind) if side == "groups" else Rows(setting, kind)
    catalogue = torch.from_numpy(setting.token_ids[: args.prompts * group].astype(np.int64)).to(args.device)
    completions = catalogue.view(args.prompts, group, args.levels)
    policy_pass(chosen, completions[:, :2])
    reset_peak(args.device)
    before = resident_bytes(args.device)
    policy_pass(chosen, completions)
    peak = peak_bytes(args.device) - before
    times = take_turns(
        {(side, kind): lambda: policy_pass(chosen, completions)}, args, args.repeats, desc=side, warm=False
    )
    seconds = times[side, kind]["seconds"]
    return {
        "side": side, "softmax": kind, "group": group, "peak_mib": peak / 2**20, "seconds": seconds,
        "prompts_per_second": args.prompts / seconds,
    }  # fmt: skip


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_command(main)
