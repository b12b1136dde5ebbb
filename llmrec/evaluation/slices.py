"""The metrics of parts of the rows: who is served well, and who is not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np

from llmrec.errors import InputError
from llmrec.evaluation.by_user import error_of_mean, repeated_users
from llmrec.evaluation.categories import Categories
from llmrec.evaluation.histories import Histories
from llmrec.evaluation.metrics import per_user

LENGTH_BOUNDS = (5, 10, 20, 50)
MOST_CATEGORIES = 20
EMPTY = "-"


@dataclass(frozen=True)
class Slicing:
    """A way to divide rows.

    Args:
        name: ``history_length``, ``popularity`` and so on.
        labels: of the slices, in the order of tables.
        meanings: what each label says, with its bounds.
        member: ``(users,)`` int64, the slice of each row; -1 where it belongs to none.

    Raises:
        InputError: a member outside the labels.
    """

    name: str
    labels: tuple[str, ...]
    meanings: tuple[str, ...]
    member: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.meanings) or self.member.max(initial=-1) >= len(self.labels):
            raise InputError(
                f"slices by {self.name}: {len(self.labels)} labels, {len(self.meanings)} meanings and a member of "
                f"slice {self.member.max(initial=-1)}; every slice needs a label and a meaning"
            )


def by_history_length(lengths: np.ndarray, *, bounds: Sequence[int] = LENGTH_BOUNDS) -> Slicing:
    """Divide rows by how many items their histories hold.

    Args:
        lengths: ``(users,)`` items a history.
        bounds: most items of each slice but the last, rising.
    """
    labels = [f"up to {bounds[0]}", *(f"{low + 1} to {high}" for low, high in pairwise(bounds)), f"over {bounds[-1]}"]
    member = np.searchsorted(np.asarray(bounds), lengths, side="left")
    return Slicing("history_length", tuple(labels), tuple(f"{label} items in the history" for label in labels), member)


def by_popularity(targets: np.ndarray, popularity: np.ndarray) -> Slicing:
    """Divide rows by how often their target was taken in training.

    Head, middle and tail hold a third of the training interactions each: the head is the most popular items that
    together have a third or just above it, and so on. A bound is a count, so that items taken equally often stand
    together. ``unseen`` are items without a training interaction, those outside the catalogue too.

    Args:
        targets: ``(users,)`` item rows; a negative one, or one beyond ``popularity``, was never taken.
        popularity: ``(items,)`` training counts.
    """
    ordered = np.sort(popularity)[::-1]
    reached = np.cumsum(ordered)
    head, middle = (int(ordered[np.searchsorted(reached, reached[-1] * third / 3)]) for third in (1, 2))
    head, middle = max(head, 1), max(middle, 1)
    inside = (targets >= 0) & (targets < len(popularity))
    taken = np.where(inside, popularity[np.where(inside, targets, 0)], 0)
    member = np.select([taken >= head, taken >= middle, taken >= 1], [0, 1, 2], 3)
    meanings = (
        f"taken {head} times or more in training",
        _times(middle, head - 1),
        _times(1, middle - 1),
        "never taken in training",
    )
    return Slicing("popularity", ("head", "middle", "tail", "unseen"), meanings, member)


def _times(low: int, high: int) -> str:
    return "no item is taken as often" if high < low else f"taken {low} to {high} times in training"


def by_category(targets: np.ndarray, categories: Categories, *, most: int = MOST_CATEGORIES) -> Slicing:
    """Divide rows by the category that their target names first.

    Args:
        targets: ``(users,)`` item rows; a negative one, or one beyond the categories, has none.
        categories: of the items.
        most: categories with a slice of their own, those of the most items; the rest share one.
    """
    inside = (targets >= 0) & (targets < len(categories.first))
    first = np.where(inside, categories.first[np.where(inside, targets, 0)], -1)
    named = np.unique(categories.first[categories.first >= 0])
    items = np.bincount(categories.first[categories.first >= 0], minlength=len(categories.names))
    own = sorted(named.tolist(), key=lambda number: (-items[number], number))[:most]
    labels = [categories.names[number] for number in own] + ["other categories", "no category"]
    place = np.full(len(categories.names) + 1, len(own), dtype=np.int64)
    place[own] = np.arange(len(own))
    place[-1] = len(own) + 1  # an item without a category has number -1
    meanings = [f"the target's first category is {label}" for label in labels[:-2]]
    meanings += ["the target's first category is another", "the target has no category"]
    return Slicing("category", tuple(labels), tuple(meanings), place[first])


def by_time(times: np.ndarray) -> Slicing:
    """Divide rows into quarters by when their target was taken; equal times stand together, in the earlier quarter.

    Args:
        times: ``(users,)`` seconds; rows with a negative one belong to no quarter.

    Raises:
        InputError: no row has a time.
    """
    known = times >= 0
    if not known.any():
        raise InputError("slices by time: no row's target has a time; leave these slices out")
    cuts = np.quantile(times[known], [0.25, 0.5, 0.75], method="inverted_cdf")
    member = np.where(known, np.searchsorted(cuts, times, side="left"), -1)
    labels = ("first quarter", "second quarter", "third quarter", "last quarter")
    return Slicing("time", labels, tuple(_span(times[member == number]) for number in range(4)), member)


def _span(times: np.ndarray) -> str:
    if not len(times):
        return "no target was taken in between"
    days = [datetime.fromtimestamp(int(seconds), UTC).date().isoformat() for seconds in (times.min(), times.max())]
    return f"targets taken from {days[0]} to {days[1]}"


def by_repetition(histories: Histories, *, items: int) -> Slicing:
    """Divide rows into those whose target stands in their own history and those whose target is new to the user.

    Args:
        histories: of the rows.
        items: size of the catalogue.
    """
    member = np.where(histories.targets_seen(items=items), 0, 1)
    meanings = ("the target stands in the history", "the target does not stand in the history")
    return Slicing("repetition", ("repeat", "explore"), meanings, member)


def slice_metrics(
    ranks: np.ndarray, slicing: Slicing, *, metrics: Sequence[str], users: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Return the metrics of each slice.

    Args:
        ranks: ``(rows,)`` int64 ranks, -1 for a miss.
        slicing: of the same rows.
        metrics: such as ``recall@10``.
        users: ``(rows,)`` the user of each row; None takes each row as a user of its own.

    Returns:
        A dict a slice: ``slice``, ``means``, ``rows``, ``metrics`` and ``standard_errors`` (of those means, by the
        spread between users) by metric. In a slice without rows they are None, not 0; so is the error of one user.

    Raises:
        InputError: other rows, or an unknown metric.
    """
    if len(ranks) != len(slicing.member):
        raise InputError(
            f"slices by {slicing.name}: they divide {len(slicing.member)} rows and there are {len(ranks)} ranks; give "
            "ranks of the same rows"
        )
    inside, numbers = slicing.member >= 0, repeated_users(users, len(ranks))
    member, ranks = slicing.member[inside], ranks[inside]
    numbers = None if numbers is None else numbers[inside]
    counts = np.bincount(member, minlength=len(slicing.labels))
    found = [
        {"slice": label, "means": meaning, "rows": int(rows), "metrics": {}, "standard_errors": {}}
        for label, meaning, rows in zip(slicing.labels, slicing.meanings, counts, strict=True)
    ]
    for metric in metrics:
        values = per_user(metric, ranks)
        means = np.bincount(member, weights=values, minlength=len(counts)) / np.maximum(counts, 1)
        if numbers is None:
            spread = np.bincount(member, weights=(values - means[member]) ** 2, minlength=len(counts))
            errors = np.sqrt(spread / np.maximum(counts - 1, 1) / np.maximum(counts, 1))
        else:
            parts = [member == number for number in range(len(counts))]
            errors = np.array([_error(values[part], numbers[part]) for part in parts])
        for number, rows in enumerate(counts.tolist()):
            found[number]["metrics"][metric] = float(means[number]) if rows else None
            known = rows > 1 and np.isfinite(errors[number])
            found[number]["standard_errors"][metric] = float(errors[number]) if known else None
    return found


