"""Slow, obvious versions of what llmrec/sids does fast."""

from collections import Counter, defaultdict

import numpy as np


def slow_encode_residuals(vectors: np.ndarray, codebooks: list[np.ndarray]) -> list[list[int]]:
    """At each level the nearest centroid in float64, then what is left of the vector."""
    rows = []
    for vector in vectors.astype(np.float64):
        codes = []
        for codebook in codebooks:
            distances = [float(((vector - centroid) ** 2).sum()) for centroid in codebook.astype(np.float64)]
            codes.append(distances.index(min(distances)))
            vector = vector - codebook[codes[-1]]
        rows.append(codes)
    return rows


def slow_append_rank(codes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    seen: Counter[tuple[int, ...]] = Counter()
    ranked = []
    for sid in codes:
        ranked.append((*sid, seen[sid]))
        seen[sid] += 1
    return ranked


def slow_reassign_nearest(codes: list[tuple[int, ...]], costs: np.ndarray) -> list[tuple[int, ...]]:
    """The nearest of the items on a SID keeps it; the others, nearest first, take their nearest free last code."""
    members = defaultdict(list)
    for row, sid in enumerate(codes):
        members[sid].append(row)
    result = list(codes)
    waiting = []
    for sid, rows in members.items():
        ordered = sorted(rows, key=lambda row: (costs[row, sid[-1]], row))
        waiting.extend(ordered[1:])
    for row in sorted(waiting, key=lambda row: (costs[row, codes[row][-1]], row)):
        prefix = codes[row][:-1]
        used = {other[-1] for other in result if other[:-1] == prefix}
        free = [code for code in range(costs.shape[1]) if code not in used]
        result[row] = (*prefix, min(free, key=lambda code: (costs[row, code], code)))
    return result
