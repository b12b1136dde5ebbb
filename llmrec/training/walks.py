"""Sequences drawn from a fitted baseline: what counting knows, taught to a model as if users had done it."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from llmrec.baselines import ALL_BASELINES, Baseline
from llmrec.baselines.context import FitContext
from llmrec.baselines.item_scores import best_unseen
from llmrec.data.items import Catalog
from llmrec.data.splits import Splits, training_popularity
from llmrec.embeddings.store import load_embeddings, load_manifest
from llmrec.errors import InputError
from llmrec.registry import resolve
from llmrec.sids.fitted_on import check_fitted_on
from llmrec.training.config import RecipeArguments

logger = logging.getLogger(__name__)

BATCH = 1024
"""Walks that take a step together: their scores of all items are in memory at once."""


@dataclass(frozen=True)
class Walks:
    """Sequences that a fitted baseline draws: it names the next item, that item joins the history, and so on.

    A walk of its own starts from one item, drawn by its training count to the power 0.75, and takes ``items`` steps. A
    continuation starts from a user's training history, half of the time cut at random, and takes ``steps``. Each step
    draws from the ``top`` best unseen items by the softmax of the baseline's scores over ``temperature``.

    Args:
        baseline: its name, or ``module:attribute``.
        settings: of the baseline.
        embeddings: file of the items' vectors, for a baseline that reads them.
        alone: walks that start from an item.
        items: steps of such a walk; at least 1.
        continuations: walks that start from each user's history; a fraction takes a part of the users once more.
        steps: of a continuation; at least 1.
        top: items that a step draws from; at least 1.
        temperature: in units of the baseline's scores, above 0.

    Raises:
        InputError: a number out of its range, no walks at all, or an unknown field.

    Paper: Kim and Rush, Sequence-Level Knowledge Distillation (arXiv 1606.07947), where a student is trained on what a
    teacher's beam search writes; here the teacher is a recommender that counts, its sequences are drawn and not
    searched, and the real ones stay beside them. Walks over a graph as sentences: Perozzi et al., DeepWalk (arXiv
    1403.6652), uniform there, by the baseline's scores here.
    """

    baseline: str = "transition_graph"
    settings: Mapping[str, Any] = field(default_factory=dict)
    embeddings: str | None = None
    alone: int = 0
    items: int = 5
    continuations: float = 0.0
    steps: int = 3
    top: int = 20
    temperature: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("alone", 0), ("items", 1), ("steps", 1), ("top", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"walks: {name} {value!r}; a whole number, at least {least}")
        for name in ("continuations", "temperature"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
                raise InputError(f"walks: {name} {value!r}; a number, 0 or more")
        if self.temperature == 0:
            raise InputError("walks: temperature 0; above 0, and top: 1 always takes the best")
        if not self.alone and not self.continuations:
            raise InputError("walks: neither alone nor continuations is above 0; leave walks out instead")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Walks":
        """Return the walks that a YAML describes."""
        known = [entry.name for entry in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise InputError(f"walks: unknown field {name!r}; choose from {', '.join(known)}")
        return cls(**given)


def fit_walker(walks: Walks, sequences: Sequence[Sequence[int]], catalog: Catalog) -> Baseline:
    """Return the baseline that draws, fitted on training sequences alone.

    Raises:
        InputError: an unknown baseline or setting, or embeddings that it needs and does not have.
    """
    kind = resolve(walks.baseline, ALL_BASELINES, "baseline")
    try:
        baseline = kind(**walks.settings)
    except TypeError as error:
        raise InputError(f"walks: {walks.baseline} refuses settings {dict(walks.settings)} ({error})") from error
    if "embeddings" in getattr(kind, "needs", ()) and walks.embeddings is None:
        raise InputError(f"walks: {walks.baseline} reads the items' vectors; name their file as embeddings")
    vectors = None if walks.embeddings is None else load_embeddings(walks.embeddings, catalog=catalog)
    context = FitContext(embeddings=vectors)
    return baseline.fit(sequences, items=len(catalog), context=context)


def draw_walks(
    walks: Walks,
    sequences: Sequence[Sequence[int]],
    *,
    catalog: Catalog,
    max_history: int,
    seed: int,
    progress: bool = True,
) -> list[tuple[int, ...]]:
    """Return sequences of item rows that a baseline fitted on the training sequences continues.

    Args:
        walks: what draws, and how much.
        sequences: training interactions alone, one sequence a user, oldest first.
        catalog: the items.
        max_history: most items that a model sees before a target; a continuation starts behind no more than fit.
        seed: of every draw.
        progress: whether to show a bar.

    Returns:
        The walks from an item, then the continuations, each with no item twice among those drawn and shown.

    Raises:
        InputError: as `fit_walker` says.
    """
    baseline = fit_walker(walks, sequences, catalog)
    rng = np.random.default_rng(seed)
    counts = training_popularity(sequences, items=len(catalog)) ** 0.75
    alone = [[int(row)] for row in rng.choice(len(catalog), size=walks.alone, p=counts / counts.sum())]
    shown = max(1, max_history + 1 - walks.steps)
    continued = [_cut(sequence, rng)[-shown:] for sequence in _repeated(sequences, walks.continuations, rng)]
    bar = tqdm(
        total=len(alone) * walks.items + len(continued) * walks.steps,
        desc="walks",
        unit="step",
        disable=not progress,
        mininterval=0.5,
    )
    with bar:
        for begun, steps in ((alone, walks.items), (continued, walks.steps)):
            for _ in range(steps):
                for start in range(0, len(begun), BATCH):
                    part = begun[start : start + BATCH]
                    for history, item in zip(part, _draw(baseline, part, walks, rng), strict=True):
                        history.append(item)
                    bar.update(len(part))
    logger.info("%s drew %d walks and %d continuations", walks.baseline, len(alone), len(continued))
    return [tuple(sequence) for sequence in (*alone, *continued)]


def walks_for(
    arguments: RecipeArguments, splits: Splits, catalog: Catalog, *, seed: int, progress: bool = True
) -> list[tuple[int, ...]]:
    """Return the walks that a recipe's ``walks`` asks for, none where it asks for none.

    Raises:
        InputError: what `Walks` and `draw_walks` refuse, or embeddings fitted on what this protocol holds out.
    """
    if not arguments.walks:
        return []
    walks = Walks.of(cast(dict[str, Any], arguments.walks))
    if walks.embeddings is not None:
        made = {"embeddings": load_manifest(walks.embeddings)}
        check_fitted_on(made, splits.protocol, source=f"walks: {walks.embeddings}")
    history = {"max_history": arguments.max_history, "seed": seed, "progress": progress}
    return draw_walks(walks, splits.sequences, catalog=catalog, **history)


def _repeated(sequences: Sequence[Sequence[int]], times: float, rng: np.random.Generator) -> list[Sequence[int]]:
    begun = [sequence for sequence in sequences if sequence]
    whole, part = divmod(times, 1.0)
    chosen = np.sort(rng.permutation(len(begun))[: round(part * len(begun))])
    return [*begun * int(whole), *(begun[place] for place in chosen.tolist())]


def _cut(sequence: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Return a sequence whole, or, half of the time, its beginning up to a random place."""
    whole, stop = rng.random() < 0.5, int(rng.integers(1, len(sequence) + 1))
    return list(sequence if whole else sequence[:stop])


def _draw(baseline: Baseline, histories: list[list[int]], walks: Walks, rng: np.random.Generator) -> list[int]:
    """Return the next item of each history."""
    if max(len(set(history)) for history in histories) >= baseline.items:
        raise InputError("walks: a walk has been through the whole catalogue; take fewer items or steps")
    found, scores = best_unseen(baseline, histories, min(walks.top, baseline.items - 1))
    # Gumbel's trick: the largest of scores plus noise is a draw from their softmax
    drawn = (scores / walks.temperature + rng.gumbel(size=scores.shape)).argmax(1)
    return found[np.arange(len(found)), drawn].tolist()
