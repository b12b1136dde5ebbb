"""Is the difference between two systems more than the luck of the users drawn?"""

import math

import numpy as np
from scipy.special import gammaln

from llmrec.errors import InputError
from llmrec.evaluation.by_user import repeated_users, user_sums
from llmrec.evaluation.intervals import differences_of

MAX_SIGNS = 2**22
MAX_EXACT = 2**20
"""Most outcomes of the sign flips that are counted out instead of drawn."""
TIE = 1e-9


def randomisation_test(
    a: np.ndarray, b: np.ndarray, *, users: np.ndarray | None = None, samples: int = 10_000, seed: int = 0
) -> float:
    """Return the two-sided p of the mean of ``a - b`` when each user's two values might as well be exchanged.

    Args:
        a: ``(rows,)`` values of one system.
        b: ``(rows,)`` values of the other, for the same rows.
        users: ``(rows,)`` the user of each row: all rows of a user are exchanged together; None takes each row as one.
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
    absolute difference have each sign, which is the same distribution at a fraction of the work. Users are the units
    that are exchanged: with several rows each, a user's difference is the sum over the rows.
    """
    differences = differences_of(a, b, "randomisation test")
    numbers = repeated_users(users, len(differences))
    if numbers is not None:
        differences = user_sums(differences, numbers)
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
