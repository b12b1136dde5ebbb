"""What a reward is built from, and the form of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmrec.data.items import Catalog
from llmrec.errors import InputError

Reward = Callable[..., list[Any]]
"""TRL's form: called with keywords alone (`prompts`, `completions`, `completion_ids`, every column of the dataset,
`rank`, `trainer_state`, `log_extra`, `log_metric`), it returns a number a completion, or None where it has nothing to
say. The rows of a group stand together, ``num_generations`` each."""

RewardFactory = Callable[..., Reward]
"""``factory(vocab, *, OPTIONS..., inputs)``: the other keyword-only parameters are the options of the YAML."""

REMEDIES = {
    "catalog": "the catalogue",
    "popularity": "training counts of the items",
    "sequences": "the training sequences",
    "folder": "the dataset folder",
    "tokenizer": "the tokenizer of the model",
}


@dataclass(frozen=True)
class RewardInputs:
    """What a reward may be built from.

    Args:
        num_generations: candidates in a group.
        catalog: the items; None where no reward reads them.
        popularity: ``(items,)`` training counts.
        sequences: item rows of each user in the training part, oldest first.
        folder: the dataset folder.
        seed: of the run.
        tokenizer: of the model that trains.

    Raises:
        InputError: fewer than two candidates in a group.
    """

    num_generations: int
    catalog: Catalog | None = None
    popularity: np.ndarray | None = field(default=None, repr=False)
    sequences: Sequence[Sequence[int]] | None = field(default=None, repr=False)
    folder: Path | None = None
    seed: int = 0
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.num_generations, bool) or not isinstance(self.num_generations, int):
            raise InputError(f"num_generations {self.num_generations!r}; give a whole number")
        if self.num_generations < 2:
            raise InputError(f"num_generations {self.num_generations}; a group has at least 2 candidates")

    def need(self, name: str, reward: str) -> Any:
        """Return an input without which a reward cannot be built.

        Args:
            name: of the field.
            reward: which asks, for the error message.

        Raises:
            InputError: it was not given.
        """
        value = getattr(self, name)
        if value is None:
            raise InputError(f"reward {reward}: it needs {REMEDIES[name]}; build it with RewardInputs({name}=...)")
        return value
