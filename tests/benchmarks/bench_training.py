"""Measure training: all positions packed against one padded row a target, and a GPU against its own ceiling.

    python tests/benchmarks/bench_training.py --figure 1 --threads 2 --out recipes/results/training/figure_1.json
    python tests/benchmarks/bench_training.py --figure 5 --device cuda --out recipes/results/training/figure_5.json
    python tests/benchmarks/bench_training.py --figure 5 --shape tiny --lines 1 --pack_length 64 --steps 2

1  supervised targets a second, forward, backward and AdamW, batches made on the way: a user's whole history in one
   row, packed, against the peers' form (tests/reference/peer_training.py), padded in random batches and in batches of
   like lengths, each at two batch sizes. One model, one head that is multiplied where labels stand, one optimiser; the
   sides take turns, and medians over the turns are compared. Then both forms train on the same targets, and the loss
   on held-out rows is compared at equal numbers of targets seen, over several seeds; the peers' once with the same
   targets in each step, and once shuffled.
5  tokens a second of bfloat16 training at the shape of Qwen3-0.6B (random weights), rows packed into lines of 2,048
   tokens, and model FLOPs over what a matrix multiplication reaches on the same device. Attention counts the pairs of
   tokens that see each other, no more; nothing is counted twice where a kernel computes it twice.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, set_seed

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference.peer_training import padded, random_batches, sorted_batches, target_rows

from llmrec.artifacts import made_by, read_json, write_json
from llmrec.errors import InputError, run_command
from llmrec.tasks.prompt import start_token_id
from llmrec.training.collator import LabelledCollator
from llmrec.training.config import RecipeArguments
from llmrec.training.examples import encode_sequences
from llmrec.training.forward import add_labelled_forward
from llmrec.training.inputs import load_inputs
from llmrec.training.model import prepare_model
from llmrec.training.objectives.cross_entropy import negative_log_likelihood

Row = dict[str, Any]
Batch = dict[str, Any]

SHAPES = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 8, "intermediate_size": 64, "vocab_size": 600},
    "qwen3-0.6b": {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
                   "head_dim": 128, "intermediate_size": 3072, "vocab_size": 152704},
}  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=int, choices=(1, 5), default=1)
    parser.add_argument("--out", type=Path, help="JSON file (default: print alone)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dataset", default="data/beauty", help="of figure 1")
    parser.add_argument("--sids", default="runs/sids-beauty", help="of figure 1")
    parser.add_argument("--model", default="small-qwen3", help="of figure 1, built from its config")
    parser.add_argument("--max_history", type=int, default=20)
    parser.add_argument("--users", type=int, default=64, help="rows of a packed batch, figure 1")
    parser.add_argument(
        "--turns",
        type=int,
        default=7,
        help="times that each side is measured, figure 1; 0: not, and what the file holds stays",
    )
    parser.add_argument("--turn_seconds", type=float, default=4.0, help="least length of a turn")
    parser.add_argument(
        "--curve_users",
        type=int,
        default=2000,
        help="users that the loss curves train on; 0: none, and what the file holds stays",
    )
    parser.add_argument("--curve_epochs", type=int, default=3)
    parser.add_argument("--curve_seeds", type=int, default=2)
    parser.add_argument("--held_out", type=int, default=1000, help="validation rows of the curves")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu", help="of figure 5")
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b", help="of figure 5")
    parser.add_argument("--attention", default="sdpa", help="of figure 5: sdpa or flash_attention_2")
    parser.add_argument("--pack_length", type=int, default=2048, help="tokens of a line, figure 5")
    parser.add_argument("--lines", type=int, default=16, help="of a step, figure 5")
    parser.add_argument("--row_tokens", type=int, nargs=2, default=(64, 512), help="least and most of a row, figure 5")
    parser.add_argument("--steps", type=int, default=10, help="timed steps, figure 5")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, figure 5")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    found = {1: figure_1, 5: figure_5}[args.figure](args)
    said = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    for part in found.values():
        part |= {"settings": said, "made_by": made_by(), "threads": args.threads}
        for row in part.get("rows", ()):
            print("  ".join(f"{name} {_short(value)}" for name, value in row.items()))
    if args.out:
        before = read_json(args.out, "figure") if args.out.is_file() else {}
        write_json(args.out, {**before, "figure": args.figure, **found})


# Figure 1


def figure_1(args: argparse.Namespace) -> Row:
    """Time the sides in turns, then train both on the same targets."""
    arguments = RecipeArguments(
        dataset=args.dataset, sids=args.sids, model=args.model, text_vocab_size=512, residual_dropout=0.1,
        max_history=args.max_history,
    )  # fmt: skip
    inputs = load_inputs(arguments)

    def build(seed: int) -> Any:
        set_seed(seed)
        made = prepare_model(arguments, inputs.table, inputs.dataset.catalog, seed=seed, popularity=inputs.popularity)
        add_labelled_forward(made.model, negative_log_likelihood, vocab=made.vocab)
        return made

    made = build(args.seed)
    encode = {"tokenizer": made.tokenizer, "vocab": made.vocab, "max_history": args.max_history}
    start, pad = start_token_id(made.tokenizer), made.tokenizer.pad_token_id

    def whole_rows(sequences: Sequence[Sequence[int]]) -> list[Row]:
        return list(encode_sequences(sequences, **encode))

    def peer_rows(sequences: Sequence[Sequence[int]]) -> list[Any]:
        return target_rows(sequences, made.vocab.token_ids, start=start, max_history=args.max_history)

    sequences = [sequence for sequence in inputs.splits.sequences if len(sequence) > 1]
    ours, theirs = whole_rows(sequences), peer_rows(sequences)
    same = round(len(theirs) / len(ours) * args.users)  # rows of a peer's batch with as many targets as ours
    packed, lines = LabelledCollator(pad), LabelledCollator(pad, "padded")
    sides: dict[str, Iterator[Batch]] = {
        "all positions, packed": _endless(lambda seed: map(packed, random_batches(ours, args.users, seed))),
        "all positions, padded": _endless(lambda seed: map(lines, random_batches(ours, args.users, seed))),
    }
    for size in sorted({args.users, same}):
        for name, batches in (("random", random_batches), ("sorted by length", sorted_batches)):
            sides[f"row a target, {name}, batches of {size}"] = _endless(
                lambda seed, batches=batches, size=size: (padded(batch, pad) for batch in batches(theirs, size, seed))
            )
    found: Row = {}
    if args.turns:
        rows = take_turns(made.model, sides, args, levels=inputs.table.levels)
        for row in rows[1:]:
            row["ratio"] = rows[0]["targets_per_second"] / row["targets_per_second"]
        ratios = {
            name: min(row["ratio"] for row in rows[1:] if row["side"].startswith(f"row a target, {name}"))
            for name in ("random", "sorted by length")
        }
        print(f"all positions packed, over the faster of two batch sizes: {ratios}")
        found["speed"] = {
            "ratios": ratios,
            "rows": rows,
            "targets": len(theirs),
            "rows_of_all_positions": len(ours),
            "tokens_a_target": {
                "all positions": _tokens(ours) / len(theirs),
                "row a target": sum(len(ids) for ids, _ in theirs) / len(theirs),
            },
            "parameters": sum(value.numel() for value in made.model.parameters()),
        }
    if args.curve_users:
        few = sequences[:: max(1, len(sequences) // args.curve_users)][: args.curve_users]
        held = _held_out(inputs.splits.rows("valid"), args.held_out, made.vocab.token_ids, start, args.max_history)
        users = [(whole_rows([sequence]), peer_rows([sequence])) for sequence in few]
        found["curves"] = loss_curves(build, users, held, args, pad=pad)
        for name, less in found["curves"]["all_positions_less"].items():
            print(f"held-out loss, all positions less {name}: {less}")
    return found


def take_turns(
    model: PreTrainedModel, sides: dict[str, Iterator[Batch]], args: argparse.Namespace, *, levels: int
) -> list[Row]:
    """Time each side in turn, and return targets and tokens a second of each."""
    optimizer = _optimizer(model, args)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    work: dict[str, list[float]] = {name: [] for name in sides}
    filled: dict[str, list[float]] = {name: [] for name in sides}
    model.train()
    for batches in sides.values():  # warm up
        _step(model, optimizer, next(batches))
    for _ in tqdm(range(args.turns), "turns", disable=None):
        for name, batches in sides.items():
            targets, began, worked = 0.0, time.perf_counter(), time.process_time()
            while time.perf_counter() - began < args.turn_seconds:
                batch = next(batches)
                _step(model, optimizer, batch)
                targets += len(batch["targets"]) / levels
                real = batch["rows_of"] >= 0 if "rows_of" in batch else batch["attention_mask"]
                filled[name].append(float(real.float().mean()))
            speeds[name].append(targets / (time.perf_counter() - began))
            work[name].append(targets / (time.process_time() - worked))
    return [
        {
            "side": name,
            "targets_per_second": statistics.median(found),
            "least": min(found),
            "most": max(found),
            "targets_per_processor_second": statistics.median(work[name]),
            "share_of_tokens_that_are_real": statistics.mean(filled[name]),
        }
        for name, found in speeds.items()
    ]


def loss_curves(
    build: Callable[[int], Any],
    users: Sequence[tuple[list[Row], list[Any]]],
    held: list[Any],
    args: argparse.Namespace,
    *,
    pad: int,
) -> Row:
    """Train both forms on the same targets, and return held-out losses (nats a SID) at equal numbers seen.

    The peers' rows are taken twice: with the same targets in each step as the other form has, all those of some users,
    and shuffled as peers do, each step with targets of as many users as there is room for. They are packed here, to
    save time: no loss changes by it (tests/training/test_forward.py).

    Args:
        build: makes a model from a seed.
        users: rows of both forms, of each user.
        held: rows a target that are not trained on.
        args: ``users`` a step, ``curve_epochs``, ``curve_seeds`` and ``learning_rate``.
        pad: id of the padding token.
    """
    targets = [row for _, rows in users for row in rows]
    size = round(len(targets) / len(users) * args.users)
    packed = LabelledCollator(pad)
    sides: dict[str, Callable[[int], list[Batch]]] = {
        "all positions": lambda order: [
            packed([row for rows, _ in batch for row in rows]) for batch in random_batches(users, args.users, order)
        ],
        "row a target, the same targets a step": lambda order: [
            packed(_token_rows([row for _, rows in batch for row in rows]))
            for batch in random_batches(users, args.users, order)
        ],
        "row a target, shuffled": lambda order: [
            packed(_token_rows(batch)) for batch in random_batches(targets, size, order)
        ],
    }
    held_batches = [padded(batch, pad) for batch in sorted_batches(held, 250, 0)]
    found: dict[str, list[list[float]]] = {name: [] for name in sides}
    seen: dict[str, list[int]] = {}
    for seed in range(args.curve_seeds):
        for name, batches_of in sides.items():
            model = build(args.seed).model
            optimizer = _optimizer(model, args)
            set_seed(seed)
            losses, counts, count = [], [], 0
            for epoch in tqdm(range(args.curve_epochs), f"curve, {name}, seed {seed}", disable=None):
                batches = batches_of(1000 * seed + epoch)
                marks = {len(batches) // 2, len(batches)}
                for step, batch in enumerate(batches, start=1):
                    model.train()
                    _step(model, optimizer, batch)
                    count += len(batch["targets"])
                    if step in marks:
                        losses.append(_loss(model, held_batches))
                        counts.append(count)
            found[name].append(losses)
            seen[name] = counts
    means = {name: np.mean(runs, axis=0) for name, runs in found.items()}
    ours, *others = means
    return {
        "labels_seen": seen,
        "held_out_loss": found,
        "all_positions_less": {name: (means[ours] - means[name]).tolist() for name in others},
        "spread_between_seeds": {name: np.ptp(runs, axis=0).tolist() for name, runs in found.items()},
        "targets_an_epoch": len(targets),
        "held_out_rows": len(held),
    }


def _held_out(rows: Sequence[Any], count: int, sid_tokens: Any, start: int, max_history: int) -> list[Any]:
    chosen = rows[:: max(1, len(rows) // count)][:count]
    return [
        target_rows([[*row.items, row.target]], sid_tokens, start=start, max_history=max_history)[-1] for row in chosen
    ]


def _token_rows(batch: Sequence[Any]) -> list[Row]:
    return [
        {"input_ids": ids, "labels": [-100] * (len(ids) - learned) + ids[-learned:], "task": 0}
        for ids, learned in batch
    ]


def _loss(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    model.eval()
    with torch.inference_mode():
        losses = torch.cat([model(**batch).losses for batch in batches])
        rows = sum(len(batch["input_ids"]) for batch in batches)
    return float(losses.sum()) / rows


def _endless(epoch: Callable[[int], Any]) -> Iterator[Batch]:
    return itertools.chain.from_iterable(epoch(seed) for seed in itertools.count())


def _tokens(rows: Sequence[Row]) -> int:
    return sum(len(row["input_ids"]) for row in rows)


def _optimizer(model: PreTrainedModel, args: argparse.Namespace) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=args.learning_rate, fused=True)


def _step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    losses = model(**batch).losses
    (losses.sum() / len(losses)).backward()
    optimizer.step()
    optimizer.zero_grad()


# Figure 5


def figure_5(args: argparse.Namespace) -> Row:
    """Train on lines of random rows, and compare with what a matrix multiplication reaches."""
    if args.row_tokens[1] > args.pack_length:
        raise InputError(
            f"--row_tokens {args.row_tokens}: the longest does not fit into --pack_length {args.pack_length}"
        )
    set_seed(args.seed)
    config = Qwen3Config(**SHAPES[args.shape], tie_word_embeddings=True, max_position_embeddings=args.pack_length)
    config._attn_implementation = args.attention
    with torch.device(args.device):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16).train()
    if args.checkpointing:
        model.gradient_checkpointing_enable()
    add_labelled_forward(model, negative_log_likelihood)
    layout = "flat" if args.attention.startswith("flash") else "packed"
    collator = LabelledCollator(0, layout, pack_length=args.pack_length)
    rng = np.random.default_rng(args.seed)
    batches = [_random_rows(rng, args, config.vocab_size) for _ in range(args.steps + 2)]
    optimizer = _optimizer(model, args)
    seconds, tokens, flops = [], [], []
    for rows in tqdm(batches, "steps", disable=None):
        batch = {name: value.to(args.device) if isinstance(value, torch.Tensor) else value
                 for name, value in collator(rows).items()}  # fmt: skip
        _wait(args.device)
        began = time.perf_counter()
        _step(model, optimizer, batch)
        _wait(args.device)
        seconds.append(time.perf_counter() - began)
        tokens.append(_tokens(rows))
        flops.append(model_flops(config, [len(row["input_ids"]) for row in rows], labels=len(batch["targets"])))
    seconds, tokens, flops = seconds[2:], tokens[2:], flops[2:]
    ceiling = matmul_ceiling(args.device)
    row = {
        "attention": args.attention,
        "layout": layout,
        "tokens_per_second": sum(tokens) / sum(seconds),
        "tokens_a_step": statistics.mean(tokens),
        "seconds_a_step": statistics.median(seconds),
        "model_flops_per_second": sum(flops) / sum(seconds),
        "ceiling_flops_per_second": ceiling,
        "utilisation": sum(flops) / sum(seconds) / ceiling,
        "peak_bytes": torch.cuda.max_memory_allocated() if args.device.startswith("cuda") else None,
    }
    device = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else args.device
    return {"gpu": {"rows": [row], "device": device, "torch": torch.__version__,
            "parameters": sum(value.numel() for value in model.parameters())}}  # fmt: skip


def _random_rows(rng: np.random.Generator, args: argparse.Namespace, vocab: int) -> list[Row]:
    """Draw rows until the lines are full."""
    rows, room = [], args.lines * args.pack_length
    while True:
        length = int(rng.integers(args.row_tokens[0], args.row_tokens[1] + 1))
        # First-fit decreasing fills lines to about 99 %; a little less is drawn, so that no line is added.
        if room - length < args.lines * args.row_tokens[0] // 2:
            return rows
        ids = rng.integers(1, vocab, length).tolist()
        rows.append({"input_ids": ids, "labels": [-100, *ids[1:]], "task": 0})
        room -= length


def model_flops(config: Qwen3Config, lengths: Sequence[int], *, labels: int) -> float:
    """Return what forward and backward need: two FLOPs a weight and token, thrice; attention of pairs that see."""
    inner = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (2 * inner + 2 * keys + 3 * config.intermediate_size)
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    body = config.num_hidden_layers * (layer * sum(lengths) + 2 * inner * pairs)
    return 6.0 * (body + config.hidden_size * config.vocab_size * labels)


def matmul_ceiling(device: str) -> float:
    """Return the FLOPs a second of the best of several square products in bfloat16."""
    size = 8192 if device.startswith("cuda") else 1024
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(10):
        _wait(device)
        began = time.perf_counter()
        for _ in range(5):
            left @ right
        _wait(device)
        best = max(best, 5 * 2.0 * size**3 / (time.perf_counter() - began))
    return best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_command(main)
