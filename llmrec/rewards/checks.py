"""What stands around every reward: its answer is one finite number a completion, or one error says what is wrong."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from llmrec.errors import InputError
from llmrec.rewards.inputs import Reward


def checked(name: str, reward: Reward) -> Reward:
    """Return a reward whose answers are checked.

    Args:
        name: in the YAML; it becomes the function's ``__name__``, by which TRL logs it.
        reward: TRL's form.
    """

    def call(**columns: Any) -> list[float | None]:
        return check_answer(name, reward(**columns), len(columns["completion_ids"]))

    call.__name__ = call.__qualname__ = name
    return call


def check_answer(name: str, answer: Any, count: int) -> list[float | None]:
    """Return the answer of a reward as a list of finite floats, or None where it has nothing to say.

    Args:
        name: of the reward.
        answer: what it returned.
        count: completions.

    Raises:
        InputError: no list, another length, or a value that is no finite number.
    """
    if isinstance(answer, np.ndarray | Tensor) and answer.ndim == 1:
        answer = answer.tolist()
    if isinstance(answer, str) or not isinstance(answer, Sequence):
        raise InputError(
            f"reward {name}: it returned {type(answer).__name__}; return a list with one number for each of the "
            f"{count} completions"
        )
    if len(answer) != count:
        raise InputError(
            f"reward {name}: it returned {len(answer)} values for {count} completions; return one for each, in their "
            "order, and None where it has nothing to say"
        )
    return [_number(name, row, value) for row, value in enumerate(answer)]


def _number(name: str, row: int, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, Real):
        raise InputError(f"reward {name}: row {row} is {value!r}; return numbers, or None for nothing to say")
    if not math.isfinite(value):
        raise InputError(
            f"reward {name}: row {row} is {float(value)}, which would make every weight NaN; return a finite number, "
            "or None for nothing to say"
        )
    return float(value)
