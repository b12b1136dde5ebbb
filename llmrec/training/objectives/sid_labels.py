"""Labels that are codes of SIDs: which stand together, at which node of the trie, and the logits of their level."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmrec.decoding.trie import ROOT, SIDTrie
from llmrec.training.labelled import CHUNK_LOGITS, CHUNK_LOGITS_GPU, Head, Labelled
from llmrec.vocab import SIDVocab


def sid_grid(labelled: Labelled) -> Tensor:
    """Return where the labels of each SID stand, ``(sids, levels)`` int64, -1 where a level has no label."""
    codes = (labelled.levels >= 0).nonzero().flatten()
    if not len(codes):
        return torch.full((0, 0), -1, dtype=torch.int64, device=labelled.levels.device)
    sids, levels = labelled.sids[codes], labelled.levels[codes]
    grid = torch.full((int(sids.max()) + 1, int(levels.max()) + 1), -1, dtype=torch.int64, device=codes.device)
    grid[sids, levels] = codes
    return grid


def nodes_before(labelled: Labelled, trie: SIDTrie) -> Tensor:
    """Return the trie's node before each label, all SIDs of the batch in one pass a level.

    Args:
        labelled: the labels.
        trie: the SIDs.

    Returns:
        ``(labels,)`` int64 nodes; -1 for text, for a code whose SID lacks a label before it, and behind a code that
        leads out of the trie (a retired item).
    """
    found = torch.full_like(labelled.targets, -1)
    grid = sid_grid(labelled)
    if not len(grid):
        return found
    nodes = torch.full((len(grid),), ROOT, dtype=torch.int64, device=grid.device)
    for places in grid.unbind(1):
        stands = places >= 0
        found[places[stands]] = nodes[stands]
        nodes = torch.where(stands, trie.child(nodes, labelled.targets[places.clamp(min=0)]), -1)
    return found


@dataclass(frozen=True)
class LevelTokens:
    """The tokens of one level, and where each stands among them.

    Args:
        token_ids: ``(codes,)`` int64, rising.
    """

    token_ids: Tensor

    @classmethod
    def of(cls, vocab: SIDVocab, device: torch.device | str) -> list["LevelTokens"]:
        """Return the codebooks of a vocabulary, one a level, codes of no item included."""
        return [cls(torch.from_numpy(token_ids).sort().values.to(device)) for token_ids in vocab.level_token_ids]

    def columns(self, token_ids: Tensor) -> Tensor:
        """Return where tokens of this level stand in ``token_ids``."""
        return torch.searchsorted(self.token_ids, token_ids)


def legal_columns(nodes: Tensor, trie: SIDTrie, tokens: LevelTokens) -> Tensor:
    """Return which tokens of a level are children of nodes, ``(labels, codes)`` bool.

    Args:
        nodes: ``(labels,)`` int64 nodes, all of one depth and in the trie.
        trie: the SIDs.
        tokens: of the level below the nodes.
    """
    distinct, which = nodes.unique(return_inverse=True)
    first = trie.first_child[distinct].long()
    counts = trie.first_child[distinct + 1].long() - first
    row = torch.arange(len(distinct), device=nodes.device).repeat_interleave(counts)
    within = torch.arange(len(row), device=nodes.device) - (counts.cumsum(0) - counts)[row]
    legal = torch.zeros((len(distinct), len(tokens.token_ids)), dtype=torch.bool, device=nodes.device)
    legal[row, tokens.columns(trie.token[first[row] + within].long())] = True
    return legal[which]


def labels_by_level(labelled: Labelled, keep: Tensor, levels: int) -> Iterator[tuple[int, Tensor]]:
    """Yield each level that has labels, and their places, ``(labels,)`` int64.

    Args:
        labelled: the labels.
        keep: ``(labels,)`` bool, which of them.
        levels: of the longest SID.
    """
    for level in range(levels):
        places = (keep & (labelled.levels == level)).nonzero().flatten()
        if len(places):
            yield level, places


def in_parts(function: Callable[..., Tensor], head: Head, hidden: Tensor, token_ids: Tensor, *rows: Tensor) -> Tensor:
    """Return ``function(logits, *rows)`` of each label, with no more logits at a time than the head holds.

    Where they do not fit in one chunk, they are made again in the backward pass.

    Args:
        function: from logits ``(labels, codes)`` and further tensors ``(labels, ...)`` to ``(labels,)``.
        head: makes the logits.
        hidden: ``(labels, dim)``.
        token_ids: ``(codes,)``.
        *rows: further arguments, one row a label.
    """
    chunk = head.chunk or (CHUNK_LOGITS_GPU if hidden.is_cuda else CHUNK_LOGITS)
    size = max(1, chunk // max(1, len(token_ids)))

    def part(hidden: Tensor, *rows: Tensor) -> Tensor:
        return function(head.logits(hidden, token_ids), *rows)

    if len(hidden) <= size:
        return part(hidden, *rows)
    parts: list[Any] = [tensor.split(size) for tensor in (hidden, *rows)]
    return torch.cat([checkpoint(part, *each, use_reentrant=False) for each in zip(*parts, strict=True)])
