"""Several recommenders as one: by the places of items in their lists, or by a model's beams and other scores."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from llmrec.baselines.base import Baseline
from llmrec.baselines.fuse_lists import (
    CONSTANT,
    beam_fusion,
    check_constant,
    check_length,
    check_weights,
    fuse_places,
    pool_places,
)
from llmrec.baselines.item_scores import score_items
from llmrec.baselines.remembered import DEPTH, Remembered
from llmrec.errors import InputError
from llmrec.evaluation.bridge import CatalogBridge


@dataclass(frozen=True)
class Gathered:
    """What the parts of a fusion gave for some histories; any weights can be tried on it without asking them again.

    Args:
        lists: ``(users, depth)`` int32 item rows, -1 in an empty place: of each part, or of the model alone.
        rows: ``(users, candidates)`` int32 item rows that may come out; -1 in an empty place.
        scores: ``(users, candidates)`` float32, what each part says of these: their places in its list from 1,
            infinite where it has none, or their scores.
    """

    lists: tuple[np.ndarray, ...]
    rows: np.ndarray
    scores: tuple[np.ndarray, ...]

    def part(self, users: slice) -> "Gathered":
        """Return what belongs to some of the users."""
        lists, scores = (tuple(values[users] for values in of) for of in (self.lists, self.scores))
        return Gathered(lists, self.rows[users], scores)

    @classmethod
    def join(cls, parts: Sequence["Gathered"]) -> "Gathered":
        """Return what was gathered bit by bit as one."""
        lists, scores = (
            tuple(np.concatenate(values) for values in zip(*of, strict=True))
            for of in ([part.lists for part in parts], [part.scores for part in parts])
        )
        return cls(lists, np.concatenate([part.rows for part in parts]), scores)


class Fusion(ABC):
    """Several recommenders of one catalogue as one recommender.

    Args:
        parts: recommenders by name, two or more.
        weights: by the names of the parts, 0 or more; None gives each 1.
        depth: items that are asked of a part, at least as many as lists are long.

    Raises:
        InputError: one part alone, parts of other catalogues, weights that are negative, all 0 or of other names, or
            a depth below 1.
    """

    method: ClassVar[str]
    """What names and results call it."""

    def __init__(
        self, parts: Mapping[str, Any], *, weights: Mapping[str, float] | None = None, depth: int = DEPTH
    ) -> None:
        if len(parts) < 2:
            raise InputError(f"fusion of {', '.join(parts) or 'nothing'}: it takes two recommenders or more")
        if depth < 1:
            raise InputError(f"fusion: depth {depth}; ask at least 1 item of each part")
        self.parts = dict(parts)
        self.weights = check_weights(dict.fromkeys(parts, 1.0) if weights is None else weights, list(parts))
        self.depth = depth
        self.items = check_one_catalog(parts)
        """Size of the catalogue, of all parts together: what `evaluate` takes as ``items``."""

    @property
    def settings(self) -> dict[str, Any]:
        """What tuning chooses."""
        return {"weights": dict(self.weights)}

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """Return a fusion of the same parts with other values of what `settings` names."""
        return type(self)(self.parts, depth=self.depth, **{**self.settings, **settings})

    def remembering(self) -> Self:
        """Return the same fusion of parts that keep their lists, so that measuring them alone searches no more."""
        kept = {name: Remembered(part, depth=self.depth) for name, part in self.parts.items() if name in self.listing}
        return type(self)({**self.parts, **kept}, depth=self.depth, **self.settings)

    @property
    def listing(self) -> tuple[str, ...]:
        """Names of the parts whose lists are asked for."""
        return tuple(self.parts)

    @abstractmethod
    def gather(self, histories: Sequence[Sequence[int]], *, exclude_seen: bool = False) -> Gathered:
        """Ask the parts.

        Args:
            histories: item rows, oldest first.
            exclude_seen: keep the items of a history out.

        Raises:
            InputError: a part that cannot give ``depth`` items, by its name.
        """

    @abstractmethod
    def fuse(self, gathered: Gathered, k: int) -> np.ndarray:
        """Return ``(users, k)`` int64 rows, best first, made of what `gather` gave."""

    def recommend(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> Tensor:
        """Return ``(users, k)`` int64 item rows, best first, distinct; -1 where all parts together hold fewer.

        Args:
            histories: item rows, oldest first.
            k: length of the lists, at most ``depth``.
            exclude_seen: keep the items of a history out of its list.

        Raises:
            InputError: ``k`` below 1 or above ``depth``, or what a part raises.
        """
        self.check_length(k)
        return torch.from_numpy(self.fuse(self.gather(histories, exclude_seen=exclude_seen), k))

    def check_length(self, k: int) -> None:
        """Raise `InputError` when lists of ``k`` cannot be made."""
        check_length(k)
        if k > self.depth:
            raise InputError(f"k {k}: depth {self.depth} items are asked of each part; raise depth to {k} or more")

    def _lists_of(self, name: str, histories: Sequence[Sequence[int]], *, exclude_seen: bool) -> np.ndarray:
        try:
            found = self.parts[name].recommend(histories, self.depth, exclude_seen=exclude_seen)
        except InputError as error:
            raise InputError(f"fusion, depth {self.depth}: part {name!r}: {error}") from error
        return found.cpu().numpy().astype(np.int32)


class RankFusion(Fusion):
    """Recommenders fused by the places of items in their lists (`reciprocal_rank_fusion`).

    Args:
        parts: recommenders by name.
        weights: by name; None gives each 1.
        constant: 0 or more.
        depth: items that are asked of a part.
    """

    method = "rrf"

    def __init__(
        self,
        parts: Mapping[str, Any],
        *,
        weights: Mapping[str, float] | None = None,
        constant: float = CONSTANT,
        depth: int = DEPTH,
    ) -> None:
        super().__init__(parts, weights=weights, depth=depth)
        check_constant(constant)
        self.constant = constant

    @property
    def settings(self) -> dict[str, Any]:
        """What tuning chooses."""
        return {"weights": dict(self.weights), "constant": self.constant}

    def gather(self, histories: Sequence[Sequence[int]], *, exclude_seen: bool = False) -> Gathered:
        """Return the list of each part, and the places of all items in them."""
        lists = tuple(self._lists_of(name, histories, exclude_seen=exclude_seen) for name in self.parts)
        return Gathered(lists, *pool_places(lists))

    def fuse(self, gathered: Gathered, k: int) -> np.ndarray:
        """Return ``(users, k)`` fused rows."""
        weights = [self.weights[name] for name in self.parts]
        return fuse_places(gathered.rows, gathered.scores, weights=weights, constant=self.constant, k=k)


class BeamFusion(Fusion):
    """A model's items re-ranked by its own scores and those of other systems (`beam_fusion`).

    Args:
        parts: first the model, which must have ``rank`` (`LLMRecommender`, `CatalogBridge`), then baselines.
        weights: of scores, by name; None gives each 1, which says little where scores are of other sizes.
        depth: items that are asked of the model, the candidates.

    Raises:
        InputError: a first part without ``rank``, or another that is no `Baseline`.
    """

    method = "beam_fusion"

    def __init__(
        self, parts: Mapping[str, Any], *, weights: Mapping[str, float] | None = None, depth: int = DEPTH
    ) -> None:
        super().__init__(parts, weights=weights, depth=depth)
        self.model, *self.scorers = parts
        if not hasattr(self.parts[self.model], "rank"):
            raise InputError(f"beam_fusion: {self.model!r} gives no scores of beams; put a model first, or use rrf")
        for name in self.scorers:
            if not isinstance(self.parts[name], Baseline):
                raise InputError(f"beam_fusion: {name!r} is no Baseline, so it cannot score given items; use rrf")

    @property
    def listing(self) -> tuple[str, ...]:
        """The model alone; the others give scores."""
        return (self.model,)

    def gather(self, histories: Sequence[Sequence[int]], *, exclude_seen: bool = False) -> Gathered:
        """Return the model's list, and the scores of its items by each part."""
        try:
            found, scores = self.parts[self.model].rank(histories, self.depth, exclude_seen=exclude_seen)
        except InputError as error:
            raise InputError(f"fusion, depth {self.depth}: part {self.model!r}: {error}") from error
        rows = found.cpu().numpy().astype(np.int32)
        others = []
        for name in self.scorers:
            scorer = self.parts[name]
            # What a bundle alone knows is numbered behind the dataset's items, and no baseline has heard of it
            others.append(score_items(scorer, histories, np.where(rows < scorer.items, rows, -1)).astype(np.float32))
        return Gathered((rows,), rows, (scores.cpu().numpy().astype(np.float32), *others))

    def fuse(self, gathered: Gathered, k: int) -> np.ndarray:
        """Return ``(users, k)`` fused rows."""
        weights = [self.weights[name] for name in self.parts]
        beams, *others = gathered.scores
        return beam_fusion(gathered.rows, beams, others, weights=weights, k=k)


