"""Lists of several systems as one: by the places of items, or by scores."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmrec.errors import InputError
from llmrec.evaluation.evaluator import repeated_places

CONSTANT = 60.0
"""Of reciprocal rank fusion, as its paper has it."""


def reciprocal_rank_fusion(
    lists: Sequence[np.ndarray], *, weights: Sequence[float], constant: float = CONSTANT, k: int
) -> np.ndarray:
    """Return the items that stand high in several lists.

    An item scores the sum over the lists of ``weight / (constant + place)``, places counted from 1; a list without it
    adds nothing. Scores that agree to 12 digits of the largest possible one are ties, and go to the lower row.

    Args:
        lists: ``(users, depth)`` item rows of each system, best first; -1 in an empty place. Depths may differ. An
            item that stands twice in a list counts where it stands first, and the places behind keep their numbers.
        weights: of each list, 0 or more; one of weight 0 is left out. Only their ratios matter.
        constant: 0 or more; the larger it is, the less the first places stand out.
        k: length of the fused lists, at least 1.

    Returns:
        ``(users, k)`` int64 rows, best first, distinct; -1 behind them where the lists hold fewer than ``k`` items.

    Raises:
        InputError: fewer than two lists, lists of other users, weights that are negative or all 0 or not one a list, a
            constant below 0, or ``k`` below 1.

    Paper: Cormack, Clarke and Buettcher, Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning
    Methods, SIGIR 2009, with constant 60. The weights are ours; all 1 is the paper.
    """
    if len(lists) < 2:
        raise InputError(f"fusion: {len(lists)} list of items a user; give those of two systems or more")
    users = {len(part) for part in lists}
    if len(users) > 1:
        raise InputError(f"fusion: lists of {sorted(users)} users; fuse systems that answered the same histories")
    given = check_weights(dict(enumerate(weights)), list(range(len(lists))))
    check_constant(constant)
    check_length(k)
    return fuse_places(*pool_places(lists), weights=list(given.values()), constant=constant, k=k)


def beam_fusion(
    rows: np.ndarray, beam_scores: np.ndarray, others: Sequence[np.ndarray], *, weights: Sequence[float], k: int
) -> np.ndarray:
    """Return a model's candidates in the order of their beam scores and other scores together.

    Of a user's candidates, one scores ``softmax(w0 * beam score) * softmax(w1 * other score)`` and so on, each softmax
    over these candidates. The order is that of ``w0 * beam score + w1 * other score``, which is what is computed, and
    hangs on the ratio of the weights alone. Sums that agree to 9 decimals are ties, and go to the lower row.

    Args:
        rows: ``(users, depth)`` candidates, item rows, -1 in an empty place. Of an item that stands twice the first
            place counts.
        beam_scores: ``(users, depth)`` sums of log-probabilities; minus infinity in an empty place.
        others: ``(users, depth)`` scores of the same candidates, one array a further system. Where one is minus
            infinity, the system has no score: the lowest of the user's candidates stands for it, 0 where none has one.
        weights: of the beam scores, then of each of ``others``, 0 or more.
        k: length of the lists, at least 1.

    Returns:
        ``(users, k)`` int64 rows, best first, distinct; -1 behind them where there are fewer than ``k`` candidates.

    Raises:
        InputError: no other scores, arrays of other shapes, weights that are negative or all 0 or not one an array, or
            ``k`` below 1.

    Paper: Yang et al., Sparse Meets Dense: Unified Generative Recommendations with Cascaded Sparse-Dense
    Representations (COBRA), arXiv 2503.02453: BeamFusion, with temperatures tau of the beams and psi of the cosines.
    There a SID is a coarse category of many items, a beam's cosines are to a vector that the model generated for this
    very beam, and only the nearest items within its SID are candidates. Our models generate no vectors: the other
    score is any baseline's (cosines of text embeddings with ``dense_text``), the same for all beams, and the
    candidates are the items of the beams.
    """
    if not others:
        raise InputError("beam_fusion: there are beam scores alone; give the scores of another system beside them")
    for scores in (beam_scores, *others):
        if scores.shape != rows.shape:
            raise InputError(f"beam_fusion: scores of shape {scores.shape} for candidates of shape {rows.shape}")
    given = check_weights(dict(enumerate(weights)), list(range(len(others) + 1)))
    check_length(k)
    real = (rows >= 0) & ~repeated_places(rows) & (beam_scores > -np.inf)
    total = np.zeros(rows.shape)
    for weight, scores in zip(given.values(), (beam_scores, *others), strict=True):
        if weight:
            total += weight * _filled(scores, real)
    ordered = np.argsort(rows, axis=1, kind="stable")
    scores = np.where(real, np.round(total, 9), -np.inf)
    return _best_rows(np.take_along_axis(rows, ordered, 1), np.take_along_axis(scores, ordered, 1), k)


def check_weights(weights: Mapping[Any, float], names: Sequence[Any]) -> dict[Any, float]:
    """Return weights by name, as floats; raise `InputError` where one is missing or negative, or all are 0."""
    if list(weights) != list(names) and set(weights) != set(names):
        raise InputError(
            f"fusion: weights of {', '.join(map(str, weights))}; give one for each of {', '.join(map(str, names))}"
        )
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise InputError(f"fusion: weight {weight} of {name}; 0 or more")
    if not any(weights.values()):
        raise InputError("fusion: all weights are 0; give at least one part a weight above 0")
    return {name: float(weights[name]) for name in names}


def check_constant(constant: float) -> None:
    """Raise `InputError` unless the constant of reciprocal ranks is 0 or more."""
    if not 0 <= constant < math.inf:
        raise InputError(f"fusion: constant {constant}; 0 or more, such as {CONSTANT:.0f}")


def check_length(k: int) -> None:
    """Raise `InputError` unless lists hold an item."""
    if k < 1:
        raise InputError(f"k {k}: lists hold at least 1 item")


def _filled(scores: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return ``(users, depth)`` scores, the user's lowest where there is none, and 0 in places that hold no item."""
    has = real & (scores > -np.inf)
    lowest = np.where(has, scores, np.inf).min(axis=1, keepdims=True)
    lowest = np.where(np.isinf(lowest), 0.0, lowest)
    return np.where(has, scores, np.where(real, lowest, 0.0)).astype(np.float64)


