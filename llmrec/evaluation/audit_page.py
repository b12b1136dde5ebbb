"""An audit as one HTML page that needs nothing else: the verdict, its bounds, and every figure behind it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmrec.evaluation.audit_history import CUT
from llmrec.evaluation.audit_words import BOUNDS, SHARES_FLOOR, WARNINGS, percent
from llmrec.evaluation.report_chart import Line, chart
from llmrec.evaluation.report_html import Cell, Markup, bullets, element, number_cell, page, section, table, write_html

RECALL, NDCG = f"recall@{CUT}", f"ndcg@{CUT}"
HOLDS = {True: "yes", False: "no", None: "not measured"}


def _share(value: float | None, *, digits: int = 2, bar: bool = False) -> Cell:
    return Cell(percent(value, digits), value, share=value if bar else None)


def _count(value: int | None) -> Cell:
    return number_cell(value, ",")


def _scored(values: Mapping[str, Any], metric: str) -> Cell:
    low, high = values[f"{metric}_interval"]
    return Cell(f"{values[metric]:.4f} [{low:.4f}, {high:.4f}]", values[metric])


def _verdict(audit: Mapping[str, Any]) -> Markup:
    verdict = audit["verdict"]
    rows = [
        [
            finding["name"],
            Cell(HOLDS[finding["holds"]], kind="best" if finding["holds"] else None),
            number_cell(finding["value"], ".2f"),
            number_cell(finding["bound"], "g"),
            Cell(finding["says"], kind="text"),
        ]
        for finding in verdict["shortcuts"]
    ]
    notes = [element("span", element("strong", finding["name"]), f": {finding['says']}; {finding['reason']}")
             for finding in verdict["warnings"]]  # fmt: skip
    return section(
        "Verdict",
        element("p", element("strong", verdict["words"], id="words"), ". ", verdict["sentence"]),
        table("Shortcuts, by training and validation rows", ["shortcut", "holds", "figure", "bound", "what was found"],
              rows, sortable=False, id_="shortcuts"),
        element("h3", "Beware") if notes else None,
        bullets(notes, id="warnings"),
        id_="verdict",
    )  # fmt: skip


def _bounds() -> Markup:
    rows = [[name, number_cell(bound.value, "g"), Cell(bound.measures, kind="text"), Cell(bound.reason, kind="text")]
            for name, bound in (*BOUNDS.items(), *WARNINGS.items())]  # fmt: skip
    return section(
        "Bounds",
        element("p", "Shortcut-solvable: the graph heuristic holds, and two of the other three shortcuts. Partly: any "
                f"of the four. A lift counts where its share is at least {percent(SHARES_FLOOR, 0)}. The bounds are "
                "conventions: read the figures beside them."),
        table("From here on a figure counts", ["figure", "bound", "what it measures", "why there"], rows,
              sortable=False, id_="bounds"),
        id_="bounds-section",
    )  # fmt: skip


def _facts(caption: str, facts: Sequence[tuple[str, Cell]], *, id_: str) -> Markup:
    return table(caption, ["", "value"], [list(fact) for fact in facts], sortable=False, id_=id_)


def _dataset(audit: Mapping[str, Any]) -> Markup:
    counts = audit["counts"]
    names = ("users", "items", "interactions", "training_interactions", "valid_rows", "test_rows")
    facts = [(name.replace("_", " "), _count(counts[name])) for name in names]
    facts.append(("share of user-item pairs taken", _share(counts["density"], digits=3)))
    facts += [(f"median history, {split}", number_cell(value, "g"))
              for split, value in counts["median_history"].items()]  # fmt: skip
    return section("The dataset", _facts("Counts", facts, id_="counts"), id_="dataset")


def _transitions(audit: Mapping[str, Any], titles: Sequence[tuple[str, str, int, float]]) -> Markup:
    found, rules = audit["branching"], audit["rules"]
    after = found["successors"]
    facts = [
        ("transitions", _count(found["transitions"])),
        ("distinct ones", _count(found["distinct"])),
        ("share whose pair occurs again", _share(found["repeated_share"])),
        ("successors of an item, mean", number_cell(after["mean"], ".1f")),
        ("median", number_cell(after["median"], "g")),
        ("of the tenth with the most, at least", number_cell(after["p90"], "g")),
        ("most", _count(after["most"])),
        ("bits of the next item", number_cell(found["next_bits"], ".2f")),
        ("bits, the last item known", number_cell(found["next_given_last_bits"], ".2f")),
        ("the same, next items dealt anew", number_cell(found["dealt_anew_bits"], ".2f")),
        ("bits that the last item says", number_cell(found["information_bits"], ".2f")),
        ("rules \u201cthis, then that\u201d", _count(rules["rules"])),
        ("rules left when shuffled", number_cell(rules["shuffled"], ".1f")),
    ]
    reach = [
        [f"{way}, {split}", _share(part["share"], bar=True), _share(part["chance"]), number_cell(part["lift"], ".1f"),
         number_cell(part["candidates"], ",.0f")]
        for split, ways in audit["reach"].items()
        for way, part in ways.items()
    ]  # fmt: skip
    places = "; ".join(f"{split}: {'none' if place is None else format(place, 'g')}"
                       for split, place in audit["median_place"].items())  # fmt: skip
    return section(
        "Transitions",
        _facts("What follows an item in training", facts, id_="branching"),
        element("p", "Counts of a sparse dataset look decided when they are not; so the same next items are dealt "
                "anew to the same last ones, and only the bits below that are information.", class_="small"),
        table("Targets within reach of the history's end, in the graph of training transitions",
              ["from", "targets", "by chance", "times chance", "items reached"], reach, id_="reach"),
        element("p", f"Median place of the targets among the successors of the last item, of those that are: {places}."
                " By chance: if targets were drawn by training popularity.", class_="small"),
        table("The most frequent transitions of training", ["item", "next item", "times", "share of what followed"],
              [[first, Cell(second, kind="text"), _count(count), _share(share)]
               for first, second, count, share in titles],
              id_="examples") if titles else None,
        id_="transitions",
    )  # fmt: skip


def _features(audit: Mapping[str, Any]) -> Markup:
    found = audit["features"]
    if found is None:
        return section("Features", element("p", "Not measured: there are no embeddings."), id_="features")
    facts = [
        ("mean cosine of an item and the next", number_cell(found["consecutive"], ".3f")),
        ("of two items drawn by popularity", number_cell(found["random"], ".3f")),
        ("their standard deviation", number_cell(found["random_deviation"], ".3f")),
        ("difference in standard deviations", number_cell(found["deviations"], ".2f")),
        ("items without an embedding", _count(found["zero_embeddings"])),
    ]
    near = [
        [f"{part['neighbours']} nearest, {split}", _share(part["share"], bar=True), _share(part["chance"]),
         number_cell(part["lift"], ".1f")]
        for split, parts in audit["features"]["near"].items()
        for part in parts
    ]  # fmt: skip
    return section(
        "Features",
        element("p", f"Embeddings: {found['encoder']}."),
        _facts("How alike consecutive items are", facts, id_="smoothness"),
        table("Targets among the items nearest to the last one", ["", "targets", "by chance", "times chance"], near,
              id_="near"),
        id_="features",
    )  # fmt: skip


def _heuristics(audit: Mapping[str, Any]) -> Markup:
    found = audit["heuristics"]
    systems = [["ten items at random", number_cell(found["chance"]), number_cell(None)]]
    systems += [[name, _scored(values, RECALL), _scored(values, NDCG)] for name, values in found["systems"].items()]
    kept = "left out of" if found["exclude_seen"] else "kept in"
    order = [
        [name, number_cell(part[NDCG]), number_cell(part["shuffled"]), _share(part["change"])]
        for name, part in found["order"].items()
    ]
    return section(
        "Without training",
        table(f"{found['rows']:,} validation rows, seen items {kept} lists, with 95 % intervals",
              ["", RECALL, NDCG], systems, id_="systems"),
        table(f"{NDCG} with histories in order and shuffled", ["", "in order", "shuffled", "change"], order,
              id_="order") if order else None,
        id_="heuristics",
    )  # fmt: skip


def _history(audit: Mapping[str, Any]) -> Markup:
    found = audit["heuristics"]["history"]
    names = ["all items" if part["last"] is None else f"last {part['last']}" for part in found]
    rows = [[name, Cell(part["variant"], kind="text"), _scored(part, RECALL), _scored(part, NDCG)]
            for name, part in zip(names, found, strict=True)]  # fmt: skip
    slices = [part["slice"] for part in found[0]["slices"]]
    by_length = [
        [f"{label} items", _count(found[0]["slices"][place]["rows"]),
         *(number_cell(part["slices"][place]["metrics"][RECALL]) for part in found)]
        for place, label in enumerate(slices)
    ]  # fmt: skip
    most = max([part["last"] for part in found if part["last"] is not None], default=1)
    lines = [
        Line(
            "all users" if place is None else f"{slices[place]} items in the history",
            tuple((float(part["last"] or 2 * most),
                   float(part[RECALL] if place is None else part["slices"][place]["metrics"][RECALL]))
                  for part in found),
        )
        for place in (None, *range(len(slices)))
        if place is None or found[0]["slices"][place]["rows"] >= 30
    ]  # fmt: skip
    return section(
        "History",
        table("The same heuristic, shown the end of histories", ["it sees", "variant", RECALL, NDCG], rows,
              id_="history-table"),
        table(f"{RECALL} by the length of the whole history", ["history", "rows", *names], by_length,
              sortable=False, id_="by-length"),
        chart(f"Does more history help? The last point is the whole history (drawn at {2 * most}).", lines,
              x="items seen", y=RECALL, log_x=True, id_="history-chart"),
        id_="history",
    )  # fmt: skip


def _overlap(audit: Mapping[str, Any], titles: Sequence[tuple[str, int]]) -> Markup:
    repeats, twice, overlap = audit["repeats"], audit["duplicates"], audit["overlap"]
    facts = [
        ("interactions with an item taken before", _count(repeats["again"])),
        ("with the item right before", _count(repeats["at_once"])),
        *((f"{split} targets in their own history", _share(share)) for split, share in repeats["targets"].items()),
        ("titles that several items have", _count(twice["titles_shared"])),
        ("items that share one", _count(twice["items_sharing"])),
        ("users whose whole history another user has", _count(twice["users_sharing"])),
    ]
    leaks = [
        ("test rows", _count(overlap["test_rows"])),
        ("of them in training too, history and target", _count(overlap["same_rows_train"])),
        ("in validation too", _count(overlap["same_rows_valid"])),
        ("target taken by the same user in training", _count(overlap["target_in_own_train"])),
        ("target is the same user's validation target", _count(overlap["target_is_own_valid"])),
        ("history holds the same user's validation target", _count(overlap["valid_target_in_history"])),
        ("users of test rows", _count(overlap["users"])),
        ("of them with training rows", _count(overlap["users_in_train"])),
        ("with validation rows", _count(overlap["users_in_valid"])),
        ("training rows later than the median test target", _share(audit["later_than_test"])),
        ("steps between interactions that take no time", _share(audit["tied_times"])),
    ]
    return section(
        "Repeats, duplicates, leaks",
        _facts("What stands twice", facts, id_="repeats"),
        table("Titles of the most items", ["title", "items"], [[title, _count(count)] for title, count in titles],
              id_="titles") if titles else None,
        _facts("What splits have in common", leaks, id_="leaks"),
        element("p", "Under leave_one_out every test history holds the user's validation target, by design. Where the "
                "source has no times, the last two cannot be known.", class_="small"),
        id_="overlap",
    )  # fmt: skip


def _popularity(audit: Mapping[str, Any]) -> Markup:
    found = audit["popularity"]
    facts = [
        ("Gini of training counts", number_cell(found["gini"], ".3f")),
        ("interactions of the top 1 % of items", _share(found["top_1_percent"])),
        ("of the top 10 %", _share(found["top_10_percent"])),
        ("median count", number_cell(found["median"], "g")),
        ("most", _count(found["most"])),
        ("items never taken in training", _count(found["never_taken"])),
    ]
    targets = [
        [f"{part['slice']}, {split}", Cell(part["means"], kind="text"), _count(part["rows"]),
         _share(part["share"], bar=True)]
        for split, parts in audit["target_popularity"].items()
        for part in parts
    ]  # fmt: skip
    return section(
        "Popularity",
        _facts("How unequally items are taken", facts, id_="skew"),
        table("How popular the targets are", ["slice", "it is", "rows", "share"], targets, id_="target-popularity"),
        id_="popularity",
    )


def audit_html(audit: Mapping[str, Any], *, examples: Mapping[str, Any] | None = None) -> str:
    """Return the page, in ASCII; titles are text in it, never markup.

    Args:
        audit: what `structure` returns, with ``heuristics``, ``verdict`` and what names the dataset.
        examples: real titles, as `llmrec.evaluation.audit.examples` gives them; None leaves them out.
    """
    shown = examples or {"transitions": [], "titles": []}
    made = audit.get("made_by") or {}
    foot = ". ".join(f"{name}: {made[name]}" for name in ("command", "commit", "date") if made.get(name))
    sections = {
        "Verdict": _verdict(audit),
        "Without training": _heuristics(audit),
        "Transitions": _transitions(audit, shown["transitions"]),
        "Features": _features(audit),
        "History": _history(audit),
        "Popularity": _popularity(audit),
        "Repeats, duplicates, leaks": _overlap(audit, shown["titles"]),
        "The dataset": _dataset(audit),
        "Bounds": _bounds(),
    }
    lead = [f"How hard is {audit['dataset']} ({audit['protocol']})? Heuristics are scored on validation rows alone; "
            "of test rows it is only said how near their targets lie."]  # fmt: skip
    return page(f"Audit of {audit['dataset']}", sections, lead=lead, foot=foot or None)


def write_audit_page(path: str | Path, audit: Mapping[str, Any], *, examples: Mapping[str, Any] | None = None) -> None:
    """Write the page of `audit_html`, whole or not at all."""
    write_html(path, audit_html(audit, examples=examples))
