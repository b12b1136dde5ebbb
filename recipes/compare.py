"""Compare two systems user by user.

    python recipes/compare.py --a runs/office_test.ranks.parquet:office --b runs/office_test.ranks.parquet:popularity \
        --metric ndcg@10

Prints the mean difference ``a - b`` and its paired bootstrap interval.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from llmrec.artifacts import made_by, write_json
from llmrec.errors import run_command
from llmrec.evaluation.metrics import per_user
from llmrec.evaluation.results import check_same_rows, read_ranks
from llmrec.evaluation.significance import paired_bootstrap


def main(argv: Sequence[str] | None = None) -> None:
    """Read, resample, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--a", required=True, metavar="FILE[:NAME]", help="ranks of a system; NAME where FILE has several"
    )
    parser.add_argument("--b", required=True, metavar="FILE[:NAME]", help="ranks of the system to compare it with")
    parser.add_argument("--metric", default="ndcg@10", help="recall@K, ndcg@K or mrr@K (default: ndcg@10)")
    parser.add_argument("--samples", type=int, default=10_000, help="bootstrap samples (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--level", type=float, default=0.95, help="confidence (default: 0.95)")
    parser.add_argument("--output", help="JSON file for the interval")
    args = parser.parse_args(argv)

    a, b = (per_user(args.metric, read_ranks(source)) for source in (args.a, args.b))
    check_same_rows(args.a, args.b)
    interval = paired_bootstrap(a, b, samples=args.samples, seed=args.seed, level=args.level)
    print(f"{args.metric}  a {a.mean():.4f}  b {b.mean():.4f}  users {interval.users}")
    ends = f"{interval.low:+.4f} to {interval.high:+.4f}"
    verdict = "excludes" if interval.excludes_zero else "includes"
    print(f"a - b {interval.mean:+.4f}, {100 * interval.level:g} % interval {ends}: {verdict} zero")
    if args.output:
        what = {"a": args.a, "b": args.b, "metric": args.metric, "samples": args.samples, "seed": args.seed}
        means = {"mean_a": float(a.mean()), "mean_b": float(b.mean())}
        write_json(args.output, {**what, **means, **asdict(interval), "made_by": made_by()})


if __name__ == "__main__":
    run_command(main)
