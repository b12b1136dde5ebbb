"""Is a figure, or the difference between two systems, more than the luck of the users and the seeds drawn?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, ndtri, stdtr, stdtrit

from llmrec.errors import InputError

MAX_DRAWS = 2**24
MAX_SIGNS = 2**22
MAX_EXACT = 2**20
"""Most outcomes of the sign flips that are counted out instead of drawn."""
FEW_HITS = 20
"""With fewer users whose value is not 0, intervals of a mean cover less than they say (`docs/evaluation.md`)."""
MEAN_METHODS = ("wilson", "percentile")
TIE = 1e-9


@dataclass(frozen=True)
class Interval:
    """A mean, or a mean difference, with its confidence interval.

    Args:
        mean: of a system over users, or of ``a - b``.
        low: lower end.
        high: upper end.
        level: confidence, such as 0.95.
        users: how many users it rests on.
        method: how the ends were found: ``percentile``, ``wilson`` or ``two-way``.
        support: how many users' values are not 0: the hits, or the users in whom two systems differ.
    """

    mean: float
    low: float
    high: float
    level: float
    users: int
    method: str = "percentile"
    support: int | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the difference is significant at the interval's level."""
        return self.low > 0 or self.high < 0

    @property
    def rests_on_few(self) -> bool:
        """Whether fewer than `FEW_HITS` users carry it, so that it covers less often than its level says."""
        return self.support is not None and self.support < FEW_HITS


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
    differences = _differences(a, b, "paired interval")
    return _percentile(differences, samples=samples, seed=seed, level=level, what="paired interval")


