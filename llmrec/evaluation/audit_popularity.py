"""How unequally items are taken, and how popular the targets are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec.data.splits import History
from llmrec.evaluation.beyond import gini_of
from llmrec.evaluation.slices import by_popularity


def top_share(counts: np.ndarray, share: float) -> float:
    """Return the share of all counts that the most counted items have.

    Args:
        counts: ``(items,)``, not all 0.
        share: of the items, above 0 and up to 1; rounded to whole items, at least one.
    """
    most = np.sort(counts)[::-1][: max(1, round(share * len(counts)))]
    return float(most.sum() / counts.sum())


def skew(popularity: np.ndarray) -> dict[str, Any]:
    """Return how unequally the items were taken in training.

    Args:
        popularity: ``(items,)`` training counts, not all 0.

    Returns:
        ``gini`` (0 for all alike, 1 at worst), ``top_1_percent`` and ``top_10_percent``, the shares of interactions
        that the most popular items have, ``never_taken``, how many items have none, ``median`` count, and ``most``.
    """
    return {
        "gini": gini_of(popularity[None])[0],
        "top_1_percent": top_share(popularity, 0.01),
        "top_10_percent": top_share(popularity, 0.1),
        "never_taken": int((popularity == 0).sum()),
        "median": float(np.median(popularity)),
        "most": int(popularity.max()),
    }


def target_popularity(rows: Sequence[History], popularity: np.ndarray) -> list[dict[str, Any]]:
    """Return how many targets are popular: ``slice`` (head, middle, tail, unseen), ``means``, ``rows`` and ``share``.

    Args:
        rows: histories with their targets, at least one.
        popularity: ``(items,)`` training counts. Head, middle and tail hold a third of them each.
    """
    slicing = by_popularity(np.array([row.target for row in rows], dtype=np.int64), popularity)
    counts = np.bincount(slicing.member, minlength=len(slicing.labels)).tolist()
    return [
        {"slice": label, "means": meaning, "rows": count, "share": count / len(rows)}
        for label, meaning, count in zip(slicing.labels, slicing.meanings, counts, strict=True)
    ]
