"""Rebuild a published bundle from public data: import, embed, learn SIDs, train, evaluate, compare with the results.

    python recipes/bundle.py --config recipes/configs/office/sft_small-qwen3_full.yaml

`make bundle CONFIG=...` runs it. The steps stand in recipes/bundles.yaml, with the time that each takes. What an
earlier call made whole, by the same command and from the same inputs, is kept; a killed training goes on. Everything
lies in runs/bundles/. ``--show`` prints the commands and runs nothing.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from llmrec.errors import run_command
from llmrec.evaluation.rebuild import (
    bundle_name,
    check_sources,
    compare_results,
    format_comparison,
    format_times,
    read_plan,
    run_step,
    steps_to_run,
)

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the steps that are missing, then print times and metrics beside the published ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="YAML of recipes/configs, or a name of recipes/bundles.yaml")
    parser.add_argument("--bundles", default="recipes/bundles.yaml", help="file of steps (%(default)s)")
    parser.add_argument("--source", default="../shared/data", help="folder of public datasets (%(default)s)")
    parser.add_argument("--weights", default="weights", help="folder of pretrained weights (%(default)s)")
    parser.add_argument("--work", default="runs/bundles", help="folder to build in (%(default)s)")
    parser.add_argument("--again", action="store_true", help="run every step again")
    parser.add_argument("--show", action="store_true", help="print the commands and run nothing")
    args = parser.parse_args(argv)
    os.chdir(ROOT)  # paths are relative to the repository, as in every command
    places = {"work": args.work, "source": args.source, "weights": args.weights}
    plan = read_plan(args.bundles, bundle_name(args.config), places=places)
    if args.show:
        print("\n".join(step.command for step in plan.steps))
        return

    todo = steps_to_run(plan, again=args.again)
    check_sources(plan, todo)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    measured = {}
    for step in plan.steps:
        if step.name not in todo:
            print(f"{step.name}: kept, {step.makes} is whole and made by the same command", flush=True)
            continue
        stated = "never measured" if step.seconds is None else f"about {step.seconds / 60:.1f} minutes"
        print(f"\n{step.name}: {todo[step.name]}; {stated}\n$ {step.command}", flush=True)
        measured[step.name] = run_step(step)

    print(f"\n{plan.name}, seconds by the clock\n{format_times(plan.steps, measured)}")
    for step in plan.steps:
        if step.published:
            rows = compare_results(step.makes, step.published)
            print(f"\n{step.makes} beside {step.published}\n{format_comparison(rows)}")


if __name__ == "__main__":
    run_command(main)
