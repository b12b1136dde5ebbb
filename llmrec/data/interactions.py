"""Who took what, and when: sorted by user and time, ties in file order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa

from llmrec.errors import InputError


@dataclass(frozen=True)
class Interactions:
    """All interactions of a dataset, sorted by user, then time.

    Args:
        user_ids: outside names of the users, distinct; a user's position is its number.
        users: ``(interactions,)`` int64 user numbers, not falling.
        items: ``(interactions,)`` int64 catalogue rows.
        timestamps: ``(interactions,)`` int64 seconds, or positions where the source has no times; not falling within
            a user.
        ratings: ``(interactions,)`` float32, or None.
        texts: text columns of the interactions by name (``review``, ``explanation``), ``(interactions,)`` each, empty
            text where there is none.

    Raises:
        InputError: arrays of different lengths, or not sorted as said.
    """

    user_ids: tuple[str, ...]
    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    ratings: np.ndarray | None = None
    texts: Mapping[str, pa.Array] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        count = len(self.users)
        columns = {name: getattr(self, name) for name in ("items", "timestamps", "ratings")}
        for name, values in {**columns, **self.texts}.items():
            if values is not None and len(values) != count:
                raise InputError(f"interactions: {name} has {len(values)} rows, users has {count}")
        if count == 0:
            raise InputError("interactions: none are left; check the filters (k-core, rating threshold) of the import")
        user_step = np.diff(self.users)
        if (user_step < 0).any() or ((user_step == 0) & (np.diff(self.timestamps) < 0)).any():
            raise InputError("interactions: not sorted by user and time; build them with Interactions.sort")
        if self.users[0] < 0 or self.users[-1] >= len(self.user_ids) or self.items.min() < 0:
            raise InputError("interactions: a user number or item row is out of range")

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def sort(
        cls,
        user_ids: tuple[str, ...],
        *,
        users: np.ndarray,
        items: np.ndarray,
        timestamps: np.ndarray,
        ratings: np.ndarray | None = None,
        texts: Mapping[str, pa.Array] | None = None,
    ) -> "Interactions":
        """Build from arrays in any order: stable sort by user, then time, so that ties keep their order."""
        order = np.lexsort((timestamps, users))
        return cls(
            user_ids,
            users[order],
            items[order],
            timestamps[order],
            None if ratings is None else ratings[order],
            {name: values.take(pa.array(order)) for name, values in (texts or {}).items()},
        )

    def keep(self, mask: np.ndarray) -> "Interactions":
        """Return the interactions of a ``(interactions,)`` bool mask; users keep their numbers.

        Raises:
            InputError: the mask keeps none.
        """
        return Interactions(
            self.user_ids,
            self.users[mask],
            self.items[mask],
            self.timestamps[mask],
            None if self.ratings is None else self.ratings[mask],
            {name: values.filter(pa.array(mask)) for name, values in self.texts.items()},
        )

    def user_starts(self) -> np.ndarray:
        """Return ``(users + 1,)`` offsets: user ``u`` owns the rows from ``starts[u]`` to ``starts[u + 1]``."""
        return np.searchsorted(self.users, np.arange(len(self.user_ids) + 1))

    def sequences(self) -> list[tuple[int, ...]]:
        """Return each user's item rows, oldest first, in user order."""
        starts = self.user_starts()
        items = self.items.tolist()
        return [tuple(items[start:stop]) for start, stop in pairwise(starts.tolist())]


def k_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Return which interactions stay when every user and every item must keep at least ``k``.

    Args:
        users: ``(interactions,)`` integer user numbers.
        items: ``(interactions,)`` integer item numbers.
        k: fewest interactions of a kept user or item; 1 or less keeps everything.

    Returns:
        ``(interactions,)`` bool mask, the largest set for which the rule holds (repeated until nothing falls out).
    """
    keep = np.ones(len(users), dtype=bool)
    if k <= 1 or not len(users):
        return keep
    while True:
        user_counts = np.bincount(users[keep], minlength=users.max() + 1)
        item_counts = np.bincount(items[keep], minlength=items.max() + 1)
        stay = keep & (user_counts[users] >= k) & (item_counts[items] >= k)
        if stay.sum() == keep.sum():
            return stay
        keep = stay
