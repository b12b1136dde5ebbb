"""Scores of any scale made comparable within a group."""

import numpy as np

SCALES = ("rank", "softmax", "zscore", "none")


def scale_scores(scores: np.ndarray, *, scale: str, temperature: float = 1.0) -> np.ndarray:
    """Return scores on a scale that is the same for all groups; minus infinity counts as the worst there is.

    Args:
        scores: ``(groups, candidates of a group)``, minus infinity where there is none.
        scale: ``rank`` from 0 (worst) to 1 (best), equal ones sharing the mean of their places; ``softmax`` shares of
            the group that sum to 1; ``zscore`` less the group's mean, divided by its standard deviation; ``none``
            as they are.
        temperature: divides the scores of ``softmax``.

    Returns:
        As ``scores``, finite. A group without any score has 0 throughout; with ``zscore`` and ``none``, what has no
        score gets the lowest that its group has.
    """
    known = np.isfinite(scores)
    some = known.any(axis=1, keepdims=True)
    if scale == "rank":
        below = (scores[:, :, None] > scores[:, None, :]).sum(axis=2)
        equal = (scores[:, :, None] == scores[:, None, :]).sum(axis=2) - 1
        return np.where(some, (below + equal / 2) / max(scores.shape[1] - 1, 1), 0.0)
    if scale == "softmax":
        highest = np.where(some, np.where(known, scores, -np.inf).max(axis=1, keepdims=True), 0.0)
        weights = np.where(known, np.exp((np.where(known, scores, highest) - highest) / temperature), 0.0)
        return weights / np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    lowest = np.where(some, np.where(known, scores, np.inf).min(axis=1, keepdims=True), 0.0)
    filled = np.where(known, scores, lowest)
    if scale == "none":
        return filled
    centred = filled - filled.mean(axis=1, keepdims=True)
    deviation = centred.std(axis=1, keepdims=True)
    # What differs by rounding alone is equal.
    wide = deviation > 1e-9 * np.maximum(np.abs(filled).max(axis=1, keepdims=True), 1.0)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=wide)
