"""What a report says of systems beside their ranking metrics: lists, slices, sharing of SIDs, latency, notes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmrec.evaluation.intervals import Interval
from llmrec.evaluation.report_chart import Line, chart
from llmrec.evaluation.report_html import Cell, Markup, bullets, element, number_cell, section, table
from llmrec.evaluation.runs import Run

EMPTY_SLICE = "empty"
BEYOND_FORMS = {
    "coverage": ".2%", "gini": ".3f", "novelty": ".2f", "repeats": ".2%", "validity": ".2%", "miscalibration": ".3f",
    "diversity": ".3f",
}  # fmt: skip
BEYOND_WORDS = (
    "Coverage: share of the catalogue that stands in some list. Gini: how unequally items are recommended, 0 to 1. "
    "Novelty: bits of self-information by training counts. Repeats: places with an item of the user's own history. "
    "Validity: places with a legal item for the first time. Miscalibration: divergence of a list's categories from "
    "the history's, in nats, 0 is best. Diversity: 1 less the mean cosine between two items of a list."
)
SLICE_NAMES = {
    "history_length": "length of the history", "popularity": "popularity of the target",
    "repetition": "repetition of the target", "category": "category of the target", "time": "time of the target",
}  # fmt: skip


def anchor(name: str, of: str) -> str:
    """Return the id of a section: its name, and what tells it from others of the name."""
    return "-".join([name, *re.findall(r"\w+", of)])


def cut_of(metric: str) -> int:
    """Return the cut of a metric such as ``ndcg@10``."""
    return int(metric.rpartition("@")[2])


def run_notes(run: Run) -> list[str]:
    """Return what a reader must know of a run before comparing it; mostly little.

    Leaks, missing rows, training data that is incomplete, what its log-probabilities were taken over and with how many
    beams, what it was fused of, how its settings were chosen, and anything odd in its lists.

    Args:
        run: a system.
    """
    row, notes = run.row, []
    for leak in row.get("leaks") or []:
        notes.append(f"LEAK: {leak}")
    whole = int(run.fact("rows") or 0)
    if whole > len(run.ranks):
        notes.append(f"scored on {len(run.ranks):,} of the split's {whole:,} rows only")
    if row.get("train") == "recovered":
        notes.append("its training data is incomplete: rows were recovered from what the source publishes")
    if row.get("later_than_test") is not None:
        notes.append(
            f"{row['later_than_test']:.1%} of the training interactions are later than the median test target"
        )
    if row.get("score"):
        beams = f", {row['num_beams']} beams" if row.get("num_beams") else ""
        notes.append(f"score {row['score']}{beams}")
    if isinstance(row.get("fused"), Mapping):
        fused = row["fused"]
        weights = f", weights {fused['weights']}" if "weights" in fused else ""
        chosen = f", chosen on {fused['chosen_on']}" if fused.get("chosen_on") else ""
        parts = ", ".join(map(str, fused.get("parts", [])))
        notes.append(f"fused ({fused.get('method', 'unnamed method')}) of {parts}{weights}{chosen}")
    if isinstance(row.get("tuned"), Mapping):
        tuned = row["tuned"]
        notes.append(
            f"settings chosen on {tuned.get('split', 'valid')} rows by {tuned.get('by', 'an unnamed metric')}, "
            f"{len(tuned.get('trials') or [])} tried"
        )
    if row.get("unknown_items") == "skip":
        notes.append("items that it does not know were left out of histories, and count as misses")
    beyond = row.get("beyond") or {}
    for key, words in (("duplicates", "places held an item twice"), ("illegal", "places held no item")):
        if beyond.get(key):
            notes.append(f"{beyond[key]:,} {words}, and count as empty")
    if str(run.made_by.get("commit") or "").endswith("-dirty"):
        notes.append("made by code with changes that no commit holds")
    if not row.get("metrics"):
        notes.append("only its ranks are on file")
    return notes


def notes_list(runs: Sequence[Run]) -> Markup | None:
    """Return the notes of all runs, those with leaks marked; None where there are none."""
    lines = []
    for run in runs:
        notes = run_notes(run)
        if notes:
            leaks = any(note.startswith("LEAK") for note in notes)
            lines.append(element("span", f"{run.name}: {'; '.join(notes)}.", class_="note" if leaks else None))
    return bullets(lines, class_="notes")


def beyond_section(runs: Sequence[Run], *, of: str = "") -> Markup | None:
    """Return the figures of lists beside hitting, a line a system; None where no row has any."""
    figures = {run.name: _beyond(run.row) for run in runs}
    columns = list(dict.fromkeys(key for found in figures.values() for key in found))
    if not columns:
        return None
    columns.sort(key=lambda key: (list(BEYOND_FORMS).index(key.partition("@")[0]), cut_of(key)))
    rows = [
        [name, *(number_cell(found.get(key), BEYOND_FORMS[key.partition("@")[0]]) for key in columns)]
        for name, found in figures.items()
        if found
    ]
    encoders = sorted({encoder for run in runs if (encoder := (run.row.get("beyond") or {}).get("diversity_encoder"))})
    words = BEYOND_WORDS + (f" Vectors: {', '.join(encoders)}." if encoders else "")
    return section(
        f"Beside accuracy{of}",
        table("What the lists are like", ["system", *columns], rows),
        element("p", words, class_="small"),
        id_=anchor("lists", of),
    )


def _beyond(row: Mapping[str, Any]) -> dict[str, float | None]:
    found = {key: value for key, value in (row.get("metrics") or {}).items() if key.startswith("coverage@")}
    found |= row.get("beyond") or {}
    return {key: value for key, value in found.items() if key.partition("@")[0] in BEYOND_FORMS and "@" in key}


def slices_section(runs: Sequence[Run], *, metrics: Sequence[str], of: str = "") -> Markup | None:
    """Return the metrics of parts of the rows: a table a slicing and metric, a column a system.

    An empty slice is shown as empty, never as zero. Behind a mean stands half its 95 % interval, by the spread between
    rows; the number of rows where they do not differ, such as in a slice without a hit.

    Args:
        runs: systems; those without slices are left out.
        metrics: that are shown, where the rows hold them.
        of: put behind the heading, where a report has several such sections.
    """
    sliced = [run for run in runs if run.row.get("slices")]
    names = list(dict.fromkeys(name for run in sliced for name in run.row["slices"]))
    parts = []
    for name in names:
        having = [run for run in sliced if name in run.row["slices"]]
        for metric in metrics:
            lines = _slice_lines(having, name, metric)
            if lines:
                caption = f"{metric} by {SLICE_NAMES.get(name, name)}"
                parts.append(table(caption, ["slice", "rows", *(run.name for run in having)], lines))
    if not parts:
        return None
    words = (
        "± is half of the 95 % interval of the mean, by the spread between users; where all rows are equal, as in a "
        "slice without a hit, there is none, and their number stands instead. A bar is a share of the table's best."
    )
    return section(f"Slices{of}", *parts, element("p", words, class_="small"), id_=anchor("slices", of))


def _slice_lines(runs: Sequence[Run], name: str, metric: str) -> list[list[object]]:
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for run in runs:
        for part in run.row["slices"][name]:
            found.setdefault(part["slice"], {})[run.name] = part
    values = [
        part["metrics"][metric]
        for parts in found.values()
        for part in parts.values()
        if part["metrics"].get(metric) is not None
    ]
    if not any(metric in part["metrics"] for parts in found.values() for part in parts.values()):
        return []
    best = max(values, default=0.0) or 1.0
    lines: list[list[object]] = []
    for label, parts in found.items():
        one = next(iter(parts.values()))
        head = element("span", label, title=one.get("means"))
        rows = int(one["rows"])
        cells = [_slice_cell(parts.get(run.name), metric, best) for run in runs]
        lines.append([Cell(head), Cell(f"{rows:,}", rows), *cells])
    return lines


def _slice_cell(part: Mapping[str, Any] | None, metric: str, best: float) -> Cell:
    if part is None or metric not in part["metrics"]:
        return number_cell(None)
    mean, error = part["metrics"][metric], part["standard_errors"].get(metric)
    if mean is None:
        return Cell(EMPTY_SLICE, kind="small")
    # Where all rows are equal, their spread says nothing; how few they are does.
    text = f"{mean:.4f} \u00b1{1.96 * error:.4f}" if error else f"{mean:.4f} of {part['rows']:,}"
    return Cell(text, mean, share=mean / best)


def sid_level_section(runs: Sequence[Run], *, of: str = "") -> Markup | None:
    """Return scores by item beside scores by SID where SIDs are shared, and the credit that sharing gives."""
    sharing = [run for run in runs if run.row.get("sid_level")]
    if not sharing:
        return None
    cuts = sorted({cut_of(key) for run in sharing for key in run.row["sid_level"] if key.startswith("sid_recall@")})
    head, rows = ["system", "targets that share"], []
    for cut in cuts:
        head += [f"recall@{cut}, item", f"recall@{cut}, SID", f"credit@{cut}", f"ndcg@{cut}, item", f"ndcg@{cut}, SID"]
    for run in sharing:
        by_sid, by_item = run.row["sid_level"], run.row.get("metrics") or {}
        line: list[object] = [run.name, number_cell(by_sid.get("shared_targets"), ".2%")]
        for cut in cuts:
            line += [
                number_cell(by_item.get(f"recall@{cut}")), number_cell(by_sid.get(f"sid_recall@{cut}")),
                number_cell(by_sid.get(f"sharing_credit@{cut}"), "+.4f"), number_cell(by_item.get(f"ndcg@{cut}")),
                number_cell(by_sid.get(f"sid_ndcg@{cut}")),
            ]  # fmt: skip
        rows.append(line)
    words = (
        "By SID any item with the target's SID is a hit; the credit is what that adds to the recall. Everything else "
        "on this page is by item."
    )
    return section(
        f"By item and by SID{of}",
        table("Scores where items share a SID", head, rows),
        element("p", words, class_="small"),
        id_=anchor("sid-level", of),
    )


def latency_section(
    runs: Sequence[Run], *, intervals: Mapping[str, Interval], metric: str, of: str = ""
) -> Markup | None:
    """Return how long systems take, and a metric against beams and against latency.

    Args:
        runs: systems; those of one ``model`` with several numbers of beams make a line.
        intervals: of ``metric``, by the run's name.
        metric: such as ``recall@10``.
        of: put behind the heading, where a report has several such sections.
    """
    timed = [run for run in runs if run.row.get("latency")]
    waited = {run.name: 1000 * run.row["latency"]["p50"] for run in timed if run.row["latency"].get("requests")}
    ladders = beam_ladders(runs)
    if not timed and not ladders:
        return None
    charts = []
    if ladders:
        lines = [
            Line(name, tuple((float(run.row["num_beams"]), *_ends(intervals[run.name])) for run in ladder))
            for name, ladder in ladders.items()
        ]
        charts.append(chart(f"{metric} against the number of beams", lines, x="beams", y=metric, log_x=True))
    if len(waited) > 1:
        lines, left = [], {run.name: run for run in timed if run.name in waited}
        for name, ladder in ladders.items():
            having = [left.pop(run.name) for run in ladder if run.name in left]
            if having:
                points = tuple((waited[run.name], *_ends(intervals[run.name])) for run in having)
                lines.append(Line(name, points, tuple(f"{run.row['num_beams']} beams" for run in having)))
        lines += [Line(name, ((waited[name], *_ends(intervals[name])),)) for name in left]
        if all(point[0] > 0 for line in lines for point in line.points):
            x = "p50 of single requests in ms"
            charts.append(chart(f"{metric} against latency", lines, x=x, y=metric, log_x=True))
    rows = []
    for run in timed:
        latency, slow = run.row["latency"], None
        if run.name in waited and latency["p95"] is not None:
            slow = 1000 * latency["p95"]
        rows.append([
            run.name, number_cell(run.row.get("num_beams"), "d"), number_cell(waited.get(run.name), ",.1f"),
            number_cell(slow, ",.1f"), number_cell(latency.get("requests"), ",d"),
            number_cell(latency["users_per_second"], ",.0f"),
            number_cell(latency.get("batch_users"), ",d"), number_cell(run.row.get("seconds"), ",.1f"),
            Cell(run.made_by.get("hardware", "unknown"), kind="text"),
        ])  # fmt: skip
    head = [
        "system", "beams", "p50, ms", "p95, ms", "requests", "users a second", "users a call", "seconds in all",
        "hardware",
    ]  # fmt: skip
    words = (
        "p50 and p95 are of so many single requests, one user a call; there is no p95 of fewer than 20, and neither "
        "where requests were not timed apart. Users a second are those of calls with as many users as stand beside. "
        "Compare on equal hardware."
    )
    return section(
        f"Beams and latency{of}",
        element("div", *charts, class_="charts") if charts else None,
        table("How long systems take", head, rows) if rows else None,
        element("p", words, class_="small") if rows else None,
        id_=anchor("latency", of),
    )


def beam_ladders(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return runs of one model, and otherwise alike, that differ in their beams, fewest first, by the model's name.

    A model that was scored with one number of beams only is not there.
    """
    keys = ("model", "revision", "score", "seed", "max_history")
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run.row.get("model") and run.row.get("num_beams") and not run.row.get("fused"):
            found.setdefault(tuple(run.row.get(key) for key in keys), []).append(run)
    ladders = {}
    for ladder in found.values():
        if len({run.row["num_beams"] for run in ladder}) > 1:
            ladder.sort(key=lambda run: run.row["num_beams"])
            name = ladder[0].system if ladder[0].system not in ladders else ladder[0].name
            ladders[name] = ladder
    return ladders


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.mean, interval.low, interval.high
