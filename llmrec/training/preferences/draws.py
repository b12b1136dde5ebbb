"""Random numbers that belong to a row and a place, whatever else is drawn."""

import numpy as np

from llmrec.training.preferences.candidates import Candidates

FIRST_DRAWS, MOST_DRAWS = 8, 4096
DENSE_CELLS = 1 << 24
"""Cells of the table of rows and SIDs that the last resort holds at a time: 128 MB."""
_SALT = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seed: int, numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return numbers in [0, 1) that depend on the seed, the row and the place alone.

    Args:
        seed: 0 or more.
        numbers: ``(rows,)`` numbers of the rows.
        places: ``(places,)`` int64, 0 or more.

    Returns:
        ``(rows, places)`` float64.

    Paper: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators (OOPSLA 2014): SplitMix64's finishing
        function, here applied twice to a key instead of to a counter.
    """
    start = _mix(np.asarray([seed], dtype=np.uint64) + _SALT)
    rows = _mix(start + np.asarray(numbers).astype(np.uint64) * _SALT)
    keys = _mix(rows[:, None] + (np.asarray(places).astype(np.uint64) + np.uint64(1)) * _SALT)
    return (keys >> np.uint64(11)) * 2.0**-53


def _mix(key: np.ndarray) -> np.ndarray:
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


def draw_weighted(
    candidates: Candidates,
    weights: np.ndarray,
    forbidden: np.ndarray,
    *,
    numbers: np.ndarray,
    count: int,
    seed: int,
) -> np.ndarray:
    """Draw SIDs one after another by their weights, none twice and none that is forbidden.

    Each row reads an endless stream of draws of its own and keeps the first ``count`` it may have. A row that has not
    found them after `MOST_DRAWS` gets the rest by exponential races over all that is left, which have the same law.

    Args:
        candidates: the SIDs.
        weights: ``(SIDs,)`` float64, 0 or more.
        forbidden: keys of `Candidates.forbidden`.
        numbers: ``(rows,)`` that seed the rows.
        count: SIDs a row.
        seed: of all draws.

    Returns:
        ``(rows, count)`` int64 SIDs, -1 where fewer are left.
    """
    found = np.full((len(numbers), count), -1, dtype=np.int64)
    bounds = np.cumsum(weights)
    if not len(numbers) or not bounds[-1] > 0:
        return found
    last = int(np.flatnonzero(weights > 0)[-1])
    open_rows, width = np.arange(len(numbers)), 2 * count + FIRST_DRAWS
    while len(open_rows) and width <= MOST_DRAWS:
        step = max(1, DENSE_CELLS // width)
        for start in range(0, len(open_rows), step):
            part = open_rows[start : start + step]
            drawn = np.searchsorted(bounds, uniforms(seed, numbers[part], np.arange(width)) * bounds[-1], "right")
            own = _keys_of(forbidden, part, candidates.count)
            found[part] = candidates.first_permitted(drawn.clip(max=last), own, count=count)
        open_rows = open_rows[found[open_rows, -1] < 0]
        width *= 4
    step = max(1, DENSE_CELLS // candidates.count)
    for start in range(0, len(open_rows), step):
        part = open_rows[start : start + step]
        races = -np.log1p(-uniforms(seed + 1, numbers[part], np.arange(candidates.count)))
        with np.errstate(divide="ignore", invalid="ignore"):
            races = np.where(weights > 0, races / weights, np.inf)
        order = np.argsort(races, axis=1, kind="stable")
        order[np.take_along_axis(races, order, axis=1) == np.inf] = -1
        both = np.concatenate([found[part], order], axis=1)
        found[part] = candidates.first_permitted(both, _keys_of(forbidden, part, candidates.count), count=count)
    return found


def _keys_of(keys: np.ndarray, rows: np.ndarray, width: int) -> np.ndarray:
    """Return the keys ``row * width + n`` of some rising rows, as keys of their places among these."""
    if len(rows) and len(rows) == int(rows[-1]) + 1 and (not len(keys) or keys[-1] < len(rows) * width):
        return keys
    owner = keys // width
    place = np.searchsorted(rows, owner).clip(max=len(rows) - 1)
    own = rows[place] == owner
    return place[own] * width + keys[own] % width
