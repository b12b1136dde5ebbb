"""The legal SIDs as a trie in flat tensors: what may follow what, and which items stand at the end."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from llmrec.vocab import SIDVocab

ROOT = 0


@dataclass(frozen=True)
class SIDTrie:
    """A trie over SID token ids.

    Nodes are numbered breadth first, children by rising token id, so the children of node ``n`` are the nodes from
    ``first_child[n]`` up to ``first_child[n + 1]``; a node without children is a leaf. All tensors are int64.

    Args:
        first_child: ``(nodes + 1,)`` first child of each node.
        token: ``(nodes,)`` the token that leads to each node; -1 for the root.
        first_row: ``(nodes + 1,)`` where in ``rows`` a leaf's items start.
        rows: ``(items,)`` item rows, leaf after leaf; items that share a leaf stand by popularity, then row.
        paths: ``(items, levels)`` the nodes on the way to each item, -1 behind a shorter SID.
        items_below: ``(nodes,)`` how many items stand at or below each node.
        edge_keys: ``(nodes - 1,)`` rising ``parent * token_bound + token``, one for each node after the root.
        sid_token_ids: every SID token id, rising, those of no item included.
    """

    first_child: Tensor
    token: Tensor
    first_row: Tensor
    rows: Tensor
    paths: Tensor
    items_below: Tensor
    edge_keys: Tensor
    sid_token_ids: Tensor

    @classmethod
    def from_vocab(cls, vocab: SIDVocab) -> "SIDTrie":
        """Build the trie of all items of a vocabulary."""
        item_tokens = vocab.item_token_ids.numpy()
        items, levels = item_tokens.shape
        bound = int(max(vocab.trainable_token_indices)) + 1
        paths = np.full((items, levels), -1, dtype=np.int64)
        edges: list[np.ndarray] = []
        here = np.zeros(items, dtype=np.int64)
        nodes = 1
        for level in range(levels):
            going_on = item_tokens[:, level] >= 0
            keys, which = np.unique(
                here[going_on] * bound + item_tokens[going_on, level], return_inverse=True
            )  # rising by parent, then token: breadth first over all levels
            here[going_on] = paths[going_on, level] = nodes + which
            nodes += len(keys)
            edges.append(keys)
        edge_keys = np.concatenate(edges)
        rows = np.lexsort((np.arange(items), -vocab.popularity, here))
        arrays = {
            "first_child": 1 + np.searchsorted(edge_keys // bound, np.arange(nodes + 1)),
            "token": np.concatenate([[-1], edge_keys % bound]),
            "first_row": np.searchsorted(here[rows], np.arange(nodes + 1)),
            "rows": rows,
            "paths": paths,
            "items_below": np.concatenate([[items], np.bincount(paths[paths >= 0], minlength=nodes)[1:]]),
            "edge_keys": edge_keys,
            "sid_token_ids": np.asarray(vocab.trainable_token_indices),
        }
        return cls(**{name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()})

    def __len__(self) -> int:
        return len(self.token)

    @property
    def items(self) -> int:
        """How many items the trie holds."""
        return len(self.rows)

    @property
    def levels(self) -> int:
        """Tokens of the longest SID."""
        return self.paths.shape[1]

    @property
    def token_bound(self) -> int:
        """One more than the largest SID token id."""
        return int(self.sid_token_ids[-1]) + 1

    def to(self, device: torch.device | str) -> "SIDTrie":
        """Return the trie on a device."""
        return SIDTrie(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def child(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """Return the node that each token leads to.

        Args:
            nodes: int64 nodes of any shape; -1 for a path that has left the trie.
            tokens: token ids of the same shape.

        Returns:
            Nodes of the same shape, -1 where the token is no child.
        """
        bound = self.token_bound
        keys = nodes * bound + tokens
        place = torch.searchsorted(self.edge_keys, keys).clamp(max=len(self.edge_keys) - 1)
        found = (self.edge_keys[place] == keys) & (nodes >= 0) & (tokens >= 0) & (tokens < bound)
        return torch.where(found, place + 1, -1)
