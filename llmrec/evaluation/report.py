"""A comparison of results files: which runs stand in one table, what is said of them, and the report as markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmrec.errors import InputError
from llmrec.evaluation.comparable import by_exclusion, check_comparable, without_copies, words_on_rows
from llmrec.evaluation.comparison import Comparison, Pair, Score, compare_runs
from llmrec.evaluation.evaluator import EXCLUDED_SUFFIX
from llmrec.evaluation.report_sections import cut_of, run_notes
from llmrec.evaluation.report_training import Making, read_making
from llmrec.evaluation.runs import Run, load_runs
from llmrec.evaluation.seeds import FEW_SEEDS

FACTS = ("dataset", "split", "protocol", "exclude_seen")
SEEN_WORDS = {"true": "seen items left out", "false": "seen items kept", None: "seen items: the files do not tell"}
FALLBACK_METRICS = ("recall@10", "ndcg@10")
FEW_MARK = "\u2020"
LEAST_P = 0.0001
ROWS_ALONE = (
    "Rows are taken as independent, for no file tells whose they are: where users have several, intervals are too "
    "narrow and p too small; evaluate again with this version."
)
TWO_SEEDS = (
    "Two seeds are too few: how much trainings differ is hardly known from two, so that such intervals are wide; "
    "train a third."
)
CORRECTION_WORDS = {"holm": "Holm's", "benjamini_hochberg": "Benjamini and Hochberg's"}


@dataclass(frozen=True)
class ReportGroup:
    """Runs in one table: all were scored on the same rows, with seen items treated alike.

    Args:
        facts: ``dataset``, ``split``, ``protocol`` and ``exclude_seen``, None where no file tells.
        runs: one a seed and system, named as the report names them.
        comparison: of them.
    """

    facts: Mapping[str, str | None]
    runs: tuple[Run, ...] = field(repr=False)
    comparison: Comparison = field(repr=False)

    @property
    def seen(self) -> str:
        """What became of items already seen, in words."""
        return SEEN_WORDS.get(self.facts["exclude_seen"], f"exclude_seen {self.facts['exclude_seen']}")

    @property
    def said(self) -> str:
        """Dataset, split, protocol, what became of seen items, and the number of rows and users, in words."""
        counted = words_on_rows(self.comparison.rows, self.comparison.users)
        known = [self.facts[key] or f"{key} unknown" for key in ("dataset", "split", "protocol")]
        return f"{known[0]}, {known[1]} rows of {known[2]}, {self.seen}, {counted}"

    def to_json(self) -> dict[str, Any]:
        """Return the group as JSON values."""
        return {
            **self.facts,
            "notes": {run.name: notes for run in self.runs if (notes := run_notes(run))},
            **self.comparison.to_json(),
        }


def common_metrics(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return recall and ndcg at every cut that all runs have; at 10 when they have none in common."""
    having = [run.row.get("metrics") or {} for run in runs]
    shared = [
        metric
        for metric in having[0]
        if metric.partition("@")[0] in ("recall", "ndcg") and all(metric in metrics for metrics in having)
    ]
    return tuple(sorted(shared, key=cut_of)) or FALLBACK_METRICS


