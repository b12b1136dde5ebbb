"""Trials of a sweep: each one's YAML, checked before any of them starts, run as a child, scored on validation."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from llmrec.artifacts import read_json, read_yaml, whole_file
from llmrec.data.folder import load_dataset
from llmrec.errors import InputError
from llmrec.evaluation.jobs import Scripts
from llmrec.hub.bundle import fetch_bundle
from llmrec.hub.info import CARD_FILE, INFO_FILE
from llmrec.sids.table import SIDTable
from llmrec.training.parser import parse_recipe
from llmrec.training.sweep import (
    SWEPT_RECIPES,
    Rung,
    SweepConfig,
    Trial,
)
from llmrec.training.sweep_ranges import settings_text


def trial_name(sweep: SweepConfig, trial: Trial, rung: Rung) -> str:
    """Return what a trial's folder is called: its number, and under halving the steps of its round."""
    return f"{trial.number:03d}" + (f"-{rung.max_steps}" if sweep.method == "halving" else "")


def trial_folder(sweep: SweepConfig, trial: Trial, rung: Rung) -> Path:
    """Return where a trial's model lies; its YAML and its log lie beside the folder."""
    return Path(sweep.output_dir) / "trials" / trial_name(sweep, trial, rung)


def trial_config(sweep: SweepConfig, trial: Trial, rung: Rung) -> dict[str, Any]:
    """Return the whole YAML of a trial: the recipe's config, the sweep's settings, what was drawn, and its folder."""
    config = {**read_yaml(sweep.config, "YAML of a recipe"), **sweep.settings, **trial.settings}
    config["output_dir"] = str(trial_folder(sweep, trial, rung))
    if rung.max_steps is not None:
        config["max_steps"] = rung.max_steps
    return config


def parse_trial(sweep: SweepConfig, trial: Trial, rung: Rung) -> tuple[Any, Any]:
    """Return a trial's settings as the recipe reads them.

    Raises:
        InputError: the recipe refuses them; the message names the trial and its settings.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(_yaml(trial_config(sweep, trial, rung)), encoding="utf-8")
        try:
            arguments, training = parse_recipe(["--config", str(path)], *SWEPT_RECIPES[sweep.recipe].kinds)
        except InputError as error:
            said = str(error).replace(f"--config {path}", sweep.config)
            raise InputError(f"trial {trial.number} ({settings_text(trial.settings)}): {said}") from error
    return arguments, training


def check_sweep(sweep: SweepConfig, trials: Sequence[Trial], *, progress: bool = True) -> dict[str, Any]:
    """Check every trial before the first starts, and say what identifies the sweep; nothing is written.

    Args:
        sweep: the sweep.
        trials: its draws.
        progress: whether to show a bar; a trial takes about half a second.

    Returns:
        What must be equal for a killed sweep to go on in its folder: the YAML of the recipe and of the sweep, and
        hashes of the dataset's files and of the SIDs.

    Raises:
        InputError: settings that the recipe refuses, validation that is off or does not measure the metric, a warm-up
            as long as the first round, a missing dataset, or SIDs of another catalogue.
    """
    first = sweep.rounds()[0]
    dataset, tables = None, {}
    for trial in tqdm(trials, desc="checking trials", unit="trial", disable=not progress, leave=False):
        arguments, training = parse_trial(sweep, trial, first)
        if dataset is None:
            dataset = load_dataset(arguments.dataset)
        if training.eval_strategy == "no":
            raise InputError(
                f"eval_strategy: no in {sweep.config}; validation chooses the winner, set it to steps or epoch"
            )
        measured = [f"{name}@{k}" for name in ("recall", "ndcg") for k in arguments.eval_ks]
        if sweep.metric not in measured:
            raise InputError(
                f"metric: {sweep.metric!r} is not what validation gives; choose one of {', '.join(measured)}, or "
                "another eval_ks under settings"
            )
        if training.push_to_hub:
            raise InputError(f"push_to_hub: true in {sweep.config}; every trial would be pushed, set it to false")
        training.check(arguments, items=len(dataset.catalog))
        if first.max_steps is not None and training.get_warmup_steps(first.max_steps) >= first.max_steps:
            raise InputError(
                f"trial {trial.number}: warmup_steps is {training.warmup_steps:g} and the first round ends after "
                f"{first.max_steps} steps, before the learning rate is reached; give a share such as 0.05, or more "
                "max_steps"
            )
        own = hasattr(arguments, "sids")
        sids = arguments.sids if own else arguments.model  # a bundle brings its own
        if sids not in tables:
            table = SIDTable.load(sids if own else fetch_bundle(sids, revision=arguments.model_revision))
            table.check_catalog(dataset.catalog.hash, path=sids)
            tables[sids] = table.hash
    base = {key: value for key, value in read_yaml(sweep.config, "YAML of a recipe").items() if key != "output_dir"}
    said = {
        key: value for key, value in asdict(sweep).items() if key not in ("config", "ranges", "output_dir", "jobs")
    }
    return {
        **said,
        "ranges": {key: spread.to_dict() for key, spread in sweep.ranges.items()},
        "base": base,
        "files": {} if dataset is None else dict(dataset.manifest.get("files", {})),
        "sid_hashes": tables,
    }


def run_trial(sweep: SweepConfig, trial: Trial, rung: Rung, *, scripts: Scripts, recipes: Path) -> dict[str, Any]:
    """Train a trial, or go on with one that was killed, and return its validation.

    Args:
        sweep: the sweep.
        trial: the draw.
        rung: how long it trains.
        scripts: runs the recipe.
        recipes: folder of the recipe's script.

    Returns:
        ``valid`` (the metrics), ``users`` (validation rows), and ``cost`` of this start; None where the model was
        finished before and only not yet on file.

    Raises:
        InputError: the recipe failed, with the end of its log, or the metric is no number.
    """
    folder = trial_folder(sweep, trial, rung)
    config, cost = folder.with_name(f"{folder.name}.yaml"), None
    if not (folder / CARD_FILE).is_file():
        with whole_file(config) as part:
            part.write_text(_yaml(trial_config(sweep, trial, rung)), encoding="utf-8")
        script = recipes / SWEPT_RECIPES[sweep.recipe].script
        log = folder.with_name(f"{folder.name}.log")
        cost = asdict(scripts.run(script, ["--config", str(config)], log=log))
    found = read_json(folder / INFO_FILE, "manifest of a bundle").get("metrics")
    row = next((row for row in found or () if row.get("split") == "valid"), None)
    score = (row or {}).get("metrics", {}).get(sweep.metric)
    if row is None or not isinstance(score, int | float) or not math.isfinite(score):
        raise InputError(f"{folder / INFO_FILE}: {sweep.metric} on validation is {score}, no number to choose by")
    return {"valid": row["metrics"], "users": row["users"], "cost": cost}


def score_command(sweep: SweepConfig, trial: Trial, rung: Rung, *, output: Path) -> list[str]:
    """Return the arguments of ``recipes/evaluate.py`` that score a trial's model on test as validation scored it."""
    arguments, training = parse_trial(sweep, trial, rung)
    protocol = ["--protocol", arguments.protocol] if arguments.protocol else []
    return [
        "--model", str(trial_folder(sweep, trial, rung)), "--dataset", arguments.dataset, *protocol, "--split", "test",
        "--ks", *map(str, arguments.eval_ks), "--num_beams", str(arguments.eval_beams), "--name", "winner",
        *(["--device", "cpu"] if training.use_cpu else []), "--output", str(output),
    ]  # fmt: skip


def _yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
