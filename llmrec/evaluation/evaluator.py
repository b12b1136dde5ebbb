"""Score any recommender on the rows of a split: the model and every baseline go through here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from tqdm import tqdm

from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.latency import Latency
from llmrec.evaluation.metrics import as_array, ranks_of, summarize

INVALID_LISTS = ("refuse", "count")
BOTH = "both"
EXCLUDED_SUFFIX = " (seen excluded)"
"""What `named_exclusions` adds to the name of a system whose lists leave seen items out."""
REQUESTS = 100
"""Single requests that `time_requests` makes."""
ENOUGH_SECONDS = 10.0
"""Time after which it makes no more of them."""


class Recommender(Protocol):
    """Item rows in, item rows out; the evaluator cannot tell a model from a baseline."""

    def recommend(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> Tensor:
        """Return the best items after each history.

        Args:
            histories: item rows, oldest first; one may be empty.
            k: length of the lists.
            exclude_seen: keep the items of a history out of its list. The design's protocol has no such argument; it
                stands here because filtering afterwards would leave lists too short.

        Returns:
            ``(users, k)`` int64 item rows, best first, distinct within a list; -1 in places left empty at its end.

        Raises:
            InputError: ``k`` above the number of items that may come out.
        """
        ...


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Args:
        name: of the system.
        ranks: ``(users,)`` int64, the target's place in its list from 0, -1 where it is absent.
        metrics: means over users, by ``ndcg@10`` and so on.
        users: rows scored.
        seconds: wall time of recommending.
        ks: cuts of the metrics.
        items: size of the catalogue.
        recommended: ``(users, max(ks))`` int32 lists, for the figures of `llmrec.evaluation.beyond`; -1 in an empty
            place. None where they were not kept.
        latency: how fast the calls were; the first one is among them. Single requests are timed apart.
        duplicates: places that held an item of their list again, and count as empty.
        illegal: places that held no item of the catalogue, and count as empty; -1 is none of them.
    """

    name: str
    ranks: np.ndarray = field(repr=False)
    metrics: dict[str, float]
    users: int
    seconds: float
    ks: tuple[int, ...] = ()
    items: int = 0
    recommended: np.ndarray | None = field(default=None, repr=False)
    latency: Latency | None = None
    duplicates: int = 0
    illegal: int = 0


def evaluate(
    recommender: Recommender,
    rows: Sequence[History],
    *,
    items: int,
    ks: Sequence[int] = (5, 10),
    exclude_seen: bool = False,
    name: str = "model",
    batch_users: int = 2048,
    progress: bool = True,
    invalid_lists: str = "refuse",
    keep_lists: bool = True,
) -> Evaluation:
    """Recommend for every row and score the lists by item over the whole catalogue.

    Args:
        recommender: model or baseline.
        rows: histories with their targets; a negative target is an item outside the catalogue and a miss.
        items: size of the catalogue.
        ks: cuts of the metrics, from 1 up to ``items``.
        exclude_seen: keep each history's items out of its list.
        name: of the system, for the result and the progress bar.
        batch_users: rows handed over at a time; it bounds memory and changes no number but users a second.
        progress: show a progress bar.
        invalid_lists: ``refuse`` lists that hold an item twice or none of the catalogue, an error in a system of ours;
            or ``count`` such places, which then count as empty: for lists that others made.
        keep_lists: keep the lists, 4 bytes a place.

    Raises:
        InputError: no rows, a cut out of range, an ``exclude_seen`` that is no bool, or lists of a wrong shape, with
            items out of range or twice.
    """
    if not rows:
        raise InputError(f"evaluation of {name!r}: there are no rows to score; choose a split that has some")
    if not ks or min(ks) < 1 or max(ks) > items:
        raise InputError(f"ks {list(ks)}: give cuts from 1 to the {items} items of the catalogue")
    if not isinstance(exclude_seen, bool):
        raise InputError(f"exclude_seen {exclude_seen!r}: one evaluation is of True or False; score each by itself")
    if invalid_lists not in INVALID_LISTS:
        raise InputError(f"invalid_lists {invalid_lists!r}: choose one of {', '.join(INVALID_LISTS)}")
    k = max(ks)
    recommended = np.empty((len(rows), k), dtype=np.int32)
    durations, sizes, duplicates, illegal = [], [], 0, 0
    started = time.perf_counter()
    with tqdm(total=len(rows), desc=f"evaluate {name}", unit="user", disable=not progress) as bar:
        for start in range(0, len(rows), batch_users):
            part = rows[start : start + batch_users]
            histories = [row.items for row in part]
            called = time.perf_counter()
            found = recommender.recommend(histories, k, exclude_seen=exclude_seen).cpu()
            durations.append(time.perf_counter() - called)
            sizes.append(len(part))
            lists = _as_lists(found, len(part), k, items, name)
            wrong = (lists < -1) | (lists >= items)
            legal = np.where(wrong, -1, lists).astype(np.int32)
            again = repeated_places(legal)
            if invalid_lists == "refuse":
                _refuse(lists, wrong, again, items, name)
            duplicates += int(again.sum())
            illegal += int(wrong.sum())
            recommended[start : start + len(part)] = np.where(again, -1, legal)
            bar.update(len(part))
    seconds = time.perf_counter() - started
    ranks = ranks_of(recommended, np.fromiter((row.target for row in rows), np.int64, len(rows)))
    return Evaluation(
        name,
        ranks,
        summarize(ranks, recommended, ks=ks, items=items),
        len(rows),
        seconds,
        ks=tuple(ks),
        items=items,
        recommended=recommended if keep_lists else None,
        latency=Latency.of(durations, sizes),
        duplicates=duplicates,
        illegal=illegal,
    )


