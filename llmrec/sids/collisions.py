"""Make SIDs unique: append a rank, or move colliding items to free codes."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from llmrec.errors import InputError
from llmrec.registry import resolve
from llmrec.sids.base import SIDTokenizer

UniqueMethod = Callable[..., np.ndarray]


def append_rank(codes: np.ndarray, **_: object) -> np.ndarray:
    """Append one level to every SID: the item's rank, in row order, among the items that share its codes.

    Args:
        codes: ``(items, levels)`` int64, every SID of full length.

    Returns:
        ``(items, levels + 1)`` int64, all distinct.

    Raises:
        InputError: a shorter SID (padded with -1), which no rank can follow.

    Paper: TIGER, "Recommender Systems with Generative Retrieval" (https://arxiv.org/abs/2305.05065), section 3.1; as
        there, items without a collision get the extra code too.
    """
    if (codes < 0).any():
        row = int(np.flatnonzero((codes < 0).any(axis=1))[0])
        raise InputError(
            f"append_rank: the SID of row {row} has fewer codes than {codes.shape[1]}; a rank can follow SIDs of one "
            "length only: use --unique none"
        )
    bucket = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(bucket, kind="stable")
    starts = np.searchsorted(bucket[order], bucket[order])
    rank = np.empty(len(codes), dtype=np.int64)
    rank[order] = np.arange(len(codes)) - starts
    return np.column_stack([codes, rank])


def reassign_nearest(codes: np.ndarray, *, tokenizer: SIDTokenizer, embeddings: Tensor) -> np.ndarray:
    """Give colliding items other codes at the last level: the nearest item keeps a code, the others move on.

    Of the items on one SID the one nearest to the last code's centroid keeps it (ties: the lower row). The others, in
    that order, take the nearest code that no item with the same prefix has. No level is added, and an item without a
    collision keeps its SID.

    Args:
        codes: ``(items, levels)`` int64.
        tokenizer: the fitted method that made the codes; it must have ``last_level_costs``.
        embeddings: ``(items, dim)`` that were encoded.

    Returns:
        ``(items, levels)`` int64, all distinct.

    Raises:
        InputError: more items under one prefix than the last codebook has codes, or a method without costs.

    Paper: after LC-Rec, "Adapting Large Language Models by Integrating Collaborative Semantics for Recommendation"
        (https://arxiv.org/abs/2311.09049), which moves colliding items by optimal transport at the last level; this is
        the greedy form.
    """
    size = tokenizer.codebook_sizes[-1]
    prefixes, bucket, counts = np.unique(codes[:, :-1], axis=0, return_inverse=True, return_counts=True)
    bucket = bucket.reshape(-1)
    if counts.max() > size:
        fullest = int(counts.argmax())
        raise InputError(
            f"reassign_nearest: {counts[fullest]} items share the prefix {tuple(prefixes[fullest].tolist())}, but the "
            f"last level has {size} codes; use --unique append_rank or a --codebook_size of {counts[fullest]} or more"
        )
    _, sid, shared = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    sid = sid.reshape(-1)
    colliding = np.flatnonzero(shared[sid] > 1)
    unique = codes.copy()
    if not len(colliding):
        return unique
    costs = tokenizer.last_level_costs(embeddings[torch.from_numpy(colliding)], torch.from_numpy(codes[colliding]))
    costs = costs.cpu().numpy()
    own = costs[np.arange(len(colliding)), codes[colliding, -1]]
    taken: dict[int, set[int]] = {}
    for row in range(len(codes)):
        taken.setdefault(int(bucket[row]), set()).add(int(codes[row, -1]))
    kept: set[int] = set()
    for index in np.lexsort((colliding, own)).tolist():
        row = int(colliding[index])
        if int(sid[row]) not in kept:
            kept.add(int(sid[row]))
            continue
        used = taken[int(bucket[row])]
        free = next(code for code in np.argsort(costs[index], kind="stable").tolist() if code not in used)
        unique[row, -1] = free
        used.add(free)
    return unique


def keep_collisions(codes: np.ndarray, **_: object) -> np.ndarray:
    """Return the codes as they are; items may share a SID."""
    return codes


UNIQUE_METHODS: dict[str, UniqueMethod] = {
    "append_rank": append_rank,
    "reassign_nearest": reassign_nearest,
    "none": keep_collisions,
}


def make_unique(
    codes: np.ndarray,
    codebook_sizes: Sequence[int],
    *,
    unique: str,
    tokenizer: SIDTokenizer | None = None,
    embeddings: Tensor | None = None,
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Resolve collisions by a named method.

    Args:
        codes: ``(items, levels)`` int64.
        codebook_sizes: codes a level.
        unique: ``append_rank``, ``reassign_nearest``, ``none`` or ``package.module:attribute``.
        tokenizer: the method that made the codes; None for codes that were read from a file.
        embeddings: ``(items, dim)`` that were encoded, or None likewise.

    Returns:
        The codes and their codebook sizes; a level that was added has as many codes as its largest one needs.

    Raises:
        InputError: an unknown name, ``reassign_nearest`` without a tokenizer, or what the method itself refuses.
    """
    method = resolve(unique, UNIQUE_METHODS, "way to make SIDs unique")
    if unique == "reassign_nearest" and (tokenizer is None or embeddings is None):
        raise InputError(
            "reassign_nearest: it needs the tokenizer that made the codes; adopted codes take append_rank or none"
        )
    resolved = method(codes, tokenizer=tokenizer, embeddings=embeddings)
    added = resolved[:, len(codebook_sizes) :]
    return resolved, (*codebook_sizes, *(int(size) for size in added.max(axis=0) + 1))
