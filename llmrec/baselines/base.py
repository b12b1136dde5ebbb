"""What every counting baseline shares: popularity, exclusion, ties and filling up."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from llmrec.errors import InputError

DENSE_SCORES = 2**23
"""Most scores that stand in memory as a dense block at a time."""


class Baseline(ABC):
    """A recommender made of counts.

    Items with a score come first, by score, then training popularity, then row; the rest of a list is filled by
    popularity, then row.
    """

    fills_beside_seen: bool = True
    """Whether a short list is filled when seen items are kept; otherwise its last places hold -1."""

    popularity: np.ndarray
    """``(items,)`` int64 training counts."""

    def fit(self, sequences: Sequence[Sequence[int]], *, items: int) -> Self:
        """Count training sequences and return self.

        Args:
            sequences: item rows of each user, oldest first; training interactions alone.
            items: size of the catalogue.

        Raises:
            InputError: no interactions, or a row outside the catalogue.
        """
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        flat = np.array([item for sequence in sequences for item in sequence], dtype=np.int64)
        if not len(flat):
            raise InputError("baseline: there are no training interactions to count")
        if flat.min() < 0 or flat.max() >= items:
            raise InputError(f"baseline: item row {flat.max()} in the training sequences, the catalogue has {items}")
        self.popularity = np.bincount(flat, minlength=items)
        self._by_popularity = np.lexsort((np.arange(items), -self.popularity))
        self._popularity_rank = np.empty(items, dtype=np.int64)
        self._popularity_rank[self._by_popularity] = np.arange(items)
        self._fit(flat, np.repeat(np.arange(len(lengths)), lengths))
        return self

    @abstractmethod
    def _fit(self, flat: np.ndarray, users: np.ndarray) -> None:
        """Count ``(interactions,)`` item rows ``flat`` of ``users``, both in order of user and time."""

    @abstractmethod
    def _scores(self, histories: Sequence[Sequence[int]]) -> sparse.csr_array:
        """Return ``(users, items)`` scores; what is not stored or not above 0 has none."""

    @property
    def items(self) -> int:
        """Size of the catalogue."""
        return len(self.popularity)

    def recommend(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> Tensor:
        """Return ``(users, k)`` int64 item rows, best first, distinct.

        Args:
            histories: item rows, oldest first; an empty one gets the most popular items.
            k: length of the lists.
            exclude_seen: keep the items of a history out of its list.

        Returns:
            Rows; -1 in the places that stay empty where `fills_beside_seen` is off and seen items are kept.

        Raises:
            InputError: ``k`` below 1 or above the number of items that may come out, or a row outside the catalogue.
        """
        seen = _seen_keys(histories, self.items)
        most_seen = int(np.bincount(seen // self.items, minlength=1).max()) if exclude_seen else 0
        if not 1 <= k <= self.items - most_seen:
            raise InputError(f"k {k}: lists hold 1 to {self.items - most_seen} of the {self.items} items here")
        keys, values = self._candidates(histories, k + most_seen)
        if exclude_seen:
            allowed = ~np.isin(keys, seen)
            keys, values = keys[allowed], values[allowed]
        order = np.lexsort((self._popularity_rank[keys % self.items], -values, keys // self.items))
        lists = np.full((len(histories), k), -1, dtype=np.int64)
        _place(lists, keys[order], self.items)
        if not exclude_seen and not self.fills_beside_seen:
            return torch.from_numpy(lists)

        # A short list has fewer than k scored items, so this many popular ones always hold enough new ones.
        short = np.flatnonzero(lists[:, -1] < 0)
        popular = self._by_popularity[: 2 * k + most_seen]
        fill = (short[:, None] * self.items + popular).ravel()
        fill = fill[~np.isin(fill, np.concatenate([keys, seen]) if exclude_seen else keys)]
        _place(lists, fill, self.items)
        return torch.from_numpy(lists)

    def _candidates(self, histories: Sequence[Sequence[int]], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ``user * items + item`` keys and scores of all that can be among the best ``count``."""
        keys, values = [], []
        users = max(1, DENSE_SCORES // self.items)
        for start in range(0, len(histories), users):
            scores = self._scores(histories[start : start + users])
            scores.sum_duplicates()
            scores.data[scores.data < 0] = 0.0
            scores.eliminate_zeros()
            if scores.nnz > 4 * count * len(scores.indptr) and count < self.items:
                # Sorting millions of scores is the slow part, so cut below each user's count-th best; ties stay.
                dense = scores.toarray()
                least = torch.from_numpy(dense).topk(count, dim=1).values[:, -1:].numpy()
                found = np.nonzero((dense >= least) & (dense > 0))
                data = dense[found]
            else:
                found = np.repeat(np.arange(len(scores.indptr) - 1), np.diff(scores.indptr)), scores.indices
                data = scores.data
            keys.append((found[0].astype(np.int64) + start) * self.items + found[1])
            values.append(data)
        return np.concatenate(keys), np.concatenate(values)


def _seen_keys(histories: Sequence[Sequence[int]], items: int) -> np.ndarray:
    """Return distinct ``user * items + item`` of the histories."""
    flat = np.array([item for history in histories for item in history], dtype=np.int64)
    if len(flat) and (flat.min() < 0 or flat.max() >= items):
        raise InputError(
            f"history: item row {flat.min() if flat.min() < 0 else flat.max()}; the catalogue has {items}"
        )
    users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    return np.unique(users * items + flat)


def _place(lists: np.ndarray, keys: np.ndarray, items: int) -> None:
    """Write ``user * items + item`` keys, in order within each user, into the free places at the ends of the lists."""
    users, items_found = np.divmod(keys, items)
    filled = (lists >= 0).sum(axis=1)
    place = np.arange(len(keys)) - np.searchsorted(users, users)
    columns = filled[users] + place
    fits = columns < lists.shape[1]
    lists[users[fits], columns[fits]] = items_found[fits]
