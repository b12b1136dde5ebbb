"""The page of a table of trainings, as markdown."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmrec.evaluation.grid_tables import markdown_table, mean_and_spread
from llmrec.training.ablation import SPLITS, AblationConfig

SHOWN = ("kept", "excluded")


def row_text(row: Mapping[str, Any], split: str) -> str:
    """Return what a terminal says of a row: its metrics on a split, seen items kept where that was measured."""
    found = row["metrics"][split]
    metrics = found[next(key for key in SHOWN if key in found)]
    said = [f"{key} {value:.4f}" for key, value in metrics.items()]
    if "loss" in row:
        said.append(f"{row['loss']['nats']:.3f} nats a SID")
    return f"{split}: {', '.join(said)}"


def ablation_markdown(table: AblationConfig, rows: Sequence[Mapping[str, Any]], *, command: str) -> str:
    """Return the page: a line a variant in the order of the config, means over seeds, and what each line sets.

    Args:
        table: the config.
        rows: as `run_row` returns them.
        command: that makes them.
    """
    groups = {variant.name: [row for row in rows if row["name"] == variant.name] for variant in table.variants}
    groups = {name: found for name, found in groups.items() if found}
    text = [
        f"# {table.title}\n",
        f"Written by `{command}`; `{Path(table.results).name}` beside it holds all figures, settings and versions. "
        f"Each row is `{table.config}` with what stands at the end.\n",
    ]
    if table.notes:
        text.append(f"{table.notes.strip()}\n")
    if not groups:
        return "\n".join([*text, "No row is finished yet.\n"])
    for split in SPLITS:
        scored = {name: [row for row in found if split in row["metrics"]] for name, found in groups.items()}
        scored = {name: found for name, found in scored.items() if found}
        if scored:
            text += [f"## {_heading(split, scored)}\n", _table(table, split, scored), ""]
    text += ["## Cost\n", _cost(groups), ""]
    text += ["## What each row sets\n", *_settings(table), ""]
    missing = [variant.name for variant in table.variants if variant.name not in groups]
    if missing:
        text.append(f"Not trained yet: {', '.join(missing)}.\n")
    hardware = sorted({row["made_by"]["hardware"] for row in rows})
    return "\n".join([*text, f"Hardware: {'; '.join(hardware)}."]) + "\n"


def _heading(split: str, groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    users = sorted({row["users"][split] for found in groups.values() for row in found})
    return f"{'Validation' if split == 'valid' else 'Test'}, {' or '.join(f'{count:,}' for count in users)} rows"


def _table(table: AblationConfig, split: str, groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    metrics = [f"{name}@{k}" for k in table.evaluate.ks for name in ("recall", "ndcg")]
    any_row = next(iter(groups.values()))[0]
    shown = [key for key in SHOWN if key in any_row["metrics"][split]]
    loss = split == "valid" and any("loss" in row for found in groups.values() for row in found)
    lines = []
    for name, rows in groups.items():
        cells = [
            mean_and_spread([row["metrics"][split][key][metric] for row in rows], ".4f")
            for key in shown
            for metric in metrics
        ]
        if loss:
            cells.append(mean_and_spread([row["loss"]["nats"] for row in rows if "loss" in row], ".3f"))
        lines.append([name, str(len(rows)), *cells])
    names = {"kept": "", "excluded": ", seen left out"}
    head = ["", "seeds", *(f"{metric}{names[key]}" for key in shown for metric in metrics)]
    return markdown_table([*head, *(["nats a SID"] if loss else [])], lines)


def _cost(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = []
    for name, rows in groups.items():
        steps = [row["steps"] for row in rows if row["steps"] is not None]
        costs = [row["cost"]["training"] for row in rows if row["cost"]["training"] is not None]
        minutes = [[cost[kind] / 60 for cost in costs] for kind in ("seconds", "processor_seconds")]
        stored = statistics.fmean(row["stored_parameters"] for row in rows)
        lines.append(
            [
                name,
                f"{stored:,.0f}",
                f"{statistics.fmean(steps):,.0f}" if steps else "-",
                *(f"{statistics.fmean(values):.1f}" if values else "-" for values in minutes),
            ]
        )
    return markdown_table(["", "parameters stored", "steps", "minutes", "of the processor"], lines)


def _settings(table: AblationConfig) -> list[str]:
    lines = []
    if table.settings:
        lines.append(f"- all rows: {_said(table.settings)}")
    return [
        *lines,
        *(f"- {variant.name}: {_said(variant.settings) or 'as the config says'}" for variant in table.variants),
    ]


def _said(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}: {value}`" for key, value in settings.items())
