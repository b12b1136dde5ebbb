"""Interactions on their way in: read into arrays row by row, filtered and freed of doubles."""

import datetime
import itertools
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from llmrec.data.import_rules import ImportRules, Repairs
from llmrec.errors import InputError

TIME_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


class Row(NamedTuple):
    """One interaction as a source states it; ``timestamp`` is None where the source has no times."""

    line: int
    user_id: Any
    item_id: Any
    timestamp: Any = None
    rating: Any = None
    event: Any = None
    review: str | None = None


@dataclass(frozen=True)
class Collected:
    """Interactions as numbers, in the order of the source, with the ids behind the numbers.

    Args:
        path: the source, for error messages.
        user_ids: user ids by number, in order of first appearance.
        item_ids: item ids by number, in order of first appearance.
        users: ``(interactions,)`` int64 user numbers.
        items: ``(interactions,)`` int64 item numbers.
        timestamps: ``(interactions,)`` int64 seconds; zeros where the source has no times.
        ratings: ``(interactions,)`` float32, or None.
        lines: ``(interactions,)`` int64 lines of the source.
        reviews: ``(interactions,)`` texts, empty where there is none; None where no row states one.
        read: rows read.
        dropped: rows that a filter left out, by filter.
    """

    path: Path
    user_ids: tuple[str, ...] = field(repr=False)
    item_ids: tuple[str, ...] = field(repr=False)
    users: np.ndarray = field(repr=False)
    items: np.ndarray = field(repr=False)
    timestamps: np.ndarray = field(repr=False)
    ratings: np.ndarray | None = field(repr=False)
    lines: np.ndarray = field(repr=False)
    reviews: pa.Array | None = field(repr=False, default=None)
    read: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.users)

    def keep(self, mask: np.ndarray, reason: str | None = None) -> "Collected":
        """Return the interactions of a ``(interactions,)`` bool mask; the others are counted under ``reason``."""
        dropped = dict(self.dropped)
        if reason is not None and not mask.all():
            dropped[reason] = dropped.get(reason, 0) + int((~mask).sum())
        return Collected(
            self.path,
            self.user_ids,
            self.item_ids,
            self.users[mask],
            self.items[mask],
            self.timestamps[mask],
            None if self.ratings is None else self.ratings[mask],
            self.lines[mask],
            None if self.reviews is None else self.reviews.filter(pa.array(mask)),
            self.read,
            dropped,
        )


