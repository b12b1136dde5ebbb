"""Checks of the options of rewards."""

import math
from typing import Any

from llmrec.errors import InputError


def check_number(reward: str, name: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> float:
    """Return an option of a reward as a float.

    Args:
        reward: whose.
        name: of the option.
        value: as the YAML has it.
        low: least.
        high: most.

    Raises:
        InputError: not a finite number within the bounds.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"reward {reward}: {name} {value!r}; give a number")
    if not low <= value <= high:
        bound = f"between {low:g} and {high:g}" if high < math.inf else f"at least {low:g}"
        raise InputError(f"reward {reward}: {name} {value!r}; it is {bound}")
    return float(value)


def check_choice(reward: str, name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return an option of a reward that is one of some words.

    Raises:
        InputError: another value.
    """
    if value not in choices:
        raise InputError(f"reward {reward}: {name} {value!r}; choose one of {', '.join(choices)}")
    return value


def check_flag(reward: str, name: str, value: Any) -> bool:
    """Return an option of a reward that is true or false.

    Raises:
        InputError: another value.
    """
    if not isinstance(value, bool):
        raise InputError(f"reward {reward}: {name} {value!r}; give true or false, without quotes")
    return value
