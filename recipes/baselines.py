"""Score baselines on a dataset folder, as they come, with settings given by hand, or tuned on validation.

    python recipes/baselines.py --dataset data/office --names popularity item_knn transitions \
        --protocol leave_one_out --split test --ks 5 10 --output runs/office_baselines.json
    python recipes/baselines.py --dataset data/office --names ease transition_graph --tune --cache runs/baselines \
        --embeddings data/office/embeddings.safetensors --output runs/office_tuned.json

Baselines are fitted on training interactions alone. A name may also be ``package.module:Class`` of your own. What was
tuned or fitted under the same code, settings and data is taken from ``--cache``.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmrec.baselines import ALL_BASELINES, BASELINES
from llmrec.baselines.context import FitContext, training_times
from llmrec.baselines.neural_scoring import SequenceScorer
from llmrec.baselines.neural_vectors import export_item_vectors
from llmrec.baselines.tuning import METRIC, FitData, fit_or_load, tune
from llmrec.data.folder import load_dataset
from llmrec.embeddings.store import load_embeddings, load_manifest
from llmrec.errors import InputError, run_command
from llmrec.evaluation.evaluator import evaluate
from llmrec.evaluation.flags import add_evaluation_flags, check_ks, rows_to_score
from llmrec.evaluation.profile import gather_facts, profile
from llmrec.evaluation.results import check_output, format_table, result_row, write_results
from llmrec.registry import resolve


def read_settings(text: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the settings of each baseline that ``--settings`` names."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f'--settings {text}: no JSON ({error}); write \'{{"ease": {{"l2": 100}}}}\'') from error
    if not isinstance(given, dict) or not all(isinstance(value, dict) for value in given.values()):
        raise InputError(f'--settings {text}: write an object of objects, \'{{"ease": {{"l2": 100}}}}\'')
    for name in given:
        if name not in names:
            raise InputError(f"--settings: {name!r} is not among --names {' '.join(names)}; name it there too")
    return given


def said_of_embeddings(path: str | None, kind: type) -> dict[str, Any] | None:
    """Return what a row says of the embeddings that its baseline was fitted with."""
    if path is None or "embeddings" not in getattr(kind, "needs", ()):
        return None
    manifest = load_manifest(path)
    return {key: manifest[key] for key in ("encoder", "revision", "sha256", "protocol") if key in manifest}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_evaluation_flags(parser)
    parser.add_argument("--names", nargs="+", default=list(BASELINES), help=f"of {' '.join(ALL_BASELINES)}")
    parser.add_argument("--settings", default="{}", help="JSON by name; with --tune they are not tuned")
    parser.add_argument("--tune", action="store_true", help="choose settings on validation by ndcg@10")
    parser.add_argument("--cache", type=Path, help="folder of fitted and tuned baselines (default: none)")
    parser.add_argument(
        "--embeddings", help="of the items: for baselines that read them, and for the diversity of lists"
    )
    parser.add_argument("--device", default="cpu", help="of neural baselines (default: cpu)")
    parser.add_argument("--export_item_vectors", metavar="FILE", help="write the vectors of the one neural baseline")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Fit or tune, score, print and write."""
    args = parse(argv)
    kinds: Mapping[str, type] = {name: resolve(name, ALL_BASELINES, "baseline") for name in args.names}
    given = read_settings(args.settings, args.names)
    check_output(args.output, args.names)
    if args.export_item_vectors and (len(kinds) > 1 or not issubclass(kinds[args.names[0]], SequenceScorer)):
        raise InputError("--export_item_vectors: give --names one neural baseline, such as sasrec")
    dataset = load_dataset(args.dataset)
    items = len(dataset.catalog)
    check_ks(args.ks, items)
    protocol = args.protocol or dataset.default_protocol
    splits, rows = rows_to_score(dataset, protocol=protocol, split=args.split, limit_users=args.limit_users)
    context = FitContext(
        embeddings=None if args.embeddings is None else load_embeddings(args.embeddings, catalog=dataset.catalog),
        timestamps=training_times(dataset, protocol),
        valid=splits.valid,
        device=args.device,
    )
    data = FitData(splits.sequences, items, context)
    facts = gather_facts(dataset, splits, rows, embeddings=args.embeddings)
    shared = {
        "dataset": dataset.name,
        "split": args.split,
        "protocol": protocol,
        "exclude_seen": args.exclude_seen,
        "train": "recovered" if dataset.manifest.get("train") == "recovered" else None,
    }

    evaluations, results = [], []
    cache = None if args.cache is None else args.cache / dataset.name
    for name, kind in kinds.items():
        settings, tuned = given.get(name, {}), None
        if args.tune:
            chosen_on = splits.rows("valid")[: args.limit_users]
            found = tune(kind, data, chosen_on, name=name, fixed=settings, exclude_seen=args.exclude_seen, cache=cache)
            model = found.model
            tuned = {"split": "valid", "by": METRIC, "chosen": found.settings, "trials": found.trials}
        else:
            model = fit_or_load(kind, settings, data, name=name, cache=cache)
        evaluation = evaluate(model, rows, items=items, ks=args.ks, exclude_seen=args.exclude_seen, name=name)
        evaluations.append(evaluation)
        settings = getattr(model, "settings", settings)
        row = result_row(
            evaluation,
            **shared,
            seed=settings.get("seed"),
            settings=settings or None,
            tuned=tuned,
            embeddings=said_of_embeddings(args.embeddings, kind),
        )
        results.append(row | profile(evaluation, facts))
        if args.export_item_vectors:
            without = export_item_vectors(model, args.export_item_vectors, dataset=dataset, splits=splits)
            print(f"{args.export_item_vectors}: vectors of {items} items, {without} of them not in training")
    write_results(args.output, results, evaluations)
    print(format_table(results))
    print(f"written to {args.output}")


if __name__ == "__main__":
    run_command(main)
