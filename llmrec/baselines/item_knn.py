"""Items that the same users took as the items of the history, recent ones counting more."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from llmrec.baselines.base import Baseline
from llmrec.errors import InputError


class ItemKNN(Baseline):
    """Rank items by their cosine to the items of the history, item ``age`` steps back weighing ``recency ** age``.

    The cosine of two items is between their columns of the binary user-item matrix of training.

    Args:
        recency: weight of an item relative to the one after it, above 0 and up to 1.

    Paper: Sarwar et al., Item-Based Collaborative Filtering Recommendation Algorithms, WWW 2001. The recency weights
    are ours, and no neighbour is cut off.
    """

    def __init__(self, *, recency: float = 0.5) -> None:
        if not 0 < recency <= 1:
            raise InputError(f"item_knn: recency {recency} lies outside 0 (excluded) to 1")
        self.recency = recency

    def _fit(self, flat: np.ndarray, users: np.ndarray) -> None:
        shape = (int(users.max()) + 1, self.items)
        taken = sparse.csr_array((np.ones(len(flat)), (users, flat)), shape=shape)
        taken.data[:] = 1.0  # an item taken twice counts once; building the matrix has summed it
        norms = np.sqrt(np.maximum(taken.sum(axis=0), 1.0))
        taken = taken @ sparse.dia_array((1.0 / norms[None, :], [0]), shape=(self.items, self.items))
        cosine = sparse.csr_array(taken.T @ taken)
        cosine.setdiag(0.0)
        self._cosine = cosine

    def _scores(self, histories: Sequence[Sequence[int]]) -> sparse.csr_array:
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        flat = np.array([item for history in histories for item in history], dtype=np.int64)
        users = np.repeat(np.arange(len(histories)), lengths)
        age = np.cumsum(lengths)[users] - 1 - np.arange(len(flat))
        shape = (len(histories), self.items)
        weights = sparse.csr_array((self.recency ** age.astype(float), (users, flat)), shape=shape)
        scores = sparse.csr_array(weights @ self._cosine)
        scores.data = np.round(scores.data, 12)  # equal sums in another order differ in the last bit: keep them ties
        return scores
