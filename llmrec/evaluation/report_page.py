"""The report as one HTML page that needs nothing else."""

from collections.abc import Mapping, Sequence

from llmrec.evaluation.comparable import users_of
from llmrec.evaluation.comparison import Pair, Score
from llmrec.evaluation.report import (
    ReportGroup,
    best_of,
    interval_text,
    p_text,
    pair_with_reference,
    words_on_tests,
)
from llmrec.evaluation.report_html import NOTHING, Cell, Markup, bullets, element, number_cell, page, section, table
from llmrec.evaluation.report_sections import (
    anchor,
    beyond_section,
    cut_of,
    latency_section,
    notes_list,
    sid_level_section,
    slices_section,
)
from llmrec.evaluation.report_training import Making, sid_quality_section, training_section
from llmrec.evaluation.seeds import score_interval


def scores_section(group: ReportGroup, *, of: str = "") -> Markup:
    """Return the table of means with intervals and marks, what they mean, and what to know of each run.

    Args:
        group: of the report.
        of: put behind the heading, where a report has several groups.
    """
    comparison = group.comparison
    several = any(len(system.runs) > 1 for system in comparison.systems)
    rows = []
    for system in comparison.systems:
        cells: list[object] = []
        if several:
            cells.append(number_cell(len(system.runs), "d"))
        for metric in comparison.metrics:
            score, pair = comparison.score(system.name, metric), pair_with_reference(comparison, system.name, metric)
            cells.append(_score_cell(score, pair, best_of(comparison, metric)))
        name = f"{system.name} (reference)" if system.name == comparison.reference else system.name
        rows.append([name, *cells])
    head = ["system", *(["seeds"] if several else []), *comparison.metrics]
    notes = notes_list(group.runs)
    return section(
        f"Scores{of}",
        table(f"{group.said}. The best of each column stands in bold.", head, rows),
        element("p", " ".join(words_on_tests(comparison)), class_="small"),
        *([] if notes is None else [element("h3", "To know before comparing"), notes]),
        id_=anchor("scores", of),
    )


def _score_cell(score: Score, pair: Pair | None, best: float) -> Cell:
    mark = pair.mark if pair is not None else ""
    spread = None
    if score.spread is not None:
        spread = element("span", f" spread between seeds {score.spread:.4f}", class_="small")
    text = Markup(
        element("span", f"{score.interval.mean:.4f}{mark}")
        + element("span", f" {interval_text(score)}", class_="small")
        + (spread or "")
    )
    return Cell(text, score.interval.mean, "best" if score.interval.mean == best else None)


def pairs_section(group: ReportGroup, *, of: str = "") -> Markup | None:
    """Return the differences: who is above whom at a glance where each is with each, and all figures.

    Args:
        group: of the report.
        of: put behind the heading, where a report has several groups.

    Returns:
        The section; None where there is one system only.
    """
    comparison = group.comparison
    if not comparison.pairs:
        return None
    parts: list[object] = []
    for metric in comparison.metrics:
        pairs = [pair for pair in comparison.pairs if pair.metric == metric]
        if comparison.reference is None:
            parts.append(_matrix(metric, pairs, [system.name for system in comparison.systems]))
        lines = [
            [
                Cell(f"{pair.a} \u2212 {pair.b}"), number_cell(pair.interval.mean, "+.4f"),
                Cell(f"[{pair.interval.low:+.4f}, {pair.interval.high:+.4f}]", pair.interval.low),
                Cell(p_text(pair.p), pair.p), Cell(p_text(pair.adjusted), pair.adjusted), Cell(pair.test, kind="text"),
                Cell(pair.mark),
            ]
            for pair in pairs
        ]  # fmt: skip
        head = ["difference", "mean", f"{100 * comparison.level:g} % interval", "p", "adjusted p", "test", "mark"]
        figures = table(f"Differences of {metric}", head, lines)
        if comparison.reference is None and len(pairs) > 1:
            figures = element("details", element("summary", f"Intervals and p of {metric}"), figures)
        parts.append(figures)
    return section(f"Differences{of}", *parts, id_=anchor("differences", of))


def _matrix(metric: str, pairs: Sequence[Pair], names: Sequence[str]) -> Markup:
    found = {(pair.a, pair.b): pair for pair in pairs}
    rows = []
    for a in names:
        cells = []
        for b in names:
            pair, sign = (found[a, b], 1) if (a, b) in found else (found.get((b, a)), -1)
            if pair is None:
                cells.append(Cell(NOTHING))
                continue
            value = sign * pair.interval.mean + 0.0  # no zero below zero
            cells.append(Cell(f"{value:+.4f}{pair.mark}", value, "best" if pair.mark and value > 0 else None))
        rows.append([a, *cells])
    caption = f"{metric} of the line's system less that of the column's; bold where it is above beyond chance"
    return table(caption, ["system", *names], rows)


def report_page(
    groups: Sequence[ReportGroup],
    *,
    makings: Sequence[Making] = (),
    examples: Markup | None = None,
    left_out: Mapping[str, str] | None = None,
    made: str,
) -> str:
    """Return the page.

    Args:
        groups: tables, each with its own sections.
        makings: what bundles say of how they were made.
        examples: the section of worked examples, if any.
        left_out: why a part is missing, by its name.
        made: a line on how the page was made.
    """
    sections: dict[str, Markup] = {}
    left_out = dict(left_out or {})

    def put(name: str, part: Markup | None, why: str) -> None:
        if part is not None:
            sections[name] = part
        else:
            left_out.setdefault(name, why)

    for group in groups:
        of = f", {group.seen}" if len(groups) > 1 else ""
        runs, metrics = group.runs, group.comparison.metrics
        deepest = max(map(cut_of, metrics))
        deep = [metric for metric in metrics if cut_of(metric) == deepest]
        watched = next((metric for metric in deep if metric.startswith("recall")), deep[0])
        users, level = users_of(runs), group.comparison.level
        intervals = {run.name: score_interval(run.values(watched)[None], users=users, level=level) for run in runs}
        no_row = "no results row holds them; evaluate again with this version"
        put(f"Scores{of}", scores_section(group, of=of), "")
        put(f"Differences{of}", pairs_section(group, of=of), "there is one system only")
        put(f"Slices{of}", slices_section(runs, metrics=deep, of=of), no_row)
        put(f"Beside accuracy{of}", beyond_section(runs, of=of), no_row)
        put(f"By item and by SID{of}", sid_level_section(runs, of=of), "no system's items share SIDs, as far as known")
        put(
            f"Beams and latency{of}",
            latency_section(runs, intervals=intervals, metric=watched, of=of),
            "no results row holds a latency, and no model stands with several numbers of beams",
        )
    shown = list(dict.fromkeys(metric for group in groups for metric in group.comparison.metrics))
    put("Training", training_section(makings, metrics=shown), "no bundle's folder with a training log; give --bundles")
    put("Semantic IDs", sid_quality_section(makings), "no bundle's folder with a SID table; give --bundles")
    put("Worked examples", examples, "no --dataset was given")
    if left_out:
        lines = bullets([f"{name}: {why}" for name, why in left_out.items()])
        sections["Left out"] = section("Left out", lines, id_="left-out")
    names = list(dict.fromkeys(group.facts["dataset"] or "an unnamed dataset" for group in groups))
    lead = [group.said[0].upper() + group.said[1:] + "." for group in groups]
    return page(f"Systems on {', '.join(names)}", sections, lead=lead, foot=made)
