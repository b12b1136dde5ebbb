"""Ranking metrics for one target a user, as pure functions of the target's rank."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from llmrec.errors import InputError


def ranks_of(recommended: Tensor, targets: Tensor) -> np.ndarray:
    """Return where each target stands in its list.

    Args:
        recommended: ``(users, k)`` item rows, best first; -1 in an empty place.
        targets: ``(users,)`` item rows; a negative one is never hit.

    Returns:
        ``(users,)`` int64 ranks, 0 for the first place, -1 where the list lacks the target.
    """
    wanted = targets.cpu().numpy()[:, None]
    hits = (recommended.cpu().numpy() == wanted) & (wanted >= 0)
    return np.where(hits.any(axis=1), hits.argmax(axis=1), -1).astype(np.int64)


def recall_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """Return ``(users,)`` 1.0 where the target is among the first ``k``, else 0.0 (with one target, the hit rate)."""
    return ((ranks >= 0) & (ranks < k)).astype(np.float64)


def ndcg_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """Return ``(users,)`` ``1 / log2(rank + 2)`` where the target is among the first ``k``, else 0.0."""
    return recall_at(ranks, k) / np.log2(np.maximum(ranks, 0) + 2)


def mrr_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """Return ``(users,)`` ``1 / (rank + 1)`` where the target is among the first ``k``, else 0.0."""
    return recall_at(ranks, k) / (np.maximum(ranks, 0) + 1)


def coverage_at(recommended: Tensor, k: int, items: int) -> float:
    """Return the share of ``items`` that stands among the first ``k`` of at least one list."""
    first = recommended[:, :k]
    return len(first[first >= 0].unique()) / items


PER_USER = {"recall": recall_at, "ndcg": ndcg_at, "mrr": mrr_at}


def per_user(metric: str, ranks: np.ndarray) -> np.ndarray:
    """Return ``(users,)`` values of a metric given as ``name@k``.

    Args:
        metric: ``recall@K``, ``ndcg@K`` or ``mrr@K``.
        ranks: ``(users,)`` int64 ranks, -1 for a miss.

    Raises:
        InputError: another metric, or a ``K`` that is no positive number.
    """
    name, _, k = metric.partition("@")
    if name not in PER_USER or not k.isdecimal() or int(k) < 1:
        raise InputError(f"metric {metric!r}: write one of {', '.join(PER_USER)} with a cut, such as ndcg@10")
    return PER_USER[name](ranks, int(k))


def summarize(ranks: np.ndarray, recommended: Tensor, *, ks: Sequence[int], items: int) -> dict[str, float]:
    """Return means over users, by ``recall@5``, ``ndcg@5``, ``mrr@5``, ``coverage@5`` and so on.

    Args:
        ranks: ``(users,)`` int64 ranks, -1 for a miss.
        recommended: ``(users, max(ks))`` item rows.
        ks: cuts.
        items: size of the catalogue.
    """
    metrics = {}
    for k in ks:
        metrics |= {f"{name}@{k}": float(function(ranks, k).mean()) for name, function in PER_USER.items()}
        metrics[f"coverage@{k}"] = coverage_at(recommended, k, items)
    return metrics
