"""Score baselines on a dataset folder, as they come, with settings given by hand, or tuned on validation.

    python recipes/baselines.py --dataset data/office --names popularity item_knn transitions \
        --protocol leave_one_out --split test --ks 5 10 --output runs/office_baselines.json
    python recipes/baselines.py --dataset data/office --names ease transition_graph --tune --cache runs/baselines \
        --embeddings data/office/embeddings.safetensors --output runs/office_tuned.json

``--save`` keeps one, as rewards of recipes/grpo.py read it. With ``--exclude_seen both`` each system has a row with
seen items kept and one without, each with its own tuning. Baselines are fitted on training interactions alone. A name
may also be ``package.module:Class`` of your own. What was tuned or fitted under the same code, settings and data is
taken from ``--cache``.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmrec.baselines import ALL_BASELINES, BASELINES
from llmrec.baselines.base import CONFIG_NAME
from llmrec.baselines.fitting import score_baselines
from llmrec.baselines.flags import add_baseline_flags, check_needs, data_to_fit, read_settings
from llmrec.baselines.neural_scoring import SequenceScorer
from llmrec.baselines.neural_vectors import export_item_vectors
from llmrec.data.folder import load_dataset
from llmrec.errors import InputError, run_command
from llmrec.evaluation.flags import add_evaluation_flags, check_ks, rows_to_score, system_names
from llmrec.evaluation.leaks import embedding_leaks
from llmrec.evaluation.results import check_output, format_table
from llmrec.evaluation.scoring import Scoring
from llmrec.launch import checked_device
from llmrec.registry import resolve


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_evaluation_flags(parser)
    add_baseline_flags(parser)
    parser.add_argument("--names", nargs="+", default=list(BASELINES), help=f"of {' '.join(ALL_BASELINES)}")
    parser.add_argument("--export_item_vectors", metavar="FILE", help="write the vectors of the one neural baseline")
    parser.add_argument("--save", metavar="FOLDER", type=Path, help="keep the one baseline, for rewards")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Fit or tune, score, print and write."""
    args = parse(argv)
    kinds: Mapping[str, type] = {name: resolve(name, ALL_BASELINES, "baseline") for name in args.names}
    given = read_settings(args.settings, args.names)
    check_output(args.output, system_names(args.names, args.exclude_seen))
    check_needs(kinds, embeddings=args.embeddings)
    if args.export_item_vectors and (len(kinds) > 1 or not issubclass(kinds[args.names[0]], SequenceScorer)):
        raise InputError("--export_item_vectors: give --names one neural baseline, such as sasrec")
    if args.save is not None:
        _check_save(args.save, kinds, tuned_twice=args.tune and args.exclude_seen == "both")
    device = str(checked_device(args.device))
    dataset = load_dataset(args.dataset)
    check_ks(args.ks, len(dataset.catalog))
    protocol = args.protocol or dataset.default_protocol
    splits, rows = rows_to_score(dataset, protocol=protocol, split=args.split, limit_users=args.limit_users)
    data = data_to_fit(dataset, splits, kinds=kinds, embeddings=args.embeddings, device=device)
    leaks = None if args.embeddings is None else embedding_leaks(args.embeddings, dataset, splits)

    scoring = Scoring(
        dataset,
        splits,
        rows,
        split=args.split,
        ks=args.ks,
        exclude_seen=args.exclude_seen,
        embeddings=args.embeddings,
    )
    models = score_baselines(scoring, kinds, data, args, given=given, leaks=leaks)
    if args.export_item_vectors:
        without = export_item_vectors(models[0], args.export_item_vectors, dataset=dataset, splits=splits)
        print(
            f"{args.export_item_vectors}: vectors of {len(dataset.catalog)} items, {without} of them not in training"
        )
    if args.save is not None:
        models[0].save_pretrained(args.save)
        print(f"{args.save}: {args.names[0]}, fitted on training interactions")
    scoring.write(args.output)
    print("\n".join([format_table(scoring.results), *scoring.notes()]))
    print(f"written to {args.output}")


def _check_save(folder: Path, kinds: Mapping[str, type], *, tuned_twice: bool) -> None:
    if len(kinds) > 1 or tuned_twice:
        raise InputError("--save: one baseline is kept; give one of --names, and with --tune one of --exclude_seen")
    ((name, kind),) = kinds.items()
    if not hasattr(kind, "save_pretrained"):
        raise InputError(f"--save: {name} has no save_pretrained, so it cannot be kept")
    if folder.exists() and not (folder / CONFIG_NAME).is_file():
        raise InputError(f"--save {folder}: it is there and is no baseline; choose another folder")


if __name__ == "__main__":
    run_command(main)
