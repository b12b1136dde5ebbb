"""How often intervals hold the truth, and how often tests reject it, on simulated users whose truth is known.

    python tests/benchmarks/check_intervals.py --out recipes/results/evaluation/intervals.json

Users are drawn from populations whose mean recall@10 and ndcg@10 are computed from the probabilities of ranks: a hit
at rank r (from 1) has a probability that falls as 1 / r. For each hit rate and number of users:

- means: intervals of one system's mean, by each method of `mean_interval`;
- differences: `paired_bootstrap` of two systems, the second with 0.9 of the first's hit rate; half of what both could
  have in common they hit for the same users at the same rank;
- tests: how often `randomisation_test` finds p < .05 between two systems of equal hit rates;
- users: the same where users have several rows, very unequal numbers of them, and users differ in how easy they are:
  intervals and tests by user, and beside them those that take rows as independent;
- seeds: `pool_seeds` and `pooled_difference` of 2, 3 and 5 seeds, where each training moves the hit rate by a normal
  factor, so that the error of the mean by trainings is 0, 1, 2 and 4 times that by users; beside them the interval of
  a single seed's mean, and the difference of one seed of each; the truth is the mean over trainings.

The standard error of a coverage near .95 is .0049 with 2,000 repetitions. Rows that --out has already are kept, so
that a check that was cut off goes on.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llmrec.artifacts import made_by, read_json, write_json
from llmrec.errors import run_command
from llmrec.evaluation.intervals import MEAN_METHODS, Interval, difference_interval, mean_interval, paired_bootstrap
from llmrec.evaluation.metrics import per_user
from llmrec.evaluation.seeds import pool_seeds, pooled_difference
from llmrec.evaluation.significance import randomisation_test

CUT = 10
METRICS = (f"recall@{CUT}", f"ndcg@{CUT}")
RANKS = np.append(np.arange(CUT), -1)
RATES = (0.02, 0.05, 0.1, 0.3)
USERS = (1000, 5000)
SEEDS = (2, 3, 5)
TIMES = (0, 1, 2, 4)
"""The error of the mean over seeds by trainings, in errors by users."""
SEED_USERS, SEED_RATE = 5000, 0.1
CROWDS = {"166 users of 30 rows": (166, 30.0, 1.2), "2000 users of 2 rows": (2000, 2.0, 0.7)}
"""Users, the median of their numbers of rows, and the spread of its logarithm (1.2: the largest has ten times 30)."""
CROWD_RATES = (0.05, 0.1, 0.3)
CONCENTRATION = 5.0
"""How alike users are in what they have: their hit probabilities are Beta with this sum of parameters."""
TOLERANCE = 0.015
"""How far a coverage may lie from the level that is stated."""


def rank_law(rate: float) -> np.ndarray:
    """Return the probabilities of `RANKS` under a hit rate."""
    falling = 1 / (np.arange(CUT) + 1)
    return np.append(rate * falling / falling.sum(), 1 - rate)


def joint_law(first: float, second: float, *, shared: float = 0.5) -> np.ndarray:
    """Return the probabilities of every pair of `RANKS` of two systems that partly hit the same users."""
    one, other = rank_law(first), rank_law(second)
    common = shared * np.minimum(one, other)
    return np.diag(common) + np.outer(one - common, other - common) / (1 - common.sum())


def covers(interval: Interval, truth: float) -> bool:
    """Return whether an interval holds the truth."""
    return interval.low <= truth <= interval.high


def count(repetitions: int, what: str, once: Callable[[], dict[str, bool]]) -> dict[str, float]:
    """Return how often each named outcome was true."""
    found: dict[str, int] = {}
    for _ in tqdm(range(repetitions), desc=what, leave=False):
        for name, outcome in once().items():
            found[name] = found.get(name, 0) + bool(outcome)
    return {name: times / repetitions for name, times in found.items()}


def check_means(rate: float, users: int, *, repetitions: int, samples: int, seed: int) -> dict[str, float]:
    """Return the coverage of each method by metric."""
    rng, law = np.random.default_rng(seed), rank_law(rate)
    truth = {metric: float(per_user(metric, RANKS) @ law) for metric in METRICS}

    def once() -> dict[str, bool]:
        ranks, outcomes = np.repeat(RANKS, rng.multinomial(users, law)), {}
        drawn = int(rng.integers(2**31))
        for metric in METRICS:
            values = per_user(metric, ranks)
            for method in MEAN_METHODS:
                interval = mean_interval(values, method=method, samples=samples, seed=drawn)
                outcomes[f"{metric} {method}"] = covers(interval, truth[metric])
        return outcomes

    return count(repetitions, f"means {rate:g} {users}", once)


def check_pairs(
    rate: float, users: int, *, repetitions: int, samples: int, seed: int, equal: bool
) -> dict[str, float]:
    """Return the coverage of differences by metric, or for equal systems the share of tests that reject."""
    rng, law = np.random.default_rng(seed), joint_law(rate, rate if equal else 0.9 * rate)
    first, second = np.repeat(RANKS, len(RANKS)), np.tile(RANKS, len(RANKS))
    truth = {metric: float((per_user(metric, first) - per_user(metric, second)) @ law.ravel()) for metric in METRICS}

    def once() -> dict[str, bool]:
        counts, outcomes = rng.multinomial(users, law.ravel()), {}
        drawn = int(rng.integers(2**31))
        for metric in METRICS:
            a, b = (per_user(metric, np.repeat(ranks, counts)) for ranks in (first, second))
            if equal:
                outcomes[metric] = randomisation_test(a, b, samples=samples, seed=drawn) < 0.05
            else:
                outcomes[metric] = covers(paired_bootstrap(a, b, samples=samples, seed=drawn), truth[metric])
        return outcomes

    return count(repetitions, f"{'tests' if equal else 'differences'} {rate:g} {users}", once)


def check_users(
    users: int, median: float, spread: float, *, rate: float, repetitions: int, samples: int, seed: int
) -> dict[str, float]:
    """Return the coverage of means and differences by user and by row, and how often tests of equal systems reject."""
    rng = np.random.default_rng(seed)
    falling = rank_law(1.0)[:-1]
    truth = {metric: rate * float(per_user(metric, RANKS[:-1]) @ falling) for metric in METRICS}

    def once() -> dict[str, bool]:
        sizes = np.maximum(1, median * np.exp(spread * rng.standard_normal(users))).astype(int)
        owner = np.repeat(np.arange(users), sizes)
        chance = rng.beta(CONCENTRATION * rate, CONCENTRATION * (1 - rate), (2, users))
        # The other system finds half of the users exactly as hard, the rest on its own.
        chance[1] = np.where(rng.random(users) < 0.5, chance[0], chance[1])
        hits = rng.random((2, len(owner))) < chance[:, owner]
        ranks = np.where(hits, rng.choice(CUT, size=hits.shape, p=falling), -1)
        drawn, outcomes = {"samples": samples, "seed": int(rng.integers(2**31))}, {}
        for metric in METRICS:
            values = per_user(metric, ranks[0])
            outcomes[f"{metric} wilson by user"] = covers(mean_interval(values, users=owner), truth[metric])
            outcomes[f"{metric} rows alone"] = covers(mean_interval(values), truth[metric])
        a, b = (per_user(METRICS[0], found) for found in ranks)
        percentile = mean_interval(a, users=owner, method="percentile", **drawn)
        outcomes[f"{METRICS[0]} percentile by user"] = covers(percentile, truth[METRICS[0]])
        outcomes["difference by user"] = covers(difference_interval(a, b, users=owner), 0.0)
        outcomes["difference percentile by user"] = covers(paired_bootstrap(a, b, users=owner, **drawn), 0.0)
        outcomes["test by user"] = randomisation_test(a, b, users=owner, **drawn) < 0.05
        outcomes["test of rows"] = randomisation_test(a, b, **drawn) < 0.05
        return outcomes

    return count(repetitions, f"users {users} {rate:g}", once)


def check_seeds(seeds: int, times: float, *, repetitions: int, samples: int, seed: int) -> dict[str, float]:
    """Return the coverage of recall's mean, and of a difference of 0, over trainings and users."""
    rng, rate, users = np.random.default_rng(seed), SEED_RATE, SEED_USERS
    alike = 0.7 * rate * (1 - rate / 0.7) / (CONCENTRATION + 1)  # variance of the users' probabilities
    by_users = (alike + (rate * (1 - rate) - alike) / seeds) / users
    move = times * np.sqrt(by_users * seeds) / rate

    def train(chance: np.ndarray) -> np.ndarray:
        factors = 1 + move * rng.standard_normal((seeds, 1))
        return (rng.random((seeds, users)) < chance * factors).astype(float)

    def once() -> dict[str, bool]:
        chance = 0.7 * rng.beta(CONCENTRATION * rate / 0.7, CONCENTRATION * (1 - rate / 0.7), users)
        a, b = train(chance), train(chance)
        drawn = {"samples": samples, "seed": int(rng.integers(2**31))}
        return {
            "pool_seeds": covers(pool_seeds(a).interval, rate),
            "one seed alone": covers(mean_interval(a[0]), rate),
            "pooled_difference": covers(pooled_difference(a, b).interval, 0.0),
            "one seed of each": covers(paired_bootstrap(a[0], b[0], **drawn), 0.0),
        }

    return count(repetitions, f"seeds {seeds} {times:g}", once)


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=1000, help="of a bootstrap or test (default: 1000)")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--users", type=int, nargs="+", default=list(USERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    settings = {"repetitions": args.repetitions, "samples": args.samples, "seed": args.seed}
    found: dict[str, Any] = read_json(args.out, "checked intervals")["rows"] if args.out.is_file() else {}
    cells: dict[str, Callable[[], dict[str, float]]] = {}
    for users in args.users:
        for rate in args.rates:
            name = f"hit rate {rate:g}, {users} users"
            cells[f"means, {name}"] = lambda r=rate, u=users: check_means(r, u, **settings)
            cells[f"differences, {name}"] = lambda r=rate, u=users: check_pairs(r, u, **settings, equal=False)
            cells[f"tests, {name}"] = lambda r=rate, u=users: check_pairs(r, u, **settings, equal=True)
    for crowd, (users, median, spread) in CROWDS.items():
        for rate in CROWD_RATES:
            cells[f"users, hit rate {rate:g}, {crowd}"] = (
                lambda u=users, m=median, s=spread, r=rate: check_users(u, m, s, rate=r, **settings)
            )  # fmt: skip
    for seeds in SEEDS:
        for times in TIMES:
            cells[f"seeds, {seeds} with {times} times the error of users"] = (
                lambda s=seeds, t=times: check_seeds(s, t, **settings)
            )  # fmt: skip
    for name, check in cells.items():
        if name not in found:
            found[name] = check()
            write_json(args.out, {"rows": found, "settings": settings, "made_by": made_by()})
        print(f"{name}: {', '.join(f'{what} {share:.4f}' for what, share in found[name].items())}", flush=True)


if __name__ == "__main__":
    run_command(main)
