"""What followed the last item in training."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from llmrec.baselines.base import Baseline


class Transitions(Baseline):
    """Rank items by how often they came right after the history's last item in the training sequences.

    Args:
        fills_beside_seen: whether popular items fill a short list when seen items are kept. Off by default, because
            the figures this baseline is known by are counted so; with seen items excluded lists are always filled.
    """

    def __init__(self, *, fills_beside_seen: bool = False) -> None:
        self.fills_beside_seen = fills_beside_seen

    def _fit(self, flat: np.ndarray, users: np.ndarray) -> None:
        follows = users[1:] == users[:-1]
        pairs = (flat[:-1][follows], flat[1:][follows])
        ones = np.ones(int(follows.sum()))
        self._counts = sparse.csr_array(sparse.coo_array((ones, pairs), shape=(self.items, self.items)))

    def _scores(self, histories: Sequence[Sequence[int]]) -> sparse.csr_array:
        users = np.array([user for user, history in enumerate(histories) if len(history)], dtype=np.int64)
        last = np.array([history[-1] for history in histories if len(history)], dtype=np.int64)
        shape = (len(histories), self.items)
        return sparse.csr_array((np.ones(len(users)), (users, last)), shape=shape) @ self._counts
