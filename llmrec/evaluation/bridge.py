"""Evaluate a bundle on a dataset whose catalogue holds other items, or the same ones in another order."""

import copy
import logging
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import Recommender, alone_of

logger = logging.getLogger(__name__)


class CatalogBridge:
    """A recommender of one catalogue seen through the rows of another; items are matched by id.

    Rows of the dataset come first; items that the recommender alone knows are numbered behind them, so that they take
    their places in a list and can never hit.

    Args:
        recommender: what answers, in rows of ``own_ids``.
        own_ids: item ids in the recommender's order.
        dataset_ids: item ids in the dataset's order.
        retired: own rows that the recommender knows in histories and never returns.
    """

    def __init__(
        self,
        recommender: Recommender,
        own_ids: Sequence[str],
        dataset_ids: Sequence[str],
        *,
        retired: Sequence[int] | np.ndarray = (),
    ) -> None:
        self.recommender = recommender
        self._retired = {int(row) for row in retired}
        self.dataset_ids = dataset_ids
        own_row = {item_id: row for row, item_id in enumerate(own_ids)}
        self._inward = np.array([own_row.get(item_id, -1) for item_id in dataset_ids], dtype=np.int64)
        outward = np.full(len(own_ids), -1, dtype=np.int64)
        known = self._inward >= 0
        outward[self._inward[known]] = np.flatnonzero(known)
        alone = outward < 0
        outward[alone] = len(dataset_ids) + np.arange(int(alone.sum()))
        self._outward = torch.from_numpy(outward)
        self.items = len(dataset_ids) + int(alone.sum())
        """Size of both catalogues together: what `evaluate` takes as ``items``."""

    def check(self, rows: Sequence[History], *, unknown: str, k: int = 1, exclude_seen: bool = False) -> None:
        """Look for items that the recommender does not know and for lists that it cannot fill, before any work.

        Args:
            rows: what is to be scored.
            unknown: ``error``, or ``skip``: such items are left out of histories (how many is logged), and such a
                target is a miss.
            k: length of the lists.
            exclude_seen: whether a history's items are kept out of its list.

        Raises:
            InputError: an unknown item without ``skip``, another word for ``unknown``, or ``k`` above the number of
                the recommender's items that may come out.
        """
        if unknown not in ("error", "skip"):
            raise InputError(f"unknown_items {unknown!r}: choose error or skip")
        missing = self._inward < 0
        shown = [item for row in rows for item in row.items if missing[item]]
        targets = [row.target for row in rows if missing[row.target]]
        names = list(dict.fromkeys(self.dataset_ids[item] for item in [*shown, *targets]))
        if names and unknown == "error":
            some = ", ".join(repr(name) for name in names[:5]) + (" and others" if len(names) > 5 else "")
            raise InputError(
                f"the bundle does not know {len(names)} items of the dataset: {some}; train on this dataset, or give "
                "--unknown_items skip to leave them out of histories and count such targets as misses"
            )
        if names:
            logger.warning(
                "the bundle does not know %d items: %d history items left out, %d targets count as misses",
                len(names), len(shown), len(targets),
            )  # fmt: skip
        own, inward, gone = len(self._outward) - len(self._retired), self._inward.tolist(), {-1, *self._retired}
        seen = max(len({inward[item] for item in row.items} - gone) for row in rows) if exclude_seen and rows else 0
        if k > own - seen:
            retired = " that are not retired" if self._retired else ""
            held = f", and a history holds {seen} of them, which exclude_seen keeps out" if seen else ""
            raise InputError(f"--ks {k}: the bundle has {own} items{retired}{held}; choose at most {own - seen}")

    def recommend(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> Tensor:
        """Return ``(users, k)`` rows of the dataset, or behind them of items that the recommender alone knows."""
        found = self.recommender.recommend(self._known(histories), k, exclude_seen=exclude_seen).cpu()
        return torch.where(found >= 0, self._outward[found], found)

    def rank(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> tuple[Tensor, Tensor]:
        """Return `recommend`'s rows and their ``(users, k)`` scores, of a recommender that has ``rank`` itself."""
        recommender: Any = self.recommender
        found, scores = recommender.rank(self._known(histories), k, exclude_seen=exclude_seen)
        found = found.cpu()
        return torch.where(found >= 0, self._outward[found], found), scores.cpu()

    def alone(self) -> Self:
        """Return the same bridge to what `LLMRecommender.alone` gives, where the recommender has it."""
        bridge = copy.copy(self)
        bridge.recommender = alone_of(self.recommender)
        return bridge

    def _known(self, histories: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return histories in the recommender's rows, without items that it does not know."""
        inward = self._inward.tolist()
        return [[inward[item] for item in history if inward[item] >= 0] for history in histories]