def _as_lists(found: Tensor, users: int, k: int, items: int, name: str) -> np.ndarray:
    if tuple(found.shape) != (users, k):
        raise InputError(f"recommender {name!r}: its lists are {tuple(found.shape)}, expected {(users, k)} (users, k)")
    lists = as_array(found)
    if lists.dtype != np.int64:
        raise InputError(
            f"recommender {name!r}: its lists are {lists.dtype}; they must be int64 rows from 0 to {items - 1}, or -1 "
            "for a place left empty"
        )
    return lists


def repeated_places(lists: np.ndarray) -> np.ndarray:
    """Return ``(users, k)`` bool: the places whose item stands before in the same list.

    Args:
        lists: ``(users, k)`` item rows; what is negative is no item.
    """
    again = np.zeros(lists.shape, dtype=bool)
    ordered = np.sort(lists, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    for user in np.flatnonzero(twice):
        first = np.unique(lists[user], return_index=True)[1]
        again[user] = lists[user] >= 0
        again[user, first] = False
    return again


def _refuse(lists: np.ndarray, wrong: np.ndarray, again: np.ndarray, items: int, name: str) -> None:
    if wrong.any():
        raise InputError(
            f"recommender {name!r}: its lists must be int64 rows from 0 to {items - 1}, or -1 for a place left empty; "
            f"found {int(lists[wrong][0])}"
        )
    if again.any():
        user, place = np.argwhere(again)[0].tolist()
        raise InputError(f"recommender {name!r}: item {int(lists[user, place])} stands twice in list {user}")


def time_requests(
    recommender: Recommender,
    rows: Sequence[History],
    *,
    k: int,
    requests: int = REQUESTS,
    warm_up: int = 5,
    enough: float = ENOUGH_SECONDS,
    exclude_seen: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Return how long single requests take: one user a call, one call after the other, by this process alone.

    Args:
        recommender: model or baseline. One that has ``alone()`` is asked as that gives it: without a progress bar,
            without answers that it kept, and without other processes.
        rows: rows whose histories are drawn, without replacement.
        k: length of the lists.
        requests: calls that are timed, at least 1; at most the rows there are.
        warm_up: calls before them that are not.
        enough: seconds after which no further call is made; one is timed all the same. Warming up ends after a fifth.
        exclude_seen: keep each history's items out of its list.
        seed: of the draw.

    Returns:
        ``(requests,)`` float64 seconds, in order.

    Raises:
        InputError: no rows, or a number out of range.
    """
    if not rows or requests < 1 or warm_up < 0:
        raise InputError(
            f"latency: {len(rows)} rows, requests {requests}, warm_up {warm_up}; give rows, at least 1 request and no "
            "negative warm_up"
        )
    asked = alone_of(recommender)
    drawn = np.random.default_rng(seed).permutation(len(rows))[:requests].tolist()
    seconds: list[float] = []
    begun = time.perf_counter()
    for number, row in enumerate([drawn[call % len(drawn)] for call in range(warm_up)] + drawn, start=-warm_up):
        started = time.perf_counter()
        if (number < 0 and started - begun > enough / 5) or (seconds and started - begun > enough):
            continue
        asked.recommend([rows[row].items], k, exclude_seen=exclude_seen).cpu()
        if number >= 0:
            seconds.append(time.perf_counter() - started)
    return np.array(seconds)


def alone_of(recommender: Any) -> Any:
    """Return what answers as a single process would: the recommender's ``alone()``, or itself where it has none."""
    return recommender.alone() if hasattr(recommender, "alone") else recommender


def exclusions(exclude_seen: bool | str, rows: Sequence[History]) -> tuple[bool, ...]:
    """Return the values of ``exclude_seen`` that a table reports.

    Args:
        exclude_seen: True, False, or ``both``: seen items kept, then left out.
        rows: what is scored.

    Raises:
        InputError: another value, or ``both`` where targets stand in their own histories: left out, they cannot be
            hit, so the two tables would not measure the same.
    """
    if isinstance(exclude_seen, bool):
        return (exclude_seen,)
    if exclude_seen != BOTH:
        raise InputError(f"exclude_seen {exclude_seen!r}: choose true, false or {BOTH}")
    repeated = sum(row.target in row.items for row in rows)
    if repeated:
        raise InputError(
            f"exclude_seen {BOTH}: {repeated} of {len(rows)} targets stand in their own histories and cannot be hit "
            "when seen items are left out; choose true or false"
        )
    return (False, True)


def named_exclusions(name: str, exclude_seen: bool | str) -> list[tuple[bool, str]]:
    """Return each value of ``exclude_seen`` that is scored, and the name that a system has then.

    Args:
        name: of the system.
        exclude_seen: True, False, or ``both``, where `EXCLUDED_SUFFIX` tells the second from the first.
    """
    if isinstance(exclude_seen, bool):
        return [(exclude_seen, name)]
    return [(False, name), (True, name + EXCLUDED_SUFFIX)]
