"""A table of trainings that differ in what is named: train each variant, score it, one table.

    python recipes/ablate.py --config recipes/configs/office/grid_smollm2-6l_alignment.yaml

A killed table goes on where it stood when it is started again: what is trained or scored is not done twice, and a run
half trained goes on from its checkpoint. ``--only "from scratch"`` and ``--seeds 0`` make a part, ``--dry_run``
checks and prints the runs. Rows are scored on validation; ``--test`` opens test, once all of them are trained.
"""

import argparse
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from llmrec.artifacts import whole_file, write_json
from llmrec.errors import InputError, run_command
from llmrec.evaluation.jobs import Outcome, Scripts, run_tasks
from llmrec.training.ablation import AblationConfig, Run, parse_run, run_row, score_run, train_run
from llmrec.training.ablation_page import ablation_markdown, row_text

RECIPES = Path(__file__).resolve().parent


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="YAML of a table of trainings")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants to train (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", help="(default: those of the config)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each unless OMP_NUM_THREADS")
    parser.add_argument("--limit_minutes", type=float, help="start no run that would end later, by the longest so far")
    parser.add_argument("--test", action="store_true", help="score test too, once all rows are scored on validation")
    parser.add_argument("--dry_run", action="store_true", help="check and print the runs, and write nothing")
    return parser.parse_args(argv)


def write_table(table: AblationConfig, seeds: Sequence[int], *, command: str) -> str:
    """Write the rows that are there, of all variants, and return the page."""
    rows = [run_row(run) for run in table.runs(seeds=seeds) if run.is_done("valid")]
    results = Path(table.results)
    write_json(results, {"title": table.title, "config": table.config, "rows": rows})
    text = ablation_markdown(table, rows, command=command)
    with whole_file(results.with_suffix(".md")) as part:
        part.write_text(text, encoding="utf-8")
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Check all runs, train and score those that are missing, then open test where it is asked for."""
    args = parse(argv)
    if args.jobs < 1:
        raise InputError(f"--jobs {args.jobs}: at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.set_num_threads(1)
    table = AblationConfig.load(args.config)
    runs, seeds = table.runs(only=args.only, seeds=args.seeds), sorted({*table.seeds, *(args.seeds or ())})
    for run in runs:
        parse_run(run)
    command = shlex.join(["python", "recipes/ablate.py", "--config", args.config])
    done = sum(run.is_done("valid") for run in runs)
    print(f"{len(runs)} runs, {done} of them finished in {table.work}", flush=True)
    if args.dry_run:
        print("\n".join(f"  {run.name}: {run.folder}" for run in runs))
        return
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    scripts, lock = Scripts({"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}), threading.Lock()
    begun = time.monotonic()

    def work(run: Run, split: str) -> None:
        train_run(run, scripts=scripts, recipes=RECIPES)
        score_run(run, split, scripts=scripts, recipes=RECIPES)
        with lock:
            print(f"{run.name}: {row_text(run_row(run), split)}", flush=True)
            write_table(table, seeds, command=command)

    def each(split: str) -> Outcome[Run]:
        todo = [run for run in runs if not run.is_done(split)]
        left = None if args.limit_minutes is None else begun + 60 * args.limit_minutes - time.monotonic()
        return run_tasks(todo, lambda run: work(run, split), jobs=args.jobs, max_seconds=left, stop=scripts.stop)

    outcome = each("valid")
    if args.test and not outcome.left and not outcome.failed:
        outcome = each("test")
    print(f"\n{write_table(table, seeds, command=command)}\nwritten to {Path(table.results).with_suffix('.md')}")
    if outcome.left:
        print(f"{len(outcome.left)} runs were not started for want of time; the same command makes them")
    if outcome.failed:
        failures = "; ".join(f"{run.name}: {why}" for run, why in outcome.failed)
        raise InputError(f"{len(outcome.failed)} runs failed: {failures}")


if __name__ == "__main__":
    run_command(main)
