"""One bundle on many tasks: next item, cold start, search, denoising and titles, in the manner of RecIF-Bench.

    python recipes/suite.py --model runs/office-all --dataset data/office --output runs/office-suite.json
    python recipes/suite.py --model runs/office-all --control runs/office-all-random --dataset data/office \
        --tasks all --output recipes/results/tasks/office.json

``--tasks all`` asks every task that the bundle was trained on, as well as those of the suite. A task of items is
scored on those that ``hold_out_items`` left out of training; where none were, the row says ``trained``. ``--control``
scores a second bundle, such as one trained on SIDs of random codes, on the same examples, and gives the paired
differences.
``--new_items`` lets the dataset hold items that the bundle never saw, which are the cold starts then.
"""

import argparse
import logging
from collections.abc import Sequence
from typing import Any

from llmrec.artifacts import made_by, write_json
from llmrec.data.folder import PROTOCOLS, load_dataset
from llmrec.data.splits import SPLIT_NAMES
from llmrec.errors import InputError, run_command
from llmrec.evaluation.bundle_row import trained_as
from llmrec.evaluation.results import check_output
from llmrec.evaluation.task_suite import SUITE, SuiteBundle, format_suite, open_bundle, score_suite, suite_rows
from llmrec.launch import checked_device


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="bundle: a folder or a hub id")
    parser.add_argument("--control", help="another bundle, scored on the same examples")
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--output", required=True, help="results file (JSON)")
    parser.add_argument("--split", default="test", choices=SPLIT_NAMES[1:], help="rows to score (default: test)")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="how the split is made (default: the bundle's)")
    parser.add_argument(
        "--tasks", nargs="+", default=list(SUITE), help=f"names, or all (default: {' '.join(SUITE)}, and cold start)"
    )
    parser.add_argument(
        "--limit", type=int, default=1000, help="most examples a task, a sample (0: all; default: 1000)"
    )
    parser.add_argument("--ks", type=int, nargs="+", default=[1, 5, 10], help="cuts (default: 1 5 10)")
    parser.add_argument("--num_beams", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the samples and of what tasks draw (default: 0)")
    parser.add_argument("--new_items", action="store_true", help="give SIDs to items that the bundle does not know")
    parser.add_argument("--device", help="where the model runs (default: the GPU where there is one)")
    args = parser.parse_args(argv)
    if args.limit < 0 or args.num_beams < 1 or min(args.ks) < 1:
        raise InputError(
            f"--limit {args.limit}, --num_beams {args.num_beams}, --ks {args.ks}: at least 0, 1 and 1 each"
        )
    return args


def tasks_of(bundle: SuiteBundle, wanted: Sequence[str]) -> dict[str, Any]:
    """Return the tasks that are scored: those wanted, with the bundle's options where it was trained on them."""
    names = [*SUITE, *bundle.tasks] if list(wanted) == ["all"] else wanted
    return {name: bundle.tasks.get(name, 1.0) for name in dict.fromkeys(names)}


def main(argv: Sequence[str] | None = None) -> None:
    """Load, score, compare, print and write."""
    args = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    check_output(args.output, [])
    dataset = load_dataset(args.dataset)

    def opened(source: str) -> SuiteBundle:
        return open_bundle(
            source,
            dataset,
            protocol=args.protocol,
            device=checked_device(args.device),
            new_items=args.new_items,
            num_beams=args.num_beams,
            progress=True,
        )

    bundle = opened(args.model)
    tasks = tasks_of(bundle, args.tasks)
    settings = {"split": args.split, "seed": args.seed, "limit": args.limit or None, "ks": args.ks}
    said: dict[str, Any] = {
        "dataset": dataset.name,
        "catalog": dataset.catalog.hash,
        "protocol": bundle.splits.protocol,
        **settings,
        "num_beams": args.num_beams,
        "model": args.model,
        "trained_as": trained_as(bundle.info),
        "trained_with_seed": bundle.info.get("seed"),
        "held_out_items": len(bundle.held_out),
    }
    beside = None
    if args.control:
        control = opened(args.control)
        if control.held_out != bundle.held_out or control.splits.protocol != bundle.splits.protocol:
            raise InputError(
                f"--control {args.control}: it was trained with another protocol, or left other items out than "
                f"{args.model}; train both with the same protocol, seed and hold_out_items"
            )
        said |= {"control": args.control, "control_trained_as": trained_as(control.info)}
        said["control_sids"] = control.info["sids"]["method"]
        beside = score_suite(control, dataset, tasks, **settings)
    rows = suite_rows(score_suite(bundle, dataset, tasks, **settings), bundle, beside)
    write_json(args.output, {**said, "tasks": rows, "made_by": made_by()})
    print(f"{format_suite(rows)}\nwritten to {args.output}")


if __name__ == "__main__":
    run_command(main)
