"""Score counting baselines on a dataset folder.

    python recipes/baselines.py --dataset data/office --names popularity item_knn transitions \
        --protocol leave_one_out --split test --ks 5 10 --output runs/office_baselines.json

Baselines are fitted on training interactions alone. A name may also be ``package.module:Class`` of your own.
"""

import argparse
from collections.abc import Sequence

from llmrec.baselines import BASELINES
from llmrec.data.folder import load_dataset
from llmrec.errors import run_command
from llmrec.evaluation.evaluator import evaluate
from llmrec.evaluation.flags import add_evaluation_flags, check_ks, rows_to_score
from llmrec.evaluation.results import check_output, format_table, result_row, write_results
from llmrec.registry import resolve


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_evaluation_flags(parser)
    parser.add_argument("--names", nargs="+", default=list(BASELINES), help=f"default: {' '.join(BASELINES)}")
    args = parser.parse_args(argv)

    baselines = {name: resolve(name, BASELINES, "baseline") for name in args.names}
    check_output(args.output, args.names)
    dataset = load_dataset(args.dataset)
    items = len(dataset.catalog)
    check_ks(args.ks, items)
    protocol = args.protocol or dataset.default_protocol
    splits, rows = rows_to_score(dataset, protocol=protocol, split=args.split, limit_users=args.limit_users)

    evaluations = []
    for name, baseline in baselines.items():
        fitted = baseline().fit(splits.sequences, items=items)
        evaluations.append(evaluate(fitted, rows, items=items, ks=args.ks, exclude_seen=args.exclude_seen, name=name))
    results = [
        result_row(
            evaluation,
            dataset=dataset.name,
            split=args.split,
            protocol=protocol,
            exclude_seen=args.exclude_seen,
            train="recovered" if dataset.manifest.get("train") == "recovered" else None,
        )
        for evaluation in evaluations
    ]
    write_results(args.output, results, evaluations)
    print(format_table(results))
    print(f"written to {args.output}")


if __name__ == "__main__":
    run_command(main)