def report_groups(
    sources: Sequence[str],
    *,
    metrics: Sequence[str] | None = None,
    reference: str | None = None,
    **settings: Any,
) -> list[ReportGroup]:
    """Read results files and compare the systems in them.

    A table holds runs with one value of ``exclude_seen``; results with seen items kept and left out get a table each.

    Args:
        sources: ``FILE.json`` or ``FILE.json:NAME``, as `load_runs` takes them.
        metrics: of the tables; None takes recall and ndcg at the cuts that all have.
        reference: name of the system that the others are compared with; in a table of lists without seen items the
            one of that name there. None compares each with each.
        settings: further keywords of `compare_runs`.

    Raises:
        InputError: what `load_runs` and `compare_runs` refuse; results of different datasets, splits, protocols or
            catalogues; nothing but single systems that cannot be compared; or a reference that no table has.
    """
    runs = without_copies(load_runs(sources))
    # All must be alike but for what was done with seen items: that makes several tables.
    check_comparable([_without_exclusion(run) for run in runs], allow_partial=True)
    groups = _one_table_each(runs)
    if len(runs) > 1 and all(len(group) == 1 for group in groups.values()):
        check_comparable(runs, allow_partial=True)
    metrics = tuple(metrics) if metrics else common_metrics(runs)
    names = {seen: {run.name for run in group} | {run.system for run in group} for seen, group in groups.items()}
    if reference is not None and not any(_named(reference, having) for having in names.values()):
        every = sorted(set().union(*names.values()))
        raise InputError(f"--reference {reference!r}: no such system; choose one of {', '.join(every)}")
    found = []
    for seen, group in groups.items():
        against = _named(reference, names[seen])
        comparison = compare_runs(group, metrics=metrics, reference=against, allow_partial=True, **settings)
        facts = {key: next((fact for run in group if (fact := run.fact(key))), None) for key in FACTS}
        shown = [
            replace(run, name=system.name if len(system.runs) == 1 else f"{system.name}, seed {run.seed}")
            for system in comparison.systems
            for run in system.runs
        ]
        found.append(ReportGroup({**facts, "exclude_seen": seen}, tuple(shown), comparison))
    return found


def _without_exclusion(run: Run) -> Run:
    return replace(
        run,
        row={key: value for key, value in run.row.items() if key != "exclude_seen"},
        origin={key: value for key, value in run.origin.items() if key != "exclude_seen"},
    )


def _one_table_each(runs: Sequence[Run]) -> dict[str | None, list[Run]]:
    """Return runs by ``exclude_seen``; those that do not tell stand with the others where these all agree."""
    groups = by_exclusion(runs)
    if None in groups and len(groups) == 2:
        known = next(key for key in groups if key is not None)
        return {known: [run for run in runs if run.fact("exclude_seen") in (None, known)]}
    return groups


def _named(reference: str | None, names: set[str]) -> str | None:
    return next((name for name in (reference, f"{reference}{EXCLUDED_SUFFIX}") if name in names), None)


def read_makings(groups: Sequence[ReportGroup], given: Sequence[str] = ()) -> list[Making]:
    """Read what bundles say of their making: those of ``given``, and models of the rows whose folder is there.

    Args:
        groups: of the report.
        given: ``NAME=FOLDER`` or ``FOLDER``.

    Raises:
        InputError: a folder of ``given`` that is missing, or an unreadable file in one.
    """
    folders: dict[Path, str] = {}
    for text in given:
        name, sign, folder = text.partition("=")
        path = Path(folder if sign else text)
        folders.setdefault(path, name if sign else path.resolve().name)
    for run in (run for group in groups for run in group.runs):
        model = run.row.get("model")
        if isinstance(model, str) and Path(model).is_dir():
            folders.setdefault(Path(model), run.system)
    return [read_making(name, path) for path, name in folders.items()]


def best_of(comparison: Comparison, metric: str) -> float:
    """Return the highest mean of a metric."""
    return max(score.interval.mean for score in comparison.scores if score.metric == metric)


def pair_with_reference(comparison: Comparison, system: str, metric: str) -> Pair | None:
    """Return the pair of a system and the reference; None for the reference itself, or without one."""
    if comparison.reference is None or system == comparison.reference:
        return None
    return comparison.pair(system, comparison.reference, metric)


def interval_text(score: Score) -> str:
    """Return ``[low, high]`` of a mean, with `FEW_MARK` behind it where it rests on few users."""
    interval = score.interval
    return f"[{interval.low:.4f}, {interval.high:.4f}]{FEW_MARK if interval.rests_on_few else ''}"


def p_text(p: float) -> str:
    """Return a p to three digits; a small one as below ``0.0001``."""
    return f"{p:.3g}" if p >= LEAST_P else f"<{LEAST_P:g}"