def _error(values: np.ndarray, users: np.ndarray) -> float:
    """Return the standard error of a slice's mean by users; infinite without a second user."""
    if not len(values):
        return np.inf
    return error_of_mean(values, repeated_users(users, len(values)))[0] ** 0.5


def format_slices(
    slices: Mapping[str, Sequence[Mapping[str, Any]]], *, metrics: Sequence[str] = ("recall@10", "ndcg@10")
) -> str:
    """Return slices as aligned text: a line each, means with half their 95 % interval, `EMPTY` without rows.

    A slice of one row, or one whose rows all have the same value, stands without an interval.

    Args:
        slices: what `slice_metrics` made, by the name of the slicing.
        metrics: columns.
    """
    lines = [["", "slice", "rows", *metrics]]
    for name, rows in slices.items():
        for number, row in enumerate(rows):
            cells = [_cell(row["metrics"].get(metric), row["standard_errors"].get(metric)) for metric in metrics]
            lines.append([name if number == 0 else "", row["slice"], str(row["rows"]), *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cell(mean: float | None, error: float | None) -> str:
    if mean is None:
        return EMPTY
    # Rows that all have one value, such as no hit at all, have a spread of 0, which is no certainty.
    return f"{mean:.4f} ±{1.96 * error:.4f}" if error else f"{mean:.4f}"