FUSIONS: dict[str, type[Fusion]] = {"rrf": RankFusion, "beam_fusion": BeamFusion}


def check_one_catalog(parts: Mapping[str, Any]) -> int:
    """Return the size of the catalogue that recommenders share, items that a bundle alone knows included.

    Args:
        parts: recommenders by name. A `CatalogBridge` says the item ids of its dataset, others at most how many items
            they know; one that says nothing is taken.

    Raises:
        InputError: recommenders of other catalogues, by their names.
    """
    sizes: dict[str, int] = {}
    known: dict[str, Sequence[str]] = {}
    most = 0
    for name, part in parts.items():
        part = part.part if isinstance(part, Remembered) else part
        size = getattr(part, "items", None)
        if size is None:
            continue
        most = max(most, size)
        if isinstance(part, CatalogBridge):
            known[name] = part.dataset_ids
            size = len(part.dataset_ids)
        sizes[name] = size
    for first, second in zip(sizes, list(sizes)[1:], strict=False):
        if sizes[first] != sizes[second]:
            raise InputError(
                f"fusion: {first!r} knows {sizes[first]} items and {second!r} {sizes[second]}; fuse recommenders of "
                "one catalogue (a bundle through a CatalogBridge)"
            )
    for first, second in zip(known, list(known)[1:], strict=False):
        if tuple(known[first]) != tuple(known[second]):
            raise InputError(f"fusion: {first!r} and {second!r} answer in rows of other catalogues")
    if not most:
        raise InputError(f"fusion of {', '.join(parts)}: none of them says how many items it knows (items)")
    return most


def check_depth(depth: int, histories: Sequence[Sequence[int]], *, items: int, exclude_seen: bool) -> None:
    """Raise `InputError`, before any work, when a part cannot give ``depth`` items after one of the histories."""
    seen = max((len(set(history)) for history in histories), default=0) if exclude_seen else 0
    if depth > items - seen:
        held = f", and a history holds {seen} of them, which exclude_seen keeps out" if seen else ""
        raise InputError(f"depth {depth}: the catalogue has {items} items{held}; ask for at most {items - seen}")
