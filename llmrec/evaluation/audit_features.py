"""How alike consecutive items are by their embeddings, beside items drawn at random."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmrec.data.splits import History
from llmrec.embeddings.neighbours import nearest_rows, nonzero_rows, unit_rows
from llmrec.embeddings.store import check_vectors
from llmrec.errors import InputError
from llmrec.evaluation.audit_transitions import next_pairs

NEIGHBOURS = (10, 50, 100)


def pair_cosines(vectors: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of the cosine of two different items, drawn by weight.

    Exact, without drawing: the squared length of the weighted sum of unit vectors is the sum of all their cosines, and
    the squared norm of their weighted second moments that of the squared cosines.

    Args:
        vectors: ``(items, dim)``; zero rows are never drawn.
        weights: ``(items,)`` not negative; two items are drawn in proportion to the product of theirs.

    Raises:
        InputError: fewer than two items with a weight and a vector.
    """
    unit = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(unit, axis=1, keepdims=True)
    unit = np.divide(unit, lengths, out=np.zeros_like(unit), where=lengths > 0)  # in double: sums of squares cancel
    weights = np.where(nonzero_rows(vectors), weights, 0).astype(np.float64)
    if (weights > 0).sum() < 2:
        raise InputError("audit: fewer than two items of the training part have an embedding that is not zero")
    weights = weights / weights.sum()
    same = (weights**2).sum()
    # An item with itself has cosine 1; those pairs go out of both sums.
    mean = (((weights @ unit) ** 2).sum() - same) / (1 - same)
    square = (((unit.T * weights) @ unit) ** 2).sum() - same
    return float(mean), float(np.sqrt(max(0.0, square / (1 - same) - mean**2)))


def smoothness(vectors: np.ndarray, sequences: Sequence[Sequence[int]], *, popularity: np.ndarray) -> dict[str, Any]:
    """Return how alike an item and the next one are, in training.

    Args:
        vectors: ``(items, dim)`` in catalogue order; pairs with a zero vector are left out.
        sequences: training interactions alone, item rows, oldest first; an item after itself is left out.
        popularity: ``(items,)`` training counts, by which the pairs for comparison are drawn.

    Returns:
        ``pairs``; ``consecutive``, their mean cosine; ``random`` and ``random_deviation``, mean and standard deviation
        of the cosine of two different items drawn by popularity; ``deviations``, how many of those lie between;
        ``zero_embeddings``.

    Raises:
        InputError: embeddings of another number of items, or no two different items next to one another.

    Paper: feature-smooth transitions are the second of the shortcuts of Han et al., arXiv 2605.07125. The measure in
    standard deviations is ours; embeddings of different encoders have different mean cosines.
    """
    check_vectors(vectors, source="audit", items=len(popularity))
    there = nonzero_rows(vectors)
    pairs = np.stack(next_pairs(sequences), axis=1)
    pairs = pairs[there[pairs].all(axis=1) & (pairs[:, 0] != pairs[:, 1])]
    if not len(pairs):
        raise InputError("audit: no two different items with embeddings stand next to one another in training")
    unit = unit_rows(vectors)
    total = sum(
        float(np.einsum("pd,pd->", unit[part[:, 0]], unit[part[:, 1]], dtype=np.float64))
        for part in np.array_split(pairs, 1 + len(pairs) // 65536)
    )
    mean, deviation = pair_cosines(vectors, popularity)
    consecutive = total / len(pairs)
    return {
        "pairs": len(pairs),
        "consecutive": consecutive,
        "random": mean,
        "random_deviation": deviation,
        "deviations": (consecutive - mean) / deviation if deviation > 0 else None,
        "zero_embeddings": int((~there).sum()),
    }


def near_targets(
    vectors: np.ndarray,
    rows: Sequence[History],
    *,
    popularity: np.ndarray,
    neighbours: Sequence[int] = NEIGHBOURS,
) -> list[dict[str, float | None]]:
    """Return how many targets are among the items nearest to the last one of the history.

    Args:
        vectors: ``(items, dim)`` in catalogue order.
        rows: histories with their targets.
        popularity: ``(items,)`` training counts.
        neighbours: how many are looked at; those above the number of other items are cut to it.

    Returns:
        One dict a number: ``neighbours``, ``share`` of targets among them, ``chance``, the share if targets were drawn
        by training popularity, and ``lift``, their quotient (None where chance is 0). The last item itself is none of
        its neighbours.

    Raises:
        InputError: no rows, or embeddings of another number of items.
    """
    check_vectors(vectors, source="audit", items=len(popularity))
    if not rows:
        raise InputError("audit: there are no rows whose targets could be near; choose a protocol that has some")
    last = np.array([row.items[-1] for row in rows], dtype=np.int64)
    targets = np.array([row.target for row in rows], dtype=np.int64)
    distinct, back = np.unique(last, return_inverse=True)
    sizes = sorted({min(size, len(vectors) - 1) for size in neighbours})
    near, _ = nearest_rows(vectors[distinct], vectors, k=sizes[-1], leave_out=distinct)
    taken = popularity / max(1, popularity.sum())
    found: list[dict[str, float | None]] = []
    for size in sizes:
        part = near[:, :size]
        share = float((part[back] == targets[:, None]).any(axis=1).mean())
        chance = float(taken[part].sum(axis=1)[back].mean())
        found.append({
            "neighbours": size, "share": share, "chance": chance, "lift": share / chance if chance else None
        })  # fmt: skip
    return found


def features(
    vectors: np.ndarray,
    sequences: Sequence[Sequence[int]],
    rows: Mapping[str, Sequence[History]],
    *,
    popularity: np.ndarray,
) -> dict[str, Any]:
    """Return `smoothness`, and under ``near`` by split what `near_targets` returns.

    Raises:
        InputError: as those.
    """
    near = {split: near_targets(vectors, part, popularity=popularity) for split, part in rows.items()}
    return {**smoothness(vectors, sequences, popularity=popularity), "near": near}
