"""Score a bundle on a dataset folder, with baselines beside it.

    python recipes/evaluate.py --model runs/office --dataset data/office --split test --ks 5 10 --num_beams 20 \
        --output runs/office_test.json

``--model`` is a folder or a hub id. Nothing but the bundle and the dataset folder is needed; items are matched by id.
``--baselines`` takes any of ``recipes/baselines.py``, with its flags (``--tune``, ``--settings``, ``--cache``,
``--embeddings``). ``--exclude_seen both`` gives a system a row with seen items kept and one without. Several processes
share the users out and write the same file as one; ``accelerate launch`` does for GPUs, torchrun everywhere:

    torchrun --nproc_per_node 8 recipes/evaluate.py --model runs/office --dataset data/office --output runs/test.json

--new_items, for a dataset that holds more items than the bundle: they are embedded as the bundle's were (or
--new_items FILE has the embeddings of all, and dense_text stands beside), get SIDs by its quantizer, and nothing is
trained. The metrics stand apart for new and for known targets too, and the baselines count no new item.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from accelerate import PartialState

from llmrec.baselines import ALL_BASELINES, BASELINES
from llmrec.baselines.fitting import score_baselines, without_rows
from llmrec.baselines.flags import add_baseline_flags, check_needs, data_to_fit, read_settings
from llmrec.data.folder import load_dataset
from llmrec.decoding.beam import SCORES
from llmrec.decoding.recommender import LLMRecommender, checked_device
from llmrec.errors import run_command
from llmrec.evaluation.bridge import CatalogBridge
from llmrec.evaluation.bundle_row import bundle_said
from llmrec.evaluation.flags import add_evaluation_flags, check_ks, rows_to_score, system_names
from llmrec.evaluation.leaks import embedding_leaks
from llmrec.evaluation.new_items import bring_new_items, by_target, format_new_items
from llmrec.evaluation.results import check_output, format_table
from llmrec.evaluation.scoring import Scoring
from llmrec.evaluation.sid_level import sid_labels
from llmrec.hub import load_bundle
from llmrec.launch import check_launch
from llmrec.registry import resolve

MODEL_BATCH_USERS = 8192
"""Rows that the model gets at a time: enough for many processes to share."""
PATIENCE = timedelta(days=7)
"""How long processes wait for the first one, which fits and tunes baselines; the default is minutes."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_evaluation_flags(parser)
    add_baseline_flags(parser)
    parser.add_argument("--model", required=True, help="bundle: a folder or a hub id")
    parser.add_argument("--revision", help="branch, tag or commit of a hub bundle")
    parser.add_argument("--name", help="of the model in the results (default: the last part of --model)")
    parser.add_argument("--num_beams", type=int, default=20)
    parser.add_argument("--score", choices=SCORES, default="full", help="what log-probabilities are taken over")
    parser.add_argument("--max_history", type=int, help="items that a prompt keeps (default: the bundle's)")
    parser.add_argument("--max_tokens_per_batch", type=int, default=16384, help="lower it when memory runs out")
    parser.add_argument("--unknown_items", choices=("error", "skip"), default="error", help="items not in the bundle")
    parser.add_argument("--new_items", nargs="?", const="", metavar="EMBEDDINGS", help="bring in new items untrained")
    parser.add_argument(
        "--baselines", nargs="*", help=f"of {' '.join(ALL_BASELINES)} (default: {' '.join(BASELINES)})"
    )
    args = parser.parse_args(argv)
    args.embeddings = args.embeddings or args.new_items or None
    if args.baselines is None:
        args.baselines = [*BASELINES, *["dense_text"] * bool(args.new_items)]
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Load, score, print and write."""
    check_launch()
    args = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    name = args.name or Path(args.model).resolve().name
    kinds = {baseline: resolve(baseline, ALL_BASELINES, "baseline") for baseline in args.baselines}
    given = read_settings(args.settings, args.baselines, flag="--baselines")
    check_output(args.output, system_names([name, *args.baselines], args.exclude_seen))
    check_needs(kinds, embeddings=args.embeddings)
    dataset = load_dataset(args.dataset)
    check_ks(args.ks, len(dataset.catalog))
    state = PartialState(cpu=args.device == "cpu", timeout=PATIENCE)
    main_process = state.is_main_process

    device = checked_device(state.device if state.num_processes > 1 else args.device)
    bundle, new = load_bundle(args.model, revision=args.revision, device=device), None
    if args.new_items is not None:
        bundle, new = bring_new_items(bundle, dataset, args.new_items or None, device=device)
    model = LLMRecommender.from_bundle(
        bundle,
        num_beams=args.num_beams,
        score=args.score,
        max_tokens_per_batch=args.max_tokens_per_batch,
        progress=main_process,
        across_processes=True,
    )
    if args.max_history is not None:
        model.form = replace(model.form, max_history=args.max_history)
    protocol = args.protocol or model.info.get("protocol") or dataset.default_protocol
    splits, rows = rows_to_score(dataset, protocol=protocol, split=args.split, limit_users=args.limit_users)
    table, retired = model.vocab.table, np.flatnonzero(model.vocab.retired)
    bridge = CatalogBridge(model, table.item_ids, dataset.catalog.item_ids, retired=retired)
    bridge.check(rows, unknown=args.unknown_items, k=max(args.ks), exclude_seen=bool(args.exclude_seen))
    data = data_to_fit(dataset, splits, kinds=kinds, embeddings=args.embeddings, device=str(device))
    data = data if new is None else without_rows(data, new.rows)

    scoring = Scoring(
        dataset, splits, rows, split=args.split, ks=args.ks, exclude_seen=args.exclude_seen,
        embeddings=args.embeddings, sequences=data.sequences, progress=main_process, timing=main_process,
    )  # fmt: skip
    leaks = None if args.embeddings is None else embedding_leaks(args.embeddings, dataset, splits)
    if main_process:  # it alone writes; the others wait where the model is asked
        score_baselines(scoring, kinds, data, args, given=given, leaks=leaks)
    found = scoring.add(
        bridge,
        name,
        items=bridge.items,
        labels=sid_labels(table, dataset.catalog.item_ids),
        batch_users=MODEL_BATCH_USERS,
        progress=False,
        **bundle_said(
            model, source=args.model, revision=args.revision, k=max(args.ks), unknown_items=args.unknown_items,
            dataset=dataset, splits=splits,
        ),
    )  # fmt: skip
    if new is not None:
        targets = np.array([row.target for row in rows])
        for result, evaluation in zip(scoring.results, scoring.evaluations, strict=True):
            result["by_target"] = by_target(evaluation.ranks, targets, new.rows, ks=args.ks)
        for row in found:
            among = new.among(model, dataset, rows, ks=args.ks, exclude_seen=row["exclude_seen"])
            row["new_items"] = {**new.figures, "among_new": among}
    if main_process:
        scoring.write(args.output)
        print("\n".join([format_table(scoring.results), *scoring.notes()]))
        if new is not None:
            print(f"\n{format_new_items(scoring.results, new)}")
        print(f"written to {args.output}")
    state.destroy_process_group()


if __name__ == "__main__":
    run_command(main)
