"""Measure S-DPO with one row a prompt against a row a completion and a row a pair's side, all in one run.

    python tests/benchmarks/bench_dpo.py --threads 2 --out recipes/results/rl/figure_3.json
    python tests/benchmarks/bench_dpo.py --hidden 32 --layers 2 --codes 8 --items 100 --vocab_sizes 500 --prompt 8

Forward and backward of the loss of a list: one chosen and ``--rejected`` rejected SIDs behind a prompt. The
reference's log-probabilities are given on all sides, as they are on disk. The sides: ``groups``, ours: one row a
prompt. ``rows``, a fair twin: a row a completion. ``pairs``, as DPO is given pairs: two rows for each rejected one.
The twins are stock ``transformers`` with the head at completion positions alone. All sides have one loss and one
gradient: the largest differences stand beside the times. Weights, prompts and SIDs are random. Each side runs once to
warm up, then they take turns, and the least of each one's times is kept.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bench_rl import DEFAULTS, SHAPES, Groups, Rows, make_setting

from llmrec.artifacts import made_by, write_json
from llmrec.errors import InputError, run_command
from llmrec.training.preference_losses import Preferences, s_dpo

BETA = 0.1
SIDES = ("groups", "rows", "pairs")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file (default: print alone)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rejected", type=int, nargs="+", default=[8], help="rejected completions of a list")
    parser.add_argument("--softmaxes", nargs="+", choices=("full", "sids"), default=["full", "sids"])
    parser.add_argument("--shape", choices=SHAPES, default=DEFAULTS[1]["shape"])
    for name in SHAPES["small"]:
        parser.add_argument(f"--{name}", type=int, help="in place of the shape's")
    parser.add_argument("--vocab_sizes", type=int, nargs="+", default=DEFAULTS[1]["vocab_sizes"])
    parser.add_argument("--prompts", type=int, default=1, help="lists of a step")
    parser.add_argument("--prompt", type=int, default=DEFAULTS[1]["prompt"], help="tokens of a prompt")
    parser.add_argument("--levels", type=int, default=4, help="tokens of a SID")
    parser.add_argument("--codes", type=int, default=256, help="of a level")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing on all sides")
    args = parser.parse_args(argv)
    if args.repeats < 1 or args.threads < 1 or min(args.rejected) < 1:
        raise InputError(f"--repeats {args.repeats} --threads {args.threads} --rejected {args.rejected}: at least 1")
    shape = {name: getattr(args, name) or value for name, value in SHAPES[args.shape].items()}
    return argparse.Namespace(**{**vars(args), **shape})


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    rows = [row for vocab in args.vocab_sizes for rejected in args.rejected for row in measure(args, vocab, rejected)]
    for row in rows:
        print(
            f"vocab {row['vocab']:>7} {row['softmax']:>5} {row['rejected']:>3} rejected: "
            + ", ".join(f"{side} {row[f'{side}_ms']:.1f} ms" for side in SIDES)
            + f"; {row['over_rows']:.1f} times a row a completion, {row['over_pairs']:.1f} times a row a pair's side; "
            f"loss {row['loss']:.6f} (differs by {row['loss_difference']:.1e}), gradients by "
            f"{row['gradient_difference']:.1e} of the largest"
        )
    if args.out:
        said = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        device = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else args.device
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            args.out,
            {"figure": 3, "rows": rows, "settings": said, "device": device, "threads": args.threads,
             "made_by": made_by()},
        )  # fmt: skip


@dataclass
class Side:
    """One way to the same loss.

    Args:
        scorer: gives log-probabilities of completions.
        completions: ``(prompts, rows, levels)`` that it reads.
        places: ``(1 + rejected,)`` where each completion of the list is among them, first places.
    """

    scorer: Groups | Rows
    completions: Tensor
    places: Tensor

    def loss(self, reference: Tensor) -> Tensor:
        """Return the mean loss of the lists."""
        scores, _ = self.scorer.log_probs(self.completions, entropy=False)
        sums = scores.sum(dim=-1)
        if len(self.places) < sums.shape[1]:  # pairs: each reading of the chosen one belongs to its own pair
            half = sums.shape[1] // 2
            ratios = sums - reference[:, self._of_pairs]
            terms = -BETA * (ratios[:, :half] - ratios[:, half:])
            return torch.cat([torch.zeros_like(terms[:, :1]), terms], dim=1).logsumexp(dim=1).mean()
        return s_dpo(Preferences(sums, reference, torch.ones_like(sums, dtype=torch.bool)), BETA).mean()

    @property
    def _of_pairs(self) -> Tensor:
        rejected = torch.arange(1, len(self.places), device=self.places.device)
        return torch.cat([torch.zeros_like(rejected), rejected])

    def step(self, reference: Tensor) -> Tensor:
        """Return the loss after its backward pass; gradients stay."""
        loss = self.loss(reference)
        loss.backward()
        return loss.detach()


def measure(args: argparse.Namespace, vocab: int, rejected: int) -> list[dict[str, Any]]:
    """Return one row a softmax: times of all sides, and how much they agree."""
    setting = make_setting(args, vocab, 1 + rejected)
    generator = torch.Generator().manual_seed(args.seed)
    drawn = torch.stack([torch.randperm(args.items, generator=generator)[: 1 + rejected] for _ in range(args.prompts)])
    lists = torch.from_numpy(setting.token_ids).long()[drawn].to(args.device)
    pairs = torch.cat([lists[:, :1].expand(-1, rejected, -1), lists[:, 1:]], dim=1)
    places = torch.arange(1 + rejected, device=args.device)
    found = []
    for kind in args.softmaxes:
        rows = Rows(setting, kind)
        sides = {
            "groups": Side(Groups(setting, kind), lists, places),
            "rows": Side(rows, lists, places),
            "pairs": Side(rows, pairs, places),
        }
        with torch.no_grad():
            reference = rows.log_probs(lists, entropy=False)[0].sum(dim=-1)
        reference = reference + torch.randn(reference.shape, generator=generator).to(reference.device)
        losses, gradients = {}, {}
        for name, side in sides.items():  # warms up too
            losses[name] = float(side.step(reference))
            gradients[name] = gradient_of(setting.model)
        largest = max(float(value.abs().max()) for value in gradients["rows"])
        apart = max(
            float((mine - its).abs().max())
            for name in ("groups", "pairs")
            for mine, its in zip(gradients[name], gradients["rows"], strict=True)
        )
        del gradients
        jobs = {name: (lambda side=side, given=reference: side.step(given)) for name, side in sides.items()}
        times = take_turns(jobs, setting.model, repeats=args.repeats, what=f"{vocab} {kind}", device=args.device)
        row: dict[str, Any] = {"vocab": vocab, "softmax": kind, "rejected": rejected, "prompts": args.prompts}
        row |= {f"{name}_ms": 1e3 * min(seconds) for name, seconds in times.items()}
        row |= {f"over_{name}": min(times[name]) / min(times["groups"]) for name in ("rows", "pairs")}
        row |= {"loss": losses["groups"], "gradient_difference": apart / largest}
        row["loss_difference"] = max(abs(losses[name] - losses["rows"]) for name in sides)
        found.append(row)
    return found


def gradient_of(model: torch.nn.Module) -> list[Tensor]:
    """Return a model's gradients, and take them from it."""
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


def take_turns(
    jobs: dict[str, Callable[[], Any]], model: torch.nn.Module, *, repeats: int, what: str, device: str
) -> dict[str, list[float]]:
    """Return the seconds of each job, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in tqdm(range(repeats), what):
        for name, job in jobs.items():
            start = now(device)
            job()
            times[name].append(now(device) - start)
            model.zero_grad(set_to_none=True)
    return times


def now(device: str) -> float:
    """Return the time when a device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    run_command(main)
