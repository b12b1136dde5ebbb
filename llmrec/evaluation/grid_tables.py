"""The tables of a grid of SID methods, as markdown."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmrec.evaluation.grid import SPLITS, GridConfig

METRICS = ("recall@10", "ndcg@10")
QUALITY_COLUMNS: tuple[tuple[str, tuple[str | int, ...], str], ...] = (
    ("collisions as learned", ("codes", "before", "collision_rate"), ".2%"),
    ("perplexity 1", ("codes", "levels", 0, "perplexity"), ".0f"),
    ("2", ("codes", "levels", 1, "perplexity"), ".0f"),
    ("3", ("codes", "levels", 2, "perplexity"), ".0f"),
    ("fullest first code", ("codes", "levels", 0, "largest_bucket"), ",.0f"),
    ("Gini", ("codes", "levels", 0, "bucket_gini"), ".2f"),
    ("error left", ("reconstruction", -1, "error_share"), ".1%"),
    ("near 1", ("neighbours", "prefixes", 0, "share"), ".1%"),
    ("2", ("neighbours", "prefixes", 1, "share"), ".1%"),
    ("bought 1", ("co_purchase", "prefixes", 0, "share"), ".1%"),
    ("2", ("co_purchase", "prefixes", 1, "share"), ".1%"),
    ("other seed", ("stability", "other seed", 0, "adjusted_mutual_information"), ".2f"),
    ("seconds", ("fit", "seconds"), ".1f"),
    ("MiB", ("fit", "peak_memory_mib"), ",.0f"),
)
"""Head, where the figure stands in a row's ``quality``, and its form."""
QUALITY_WORDS = """\
Means over seeds. *Collisions as learned*: items less distinct SIDs, over items, before SIDs were made unique.
*Perplexity* of the codes of levels 1, 2 and 3. *Fullest first code* and *Gini*: most items under one first code, and
how unequally items lie under them. *Error left*: mean squared distance of an embedding to what its codes reconstruct,
over that to the mean embedding; of the codes as written, so that moves that made SIDs unique count; a tree ends with a
centroid for every item. *Near*: of the 10 nearest items by text embedding, those with the same first code, or
first two. *Bought*: the same of items next to one another in training. *Other seed*: adjusted mutual information of
the first codes with those of the first seed. *Seconds* and *MiB* of fitting and encoding; the memory is that of the
process, libraries included.
"""
TRAINING_WORDS = """\
The same model and the same number of steps for all, the learning rate ending there; the last weights are scored, on
all rows of both splits, seen items kept. Mean ± standard deviation over seeds, each the seed of SIDs and model; the
best on validation first. Minutes of the longest run, training and scoring of the test split, by the clock and of the
processor, {where}. At most {minutes:g} minutes{unit} a run{over}.
"""


def mean_and_spread(values: Sequence[float], form: str) -> str:
    """Return the mean, with the standard deviation (of a sample) behind ``±`` where there are two values or more."""
    if not values:
        return "-"
    mean = format(statistics.fmean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(statistics.stdev(values), form)}"


def _at(rows: Sequence[Mapping[str, Any]], keys: Sequence[str | int]) -> list[float]:
    """Values under a path of keys, of the rows that have one."""
    found = []
    for row in rows:
        value: Any = row
        try:
            for key in keys:
                value = value[key]
        except (KeyError, IndexError, TypeError):  # a part that is left out is None or not there
            continue
        if value is not None:
            found.append(value)
    return found


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table as markdown, the first column to the left and the others to the right."""
    table = [list(head), ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def quality_markdown(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the table of SIDs by themselves: one line an entry, means over its seeds.

    Args:
        groups: rows of each entry, by its name.
    """
    lines = []
    for name, rows in groups.items():
        line = [name]
        for _, keys, form in QUALITY_COLUMNS:
            values = _at(rows, ("quality", *keys))
            line.append(format(statistics.fmean(values), form) if values else "-")
        lines.append(line)
    return markdown_table(["SIDs", *(head for head, _, _ in QUALITY_COLUMNS)], lines)


def run_minutes(row: Mapping[str, Any], kind: str) -> float:
    """Return the minutes of a row's training and scoring of the test split; ``kind`` is a field of `Cost`."""
    return sum(row["cost"][part][kind] for part in ("training", "test")) / 60


def training_markdown(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the table of models: one line an entry, the best on validation first.

    Args:
        groups: rows of each entry that have metrics, by its name.
    """
    columns = [(metric, split) for split in SPLITS for metric in METRICS]
    lines = []
    for name, rows in groups.items():
        scores = [mean_and_spread(_at(rows, ("metrics", split, metric)), ".4f") for metric, split in columns]
        best = statistics.fmean(_at(rows, ("metrics", "valid", METRICS[-1])))
        minutes = [max(run_minutes(row, kind) for row in rows) for kind in ("seconds", "processor_seconds")]
        codes = len(rows[0]["quality"]["codebook_sizes"])
        line = [name, str(len(rows)), *scores, str(codes), *(f"{value:.1f}" for value in minutes)]
        lines.append((best, line))
    head = [*(f"{metric}, {split}" for metric, split in columns), "codes an item", "minutes", "of the processor"]
    return markdown_table(["SIDs", "seeds", *head], [line for _, line in sorted(lines, key=lambda pair: -pair[0])])


def grid_markdown(grid: GridConfig, rows: Sequence[Mapping[str, Any]], *, command: str) -> str:
    """Return a grid's tables as markdown, with what they mean and the command that makes them again.

    Args:
        grid: the grid.
        rows: of its entries, as far as they are on file.
        command: that makes them.
    """
    order = {entry.name: place for place, entry in enumerate(grid.entries)}
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (order[row["name"]], row["seed"])):
        groups.setdefault(row["name"], []).append(row)
    hardware = sorted({row["made_by"]["hardware"] for row in rows})
    text = [
        f"# Ways to make semantic IDs, on {Path(grid.dataset).name}\n",
        f"Written by `{command}`; `{Path(grid.results).name}` beside it holds all figures, settings and versions.\n",
        f"## The SIDs\n\n{grid.levels} levels of at most {grid.codebook_size} codes. {QUALITY_WORDS}",
        quality_markdown(groups),
    ]
    trained = {name: done for name, found in groups.items() if (done := [row for row in found if "metrics" in row])}
    if trained and grid.training is not None:
        said = f"`{grid.training.config}` with `{json.dumps(dict(grid.training.settings))}`"
        devices = sorted({row["settings"]["sids"]["device"] for found in trained.values() for row in found})
        # One thread takes as long by the clock as of the processor, unless it shares the machine.
        kind, unit = ("processor_seconds", " of the processor") if devices == ["cpu"] else ("seconds", "")
        where = "on one thread" if devices == ["cpu"] else f"on {' and '.join(devices)}"
        longest = max(run_minutes(row, kind) for found in trained.values() for row in found)
        over = f" were meant, and one took {longest:.1f}" if longest > grid.training.max_minutes else ""
        words = TRAINING_WORDS.format(minutes=grid.training.max_minutes, unit=unit, over=over, where=where)
        text += [f"\n## A model trained on each\n\n{said}. {words}", training_markdown(trained)]
    if hardware:
        text.append(f"\nHardware: {'; '.join(hardware)}.")
    return "\n".join(text) + "\n"
