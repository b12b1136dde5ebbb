"""What a bundle's folder says of its own making: training curves, settings, and the quality of its SIDs."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrec.artifacts import read_json
from llmrec.errors import InputError
from llmrec.evaluation.report_chart import Line, chart
from llmrec.evaluation.report_html import NOTHING, Cell, Markup, element, number_cell, section, table

STATE_FILE = "trainer_state.json"
RUN_FILE = "run.json"
SID_FILE = "sid_config.json"
SETTINGS = (
    "model", "method", "supervise", "protocol", "learning_rate", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_history", "seed",
)  # fmt: skip
"""Settings of a run that the page shows; ``run.json`` has all."""
LOSSES = {"loss": "training", "eval_loss": "validation"}


@dataclass(frozen=True)
class Making:
    """What one bundle says of how it was made.

    Args:
        name: as the report calls it.
        path: the folder.
        history: what the trainer logged, oldest first; empty where no checkpoint is left.
        best_step: the step whose weights were best on validation; None where the trainer did not choose.
        settings: of the run, from ``run.json``; empty where there is none.
        sids: what ``sid_config.json`` says; empty where there is none.
    """

    name: str
    path: Path
    history: Sequence[Mapping[str, float]] = field(repr=False)
    best_step: int | None
    settings: Mapping[str, Any] = field(repr=False)
    sids: Mapping[str, Any] = field(repr=False)


def read_making(name: str, path: str | Path) -> Making:
    """Read what a bundle's folder says of its making; what is missing there is empty.

    The trainer's log is that of the checkpoint with the most steps: it holds all before it.

    Args:
        name: as the report calls it.
        path: the folder that ``recipes/sft.py`` wrote.

    Raises:
        InputError: no such folder, or an unreadable file in it.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"bundle {name!r}: {path} is no folder; give --bundles NAME=FOLDER")
    steps = [
        (int(found[1]), child / STATE_FILE)
        for child in path.iterdir()
        if (found := re.fullmatch(r"checkpoint-(\d+)", child.name)) and (child / STATE_FILE).is_file()
    ]
    if (path / STATE_FILE).is_file():
        steps.append((-1, path / STATE_FILE))
    state = read_json(max(steps)[1], "trainer's log") if steps else {}
    history = state.get("log_history", [])
    if not isinstance(history, list) or not all(isinstance(entry, dict) and "step" in entry for entry in history):
        raise InputError(f"{max(steps)[1]}: no list 'log_history' of entries with a 'step'; train again")

    def read(file: str, what: str) -> Mapping[str, Any]:
        return read_json(path / file, what) if (path / file).is_file() else {}

    best = state.get("best_global_step")
    return Making(
        name, path, history, best or None, read(RUN_FILE, "description of a run"), read(SID_FILE, "settings of SIDs")
    )


def logged(making: Making, key: str) -> tuple[tuple[float, float], ...]:
    """Return ``(step, value)`` of all that the trainer logged under a key; what is not finite is left out."""
    return tuple(
        (float(entry["step"]), float(entry[key]))
        for entry in making.history
        if isinstance(entry.get(key), int | float) and math.isfinite(entry[key])
    )


def validation_metrics(makings: Sequence[Making]) -> list[str]:
    """Return the ranking metrics that any of the trainers logged on validation rows, such as ``ndcg@10``."""
    keys = [key for making in makings for entry in making.history for key in entry]
    return list(dict.fromkeys(key.removeprefix("eval_") for key in keys if re.fullmatch(r"eval_\w+@\d+", key)))


def training_section(makings: Sequence[Making], *, metrics: Sequence[str]) -> Markup | None:
    """Return training curves: losses, and each ranking metric that was watched on validation rows.

    Args:
        makings: of the bundles.
        metrics: those of the report, which are drawn when they were watched; all that were, when none of these was.

    Returns:
        The section; None where no bundle has a log.
    """
    watched = validation_metrics(makings)
    shown = [metric for metric in watched if metric in metrics] or watched
    figures = []
    losses = [
        Line(f"{making.name}, {what}", points)
        for making in makings
        for key, what in LOSSES.items()
        if (points := logged(making, key))
    ]
    if losses:
        figures.append(chart("Loss by step", losses, x="step", y="loss"))
    for metric in shown:
        lines = [Line(making.name, points) for making in makings if (points := logged(making, f"eval_{metric}"))]
        figures.append(chart(f"{metric} on validation rows by step", lines, x="step", y=metric))
    settings = [making for making in makings if making.settings]
    if not figures and not settings:
        return None
    best = [f"{making.name}: step {making.best_step}" for making in makings if making.best_step]
    keys = [key for key in SETTINGS if any(making.settings.get(key) not in (None, -1) for making in settings)]
    rows = [[making.name, *(_setting(making.settings.get(key)) for key in keys)] for making in settings]
    return section(
        "Training",
        element("div", *figures, class_="charts"),
        element("p", f"Best on validation rows: {'; '.join(best)}.") if best else None,
        table("Settings of the runs", ["model", *keys], rows) if rows else None,
        element(
            "p",
            "The validation metric is that of the rows which training watched, often a part of them: it is no result.",
            class_="small",
        )
        if figures
        else None,
        id_="training",
    )


def _setting(value: object) -> Cell:
    number = float(value) if isinstance(value, int | float) else None
    return Cell(NOTHING if value in (None, -1) else value, number, "text" if isinstance(value, str) else None)


def sid_quality_section(makings: Sequence[Making]) -> Markup | None:
    """Return the quality of the bundles' SIDs: collisions, and how each level's codes are used.

    Args:
        makings: of the bundles.

    Returns:
        The section; None where no bundle says it.
    """
    known = [making for making in makings if making.sids.get("quality")]
    if not known:
        return None
    collisions, levels = [], []
    for making in known:
        quality = making.sids["quality"]
        sizes = " \u00d7 ".join(map(str, making.sids.get("codebook_sizes", [])))
        before, after = quality.get("before", {}), quality.get("after", {})
        collisions.append([
            making.name, Cell(making.sids.get("method", NOTHING), kind="text"), Cell(sizes, kind="text"),
            number_cell(quality.get("items"), ",.0f"), number_cell(before.get("distinct"), ",.0f"),
            number_cell(before.get("collision_rate"), ".2%"), number_cell(after.get("collision_rate"), ".2%"),
            number_cell(after.get("items_sharing"), ".2%"), number_cell(after.get("largest_bucket"), ",.0f"),
        ])  # fmt: skip
        for number, level in enumerate(quality.get("levels", []), 1):
            levels.append([
                f"{making.name}, level {number}", number_cell(level.get("codebook_size"), ",.0f"),
                number_cell(level.get("used_share"), ".1%"), number_cell(level.get("perplexity"), ".1f"),
                number_cell(level.get("entropy_bits"), ".2f"),
                number_cell(level.get("conditional_entropy_bits"), ".2f"),
                number_cell(level.get("largest_bucket"), ",.0f"), number_cell(level.get("bucket_gini"), ".2f"),
            ])  # fmt: skip
    head = [
        "model", "method", "codes", "items", "distinct as learned", "collisions as learned", "collisions as written",
        "items that share", "largest bucket",
    ]  # fmt: skip
    of_levels = [
        "level", "codes", "used", "perplexity", "bits", "bits, prefix known", "fullest prefix", "Gini of prefixes"
    ]  # fmt: skip
    return section(
        "Semantic IDs",
        table("Collisions: items less distinct SIDs, over items", head, collisions),
        table("Levels: how the codes are used", of_levels, levels) if levels else None,
        id_="sids",
    )
