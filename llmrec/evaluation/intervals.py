"""How far a mean over users, or the difference of two, may be from the truth by the luck of the users drawn."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from llmrec.errors import InputError
from llmrec.evaluation.by_user import error_of_mean, repeated_users, user_sums

MAX_DRAWS = 2**24
FEW_HITS = 20
"""With fewer users whose value is not 0, intervals of a mean cover less than they say (`docs/evaluation.md`)."""
MEAN_METHODS = ("wilson", "percentile")
BY_USER = " by user"
"""Behind the method of an interval where users have several rows."""


@dataclass(frozen=True)
class Interval:
    """A mean, or a mean difference, with its confidence interval.

    Args:
        mean: over rows, of a system or of ``a - b``.
        low: lower end.
        high: upper end.
        level: confidence, such as 0.95.
        users: how many users it rests on.
        method: how the ends were found: ``percentile``, ``wilson``, ``jackknife`` or ``two-way``, with `BY_USER`
            behind it where users have several rows.
        support: how many users' values are not 0: the hits, or the users in whom two systems differ.
        rows: over how many rows the mean goes; None where each user has one.
    """

    mean: float
    low: float
    high: float
    level: float
    users: int
    method: str = "percentile"
    support: int | None = None
    rows: int | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the difference is significant at the interval's level."""
        return self.low > 0 or self.high < 0

    @property
    def rests_on_few(self) -> bool:
        """Whether fewer than `FEW_HITS` users carry it, so that it covers less often than its level says."""
        return self.support is not None and self.support < FEW_HITS


def check_level(level: float, what: str) -> None:
    """Raise `InputError` for a confidence that is not between 0 and 1."""
    if not 0 < level < 1:
        raise InputError(f"{what}: level {level}; give one between 0 and 1, such as 0.95")


def differences_of(a: np.ndarray, b: np.ndarray, what: str) -> np.ndarray:
    """Return ``a - b`` as float64; raises `InputError` for arrays of different lengths or without values."""
    if len(a) != len(b) or not len(a):
        raise InputError(f"{what}: {len(a)} users against {len(b)}; compare systems on the same rows of a split")
    return np.asarray(a, dtype=np.float64) - b


