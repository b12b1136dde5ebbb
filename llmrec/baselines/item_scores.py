"""What a baseline scores: given items, or its best unseen ones."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from llmrec.baselines.base import DENSE_SCORES, Baseline
from llmrec.errors import InputError


def score_items(baseline: Baseline, histories: Sequence[Sequence[int]], items: np.ndarray) -> np.ndarray:
    """Return the scores of given items after each history, seen ones too.

    Args:
        baseline: fitted.
        histories: item rows, oldest first.
        items: ``(users, places)`` item rows, one line a history; -1 in an empty place.

    Returns:
        ``(users, places)`` float64. Where a baseline counts, 0 for what was never counted; minus infinity in empty
        places, and where a baseline that scores all items has no score (a network after an empty history).

    Raises:
        InputError: a row outside the catalogue, or items of another number of histories.
    """
    if len(items) != len(histories):
        raise InputError(f"score_items: items of {len(items)} users for {len(histories)} histories; give as many")
    known = [*items.ravel().tolist(), *(item for history in histories for item in history)]
    if known and (min(known) < -1 or max(known) >= baseline.items):
        wrong = min(known) if min(known) < -1 else max(known)
        raise InputError(f"score_items: item row {wrong}; the catalogue has {baseline.items}")
    found = np.empty(items.shape)
    users = max(1, DENSE_SCORES // baseline.items)
    for start in range(0, len(histories), users):
        scores = baseline._scores(histories[start : start + users])
        asked = items[start : start + users]
        dense = scores.toarray() if isinstance(scores, sparse.csr_array) else scores
        found[start : start + users] = np.where(
            asked >= 0, np.take_along_axis(dense, np.maximum(asked, 0), axis=1), -np.inf
        )
    return found


def best_unseen(baseline: Baseline, histories: Sequence[Sequence[int]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the unseen items with the highest scores after each history, and those scores, in no order.

    Args:
        baseline: fitted.
        histories: item rows, oldest first.
        k: places; at least 1 and below the size of the catalogue.

    Returns:
        ``(histories, k)`` item rows and their float64 scores. Where a baseline counts, what was never counted has
        minus infinity; where nothing was, popular items stand with a score of 0 each. Which of equal scores get the
        last places is not said. A history with fewer than ``k`` unseen items has seen ones at minus infinity.
    """
    rows, best = np.empty((len(histories), k), dtype=np.int64), np.empty((len(histories), k))
    users = max(1, DENSE_SCORES // baseline.items)
    popular = np.argsort(-baseline.popularity, kind="stable")
    for start in range(0, len(histories), users):
        part = histories[start : start + users]
        scores = baseline._scores(part)
        if isinstance(scores, sparse.csr_array):
            dense = np.full((len(part), baseline.items), -np.inf)
            counted = scores.tocoo()
            dense[counted.coords] = np.where(counted.data > 0, counted.data, -np.inf)
        else:
            dense = np.array(scores, dtype=np.float64)
        for line, history in enumerate(part):
            dense[line, list(history)] = -np.inf
        found = np.argpartition(-dense, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(dense, found, axis=1)
        for line in np.flatnonzero(np.isneginf(values).all(axis=1)).tolist():
            unseen = popular[~np.isin(popular, list(part[line]))][:k]
            found[line, : len(unseen)], values[line, : len(unseen)] = unseen, 0.0
        rows[start : start + users], best[start : start + users] = found, values
    return rows, best
