"""Is the difference between two systems more than the luck of the users drawn?"""

from dataclasses import dataclass

import numpy as np

from llmrec.errors import InputError

MAX_DRAWS = 2**24


@dataclass(frozen=True)
class Interval:
    """A mean difference with its confidence interval.

    Args:
        mean: of ``a - b`` over users.
        low: lower end.
        high: upper end.
        level: confidence, such as 0.95.
        users: how many users it rests on.
    """

    mean: float
    low: float
    high: float
    level: float
    users: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the difference is significant at the interval's level."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, *, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return the mean of ``a - b`` and its percentile interval under resampling of users.

    Args:
        a: ``(users,)`` per-user values of one system.
        b: ``(users,)`` values of the other, for the same users.
        samples: bootstrap samples, at least 100.
        seed: of the samples.
        level: confidence, between 0 and 1.

    Raises:
        InputError: arrays of different lengths or without users, or a setting out of range.

    Paper: Efron, Bootstrap Methods: Another Look at the Jackknife, 1979. Equal differences are drawn together: a
    sample of users is a multinomial draw of how often each distinct difference occurs, which is the same
    distribution at a fraction of the work.
    """
    if len(a) != len(b) or not len(a):
        raise InputError(
            f"paired interval: {len(a)} users against {len(b)}; compare systems on the same rows of a split"
        )
    if samples < 100 or not 0 < level < 1:
        raise InputError(
            f"paired interval: samples {samples} (at least 100) or level {level} (between 0 and 1) is wrong"
        )
    rng = np.random.default_rng(seed)
    values, counts = np.unique(np.asarray(a, dtype=np.float64) - b, return_counts=True)
    users = len(a)
    chunk = max(1, MAX_DRAWS // len(values))
    means = np.concatenate(
        [
            rng.multinomial(users, counts / users, size=min(chunk, samples - start)) @ values / users
            for start in range(0, samples, chunk)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values @ counts / users), float(low), float(high), level, users)
