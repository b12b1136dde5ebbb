"""The form of an objective, and what one may be built from."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmrec.decoding.trie import SIDTrie
from llmrec.errors import InputError
from llmrec.training.labelled import Head, Labelled
from llmrec.vocab import SIDVocab

Objective = Callable[[Labelled, Head], Tensor]
"""Losses of labels, ``(labels,)``; the trainer divides their sum by the number of labels of the global batch."""


@dataclass(frozen=True)
class ObjectiveContext:
    """What an objective may be built from.

    Args:
        vocab: the SIDs as tokens.
        tokenizer: of the model that trains.
        device: where it trains.
        protocol: by which its rows are split; None where that is not known.
    """

    vocab: SIDVocab
    tokenizer: PreTrainedTokenizerBase
    device: torch.device | str = "cpu"
    protocol: str | None = None

    @cached_property
    def trie(self) -> SIDTrie:
        """The SIDs of all items but retired ones: what decoding calls legal."""
        return SIDTrie.from_vocab(self.vocab).to(self.device)


ObjectiveFactory = Callable[..., Objective]
"""``factory(context, *, ARGUMENTS...)``: the keyword-only parameters are the keys of ``objective_args``."""


def check_number(objective: str, name: str, value: Any, *, low: float, high: float = math.inf) -> float:
    """Return an argument of an objective as a float.

    Args:
        objective: whose.
        name: of the argument.
        value: as the YAML has it.
        low: least.
        high: most; infinity for no bound.

    Raises:
        InputError: not a finite number within the bounds.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"objective {objective}: {name} {value!r}; give a number")
    if not low <= value <= high:
        bound = f"between {low:g} and {high:g}" if high < math.inf else f"at least {low:g}"
        raise InputError(f"objective {objective}: {name} {value!r}; it is {bound}")
    return float(value)


def check_choice(objective: str, name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return an argument of an objective that is one of some words.

    Raises:
        InputError: another value.
    """
    if value not in choices:
        raise InputError(f"objective {objective}: {name} {value!r}; choose one of {', '.join(choices)}")
    return value
