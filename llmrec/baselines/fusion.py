"""Several recommenders as one: by the places of items in their lists, or by a model's beams and other scores."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from llmrec.baselines.base import Baseline
from llmrec.baselines.item_scores import score_items
from llmrec.errors import InputError
from llmrec.evaluation.bridge import CatalogBridge
from llmrec.evaluation.evaluator import repeated_places

DEPTH = 50
"""Items that a fusion asks of each part."""

CONSTANT = 60.0
"""Of reciprocal rank fusion, as its paper has it."""


def reciprocal_rank_fusion(
    lists: Sequence[np.ndarray], *, weights: Sequence[float], constant: float = CONSTANT, k: int
) -> np.ndarray:
    """Return the items that stand high in several lists.

    An item scores the sum over the lists of ``weight / (constant + place)``, places counted from 1; a list without it
    adds nothing. Scores that agree to 12 digits of the largest possible one are ties, and go to the lower row.

    Args:
        lists: ``(users, depth)`` item rows of each system, best first; -1 in an empty place. Depths may differ. An
            item that stands twice in a list counts where it stands first, and the places behind keep their numbers.
        weights: of each list, 0 or more; one of weight 0 is left out. Only their ratios matter.
        constant: 0 or more; the larger it is, the less the first places stand out.
        k: length of the fused lists, at least 1.

    Returns:
        ``(users, k)`` int64 rows, best first, distinct; -1 behind them where the lists hold fewer than ``k`` items.

    Raises:
        InputError: fewer than two lists, lists of other users, weights that are negative or all 0 or not one a list, a
            constant below 0, or ``k`` below 1.

    Paper: Cormack, Clarke and Buettcher, Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning
    Methods, SIGIR 2009, with constant 60. The weights are ours; all 1 is the paper.
    """
    if len(lists) < 2:
        raise InputError(f"fusion: {len(lists)} list of items a user; give those of two systems or more")
    users = {len(part) for part in lists}
    if len(users) > 1:
        raise InputError(f"fusion: lists of {sorted(users)} users; fuse systems that answered the same histories")
    given = _check_weights(dict(enumerate(weights)), list(range(len(lists))))
    _check_constant(constant)
    _check_k(k)
    return _fuse_places(*_pooled(lists), weights=list(given.values()), constant=constant, k=k)


def beam_fusion(
    rows: np.ndarray, beam_scores: np.ndarray, others: Sequence[np.ndarray], *, weights: Sequence[float], k: int
) -> np.ndarray:
    """Return a model's candidates in the order of their beam scores and other scores together.

    Of a user's candidates, one scores ``softmax(w0 * beam score) * softmax(w1 * other score)`` and so on, each softmax
    over these candidates. The order is that of ``w0 * beam score + w1 * other score``, which is what is computed, and
    hangs on the ratio of the weights alone. Sums that agree to 9 decimals are ties, and go to the lower row.

    Args:
        rows: ``(users, depth)`` candidates, item rows, -1 in an empty place. Of an item that stands twice the first
            place counts.
        beam_scores: ``(users, depth)`` sums of log-probabilities; minus infinity in an empty place.
        others: ``(users, depth)`` scores of the same candidates, one array a further system. Where one is minus
            infinity, the system has no score: the lowest of the user's candidates stands for it, 0 where none has one.
        weights: of the beam scores, then of each of ``others``, 0 or more.
        k: length of the lists, at least 1.

    Returns:
        ``(users, k)`` int64 rows, best first, distinct; -1 behind them where there are fewer than ``k`` candidates.

    Raises:
        InputError: no other scores, arrays of other shapes, weights that are negative or all 0 or not one an array, or
            ``k`` below 1.

    Paper: Yang et al., Sparse Meets Dense: Unified Generative Recommendations with Cascaded Sparse-Dense
    Representations (COBRA), arXiv 2503.02453: BeamFusion, with temperatures tau of the beams and psi of the cosines.
    There a SID is a coarse category of many items, a beam's cosines are to a vector that the model generated for this
    very beam, and only the nearest items within its SID are candidates. Our models generate no vectors: the other
    score is any baseline's (cosines of text embeddings with ``dense_text``), the same for all beams, and the
    candidates are the items of the beams.
    """
    if not others:
        raise InputError("beam_fusion: there are beam scores alone; give the scores of another system beside them")
    for scores in (beam_scores, *others):
        if scores.shape != rows.shape:
            raise InputError(f"beam_fusion: scores of shape {scores.shape} for candidates of shape {rows.shape}")
    given = _check_weights(dict(enumerate(weights)), list(range(len(others) + 1)))
    _check_k(k)
    real = (rows >= 0) & ~repeated_places(rows) & (beam_scores > -np.inf)
    total = np.zeros(rows.shape)
    for weight, scores in zip(given.values(), (beam_scores, *others), strict=True):
        if weight:
            total += weight * _filled(scores, real)
    ordered = np.argsort(rows, axis=1, kind="stable")
    scores = np.where(real, np.round(total, 9), -np.inf)
    return _best_rows(np.take_along_axis(rows, ordered, 1), np.take_along_axis(scores, ordered, 1), k)


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
        self.weights = _check_weights(dict.fromkeys(parts, 1.0) if weights is None else weights, list(parts))
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
        _check_k(k)
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
        _check_constant(constant)
        self.constant = constant

    @property
    def settings(self) -> dict[str, Any]:
        """What tuning chooses."""
        return {"weights": dict(self.weights), "constant": self.constant}

    def gather(self, histories: Sequence[Sequence[int]], *, exclude_seen: bool = False) -> Gathered:
        """Return the list of each part, and the places of all items in them."""
        lists = tuple(self._lists_of(name, histories, exclude_seen=exclude_seen) for name in self.parts)
        return Gathered(lists, *_pooled(lists))

    def fuse(self, gathered: Gathered, k: int) -> np.ndarray:
        """Return ``(users, k)`` fused rows."""
        weights = [self.weights[name] for name in self.parts]
        return _fuse_places(gathered.rows, gathered.scores, weights=weights, constant=self.constant, k=k)


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


def _check_weights(weights: Mapping[Any, float], names: Sequence[Any]) -> dict[Any, float]:
    if list(weights) != list(names) and set(weights) != set(names):
        raise InputError(
            f"fusion: weights of {', '.join(map(str, weights))}; give one for each of {', '.join(map(str, names))}"
        )
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise InputError(f"fusion: weight {weight} of {name}; 0 or more")
    if not any(weights.values()):
        raise InputError("fusion: all weights are 0; give at least one part a weight above 0")
    return {name: float(weights[name]) for name in names}


def _check_constant(constant: float) -> None:
    if not 0 <= constant < math.inf:
        raise InputError(f"fusion: constant {constant}; 0 or more, such as {CONSTANT:.0f}")


def _check_k(k: int) -> None:
    if k < 1:
        raise InputError(f"k {k}: lists hold at least 1 item")


def _filled(scores: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return ``(users, depth)`` scores, the user's lowest where there is none, and 0 in places that hold no item."""
    has = real & (scores > -np.inf)
    lowest = np.where(has, scores, np.inf).min(axis=1, keepdims=True)
    lowest = np.where(np.isinf(lowest), 0.0, lowest)
    return np.where(has, scores, np.where(real, lowest, 0.0)).astype(np.float64)