def pool_places(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return all items of some lists and where each list has them; it takes longer than trying weights on it.

    Returns:
        ``(users, candidates)`` int32 rows, a user's in ascending order, -1 in places that hold none: as many as there
        are places in all lists, so that batches fit together; and for each list
        ``(users, candidates)`` float32 places from 1, infinite where the list does not have the item.
    """
    pooled = np.concatenate(lists, axis=1).astype(np.int32)
    order = np.argsort(pooled, axis=1, kind="stable")
    ordered = np.take_along_axis(pooled, order, 1)
    first = np.ones(pooled.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    candidate = np.empty(pooled.shape, dtype=np.int64)  # of each place of the lists, among the user's
    np.put_along_axis(candidate, order, np.cumsum(first, axis=1) - 1, 1)
    users = np.arange(len(pooled))[:, None]
    rows = np.full(pooled.shape, -1, dtype=np.int32)
    rows[users, candidate] = pooled
    places, start = [], 0
    for part in lists:
        found = np.full(rows.shape, np.inf, dtype=np.float32)
        # From the last place to the first, so that the first stays where an item stands twice
        for place in reversed(range(part.shape[1])):
            found[users[:, 0], candidate[:, start + place]] = place + 1
        found[rows < 0] = np.inf
        places.append(found)
        start += part.shape[1]
    return rows, tuple(places)


def fuse_places(
    rows: np.ndarray, places: Sequence[np.ndarray], *, weights: Sequence[float], constant: float, k: int
) -> np.ndarray:
    """Return ``(users, k)`` fused rows of what `pool_places` gave; see `reciprocal_rank_fusion`."""
    scores = np.zeros(rows.shape)
    for weight, found in zip(weights, places, strict=True):
        # Scaled so that the best score is 1, whatever the constant
        scores += weight / sum(weights) * (constant + 1) / (constant + found.astype(np.float64))
    return _best_rows(rows, np.where(scores > 0, np.round(scores, 12), -np.inf), k)


def _best_rows(rows: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """Return ``(users, k)`` rows by score; ``rows`` ascend, so that among equals the lower comes first."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.where(np.take_along_axis(scores, best, 1) > -np.inf, np.take_along_axis(rows, best, 1), -1)
    empty = np.full((len(rows), k - found.shape[1]), -1)
    return np.concatenate([found, empty], axis=1).astype(np.int64)
