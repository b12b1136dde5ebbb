"""The README's table of results, made from results files: what stands there is what the files say."""

import difflib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.artifacts import read_json, whole_file
from llmrec.errors import InputError
from llmrec.evaluation.comparable import check_comparable, count_users, group_seeds, users_of, words_on_rows
from llmrec.evaluation.evaluator import EXCLUDED_SUFFIX
from llmrec.evaluation.runs import Run, load_runs
from llmrec.evaluation.seeds import FEW_SEEDS, score_interval

SPEC_FILE = "table.json"
START, END = "<!-- results -->", "<!-- /results -->"
WIDTH = 119
METRIC_WORDS = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "map": "MAP"}
SEEN_WORDS = {"true": "left out", "false": "kept"}
NOTHING = "-"
ROWS_ALONE = "Rows are taken as independent where no file tells whose they are, which makes intervals too narrow"
TWO_SEEDS = "Two seeds are too few: how much trainings differ is hardly known from two, and such intervals are wide."
TABLE_KEYS = {"metrics", "level", "order_by", "groups"}
GROUP_KEYS = {"set", "rows"}
ROW_KEYS = {"label", "runs", "published", "source"}


@dataclass(frozen=True)
class TableRow:
    """A line of the table.

    Args:
        label: what the system is called.
        means: by metric; a published row may lack some.
        intervals: ends of each mean's interval; empty for a published row.
        source: of a published row; None for our own.
        seeds: trainings that were pooled.
    """

    label: str
    means: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    source: str | None = None
    seeds: int = 1


@dataclass(frozen=True)
class TableGroup:
    """Lines that were scored alike, and published ones beside them.

    Args:
        name: of the dataset.
        seen: what became of items already seen: ``kept`` or ``left out``.
        split: that was scored.
        protocol: how it was made.
        users: that were scored; None where no file tells, and users may have several rows.
        rows: the lines.
        scored: rows that were scored.
    """

    name: str
    seen: str
    split: str
    protocol: str
    users: int | None
    rows: tuple[TableRow, ...]
    scored: int


def _refuse_unknown(value: Any, known: set[str], where: str) -> None:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected an object with {', '.join(sorted(known))}")
    unknown = sorted(set(value) - known)
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; it has {', '.join(sorted(known))}")


def read_groups(spec_file: str | Path) -> tuple[list[TableGroup], list[str], float]:
    """Read which rows the table has, and their figures from the results files.

    The file is JSON: ``metrics``; ``level`` of the intervals (0.95); ``order_by``, a metric by which a group's rows
    stand, the best first (without it they stand as given); and ``groups``, each a ``set`` (words for the dataset; the
    name in the files without it) and ``rows``: ``{"runs": [FILE[:NAME], ..], "label": ..}`` with files as seen from
    the spec's folder, or ``{"label": .., "published": {metric: value}, "source": ..}``. Without a label every system
    of the files gets a line under its own name; with one, the runs must be seeds of one configuration, and are pooled.

    Args:
        spec_file: the JSON file.

    Returns:
        Groups, metrics and level.

    Raises:
        InputError: an unreadable spec, an unknown or missing key or metric, runs of one group that were not scored
            alike, or runs under one label that are no seeds of one configuration.
    """
    spec_file = Path(spec_file)
    spec = read_json(spec_file, "list of the table's rows")
    _refuse_unknown(spec, TABLE_KEYS, str(spec_file))
    metrics, level = spec.get("metrics") or [], spec.get("level", 0.95)
    if not metrics or not spec.get("groups"):
        raise InputError(f"{spec_file}: no 'metrics' or no 'groups'; name at least one of each")
    groups = []
    for number, group in enumerate(spec["groups"]):
        where = f"{spec_file}: group {number}"
        _refuse_unknown(group, GROUP_KEYS, where)
        published, ours = [], []
        for place, row in enumerate(group.get("rows", [])):
            _refuse_unknown(row, ROW_KEYS, f"{where}, row {place}")
            if ("published" in row) == ("runs" in row):
                raise InputError(f"{where}, row {place}: give it either 'runs' or 'published'")
            if "published" in row:
                published.append((place, _published(row, metrics, f"{where}, row {place}")))
                continue
            found = load_runs([str(spec_file.parent / run) for run in row["runs"]])
            pooled = group_seeds(found)
            if "label" in row and len(pooled) > 1:
                raise InputError(
                    f"{where}, row {place}: {pooled[0][0].name!r} and {pooled[1][0].name!r} are no seeds of one "
                    f"configuration, and share the label {row['label']!r}; give each a row of its own"
                )
            ours += [(place, seeds, row.get("label")) for seeds in pooled]
        runs = [run for _, seeds, _ in ours for run in seeds]
        if not runs:
            raise InputError(f"{where}: no row of our own; published rows stand beside ours")
        check_comparable(runs)
        users = users_of(runs)  # one file tells for all of the group
        found = [(place, _own(seeds, label, metrics, level, users)) for place, seeds, label in ours]
        rows = [row for _, row in sorted([*found, *published], key=lambda placed: placed[0])]
        if spec.get("order_by"):
            rows.sort(key=lambda row: -row.means.get(spec["order_by"], -1.0))
        groups.append(_group(group.get("set"), runs, rows))
    return groups, metrics, level


def _group(name: str | None, runs: Sequence[Run], rows: Sequence[TableRow]) -> TableGroup:
    said = {key: runs[0].fact(key) or "unknown" for key in ("dataset", "split", "protocol", "exclude_seen")}
    seen = SEEN_WORDS.get(said["exclude_seen"], said["exclude_seen"])
    return TableGroup(
        name or said["dataset"],
        seen,
        said["split"],
        said["protocol"],
        count_users(runs),
        tuple(rows),
        len(runs[0].ranks),
    )