def _pooled(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return all items of some lists and where each list has them; it takes longer than trying weights on it.

    Returns:
        ``(users, candidates)`` int32 rows, a user's in ascending order, -1 in places that hold none: as many as there
        are places in all lists, so that batches fit together; and for each list
        ``(users, candidates)`` float32 places from 1, infinite where the list does not have the item.
    """
    pooled = np.concatenate(lists, axis=1).astype(np.int32)
    order = np.argsort(pooled, axis=1, kind="stable")
    ordered = np.take_along_axis(pooled, order, 1)
    first = np.ones(pooled.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    candidate = np.empty(pooled.shape, dtype=np.int64)  # of each place of the lists, among the user's
    np.put_along_axis(candidate, order, np.cumsum(first, axis=1) - 1, 1)
    users = np.arange(len(pooled))[:, None]
    rows = np.full(pooled.shape, -1, dtype=np.int32)
    rows[users, candidate] = pooled
    places, start = [], 0
    for part in lists:
        found = np.full(rows.shape, np.inf, dtype=np.float32)
        # From the last place to the first, so that the first stays where an item stands twice
        for place in reversed(range(part.shape[1])):
            found[users[:, 0], candidate[:, start + place]] = place + 1
        found[rows < 0] = np.inf
        places.append(found)
        start += part.shape[1]
    return rows, tuple(places)


def _fuse_places(
    rows: np.ndarray, places: Sequence[np.ndarray], *, weights: Sequence[float], constant: float, k: int
) -> np.ndarray:
    scores = np.zeros(rows.shape)
    for weight, found in zip(weights, places, strict=True):
        # Scaled so that the best score is 1, whatever the constant
        scores += weight / sum(weights) * (constant + 1) / (constant + found.astype(np.float64))
    return _best_rows(rows, np.where(scores > 0, np.round(scores, 12), -np.inf), k)


def _best_rows(rows: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """Return ``(users, k)`` rows by score; ``rows`` ascend, so that among equals the lower comes first."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.where(np.take_along_axis(scores, best, 1) > -np.inf, np.take_along_axis(rows, best, 1), -1)
    empty = np.full((len(rows), k - found.shape[1]), -1)
    return np.concatenate([found, empty], axis=1).astype(np.int64)
