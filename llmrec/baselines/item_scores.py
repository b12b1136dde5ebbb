"""What a baseline scores given items, whether they would stand in its list or not."""

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
