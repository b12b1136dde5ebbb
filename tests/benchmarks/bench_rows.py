"""What SID rows cost beside LoRA: LoRA alone, LoRA with the rows as we train them, and as PEFT does.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_rows.py --out recipes/results/training/figure_2.json
    python tests/benchmarks/bench_rows.py --vocab 500 --hidden 32 --shapes 8x1 --rounds 1 --steps 1

A Qwen3 with tied embeddings and random weights; every token is a label. ``labelled`` multiplies the head in chunks
where labels stand, as the trainer does; ``stock`` is the model's own loss over whole logits. PEFT's own has the stock
head alone, because the labelled head never asks PEFT for a table.

Every side runs in a process of its own, and the sides take turns over the rounds. The least time of all steps but each
process's first is kept, and the greatest memory: resident set at its peak over the steps (``VmHWM``, which Linux sets
back when asked) less what the process held before them, which leaves out model and libraries; on a GPU torch's peak of
allocated memory, likewise.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tqdm import tqdm
from transformers import Qwen3Config, Qwen3ForCausalLM

from llmrec.artifacts import made_by, write_json
from llmrec.errors import run_command
from llmrec.training.forward import add_labelled_forward
from llmrec.training.objectives.cross_entropy import negative_log_likelihood
from llmrec.training.sid_rows import multiply_few_rows

SIDES = {"labelled": ("lora", "rows"), "stock": ("lora", "rows", "peft")}
PHASES = ("forward", "backward", "optimizer")
SID_ROWS = 768


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures, and write them where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["8x1", "512x4"], help="tokens x layers")
    parser.add_argument("--vocab", type=int, default=152_704, help="rows of the table, SID rows included")
    parser.add_argument("--hidden", type=int, default=1024, help="dim")
    parser.add_argument("--heads", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=2, help="processes a side")
    parser.add_argument("--steps", type=int, default=2, help="timed steps a process, behind one that is not")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", nargs=3, metavar=("SHAPE", "HEAD", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.side:
        print(json.dumps(measure(options, *options.side)))
        return
    figures = {"made_by": made_by(), "threads": torch.get_num_threads(), "rows": compare(options)}
    figures |= {name: getattr(options, name) for name in ("vocab", "hidden", "device", "dtype", "rounds", "steps")}
    for row in figures["rows"]:
        print(f"{row['shape']:>8} {row['head']:>9} {row['side']:>5} {row['step_ms']:9.1f} ms x {row['over_lora']:.2f} "
              f"{row['peak_mib']:9.1f} MiB x {row['memory_over_lora']:.2f}")  # fmt: skip
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, figures)


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a side: the least of its times, the greatest of its memory, and both over LoRA alone."""
    turns = [
        (shape, head, side)
        for _ in range(options.rounds)
        for shape in options.shapes
        for head in options.heads
        for side in SIDES[head]
    ]
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    own = [f"--{name}={getattr(options, name)}" for name in ("vocab", "hidden", "steps", "device", "dtype")]
    for turn in tqdm(turns, "sides"):
        command = [sys.executable, __file__, *own, "--side", *turn]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.setdefault(turn, []).append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for (shape, head, side), runs in found.items():
        times = {phase: min(ms for run in runs for ms in run[phase]) for phase in PHASES}
        step = min(sum(phases) for run in runs for phases in zip(*(run[phase] for phase in PHASES), strict=True))
        peak = max(run["peak_mib"] for run in runs)
        alone = rows[-1] if side == "rows" else rows[-2] if side == "peft" else None
        row = {"shape": shape, "head": head, "side": side, **{f"{phase}_ms": ms for phase, ms in times.items()}}
        row |= {"step_ms": step, "peak_mib": peak}
        row["over_lora"] = step / (alone or row)["step_ms"]
        row["memory_over_lora"] = peak / (alone or row)["peak_mib"]
        rows.append(row)
    return rows


def measure(options: argparse.Namespace, shape: str, head: str, side: str) -> dict[str, Any]:
    """Return ms of each phase of each step of one side, and its peak memory."""
    tokens, layers = map(int, shape.split("x"))
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model: Any = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=options.vocab, hidden_size=options.hidden, num_hidden_layers=layers,
                intermediate_size=3 * options.hidden, num_attention_heads=max(1, options.hidden // 64),
                num_key_value_heads=max(1, options.hidden // 128), head_dim=64 if options.hidden >= 64 else 32,
                tie_word_embeddings=True, use_cache=False,
            )
        )  # fmt: skip
    new = list(range(options.vocab - SID_ROWS, options.vocab)) if options.vocab > 2 * SID_ROWS else [3, 4, 5]
    model = get_peft_model(
        model.to(options.device, getattr(torch, options.dtype)),
        LoraConfig(
            r=16, target_modules="all-linear", task_type="CAUSAL_LM",
            trainable_token_indices=None if side == "lora" else {"embed_tokens": new},
        ),
    ).train()  # fmt: skip
    if side == "rows":
        multiply_few_rows(model)
    if head == "labelled":
        add_labelled_forward(model.get_base_model(), negative_log_likelihood)
    ids = torch.randint(options.vocab, (1, tokens + 1), generator=generator).to(options.device)
    ids[0, ::2] = new[0]
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-4)
    before = _memory(options.device)
    _forget_peak(options.device)
    times: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for step in range(options.steps + 1):
        clock = [_now(options.device)]
        if head == "labelled":
            places = torch.arange(tokens, device=ids.device)
            batch = {
                "input_ids": ids[:, :-1],
                "places": places,
                "targets": ids[0, 1:],
                "tasks": torch.zeros_like(places),
            }
            loss = model(**batch).losses.sum() / tokens
        else:
            loss = model(input_ids=ids[:, :-1], labels=ids[:, 1:]).loss
        clock.append(_now(options.device))
        loss.backward()
        clock.append(_now(options.device))
        optimizer.step()
        optimizer.zero_grad()
        clock.append(_now(options.device))
        del loss
        if step:
            for phase, start, stop in zip(PHASES, clock, clock[1:], strict=False):
                times[phase].append(1e3 * (stop - start))
    return {**times, "peak_mib": _memory(options.device, peak=True) - before}


def _now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def _forget_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _memory(device: str, *, peak: bool = False) -> float:
    """Return MiB that the process holds now, or held at most since `_forget_peak`."""
    if device != "cpu":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10


if __name__ == "__main__":
    run_command(main)