def mean_interval(
    values: np.ndarray,
    *,
    method: str = "wilson",
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the mean of one system's values over users with its confidence interval.

    Args:
        values: ``(users,)`` per-user values; for ``wilson`` from 0 to 1, as all metrics are.
        method: ``wilson``, for recall the score interval of a share, for other metrics that of as many users as would
            give a share the variance found; or ``percentile``, the bootstrap. The first covers closer to its level
            where hits are few, and does not shrink to nothing where there are none (`docs/evaluation.md` has both).
        samples: bootstrap samples, at least 100; ``wilson`` draws none.
        seed: of the samples.
        level: confidence, between 0 and 1.

    Raises:
        InputError: no users, an unknown method, a setting out of range, or for ``wilson`` a value outside 0 to 1.

    Paper: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927; with an effective sample
    size as in Franco, Little, Louis and Slud, Comparative Study of Confidence Intervals for Proportions in Complex
    Sample Surveys, 2019. There a design widens the variance of a share; here gains below 1 narrow it.
    """
    values = np.asarray(values, dtype=np.float64)
    if method not in MEAN_METHODS:
        raise InputError(f"interval of a mean: method {method!r}; choose one of {', '.join(MEAN_METHODS)}")
    if not len(values):
        raise InputError("interval of a mean: there are no users; choose rows that have some")
    if method == "percentile":
        return _percentile(values, samples=samples, seed=seed, level=level, what="interval of a mean")
    _check_level(level, "interval of a mean")
    if not (values.min() >= 0 and values.max() <= 1):
        raise InputError(
            f"interval of a mean: values from {values.min():g} to {values.max():g}, and method 'wilson' is for values "
            "from 0 to 1; choose 'percentile'"
        )
    users, mean = len(values), min(1.0, float(values.mean()))
    variance, share = float(values.var()), mean * (1 - mean)
    # Of all values in 0..1 with this mean, hits and misses vary most: the effective number is never below users.
    effective = users * share / variance if variance > 0 and share > variance else users
    z2 = float(ndtri((1 + level) / 2)) ** 2
    centre = (mean + z2 / (2 * effective)) / (1 + z2 / effective)
    half = math.sqrt(z2 * share / effective + (z2 / (2 * effective)) ** 2) / (1 + z2 / effective)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(mean, min(low, mean), max(high, mean), level, users, "wilson", int(np.count_nonzero(values)))


def randomisation_test(a: np.ndarray, b: np.ndarray, *, samples: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p of the mean of ``a - b`` when each user's two values might as well be exchanged.

    Args:
        a: ``(users,)`` per-user values of one system.
        b: ``(users,)`` values of the other, for the same users.
        samples: random exchanges, at least 100; none where all outcomes can be counted out.
        seed: of the exchanges.

    Returns:
        Share of exchanges whose mean difference is at least as far from 0 as the one found. Counted out exactly where
        differences take few values (recall: the sign test on the users in whom the systems differ). Otherwise drawn,
        and the one found counts as drawn too, so that p is at least ``1 / (samples + 1)``.

    Raises:
        InputError: arrays of different lengths or without users, or too few samples.

    Paper: Fisher, The Design of Experiments, 1935; Smucker, Allan and Carterette, A Comparison of Statistical
    Significance Tests for Information Retrieval Evaluation, CIKM 2007. We draw how many of the users with one
    absolute difference have each sign, which is the same distribution at a fraction of the work.
    """
    differences = _differences(a, b, "randomisation test")
    if samples < 100:
        raise InputError(f"randomisation test: samples {samples}; draw at least 100")
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    # Sums that are equal but were added in another order must count as equal.
    threshold = abs(float(differences.sum())) - TIE * float(sizes @ counts)
    if not len(sizes) or threshold <= 0:
        return 1.0
    if math.prod(int(count) + 1 for count in counts) <= MAX_EXACT:
        return _exact_share(sizes, counts, threshold)
    rng = np.random.default_rng(seed)
    return (1 + _extreme(sizes, counts, threshold, samples, rng)) / (samples + 1)


def _exact_share(sizes: np.ndarray, counts: np.ndarray, threshold: float) -> float:
    """Return the probability that random signs give a sum as far from 0 as ``threshold``, over all outcomes."""
    sums, probabilities = np.zeros(1), np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        plus = np.arange(count + 1)
        law = np.exp(gammaln(count + 1) - gammaln(plus + 1) - gammaln(count - plus + 1) - count * math.log(2))
        sums = (sums[:, None] + size * (2 * plus - count)).ravel()
        probabilities = (probabilities[:, None] * law).ravel()
    return min(1.0, float(probabilities[np.abs(sums) >= threshold].sum()))


def _extreme(sizes: np.ndarray, counts: np.ndarray, threshold: float, samples: int, rng: np.random.Generator) -> int:
    """Return how many of ``samples`` draws of random signs give a sum as far from 0 as ``threshold``."""
    single = counts == 1
    own, shared, many = sizes[single], sizes[~single], counts[~single]
    found, start = 0, 0
    rows = max(1, min(samples, MAX_SIGNS // len(sizes)))
    while start < samples:
        drawn = min(rows, samples - start)
        sums = (2 * rng.binomial(many, 0.5, size=(drawn, len(many))) - many) @ shared
        # A coin for each difference that one user has alone: a tenth of a binomial draw's cost.
        sums = sums + rng.integers(0, 2, size=(drawn, len(own)), dtype=np.int8) @ (2 * own) - own.sum()
        found += int((np.abs(sums) >= threshold).sum())
        start += drawn
    return found


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


@dataclass(frozen=True)
class Pooled:
    """What several seeds say together.

    Args:
        interval: of the mean over seeds and users, or of the difference of two such means.
        seed_means: mean over users of each seed; of a difference those of the first system, then of the second.
        spread: standard deviation between the seeds' means; None for one seed, and for a difference.
        p: two-sided, that the mean is 0.
    """

    interval: Interval
    seed_means: tuple[float, ...]
    spread: float | None
    p: float


def pool_seeds(values: np.ndarray, *, level: float = 0.95) -> Pooled:
    """Return the mean over seeds and users with an interval that covers the chance of both.

    Args:
        values: ``(seeds, users)`` per-user values of one configuration trained with several seeds.
        level: confidence, between 0 and 1.

    Raises:
        InputError: fewer than two seeds or users, or a level out of range.

    Paper: the variance of a mean over two crossed random factors (Cornfield and Tukey, Average Values of Mean Squares
    in Factorials, 1956), degrees of freedom after Satterthwaite, An Approximate Distribution of Estimates of Variance
    Components, 1946. A bootstrap of both factors (Owen, The Pigeonhole Bootstrap, 2007) counts the chance that is of
    neither alone three times, and is wider than need be where hits are few (`docs/evaluation.md` has both). A variance
    between seeds that comes out negative is taken as 0, so that without any the interval is a little wide.
    """
    return _two_way([np.asarray(values, dtype=np.float64)], level=level)


def pooled_difference(a: np.ndarray, b: np.ndarray, *, level: float = 0.95) -> Pooled:
    """Return the difference of two configurations' means with an interval that covers users and seeds.

    Args:
        a: ``(seeds, users)`` values of one configuration; a single seed is taken as it is, without chance in it.
        b: ``(seeds, users)`` values of the other, on the same users; not the same number of seeds.
        level: confidence, between 0 and 1.

    Raises:
        InputError: other users, fewer than two, one seed on either side, or a level out of range.

    Paper: as `pool_seeds`; users are paired, seeds are not.
    """
    return _two_way([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)], level=level)


def _two_way(groups: list[np.ndarray], *, level: float) -> Pooled:
    _check_level(level, "pooled seeds")
    shapes = [group.shape for group in groups]
    if any(len(shape) != 2 for shape in shapes) or len({shape[-1] for shape in shapes}) != 1:
        raise InputError(f"pooled seeds: values of shapes {shapes}; give (seeds, users) on the same users")
    users = shapes[0][1]
    if users < 2 or max(shape[0] for shape in shapes) < 2:
        raise InputError(f"pooled seeds: {shapes} (seeds, users); two of each are the least that have a spread")
    signs = (1, -1)[: len(groups)]
    per_user = sum(sign * group.mean(axis=0) for sign, group in zip(signs, groups, strict=True))
    mean, between_users = float(np.mean(per_user)), float(np.var(per_user, ddof=1)) / users
    variance, squares = between_users, between_users**2 / (users - 1)
    for group in groups:
        seeds = len(group)
        if seeds < 2:
            continue
        seed_means = group.mean(axis=1, keepdims=True)
        between_seeds = float(seed_means.var(ddof=1)) / seeds
        rest = group - seed_means - group.mean(axis=0) + group.mean()
        # The variance between users holds this part already, and so does that between seeds.
        both = float((rest**2).sum()) / ((seeds - 1) * (users - 1)) / (seeds * users)
        if between_seeds > both:
            variance += between_seeds - both
            squares += between_seeds**2 / (seeds - 1) + both**2 / ((seeds - 1) * (users - 1))
    error = math.sqrt(variance)
    freedom = variance**2 / squares if squares > 0 else 1.0
    half = float(stdtrit(freedom, (1 + level) / 2)) * error if error else 0.0
    p = 2 * float(stdtr(freedom, -abs(mean) / error)) if error else float(mean == 0)
    found = tuple(float(value) for group in groups for value in group.mean(axis=1))
    spread = float(np.std(found, ddof=1)) if len(groups) == 1 else None
    support = int(np.count_nonzero(per_user))
    return Pooled(Interval(mean, mean - half, mean + half, level, users, "two-way", support), found, spread, p)


def _differences(a: np.ndarray, b: np.ndarray, what: str) -> np.ndarray:
    if len(a) != len(b) or not len(a):
        raise InputError(f"{what}: {len(a)} users against {len(b)}; compare systems on the same rows of a split")
    return np.asarray(a, dtype=np.float64) - b


def _check_level(level: float, what: str) -> None:
    if not 0 < level < 1:
        raise InputError(f"{what}: level {level}; give one between 0 and 1, such as 0.95")


def _percentile(values: np.ndarray, *, samples: int, seed: int, level: float, what: str) -> Interval:
    """Return the mean over users with its percentile interval; users of one value are drawn together."""
    if samples < 100 or not 0 < level < 1:
        raise InputError(f"{what}: samples {samples} (at least 100) or level {level} (between 0 and 1) is wrong")
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(values, return_counts=True)
    users = len(values)
    chunk = max(1, MAX_DRAWS // len(distinct))
    means = np.concatenate(
        [
            rng.multinomial(users, counts / users, size=min(chunk, samples - start)) @ distinct / users
            for start in range(0, samples, chunk)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    support = int(np.count_nonzero(values))
    return Interval(float(distinct @ counts / users), float(low), float(high), level, users, "percentile", support)


def _ordered(p_values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"p values {list(p_values)}: give numbers from 0 to 1")
    return values, np.argsort(values, kind="stable")