def paired_bootstrap(
    a: np.ndarray,
    b: np.ndarray,
    *,
    users: np.ndarray | None = None,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the mean of ``a - b`` and its percentile interval under resampling of users.

    Args:
        a: ``(rows,)`` values of one system.
        b: ``(rows,)`` values of the other, for the same rows.
        users: ``(rows,)`` the user of each row: all rows of a user are drawn together; None takes each row as a user.
        samples: bootstrap samples, at least 100.
        seed: of the samples.
        level: confidence, between 0 and 1.

    Raises:
        InputError: arrays of different lengths or without users, or a setting out of range.

    Paper: Efron, Bootstrap Methods: Another Look at the Jackknife, 1979; with several rows a user, the cluster
    bootstrap (Field and Welsh, Bootstrapping Clustered Data, 2007; Cameron, Gelbach and Miller, Bootstrap-Based
    Improvements for Inference with Clustered Errors, 2008). Users of equal differences are drawn together: a sample
    is a multinomial draw of how often each distinct one occurs, which is the same distribution at a fraction of the
    work.
    """
    differences = differences_of(a, b, "paired interval")
    return _percentile(differences, users, samples=samples, seed=seed, level=level, what="paired interval")


def difference_interval(
    a: np.ndarray,
    b: np.ndarray,
    *,
    users: np.ndarray | None = None,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the mean of ``a - b`` with its interval: `paired_bootstrap`, or a jackknife if users have several rows.

    The bootstrap of users who differ much in their number of rows covers too little: .92 where .95 is stated, with 166
    users of 1 to 300 rows. The jackknife weighs what each user moves, and its quantile of t how many users of one size
    would weigh alike (`docs/evaluation.md` has both).

    Args:
        a: ``(rows,)`` values of one system.
        b: ``(rows,)`` values of the other, for the same rows.
        users: ``(rows,)`` the user of each row; None takes each row as a user.
        samples: bootstrap samples, at least 100; the jackknife draws none.
        seed: of the samples.
        level: confidence, between 0 and 1.

    Raises:
        InputError: as `paired_bootstrap`.

    Paper: as `llmrec.evaluation.by_user.error_of_mean`.
    """
    differences = differences_of(a, b, "paired interval")
    numbers = repeated_users(users, len(differences))
    if numbers is None:
        return paired_bootstrap(a, b, samples=samples, seed=seed, level=level)
    check_level(level, "paired interval")
    variance, freedom = error_of_mean(differences, numbers)
    mean, sums = float(differences.mean()), user_sums(differences, numbers)
    low, high = -1.0, 1.0  # one user tells nothing of another
    if math.isfinite(variance):
        half = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(variance)
        low, high = mean - half, mean + half
    support = int(np.count_nonzero(sums))
    return Interval(mean, low, high, level, len(sums), "jackknife" + BY_USER, support, len(differences))


def mean_interval(
    values: np.ndarray,
    *,
    users: np.ndarray | None = None,
    method: str = "wilson",
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the mean of one system's values over rows with its confidence interval.

    Args:
        values: ``(rows,)`` values; for ``wilson`` from 0 to 1, as all metrics are.
        users: ``(rows,)`` the user of each row, whose rows are alike; None takes each row as a user of its own.
        method: ``wilson``, for recall the score interval of a share, for other metrics that of as many users as would
            give a share the variance found, which is also how rows of one user are counted; or ``percentile``, the
            bootstrap. The first covers closer to its level where hits are few or some users have many rows, and does
            not shrink to nothing where there are none (`docs/evaluation.md` has both).
        samples: bootstrap samples, at least 100; ``wilson`` draws none.
        seed: of the samples.
        level: confidence, between 0 and 1.

    Raises:
        InputError: no users, an unknown method, a setting out of range, or for ``wilson`` a value outside 0 to 1.

    Paper: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927; with an effective sample
    size and a quantile of t as in Franco, Little, Louis and Slud, Comparative Study of Confidence Intervals for
    Proportions in Complex Sample Surveys, 2019. Gains below 1 narrow it; rows of one user widen it, by
    `llmrec.evaluation.by_user.error_of_mean`.
    """
    values = np.asarray(values, dtype=np.float64)
    if method not in MEAN_METHODS:
        raise InputError(f"interval of a mean: method {method!r}; choose one of {', '.join(MEAN_METHODS)}")
    if not len(values):
        raise InputError("interval of a mean: there are no users; choose rows that have some")
    if method == "percentile":
        return _percentile(values, users, samples=samples, seed=seed, level=level, what="interval of a mean")
    check_level(level, "interval of a mean")
    if not (values.min() >= 0 and values.max() <= 1):
        raise InputError(
            f"interval of a mean: values from {values.min():g} to {values.max():g}, and method 'wilson' is for values "
            "from 0 to 1; choose 'percentile'"
        )
    numbers = repeated_users(users, len(values))
    mean = min(1.0, float(values.mean()))
    share = mean * (1 - mean)
    if numbers is None:
        # Of all values in 0..1 with this mean, hits and misses vary most: the effective number is never below users.
        variance, quantile = float(values.var()), float(ndtri((1 + level) / 2))
        effective = len(values) * share / variance if variance > 0 and share > variance else len(values)
        low, high = _score_interval(mean, effective, quantile)
        support = int(np.count_nonzero(values))
        return Interval(mean, low, high, level, len(values), "wilson", support)
    count, support = int(numbers.max()) + 1, int(np.count_nonzero(user_sums(values, numbers)))
    variance, freedom = error_of_mean(values, numbers)
    low, high = 0.0, 1.0  # one user tells nothing of another
    if math.isfinite(variance):
        effective = share / variance if variance > 0 and share > 0 else count
        low, high = _score_interval(mean, effective, float(stdtrit(freedom, (1 + level) / 2)))
    return Interval(mean, low, high, level, count, "wilson" + BY_USER, support, len(values))


def _score_interval(mean: float, effective: float, quantile: float) -> tuple[float, float]:
    """Return the ends of the score interval of a share found among ``effective`` users; the share lies between."""
    z2 = quantile**2
    centre = (mean + z2 / (2 * effective)) / (1 + z2 / effective)
    half = math.sqrt(z2 * mean * (1 - mean) / effective + (z2 / (2 * effective)) ** 2) / (1 + z2 / effective)
    return min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half))


def _percentile(
    values: np.ndarray, users: np.ndarray | None, *, samples: int, seed: int, level: float, what: str
) -> Interval:
    """Return the mean over rows with its percentile interval; users of equal values are drawn together."""
    if samples < 100 or not 0 < level < 1:
        raise InputError(f"{what}: samples {samples} (at least 100) or level {level} (between 0 and 1) is wrong")
    rows, numbers = len(values), repeated_users(users, len(values))
    if numbers is None:
        distinct, counts = np.unique(values, return_counts=True)
        sums, sizes = distinct, None
    else:
        pairs = np.stack([user_sums(values, numbers), np.bincount(numbers)], axis=1)
        distinct, counts = np.unique(pairs, axis=0, return_counts=True)
        sums, sizes = distinct.T
    drawn = int(counts.sum())
    method = "percentile" if sizes is None else "percentile" + BY_USER
    mean, support = float(sums @ counts / rows), int(counts[sums != 0].sum())
    more = {} if sizes is None else {"rows": rows}
    if sizes is not None and drawn == 1:
        return Interval(mean, -1.0, 1.0, level, 1, method, support, **more)  # one user tells nothing of another
    rng = np.random.default_rng(seed)
    chunk, means = max(1, MAX_DRAWS // len(counts)), []
    for start in range(0, samples, chunk):
        taken = rng.multinomial(drawn, counts / drawn, size=min(chunk, samples - start))
        means.append(taken @ sums / (rows if sizes is None else taken @ sizes))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), level, drawn, method, support, **more)
