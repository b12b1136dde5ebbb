"""Many tests at once: p values adjusted for how many there are."""

from collections.abc import Sequence

import numpy as np

from llmrec.errors import InputError


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return adjusted p: below alpha where a hypothesis is rejected while the chance of any false one stays at alpha.

    Args:
        p_values: of one family, in any order.

    Returns:
        ``(hypotheses,)`` float64, in the same order.

    Raises:
        InputError: a value outside 0 to 1.

    Paper: Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
    """
    values, order = _ordered(p_values)
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> np.ndarray:
    """Return adjusted p: below alpha where a hypothesis is rejected while alpha of the rejected are false on average.

    Args:
        p_values: of one family, in any order.

    Returns:
        ``(hypotheses,)`` float64, in the same order.

    Raises:
        InputError: a value outside 0 to 1.

    Paper: Benjamini and Hochberg, Controlling the False Discovery Rate, 1995; it holds for independent tests and for
    those that depend on one another positively.
    """
    values, order = _ordered(p_values)
    steps = values[order] * len(values) / np.arange(1, len(values) + 1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1)
    return adjusted


CORRECTIONS = {"holm": holm, "benjamini_hochberg": benjamini_hochberg}


def _ordered(p_values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"p values {list(p_values)}: give numbers from 0 to 1")
    return values, np.argsort(values, kind="stable")
