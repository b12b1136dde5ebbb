"""How held-out loss falls with parameters and with data: trainings by recipes/sft.py, and the laws fitted to them.

python recipes/scaling.py --config recipes/configs/office/scaling_small-qwen3_full.yaml

A run that is finished is not made again, and a study that was killed goes on where it stood. ``--max_minutes`` stops
in time, and what is there is fitted as far as it goes.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from llmrec.artifacts import made_by, read_json, read_yaml, whole_file, write_json
from llmrec.data.folder import DatasetFolder, load_dataset
from llmrec.errors import InputError, run_command
from llmrec.evaluation.jobs import Scripts, run_tasks
from llmrec.evaluation.scaling import ScalingConfig, ScalingRun, fit_axes, flags_of, measure_run
from llmrec.evaluation.scaling_page import scaling_markdown, scaling_svg
from llmrec.hub import load_bundle

ROOT = Path(__file__).resolve().parents[1]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="YAML of a scaling study")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each (default 1)")
    parser.add_argument("--max_minutes", type=float, help="start no run that would end later, by the longest so far")
    parser.add_argument("--samples", type=int, default=1000, help="of the bootstrap (default 1000)")
    parser.add_argument("--device", default="cpu", help="of trainings and scoring: cpu or cuda (default cpu)")
    return parser.parse_args(argv)


def make_run(
    study: ScalingConfig, run: ScalingRun, *, folder: Path, dataset: DatasetFolder, scripts: Scripts, device: str
) -> None:
    """Train, score every validation row, and leave both in the run's folder."""
    model = folder / "model"
    if not (folder / "cost.json").is_file():
        settings = {
            **run.settings, "dataset": study.dataset, "sids": study.sids, "seed": run.seed, "train_users": run.share,
            "output_dir": str(model), "use_cpu": device == "cpu",
        }  # fmt: skip
        train = ["--config", study.train, *flags_of(settings)]
        cost = scripts.run(ROOT / "recipes" / "sft.py", train, log=folder / "train.log")
        write_json(folder / "cost.json", asdict(cost))
    row, losses = measure_run(study, run, load_bundle(model, device=device), dataset=dataset)
    with whole_file(folder / "losses.parquet") as part:
        pq.write_table(pa.table({"nats": losses}), part)
    write_json(folder / "run.json", {**row, **read_json(folder / "cost.json", "cost"), "made_by": made_by()})


def main(argv: Sequence[str] | None = None) -> None:
    """Make the runs that are missing, fit, and write the figures."""
    args = parse(argv)
    if args.jobs < 1 or args.samples < 1:
        raise InputError(f"--jobs {args.jobs}, --samples {args.samples}: each at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.set_num_threads(1)
    study = ScalingConfig.load(args.config)
    dataset, config = load_dataset(study.dataset), read_yaml(study.train, "YAML of a training")
    folders = {run: run.folder(study.work, config=config) for run in study.runs()}
    todo = [run for run, folder in folders.items() if not (folder / "run.json").is_file()]
    print(f"{len(folders)} runs, {len(folders) - len(todo)} of them finished in {study.work}", flush=True)
    scripts = Scripts({"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})

    def work(run: ScalingRun) -> None:
        make_run(study, run, folder=folders[run], dataset=dataset, scripts=scripts, device=args.device)
        print(f"{run.name}: {read_json(folders[run] / 'run.json', 'run')['loss']:.4f} nats a SID", flush=True)

    limit = None if args.max_minutes is None else 60 * args.max_minutes
    outcome = run_tasks(todo, work, jobs=args.jobs, max_seconds=limit, stop=scripts.stop)
    done = [run for run, folder in folders.items() if (folder / "run.json").is_file()]
    rows = [{**read_json(folders[run] / "run.json", "run"), "axes": list(run.axes)} for run in done]
    losses = [pq.read_table(folders[run] / "losses.parquet")["nats"].to_numpy() for run in done]
    fits = fit_axes(rows, losses, samples=args.samples)

    results = Path(study.results)
    whole = {"dataset": dataset.name, "config": args.config, "made_by": made_by(), "runs": rows, "fits": fits}
    write_json(results, whole)
    columns = {row["name"]: values.astype(np.float32) for row, values in zip(rows, losses, strict=True)}
    with whole_file(results.with_suffix(".losses.parquet")) as part:
        pq.write_table(pa.table(columns), part)
    command = shlex.join(["python", "recipes/scaling.py", "--config", args.config])
    picture = results.with_suffix(".svg")
    page = {
        picture: scaling_svg(fits),
        results.with_suffix(".md"): scaling_markdown(
            rows, fits, title=f"Loss by parameters and data, on {dataset.name}", command=command, picture=picture.name
        ),
    }
    for path, text in page.items():
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")
    print(f"written to {results.with_suffix('.md')}")
    if outcome.left:
        print(f"{len(outcome.left)} runs were not started for want of time; the same command makes them")
    if outcome.failed:
        failures = "; ".join(f"{run.name}: {why}" for run, why in outcome.failed)
        raise InputError(f"{len(outcome.failed)} runs failed: {failures}")


if __name__ == "__main__":
    run_command(main)
