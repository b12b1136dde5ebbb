"""Search a recipe's settings: draw them, train each, choose on validation, and read test once, for the winner.

    python recipes/sweep.py --config recipes/configs/demo/sweep_tiny-qwen3_full.yaml

A killed sweep goes on where it stood when it is started again: finished trials are not trained twice, one half done
goes on from its checkpoint. ``--dry_run`` prints the trials, ``--no_test`` leaves test closed (a later start without
it opens it), ``--retry_failed`` starts failed trials anew.
"""

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from llmrec.artifacts import whole_file
from llmrec.errors import InputError, run_command
from llmrec.evaluation.jobs import Scripts, run_tasks
from llmrec.evaluation.results import read_results
from llmrec.training.sweep import Rung, SweepConfig, Trial
from llmrec.training.sweep_folder import SweepFolder
from llmrec.training.sweep_report import plan_text, sweep_markdown
from llmrec.training.sweep_trials import check_sweep, run_trial, score_command

RECIPES = Path(__file__).resolve().parent


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="YAML of a sweep")
    parser.add_argument("--output_dir", help="folder of the sweep (default: the YAML's)")
    parser.add_argument("--jobs", type=int, help="trials at a time, one thread each unless OMP_NUM_THREADS is set")
    parser.add_argument("--dry_run", action="store_true", help="check and print the trials, and write nothing")
    parser.add_argument("--no_test", action="store_true", help="stop when the winner is chosen")
    parser.add_argument("--retry_failed", action="store_true", help="start trials that failed anew")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the trials that are missing, choose the winner, open test for it, and write the report."""
    args = parse(argv)
    sweep = SweepConfig.load(args.config, jobs=args.jobs, output_dir=args.output_dir)
    trials = sweep.draw()
    identity = check_sweep(sweep, trials)
    print(plan_text(sweep, trials), flush=True)
    folder = SweepFolder(sweep, trials, identity)
    if args.dry_run:
        return

    # A child that ends because the sweep is stopped has not failed
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    scripts = Scripts({"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"})
    stopped, lock = threading.Event(), threading.Lock()

    def end(number: int, _: FrameType | None) -> None:
        stopped.set()
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)

    with folder.alone():
        folder = SweepFolder(sweep, trials, identity)  # as another start left it that has just ended
        folder.write()
        if args.retry_failed:
            print(f"{folder.forget_failures()} failed trials start anew")
        for rung in sweep.rounds() if folder.state["winner"] is None else ():
            tasks = [(trial, rung) for trial in folder.entrants(rung)]
            todo = [task for task in tasks if folder.find(*task) is None]
            bar = tqdm(total=len(tasks), initial=len(tasks) - len(todo), unit="trial", desc=f"round {rung.number + 1}")

            def work(task: tuple[Trial, Rung], bar: tqdm = bar) -> None:
                row: dict[str, Any]
                try:
                    row = run_trial(sweep, *task, scripts=scripts, recipes=RECIPES)
                except InputError as error:
                    if stopped.is_set():
                        raise
                    row = {"failed": str(error)}
                with lock:
                    folder.record(*task, row)
                    said = f"{sweep.metric} {row['valid'][sweep.metric]:.4f}" if "valid" in row else row["failed"]
                    bar.write(f"trial {task[0].number}: {said}")
                    bar.update()

            with bar:
                run_tasks(todo, work, jobs=sweep.jobs, stop=scripts.stop)
        winner = folder.choose()

        # Test: the choice is on file, and one file of results is all that is ever made
        results = folder.path / "test.json"
        if not results.is_file() and not args.no_test:
            score = score_command(sweep, winner, sweep.rounds()[-1], output=results)
            scripts.run(RECIPES / "evaluate.py", score, log=folder.path / "test.log")
            folder.note_test()
        test = read_results(results) if results.is_file() else None
        command = shlex.join(["python", "recipes/sweep.py", "--config", args.config])
        text = sweep_markdown(folder, command=command, test=test)
        with whole_file(folder.path / "sweep.md") as part:
            part.write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten to {folder.path / 'sweep.md'}")


if __name__ == "__main__":
    run_command(main)
