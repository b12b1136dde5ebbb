"""Several trainings of one configuration: intervals that cover the luck of the seeds beside that of the users."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from llmrec.errors import InputError
from llmrec.evaluation.by_user import error_of_mean, repeated_users, user_sums
from llmrec.evaluation.intervals import BY_USER, Interval, check_level, mean_interval

LEAST_P = 1e-12
FEW_SEEDS = 3
"""With fewer seeds their spread is hardly known: an interval is six times as wide as with many, and says little."""


@dataclass(frozen=True)
class Pooled:
    """What several seeds say together.

    Args:
        interval: of the mean over seeds and users, or of the difference of two such means.
        seed_means: mean over rows of each seed; of a difference those of the first system, then of the second.
        spread: standard deviation between the seeds' means; None for a difference.
        p: two-sided, that the mean is 0; not below `LEAST_P` where there is any spread.
    """

    interval: Interval
    seed_means: tuple[float, ...]
    spread: float | None
    p: float


def score_interval(values: np.ndarray, *, users: np.ndarray | None = None, level: float = 0.95) -> Interval:
    """Return a system's mean with its interval: that of `mean_interval` for one seed, else that of `pool_seeds`.

    Args:
        values: ``(seeds, rows)`` values from 0 to 1.
        users: ``(rows,)`` the user of each row; None takes each row as a user of its own.
        level: confidence, between 0 and 1.

    Raises:
        InputError: as the two functions.
    """
    if len(values) == 1:
        return mean_interval(values[0], users=users, level=level)
    return pool_seeds(values, users=users, level=level).interval


def pool_seeds(values: np.ndarray, *, users: np.ndarray | None = None, level: float = 0.95) -> Pooled:
    """Return the mean over seeds and rows with an interval that covers the chance of seeds and of users.

    Args:
        values: ``(seeds, rows)`` values of one configuration trained with several seeds.
        users: ``(rows,)`` the user of each row; None takes each row as a user of its own.
        level: confidence, between 0 and 1.

    Returns:
        Of values from 0 to 1 the interval is cut to what they can be.

    Raises:
        InputError: fewer than two seeds or rows, or a level out of range.

    Paper: half widths for users and for seeds, each with its own quantile of t, are added as the sides of a right
    angle (Howe, Approximate Confidence Limits on the Mean of X + Y Where X and Y Are Two Tabled Independent Random
    Variables, 1974). One quantile for the sum, by Satterthwaite's degrees of freedom, covers too little where seeds
    differ much. The chance that is of neither seeds nor users alone stands in both and is not taken out, so that the
    interval is wider than need be where seeds hardly differ; it never covers less than it says (`docs/evaluation.md`).
    """
    return _pool([np.asarray(values, dtype=np.float64)], users, level=level)


def pooled_difference(a: np.ndarray, b: np.ndarray, *, users: np.ndarray | None = None, level: float = 0.95) -> Pooled:
    """Return the difference of two configurations' means with an interval that covers users and seeds.

    Args:
        a: ``(seeds, rows)`` values of one configuration; a single seed is taken as it is, without chance in it.
        b: ``(seeds, rows)`` values of the other, on the same rows; not the same number of seeds.
        users: ``(rows,)`` the user of each row; None takes each row as a user of its own.
        level: confidence, between 0 and 1.

    Raises:
        InputError: other rows, fewer than two, one seed on either side, or a level out of range.

    Paper: as `pool_seeds`; users are paired, seeds are not, and the two spreads of seeds add up as in Welch, The
    Generalization of Student's Problem When Several Different Population Variances Are Involved, 1947. The p is 1 less
    the level at which the interval ends at 0.
    """
    return _pool([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)], users, level=level)


def _pool(groups: list[np.ndarray], users: np.ndarray | None, *, level: float) -> Pooled:
    check_level(level, "pooled seeds")
    shapes = [group.shape for group in groups]
    if any(len(shape) != 2 for shape in shapes) or len({shape[-1] for shape in shapes}) != 1:
        raise InputError(f"pooled seeds: values of shapes {shapes}; give (seeds, users) on the same users")
    rows = shapes[0][1]
    if rows < 2 or max(shape[0] for shape in shapes) < 2:
        raise InputError(f"pooled seeds: {shapes} (seeds, users); two of each are the least that have a spread")
    numbers = repeated_users(users, rows)
    per_row = groups[0].mean(axis=0) - (groups[1].mean(axis=0) if len(groups) > 1 else 0.0)
    mean = float(per_row.mean())
    errors = [error_of_mean(per_row, numbers), _error_of_seeds([group for group in groups if len(group) > 1])]
    found = tuple(float(value) for group in groups for value in group.mean(axis=1))
    spread = float(np.std(found, ddof=1)) if len(groups) == 1 else None
    shares = all(group.min() >= 0 and group.max() <= 1 for group in groups)
    if not any(variance for variance, _ in errors):
        low, high, p = mean, mean, float(mean == 0)
        if len(groups) == 1 and shares:
            certain = mean_interval(per_row, users=users, level=level)  # no hit at all is no certainty
            low, high = certain.low, certain.high
    else:
        half = _half_width(errors, (1 - level) / 2)
        low, high, p = mean - half, mean + half, _p_of(mean, errors)
        if shares:
            low, high = max(low, 0.0 if len(groups) == 1 else -1.0), min(high, 1.0)
    own = per_row if numbers is None else user_sums(per_row, numbers)
    more = {} if numbers is None else {"rows": rows}
    method = "two-way" if numbers is None else "two-way" + BY_USER
    interval = Interval(mean, low, high, level, len(own), method, int(np.count_nonzero(own)), **more)
    return Pooled(interval, found, spread, p)


def _error_of_seeds(groups: list[np.ndarray]) -> tuple[float, float]:
    """Return the variance of the (difference of) means by the chance of seeds, and Welch's degrees of freedom."""
    parts = [(float(group.mean(axis=1).var(ddof=1)) / len(group), len(group) - 1) for group in groups]
    variance = sum(part for part, _ in parts)
    squares = sum(part**2 / freedom for part, freedom in parts)
    return variance, variance**2 / squares if squares else 1.0


def _half_width(errors: list[tuple[float, float]], tail: float) -> float:
    """Return the half width that leaves ``tail`` on either side, of the variances and their degrees of freedom."""
    return math.sqrt(sum(variance * float(stdtrit(freedom, tail)) ** 2 for variance, freedom in errors if variance))


def _p_of(mean: float, errors: list[tuple[float, float]]) -> float:
    """Return the p at which an interval of half width ``abs(mean)`` ends at 0, found by halving its logarithm."""
    low, high = math.log(LEAST_P), 0.0
    if _half_width(errors, LEAST_P / 2) <= abs(mean):
        return LEAST_P
    for _ in range(50):
        middle = (low + high) / 2
        if _half_width(errors, math.exp(middle) / 2) > abs(mean):
            low = middle
        else:
            high = middle
    return math.exp(high)
