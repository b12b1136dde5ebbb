"""Fuse a bundle with baselines, or baselines with one another; the weights are chosen on validation.

    python recipes/fuse.py --model runs/office --dataset data/office --with transition_graph --method rrf \
        --embeddings data/office/embeddings.safetensors --cache runs/baselines --num_beams 50 \
        --split test --ks 5 10 --output runs/office_fused.json
    python recipes/fuse.py --dataset data/office --with ease transitions --output runs/office_counted.json

``rrf`` fuses by places in lists (reciprocal ranks); ``beam_fusion`` ranks the bundle's items by its own scores and
those of the baselines together. The file holds each part alone, then the fusion with all that was tried. The bundle
is searched once for validation and once for the rows that are scored.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.baselines import ALL_BASELINES
from llmrec.baselines.fitting import rows_for
from llmrec.baselines.flags import add_baseline_flags, check_needs, data_to_fit, fit_asked, read_settings
from llmrec.baselines.fusion import FUSIONS, check_depth
from llmrec.baselines.fusion_weights import tune_fusion
from llmrec.baselines.remembered import DEPTH
from llmrec.data.folder import load_dataset
from llmrec.decoding.beam import SCORES
from llmrec.decoding.recommender import LLMRecommender, checked_device
from llmrec.errors import InputError, run_command
from llmrec.evaluation.bridge import CatalogBridge
from llmrec.evaluation.bundle_row import bundle_said
from llmrec.evaluation.flags import add_evaluation_flags, check_ks, rows_to_score, system_names
from llmrec.evaluation.leaks import embedding_leaks
from llmrec.evaluation.results import check_output, format_table
from llmrec.evaluation.scoring import Scoring
from llmrec.registry import resolve

BATCH_USERS = 8192
"""Rows that a system gets at a time, for validation and for scoring alike."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, and refuse what cannot be fused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_evaluation_flags(parser)
    add_baseline_flags(parser)
    parser.add_argument("--model", help="bundle: a folder or a hub id; without one, baselines are fused")
    parser.add_argument("--revision", help="branch, tag or commit of a hub bundle")
    parser.add_argument("--name", help="of the model in the results (default: the last part of --model)")
    parser.add_argument("--with", dest="names", nargs="+", required=True, help=f"of {' '.join(ALL_BASELINES)}")
    parser.add_argument("--method", choices=list(FUSIONS), default="rrf", help="default: rrf")
    parser.add_argument("--depth", type=int, default=DEPTH, help=f"items asked of each part (default: {DEPTH})")
    parser.add_argument("--num_beams", type=int, default=50, help="at least --depth are searched (default: 50)")
    parser.add_argument("--score", choices=SCORES, default="full", help="what log-probabilities are taken over")
    parser.add_argument("--max_tokens_per_batch", type=int, default=16384, help="lower it when memory runs out")
    parser.add_argument("--unknown_items", choices=("error", "skip"), default="error", help="items not in the bundle")
    args = parser.parse_args(argv)
    if args.model is None and args.method == "beam_fusion":
        raise InputError("--method beam_fusion: it ranks by the scores of a model's beams; give --model, or use rrf")
    if args.model is None and len(args.names) < 2:
        raise InputError(f"--with {args.names[0]}: one part alone; name another baseline, or give --model")
    if args.depth < max(args.ks):
        raise InputError(f"--depth {args.depth}: lists of --ks {max(args.ks)} are made of it; at least {max(args.ks)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, choose weights on validation, score the parts and the fusion, print and write."""
    args = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    kinds = {name: resolve(name, ALL_BASELINES, "baseline") for name in args.names}
    given = read_settings(args.settings, args.names, flag="--with")
    check_needs(kinds, embeddings=args.embeddings)
    named = [] if args.model is None else [args.name or Path(args.model).resolve().name]
    fused_name = f"{' + '.join([*named, *args.names])} ({args.method})"
    check_output(args.output, system_names([*named, *args.names, fused_name], args.exclude_seen))
    dataset = load_dataset(args.dataset)
    check_ks(args.ks, len(dataset.catalog))

    device, model, systems, protocol = str(checked_device(args.device)), None, {}, args.protocol
    said: dict[str, dict[str, Any]] = {}
    if args.model is not None:
        model = LLMRecommender.from_pretrained(
            args.model, revision=args.revision, device=device, num_beams=args.num_beams, score=args.score,
            max_tokens_per_batch=args.max_tokens_per_batch, progress=True,
        )  # fmt: skip
        model.num_beams = max(args.num_beams, args.depth)
        protocol = protocol or model.info.get("protocol")
        retired = np.flatnonzero(model.vocab.retired)
        systems[named[0]] = CatalogBridge(model, model.vocab.table.item_ids, dataset.catalog.item_ids, retired=retired)
    protocol = protocol or dataset.default_protocol
    splits, rows = rows_to_score(dataset, protocol=protocol, split=args.split, limit_users=args.limit_users)
    data = data_to_fit(dataset, splits, kinds=kinds, embeddings=args.embeddings, device=device)
    valid = data.context.valid[: args.limit_users]  # with times where there are some, as some baselines read them
    scoring = Scoring(
        dataset, splits, rows, split=args.split, ks=args.ks, exclude_seen=args.exclude_seen, embeddings=args.embeddings
    )
    histories = [row.items for row in (*rows, *valid)]
    check_depth(args.depth, histories, items=len(dataset.catalog), exclude_seen=any(scoring.values))
    leaks = None if args.embeddings is None else embedding_leaks(args.embeddings, dataset, splits)
    if model is not None:
        said[named[0]] = bundle_said(
            model, source=str(args.model), revision=args.revision, k=args.depth, unknown_items=args.unknown_items,
            dataset=dataset, splits=splits,
        )  # fmt: skip

    for excluded in scoring.values:
        if model is not None:
            bridge = systems[named[0]]
            bridge.check([*rows, *valid], unknown=args.unknown_items, k=args.depth, exclude_seen=excluded)
        for name, kind in kinds.items():
            asked = {"settings": given.get(name, {}), "valid": valid, "exclude_seen": excluded}
            fitted = fit_asked(name, kind, data, args, dataset=dataset.name, **asked)
            systems[name] = fitted.model
            said[name] = {**fitted.said, "leaks": leaks if "embeddings" in fitted.said else None}
        fusion = FUSIONS[args.method](systems, depth=args.depth).remembering()
        tuned = tune_fusion(fusion, valid, exclude_seen=excluded)
        seconds = 0.0
        known = rows_for(scoring, [systems[name] for name in kinds])
        shared = {"only": excluded, "rows": known, "batch_users": BATCH_USERS}
        for name, part in tuned.fusion.parts.items():
            shown = scoring.add(part, name, items=part.items, **shared, **said[name])
            seconds += shown[0]["seconds"] * (name in tuned.fusion.listing)
        fused = tuned.said(said, model=next(iter(named), None))
        shown = scoring.add(tuned.fusion, fused_name, items=fusion.items, timed=False, **shared, **fused)
        # Its parts had answered before, so that its own time is that of joining their lists.
        shown[0]["seconds"] = round(shown[0]["seconds"] + seconds, 3)
    scoring.write(args.output)
    print("\n".join([format_table(scoring.results), *scoring.notes()]))
    print(f"chosen on validation: {scoring.results[-1]['fused']}")
    print(f"written to {args.output}")


if __name__ == "__main__":
    run_command(main)