def _published(row: Mapping[str, Any], metrics: Sequence[str], where: str) -> TableRow:
    figures = row["published"]
    if not row.get("label") or not row.get("source") or not isinstance(figures, Mapping) or not figures:
        raise InputError(f"{where}: a published row has a 'label', a 'source' and its figures by metric")
    if not set(figures) <= set(metrics):
        raise InputError(f"{where}: figures of {', '.join(figures)}, and the table has {', '.join(metrics)}")
    return TableRow(row["label"], dict(figures), {}, row["source"])


def _own(
    seeds: Sequence[Run], label: str | None, metrics: Sequence[str], level: float, users: np.ndarray | None
) -> TableRow:
    means, ends = {}, {}
    for metric in metrics:
        values = np.stack([run.values(metric) for run in seeds])
        interval = score_interval(values, users=users, level=level)
        means[metric], ends[metric] = interval.mean, (interval.low, interval.high)
    name = seeds[0].system.removesuffix(EXCLUDED_SUFFIX)  # a column of its own says it
    return TableRow(label or name, means, ends, seeds=len(seeds))


def figure(value: float) -> str:
    """Return a share to four digits, without the zero before the point: ``.0528``."""
    return f"{value:.4f}".removeprefix("0")


def _cell(row: TableRow, metric: str) -> str:
    if metric not in row.means:
        return NOTHING
    ends = row.intervals.get(metric)
    return figure(row.means[metric]) + (f" [{figure(ends[0])}, {figure(ends[1])}]" if ends else "")


def _column(metric: str) -> str:
    name, _, cut = metric.partition("@")
    return f"{METRIC_WORDS.get(name, name)}@{cut}"


def results_markdown(groups: Sequence[TableGroup], metrics: Sequence[str], level: float) -> str:
    """Return the table as markdown, with a line on what it says and the sources of published rows below.

    Args:
        groups: what `read_groups` gives.
        metrics: columns.
        level: of the intervals.
    """
    splits = sorted({f"{group.split} rows of {group.protocol}" for group in groups})
    counted = ", ".join(dict.fromkeys(f"{group.name} {words_on_rows(group.scored, group.users)}" for group in groups))
    pooled = (
        " (and seeds, where there are several)" if any(row.seeds > 1 for one in groups for row in one.rows) else ""
    )
    lead = (
        f"{'; '.join(splits)}, ranked over the whole catalogue: {counted}. In brackets: the {100 * level:g} % "
        f"interval over users{pooled}. *Seen*: whether items of the history may come out."
    )
    unknown = list(dict.fromkeys(group.name for group in groups if group.users is None))
    if unknown:
        lead += f" {ROWS_ALONE} ({', '.join(unknown)})."
    if any(1 < row.seeds < FEW_SEEDS for one in groups for row in one.rows):
        lead += f" {TWO_SEEDS}"
    head = ["set", "seen", "system", *map(_column, metrics)]
    lines, sources = [head, ["---"] * 3 + ["---:"] * len(metrics)], []
    for group in groups:
        for row in group.rows:
            label, seen = row.label.replace("|", "\\|"), group.seen
            if row.source is not None:
                if row.source not in sources:
                    sources.append(row.source)
                label, seen = f"*{label}* [{sources.index(row.source) + 1}]", NOTHING
            elif row.seeds > 1:
                label += f" ({row.seeds} seeds)"
            lines.append([group.name, seen, label, *(_cell(row, metric) for metric in metrics)])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    parts = [f"{lead[0].upper()}{lead[1:]}"]
    if sources:
        listed = "; ".join(f"[{number}] {source}" for number, source in enumerate(sources, 1))
        parts.append(f"In italics: as published, not measured here. {listed}.")
    first, *last = (textwrap.fill(part, WIDTH, break_long_words=False, break_on_hyphens=False) for part in parts)
    return "\n\n".join([first, table, *last])


def replace_section(text: str, new: str, *, where: str) -> str:
    """Return a document with ``new`` between the two markers.

    Args:
        text: the document, with `START` and `END` on lines of their own.
        new: markdown.
        where: the document's name, for the error.

    Raises:
        InputError: a marker that is missing or stands twice, or an end before its start.
    """
    for marker in (START, END):
        if text.count(marker) != 1:
            raise InputError(f"{where}: {text.count(marker)} lines {marker}; put {START} and {END} around the table")
    before, rest = text.split(START)
    if END not in rest:
        raise InputError(f"{where}: {END} stands before {START}; turn them round")
    return f"{before}{START}\n\n{new}\n\n{END}{rest.split(END)[1]}"


def section_diff(document: str | Path, spec_file: str | Path, *, write: bool) -> str:
    """Compare the table of a document with the one that the results files make, and write it when asked to.

    Args:
        document: markdown with the two markers.
        spec_file: as for `read_groups`.
        write: put the new table in place.

    Returns:
        The difference from what stood there to what the files say, in lines; empty where they agree.

    Raises:
        InputError: what `read_groups` and `replace_section` refuse, or a missing document.
    """
    document = Path(document)
    if not document.is_file():
        raise InputError(f"{document}: no such file; it holds the table of results")
    old = document.read_text(encoding="utf-8")
    table = results_markdown(*read_groups(spec_file))
    new = replace_section(old, table, where=str(document))
    if new != old and write:
        with whole_file(document) as part:
            part.write_text(new, encoding="utf-8")
    return "\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), str(document), "results", lineterm=""))
