"""What an objective costs a training step: each beside cross-entropy, in turn, on the same batches.

python tests/benchmarks/bench_objectives.py --dataset data/beauty --sids runs/sids-beauty --batch 32 --steps 12

Processor seconds of forward, backward and AdamW of small-qwen3 (hidden 128, 4 layers) from scratch on one thread; the
teacher of `distillation` is another model of the same shape. Medians over the steps, after two that are not counted.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from llmrec.artifacts import versions
from llmrec.errors import run_command
from llmrec.hub import save_bundle
from llmrec.training.collator import LabelledCollator
from llmrec.training.config import RecipeArguments
from llmrec.training.examples import encode_sequences
from llmrec.training.forward import add_labelled_forward
from llmrec.training.inputs import load_inputs
from llmrec.training.model import prepare_model
from llmrec.training.objectives.base import Objective, ObjectiveContext
from llmrec.training.objectives.methods import build_objective

ASKED = {
    "cross_entropy": {},
    "apao": {},
    "legal_children": {},
    "legal_children, mixed": {"full": 0.5},
    "level_smoothing": {},
    "level_smoothing, children": {"over": "children"},
    "distillation": {"teacher": None},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Time the objectives and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--dataset", default="data/beauty")
    parser.add_argument("--sids", default="runs/sids-beauty")
    parser.add_argument("--batch", type=int, default=32, help="users a step")
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    arguments = RecipeArguments(dataset=args.dataset, sids=args.sids, model="small-qwen3", text_vocab_size=512)
    inputs = load_inputs(arguments)
    dataset, splits, table, popularity, form = inputs.values()
    prepared = prepare_model(arguments, table, dataset.catalog, seed=0, popularity=popularity)
    tokenizer, vocab = prepared.tokenizer, prepared.vocab
    context = ObjectiveContext(vocab, tokenizer)
    rows = encode_sequences(splits.sequences, tokenizer=tokenizer, vocab=vocab, max_history=form.max_history)
    collate = LabelledCollator(cast(int, tokenizer.pad_token_id))
    long_enough = [row for _, row in zip(range((args.steps + 2) * args.batch), rows, strict=False)]
    starts = range(0, len(long_enough), args.batch)
    batches = [collate([{**row, "task": 0} for row in long_enough[start : start + args.batch]]) for start in starts]
    model = cast(PreTrainedModel, prepared.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    seconds: dict[str, list[float]] = {name: [] for name in ASKED}
    with tempfile.TemporaryDirectory() as folder:
        info = {
            "dataset": {"name": dataset.name, "licence": "-", "source": "-"}, "protocol": splits.protocol, "seed": 0,
            "prompt": form.to_dict(), "base_model": "small-qwen3", "method": "full", "vocab_rows": prepared.vocab_rows,
        }  # fmt: skip
        save_bundle(Path(folder) / "teacher", model=model, tokenizer=tokenizer, table=table, info=info)
        objectives: dict[str, Objective] = {}
        for name, given in ASKED.items():
            told = {"teacher": str(Path(folder) / "teacher")} if "teacher" in given else given
            objectives[name] = build_objective(name.split(",")[0], told, context=context)
        chosen = [next(iter(objectives.values()))]
        add_labelled_forward(model, lambda labelled, head: chosen[0](labelled, head), vocab=vocab)
        model.train()
        for number, batch in enumerate(batches):
            for name, objective in objectives.items():
                chosen[0] = objective
                began = time.process_time()
                optimizer.zero_grad()
                model(**batch).losses.mean().backward()
                optimizer.step()
                if number >= 2:
                    seconds[name].append(time.process_time() - began)
    labels = statistics.mean(len(cast(torch.Tensor, batch["targets"])) for batch in batches)
    print(f"{args.batch} users a step, {labels:.0f} labels, {prepared.vocab_rows} rows; {json.dumps(versions())}")
    plain = statistics.median(seconds["cross_entropy"])
    for name, values in seconds.items():
        took = statistics.median(values)
        print(
            f"{name:28} {1000 * took:8.1f} ms  {took / plain:5.2f} times cross-entropy  {1000 * (took - plain):+7.1f}"
        )


if __name__ == "__main__":
    run_command(main)
