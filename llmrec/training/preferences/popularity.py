"""Rejected items by chance: by popularity, or all alike."""

from dataclasses import dataclass, field

import numpy as np

from llmrec.errors import InputError
from llmrec.training.preferences.candidates import refuse_short
from llmrec.training.preferences.draws import draw_weighted
from llmrec.training.preferences.inputs import PreferenceInputs
from llmrec.training.preferences.questions import Questions

REMEDY = "ask for fewer, or let items of the history in with exclude_history: false"


@dataclass(frozen=True)
class WeightedNegatives:
    """Draws SIDs by fixed weights, without replacement; see `draw_weighted`."""

    name: str
    weights: np.ndarray = field(repr=False)
    exclude_history: bool
    inputs: PreferenceInputs = field(repr=False)
    may_fall_short: bool = False

    def __call__(self, questions: Questions, *, count: int, taken: np.ndarray | None = None) -> np.ndarray:
        """Return ``(rows, count)`` items."""
        candidates = self.inputs.candidates
        forbidden = candidates.forbidden(questions, history=self.exclude_history, taken=taken)
        sids = draw_weighted(
            candidates, self.weights, forbidden, numbers=questions.numbers, count=count, seed=self.inputs.seed
        )
        refuse_short(sids, questions, source=self.name, remedy=REMEDY)
        return candidates.rows(sids)


def popularity_negatives(
    *, inputs: PreferenceInputs, exponent: float = 0.75, exclude_history: bool = True
) -> WeightedNegatives:
    """Draw items by how often they were taken in training, so that popular ones must earn their place.

    Args:
        inputs: with training counts; an item that was never taken is not drawn.
        exponent: of the counts, 0 to 2: 0 draws all that were ever taken alike, 1 as often as they were taken.
        exclude_history: never draw an item of the history.

    Raises:
        InputError: an exponent out of range, or counts that are all zero.

    Paper: S-DPO (Chen et al., 2024, https://arxiv.org/abs/2406.09215) draws negatives at random; the exponent 0.75 is
        word2vec's (Mikolov et al., 2013).
    """
    if not isinstance(exponent, int | float) or isinstance(exponent, bool) or not 0 <= exponent <= 2:
        raise InputError(f"negatives: popularity: exponent {exponent!r}; from 0 (all alike) to 2")
    counts = inputs.candidates.popularity
    if not counts.any():
        raise InputError("negatives: popularity: no item was taken in training; use uniform")
    weights = np.where(counts > 0, np.power(counts, exponent, where=counts > 0, out=np.zeros_like(counts)), 0.0)
    return WeightedNegatives("popularity", weights, exclude_history, inputs)


def uniform_negatives(*, inputs: PreferenceInputs, exclude_history: bool = True) -> WeightedNegatives:
    """Draw items of the catalogue, all alike, those that were never taken too.

    Args:
        inputs: with the catalogue.
        exclude_history: never draw an item of the history.

    Paper: S-DPO (Chen et al., 2024, https://arxiv.org/abs/2406.09215), whose negatives are drawn so; here a draw is a
        SID, and none comes twice.
    """
    return WeightedNegatives("uniform", inputs.candidates.present.astype(float), exclude_history, inputs)