def words_on_tests(comparison: Comparison) -> list[str]:
    """Return sentences on intervals, marks, the correction, what is tested, and what these cannot say."""
    level = 100 * comparison.level
    words = [
        f"In brackets: the {level:g} % interval of the mean by the chance of users, and of seeds where a system has "
        "several."
    ]
    if comparison.users is None:
        words.append(ROWS_ALONE)
    elif comparison.users < comparison.rows:
        words.append("All rows of a user are drawn and exchanged together, because they are alike.")
    if any(score.interval.rests_on_few for score in comparison.scores):
        words.append(f"{FEW_MARK}: it rests on fewer than 20 hits, and covers less often than it says.")
    if comparison.pairs:
        against = f" from {comparison.reference}" if comparison.reference else ""
        correction = CORRECTION_WORDS.get(comparison.correction, comparison.correction)
        words.append(
            f"*: differs{against}, at p below {1 - comparison.level:.2g} after {correction} correction; the family is "
            f"{comparison.family}."
        )
        tests = sorted({pair.test for pair in comparison.pairs})
        words.append(
            f"Tests: paired {' and '.join(tests)}, two-sided; {comparison.samples:,} samples, seed {comparison.seed}. "
            "Intervals of differences are of each pair alone."
        )
        if comparison.least_samples:
            words.append(
                "TOO FEW SAMPLES: no p that is drawn can earn a mark among so many pairs; "
                f"{comparison.least_samples:,} are the least (--samples)."
            )
    if any(1 < len(system.runs) < FEW_SEEDS for system in comparison.systems):
        words.append(TWO_SEEDS)
    if all(len(system.runs) == 1 for system in comparison.systems):
        words.append("Every trained system stands with one seed: the intervals say nothing of another training.")
    return words


def _markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def scores_markdown(group: ReportGroup) -> str:
    """Return a group's scores as a markdown table, marks against the reference in it."""
    comparison, lines = group.comparison, []
    for system in comparison.systems:
        seeds = f" ({len(system.runs)} seeds)" if len(system.runs) > 1 else ""
        cells = []
        for metric in comparison.metrics:
            score, pair = comparison.score(system.name, metric), pair_with_reference(comparison, system.name, metric)
            mark = pair.mark if pair is not None else ""
            cells.append(f"{score.interval.mean:.4f} {interval_text(score)}{mark and ' ' + mark}")
        lines.append([system.name + seeds, *cells])
    return _markdown_table(["system", *comparison.metrics], lines)


def pairs_markdown(group: ReportGroup) -> str | None:
    """Return a group's differences as a markdown table; None where there is one system only."""
    lines = [
        [
            f"{pair.a} - {pair.b}", pair.metric, f"{pair.interval.mean:+.4f}",
            f"[{pair.interval.low:+.4f}, {pair.interval.high:+.4f}]",
            p_text(pair.p), p_text(pair.adjusted), pair.mark,
        ]
        for pair in group.comparison.pairs
    ]  # fmt: skip
    return (
        _markdown_table(["difference", "metric", "mean", "interval", "p", "adjusted p", ""], lines) if lines else None
    )


def report_markdown(groups: Sequence[ReportGroup], *, made: str) -> str:
    """Return the tables and notes of a report as markdown; it holds no title of an item.

    Args:
        groups: of the report.
        made: a line on how it was made.
    """
    parts = ["# Comparison"]
    for group in groups:
        parts += [f"## {group.said}", scores_markdown(group), " ".join(words_on_tests(group.comparison))]
        pairs = pairs_markdown(group)
        if pairs is not None:
            parts += ["### Differences", pairs]
        notes = [f"- {run.name}: {'; '.join(found)}." for run in group.runs if (found := run_notes(run))]
        if notes:
            parts += ["### Notes", "\n".join(notes)]
    return "\n\n".join([*parts, made]) + "\n"