def whole_seconds(value: Any, *, unit: str = "s") -> tuple[int, bool]:
    """Return a timestamp as whole seconds, and whether it was stated in whole ones.

    Args:
        value: a number, text that reads as one (``"881250949.0"``), or a datetime (naive ones are UTC).
        unit: ``s``, ``ms``, ``us`` or ``ns``: the unit of numbers. Parts of a second are cut off.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, datetime.datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
        return math.floor(moment.timestamp()), True
    if isinstance(value, bool) or value is None:
        raise ValueError("no number")
    scale = TIME_UNITS[unit]
    try:
        number, clean = int(value) if not isinstance(value, float) else None, True
    except ValueError:
        number = None
    if number is None:
        exact = float(value)
        if not math.isfinite(exact):
            raise ValueError("no finite number")
        number, clean = math.floor(exact), False
    seconds = number // scale
    if abs(seconds) >= 2**62:
        raise ValueError("out of range")
    return seconds, clean


def collect(
    rows: Iterable[Row], *, path: Path, rules: ImportRules, repairs: Repairs, time_unit: str = "s"
) -> Collected:
    """Read a source's interactions into arrays, applying the filters that need only the row itself.

    Args:
        rows: the source, row by row.
        path: the source, for error messages.
        rules: limit, rating threshold and event types are applied here.
        repairs: counts ``rows_without_ids`` (dropped) and ``timestamps_not_whole`` (cut to whole seconds).
        time_unit: unit of the timestamps, a key of `TIME_UNITS`.

    Raises:
        InputError: a timestamp or rating that is no number, a filter on a column that is not there, or nothing left.
    """
    users, items, times, lines = array("q"), array("q"), array("q"), array("q")
    ratings = array("f")
    reviews: list[str] = []
    user_numbers: dict[str, int] = {}
    item_numbers: dict[str, int] = {}
    dropped: Counter[str] = Counter()
    events = None if rules.event_types is None else frozenset(rules.event_types)
    found_events: set[str] = set()
    read = 0
    for row in itertools.islice(rows, rules.limit):
        read += 1
        user_id = "" if row.user_id is None else str(row.user_id).strip()
        item_id = "" if row.item_id is None else str(row.item_id).strip()
        if not user_id or not item_id:
            what = "item" if user_id else "user"
            repairs.note("rows_without_ids", f"{path}: row {row.line}", f"no {what} id", "the row is dropped")
            continue
        if events is not None:
            if row.event is None:
                raise InputError(f"{path}: row {row.line} has no event type; leave out --event_types")
            if str(row.event) not in events:
                if len(found_events) < 20:
                    found_events.add(str(row.event))
                dropped["event_types"] += 1
                continue
        rating = None if row.rating is None or row.rating == "" else _rating(row, path)
        if rules.min_rating is not None:
            if rating is None:
                raise InputError(f"{path}: row {row.line} has no rating; leave out --min_rating")
            if rating < rules.min_rating:
                dropped["min_rating"] += 1
                continue
        seconds = 0
        if row.timestamp is not None:
            try:
                seconds, clean = whole_seconds(row.timestamp, unit=time_unit)
            except (TypeError, ValueError, OverflowError) as error:
                raise InputError(
                    f"{path}: row {row.line} has timestamp {row.timestamp!r} ({error}); expected a number of "
                    f"{'seconds' if time_unit == 's' else time_unit} since 1970"
                ) from error
            if not clean:
                repairs.note(
                    "timestamps_not_whole",
                    f"{path}: row {row.line}",
                    f"timestamp {row.timestamp!r} is no whole number",
                    f"taken as {seconds} seconds",
                )
        users.append(user_numbers.setdefault(user_id, len(user_numbers)))
        items.append(item_numbers.setdefault(item_id, len(item_numbers)))
        times.append(seconds)
        lines.append(row.line)
        ratings.append(math.nan if rating is None else rating)
        if row.review is not None:
            # Most sources state none, and pay for none.
            reviews.extend("" for _ in range(len(lines) - 1 - len(reviews)))
            reviews.append(" ".join(row.review.split()))
    if not read:
        raise InputError(f"{path}: no interactions in it; expected one a row")
    if not users:
        seen = f" (event types found: {', '.join(sorted(found_events))})" if found_events else ""
        raise InputError(
            f"{path}: none of {read} interactions is left after {name_rules(dropped) or 'dropping dirty rows'}{seen}; "
            "loosen the filters"
        )
    values = np.frombuffer(ratings, dtype=np.float32)
    return Collected(
        path,
        tuple(user_numbers),
        tuple(item_numbers),
        np.frombuffer(users, dtype=np.int64),
        np.frombuffer(items, dtype=np.int64),
        np.frombuffer(times, dtype=np.int64),
        None if np.isnan(values).all() else values,
        np.frombuffer(lines, dtype=np.int64),
        pa.array([*reviews, *[""] * (len(lines) - len(reviews))], pa.string()) if reviews else None,
        read,
        dict(dropped),
    )


def _rating(row: Row, path: Path) -> float:
    try:
        rating = float(row.rating)
    except (TypeError, ValueError):
        rating = math.nan
    if not math.isfinite(rating):
        raise InputError(f"{path}: row {row.line} has rating {row.rating!r}, which is no number; mend or drop the row")
    return rating


def name_rules(dropped: Mapping[str, int]) -> str:
    """Return the flags behind the reasons why rows were dropped."""
    return ", ".join(f"--{name}" for name in dropped)


def drop_same_events(collected: Collected, repairs: Repairs) -> Collected:
    """Keep the first of interactions with the same user, item and time, counting ``duplicate_interactions``."""
    order = np.lexsort((np.arange(len(collected)), collected.timestamps, collected.items, collected.users))
    keys = np.stack([collected.users, collected.items, collected.timestamps])[:, order]
    again = order[1:][(keys[:, 1:] == keys[:, :-1]).all(axis=0)]
    mask = np.ones(len(collected), dtype=bool)
    for row in np.sort(again).tolist():
        mask[row] = False
        repairs.note(
            "duplicate_interactions",
            f"{collected.path}: row {collected.lines[row]}",
            f"user {collected.user_ids[collected.users[row]]!r} and item "
            f"{collected.item_ids[collected.items[row]]!r} stand in an earlier row with the same time",
            "the first is kept",
        )
    return collected.keep(mask)


def drop_repeats(collected: Collected, which: str) -> Collected:
    """Keep the ``first`` or ``last`` interaction, in time, of every user with an item; ``keep`` changes nothing."""
    if which == "keep":
        return collected
    order = np.lexsort((np.arange(len(collected)), collected.timestamps, collected.items, collected.users))
    users, items = collected.users[order], collected.items[order]
    new = np.ones(len(order), dtype=bool)
    change = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    if which == "first":
        new[1:] = change
    else:
        new[:-1] = change
    mask = np.zeros(len(order), dtype=bool)
    mask[order[new]] = True
    return collected.keep(mask, "drop_repeats")
