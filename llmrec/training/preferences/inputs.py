"""What sources of rejected items may see, and what a source is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from llmrec.data.folder import DatasetFolder
from llmrec.data.splits import Splits, training_popularity
from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.training.preferences.candidates import Candidates
from llmrec.training.preferences.questions import Questions
from llmrec.vocab import SIDVocab


@dataclass(frozen=True)
class PreferenceInputs:
    """What a source of rejected items may see.

    Args:
        vocab: the SIDs of the policy.
        popularity: ``(items,)`` training counts; None takes those of ``vocab``.
        dataset: the dataset folder; None where there is none.
        splits: its rows; None where there is none.
        policy: gives the policy that beams are searched with; called once, by those that search. None where there is
            none.
        seed: of all draws.
    """

    vocab: SIDVocab
    popularity: np.ndarray | None = field(default=None, repr=False)
    dataset: DatasetFolder | None = field(default=None, repr=False)
    splits: Splits | None = field(default=None, repr=False)
    policy: Callable[[], LLMRecommender] | None = field(default=None, repr=False)
    seed: int = 0

    @classmethod
    def of(
        cls,
        vocab: SIDVocab,
        dataset: DatasetFolder,
        splits: Splits,
        *,
        policy: Callable[[], LLMRecommender] | None = None,
        seed: int = 0,
    ) -> "PreferenceInputs":
        """Return what sources may see of a dataset: of its interactions the training ones alone.

        Args:
            vocab: the SIDs of the policy.
            dataset: the dataset folder.
            splits: its rows.
            policy: as the field.
            seed: of all draws.
        """
        popularity = training_popularity(splits.sequences, items=len(vocab))
        return cls(vocab, popularity, dataset, splits, policy, seed)

    @cached_property
    def candidates(self) -> Candidates:
        """What may be rejected."""
        return Candidates(self.vocab, popularity=self.popularity)

    @cached_property
    def recommender(self) -> LLMRecommender:
        """The policy that beams are searched with.

        Raises:
            InputError: there is none.
        """
        if self.policy is None:
            raise InputError("negatives: self_hard searches with the policy, and was given none; give a bundle")
        return self.policy()


class NegativeSource(Protocol):
    """Finds rejected items for training rows."""

    @property
    def may_fall_short(self) -> bool:
        """Whether rows with too few items are left out, as where the data decides how many there are, or refused."""
        ...

    def __call__(self, questions: Questions, *, count: int, taken: np.ndarray | None = None) -> np.ndarray:
        """Return ``(rows, count)`` int64 items, best first, -1 behind those that there are.

        None is the target, shares its SID, or shares the SID of another one of its row.

        Args:
            questions: the rows.
            count: items a row.
            taken: ``(rows, n)`` items that other sources found for the row, which it cannot get again; -1 for none.
        """
        ...


NegativeFactory = Callable[..., NegativeSource]
"""``(*, OPTIONS.., inputs: PreferenceInputs) -> NegativeSource``; keyword-only parameters are options of the YAML."""
