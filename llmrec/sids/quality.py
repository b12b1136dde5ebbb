"""How good SIDs are before any model is trained on them: collisions, code use, and how prefixes divide the items."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmrec.sids.table import LEVEL_LETTERS


def _collisions(codes: np.ndarray) -> dict[str, Any]:
    items = len(codes)
    counts = np.unique(codes, axis=0, return_counts=True)[1]
    return {
        "distinct": len(counts),
        "collision_rate": (items - len(counts)) / items,
        "items_sharing": int(counts[counts > 1].sum()) / items,
        "largest_bucket": int(counts.max()),
    }


def _level(codes: np.ndarray, size: int) -> dict[str, Any]:
    counts = np.bincount(codes[codes >= 0], minlength=size)
    share = counts[counts > 0] / counts.sum()
    return {
        "codebook_size": size,
        "used": len(share),
        "used_share": len(share) / size,
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
    }


def quality_report(
    codes: np.ndarray, codebook_sizes: Sequence[int], *, codes_before: np.ndarray | None = None
) -> dict[str, Any]:
    """Measure SIDs.

    Args:
        codes: ``(items, levels)`` int64, padded with -1.
        codebook_sizes: codes a level.
        codes_before: the codes before collisions were resolved; None when they are the same.

    Returns:
        ``items``; ``before`` and ``after`` the resolution, each with ``distinct`` SIDs, ``collision_rate``
        (items - distinct over items), ``items_sharing`` (share of the items that have not a SID of their own) and
        ``largest_bucket``; ``levels``, each with ``codebook_size``, ``used`` codes, ``used_share`` and ``perplexity``
        (exp of the entropy of the code counts: as many equally used codes would have it); ``mean_items_per_prefix``
        for prefixes of 1, 2, .. codes.
    """
    depths = range(1, codes.shape[1] + 1)
    return {
        "items": len(codes),
        "before": _collisions(codes if codes_before is None else codes_before),
        "after": _collisions(codes),
        "levels": [_level(codes[:, level], size) for level, size in enumerate(codebook_sizes)],
        "mean_items_per_prefix": [len(codes) / len(np.unique(codes[:, :depth], axis=0)) for depth in depths],
    }


def quality_table(report: Mapping[str, Any]) -> str:
    """Return a `quality_report` as text for people."""
    lines = [f"{report['items']:,} items      distinct SIDs   collision rate   items sharing   largest bucket"]
    for name, when in (("before", "as learned"), ("after", "as written")):
        part = report[name]
        lines.append(
            f"{when:<16}{part['distinct']:>14,}{part['collision_rate']:>17.2%}{part['items_sharing']:>16.2%}"
            f"{part['largest_bucket']:>17,}"
        )
    lines += ["", "level   codes    used   share   perplexity   items per prefix"]
    for level, (part, mean) in enumerate(zip(report["levels"], report["mean_items_per_prefix"], strict=True)):
        lines.append(
            f"{LEVEL_LETTERS[level]:<6}{part['codebook_size']:>7,}{part['used']:>8,}{part['used_share']:>8.1%}"
            f"{part['perplexity']:>13.1f}{mean:>19.2f}"
        )
    return "\n".join(lines)
