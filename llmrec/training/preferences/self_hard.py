"""Rejected items that the policy itself ranks high: its best misses."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.training.preferences.candidates import Candidates, refuse_short
from llmrec.training.preferences.inputs import PreferenceInputs
from llmrec.training.preferences.questions import Questions


@dataclass(frozen=True)
class SelfHardNegatives:
    """The best SIDs of a constrained beam search that are not the target."""

    beams: int
    skip: int
    exclude_history: bool
    inputs: PreferenceInputs = field(repr=False)
    may_fall_short: bool = False

    def __call__(self, questions: Questions, *, count: int, taken: np.ndarray | None = None) -> np.ndarray:
        """Return ``(rows, count)`` items, the policy's best first."""
        candidates = self.inputs.candidates
        wanted = count + self.skip
        forbidden = candidates.forbidden(questions, history=self.exclude_history, taken=taken)
        left = candidates.left(forbidden, rows=len(questions))
        if len(left) and int(left.min()) < wanted:
            found = np.where(np.arange(count) < (left[:, None] - self.skip), 0, -1)
            refuse_short(found, questions, source="self_hard", remedy="ask for fewer, or lower skip")
        rows, _ = search_sids(
            self.inputs.recommender, candidates, questions, count=wanted, forbidden=forbidden, beams=self.beams
        )
        return rows[:, self.skip :].numpy()


def self_hard_negatives(
    *, inputs: PreferenceInputs, beams: int = 20, skip: int = 0, exclude_history: bool = True
) -> SelfHardNegatives:
    """Take what the policy would recommend in place of the target.

    The search looks at permitted items alone, so that each row gets what it asks for; the rows are searched once,
    before training, in large batches and shared out over processes.

    Args:
        inputs: with the policy.
        beams: of the search; the number of items asked for when that is more.
        skip: leave so many of the best misses out, for they may be what the user would take too.
        exclude_history: never take an item of the history.

    Raises:
        InputError: numbers out of range.

    Paper: OneRec (Deng et al., 2025, https://arxiv.org/abs/2502.18965), self-hard rejected samples; here without a
        reward model, which `llmrec.training.preferences.scored` adds.
    """
    for name, value, least in (("beams", beams, 1), ("skip", skip, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"negatives: self_hard: {name} {value!r}; a whole number, at least {least}")
    return SelfHardNegatives(beams, skip, exclude_history, inputs)


def search_sids(
    recommender: LLMRecommender,
    candidates: Candidates,
    questions: Questions,
    *,
    count: int,
    forbidden: np.ndarray | None = None,
    beams: int = 20,
) -> tuple[Tensor, Tensor]:
    """Search the best SIDs after each prompt, as the most popular item of each.

    Args:
        recommender: the policy; where it shares its work over processes, each must make the same call.
        candidates: the SIDs.
        questions: the rows.
        count: SIDs a row.
        forbidden: keys of `Candidates.forbidden`; None forbids nothing.
        beams: of the search, ``count`` when that is more.

    Returns:
        ``(rows, count)`` int64 items on the CPU, best first, and their float32 log-probabilities.

    Raises:
        InputError: too few SIDs are left.
    """
    allow = np.sort(candidates.row_of[candidates.present]) if candidates.shared else None
    exclude = None
    if forbidden is not None:
        owner, sid = forbidden // candidates.count, forbidden % candidates.count
        items = candidates.row_of[sid]
        owner, items = owner[items >= 0], items[items >= 0]
        exclude = np.split(items, np.searchsorted(owner, np.arange(1, len(questions))))
    before = recommender.num_beams
    recommender.num_beams = beams
    try:
        with torch.inference_mode():
            return recommender.rank(questions.histories, count, allow=allow, exclude=exclude, names=_names(questions))
    finally:
        recommender.num_beams = before


def _names(questions: Questions) -> list[str]:
    return [questions.name(place) for place in range(len(questions))]
