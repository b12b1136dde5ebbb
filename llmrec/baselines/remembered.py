"""A recommender that keeps its answers."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrec.evaluation.evaluator import alone_of

DEPTH = 50
"""Items that a fusion asks of each part."""


class Remembered:
    """A recommender that keeps its answers, so that measuring it alone and in a fusion costs one search.

    Args:
        part: the recommender.
        depth: items that are asked of it at a time, whatever is asked for.
    """

    def __init__(self, part: Any, *, depth: int = DEPTH) -> None:
        self.part = part
        self.depth = depth
        self.seconds = 0.0
        """Time spent in the part so far."""
        self.items: int | None = getattr(part, "items", None)
        """Size of the part's catalogue, where it says it."""
        self._answers: dict[Any, tuple[np.ndarray, np.ndarray | None]] = {}
        if hasattr(part, "rank"):
            self.rank = self._rank

    def alone(self) -> Any:
        """Return the part itself, so that timing it asks it anew."""
        return alone_of(self.part)

    def recommend(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> Tensor:
        """Return the first ``k`` of the part's list of ``depth``, or of ``k`` where that is more."""
        return self._answer(histories, k, exclude_seen)[0]

    def _rank(
        self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False
    ) -> tuple[Tensor, Tensor]:
        rows, scores = self._answer(histories, k, exclude_seen)
        assert scores is not None
        return rows, scores

    def _answer(self, histories: Sequence[Sequence[int]], k: int, exclude_seen: bool) -> tuple[Tensor, Tensor | None]:
        keys = [(exclude_seen, tuple(history), getattr(history, "times", None)) for history in histories]
        if not all(key in self._answers and len(self._answers[key][0]) >= k for key in keys):
            started = time.perf_counter()
            length = max(k, self.depth)
            if hasattr(self.part, "rank"):
                rows, scores = self.part.rank(histories, length, exclude_seen=exclude_seen)
                kept = scores.cpu().numpy()
            else:
                rows, kept = self.part.recommend(histories, length, exclude_seen=exclude_seen), None
            for place, (key, row) in enumerate(zip(keys, rows.cpu().numpy().astype(np.int32), strict=True)):
                self._answers[key] = (row, None if kept is None else kept[place])
            self.seconds += time.perf_counter() - started
        found = [self._answers[key] for key in keys]
        rows = torch.from_numpy(np.stack([row[:k] for row, _ in found]).astype(np.int64))
        scored = [scores[:k] for _, scores in found if scores is not None]
        return rows, torch.from_numpy(np.stack(scored)) if len(scored) == len(found) else None
