"""Systems side by side: every mean with its interval, every difference with its interval and p."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from tqdm import tqdm

from llmrec.errors import InputError
from llmrec.evaluation.runs import Run, check_comparable, group_seeds
from llmrec.evaluation.significance import (
    CORRECTIONS,
    Interval,
    mean_interval,
    paired_bootstrap,
    pool_seeds,
    pooled_difference,
    randomisation_test,
)

logger = logging.getLogger(__name__)

RANDOMISATION = "randomisation"
TWO_WAY = "two-way t"
MARK = "*"


@dataclass(frozen=True)
class System:
    """One line of a comparison: a run, or several that differ in their seed alone.

    Args:
        name: distinct in the comparison.
        runs: the runs, one a seed.
    """

    name: str
    runs: tuple[Run, ...] = field(repr=False)

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """Seeds in order of the runs; None where there is no chance in a run, or its file does not tell."""
        return tuple(run.seed for run in self.runs)

    def values(self, metric: str) -> np.ndarray:
        """Return ``(seeds, users)`` values; raises `InputError` as `Run.values`."""
        return np.stack([run.values(metric) for run in self.runs])


@dataclass(frozen=True)
class Score:
    """A system under a metric.

    Args:
        system: its name.
        metric: such as ``ndcg@10``.
        interval: of the mean over users, and over seeds where there are several.
        seed_means: mean of each seed.
        spread: standard deviation between the seeds' means; None for one seed.
    """

    system: str
    metric: str
    interval: Interval
    seed_means: tuple[float, ...]
    spread: float | None


@dataclass(frozen=True)
class Pair:
    """Two systems under a metric.

    Args:
        metric: such as ``ndcg@10``.
        a: name of a system.
        b: name of the other, or of the reference.
        interval: of the mean of ``a - b``, not widened for the number of pairs.
        p: two-sided, of this pair alone.
        adjusted: p with the correction for its family.
        test: ``randomisation`` over users; ``two-way t`` where a system has several seeds.
        mark: ``*`` where the adjusted p lies below 1 less the level, else empty.
    """

    metric: str
    a: str
    b: str
    interval: Interval
    p: float
    adjusted: float
    test: str
    mark: str


@dataclass(frozen=True)
class Comparison:
    """What `compare_runs` found.

    Args:
        systems: in the order of the runs.
        metrics: in the order asked for.
        reference: name of the system that all others are compared with; None where each is with each.
        scores: of every system under every metric.
        pairs: under every metric.
        level: confidence of the intervals; pairs are marked at 1 less it.
        samples: of bootstraps and tests.
        seed: of the samples.
        correction: ``holm`` or ``benjamini_hochberg``.
        family: which tests are corrected together, in words.
    """

    systems: tuple[System, ...]
    metrics: tuple[str, ...]
    reference: str | None
    scores: tuple[Score, ...] = field(repr=False)
    pairs: tuple[Pair, ...] = field(repr=False)
    level: float
    samples: int
    seed: int
    correction: str
    family: str

    def score(self, system: str, metric: str) -> Score:
        """Return a system's score under a metric.

        Raises:
            KeyError: there is none.
        """
        for score in self.scores:
            if (score.system, score.metric) == (system, metric):
                return score
        raise KeyError(f"no score of {system} under {metric}")

    def pair(self, a: str, b: str, metric: str) -> Pair:
        """Return the pair of two systems, in the order in which it was made.

        Raises:
            KeyError: there is none.
        """
        for pair in self.pairs:
            if (pair.a, pair.b, pair.metric) == (a, b, metric):
                return pair
        raise KeyError(f"no pair of {a} and {b} under {metric}")

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values: numbers, settings, and the files and seeds of each system."""
        return {
            "systems": [
                {
                    "name": system.name,
                    "seeds": list(system.seeds),
                    "users": len(system.runs[0].ranks),
                    "sources": [str(run.source) for run in system.runs],
                }
                for system in self.systems
            ],
            "metrics": list(self.metrics),
            "reference": self.reference,
            "scores": [_as_json(score) for score in self.scores],
            "pairs": [_as_json(pair) for pair in self.pairs],
            "level": self.level,
            "samples": self.samples,
            "seed": self.seed,
            "correction": self.correction,
            "family": self.family,
        }


def compare_runs(
    runs: Sequence[Run],
    *,
    metrics: Sequence[str] = ("recall@10", "ndcg@10"),
    reference: str | None = None,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    correction: str = "holm",
    allow_partial: bool = False,
    progress: bool = False,
) -> Comparison:
    """Compare runs on the same rows: means, differences, tests, and a correction for how many there are.

    Runs of one name and configuration whose seeds differ are one system (`llmrec.evaluation.runs.group_seeds`): its
    intervals cover users and seeds. Where a system has a single seed, its intervals and tests are of that one trained
    model, and say nothing of another training.

    Args:
        runs: at least one.
        metrics: ``recall@K``, ``ndcg@K``, ``mrr@K``, ``map@K``.
        reference: name of the system that each other is compared with; None compares each with each.
        samples: of bootstraps and of tests that are not counted out, at least 100.
        seed: of the samples.
        level: confidence, between 0 and 1.
        correction: ``holm`` keeps the chance of any false mark under a metric at 1 less the level;
            ``benjamini_hochberg`` the share of false ones among the marks, on average.
        allow_partial: take runs on a part of the split's rows, if all have as many.
        progress: show a progress bar.

    Raises:
        InputError: no runs, no or unknown metrics, cuts above the length of the lists, runs that were not scored alike
            (`check_comparable`), an unknown reference or correction, or a setting out of range.

    Paper: Smucker, Allan and Carterette, CIKM 2007 (randomisation for differences); Holm 1979. The family is the pairs
    under one metric: metrics of one list measure the same ranks, and are read one at a time.
    """
    if not runs or not metrics:
        raise InputError(f"comparison of {len(runs)} runs under {len(metrics)} metrics: give at least one of each")
    if correction not in CORRECTIONS:
        raise InputError(f"correction {correction!r}: choose one of {', '.join(CORRECTIONS)}")
    check_comparable(runs, allow_partial=allow_partial)
    systems = _systems(runs)
    names = [system.name for system in systems]
    if reference is not None and reference not in names:
        raise InputError(f"reference {reference!r}: no such system; choose one of {', '.join(names)}")
    if reference is None:
        chosen = list(combinations(systems, 2))
    else:
        against = systems[names.index(reference)]
        chosen = [(system, against) for system in systems if system is not against]
    for metric in metrics:
        for run in runs:
            run.values(metric)  # what cannot be computed is refused before any work
    if chosen and 0 < level < 1 and len(chosen) / (samples + 1) >= 1 - level:
        least = math.floor(len(chosen) / (1 - level) + 1e-6)
        logger.warning(
            "comparison of %d pairs with %d samples: no p that is drawn can earn a mark; %d samples are the least",
            len(chosen), samples, least,
        )  # fmt: skip
    settings = {"samples": samples, "seed": seed, "level": level}
    scores, pairs = [], []
    total = len(metrics) * (len(systems) + len(chosen))
    with tqdm(total=total, desc="compare", unit="interval", disable=not progress) as bar:
        for metric in metrics:
            values = {system.name: system.values(metric) for system in systems}
            for system in systems:
                scores.append(_score(system.name, metric, values[system.name], level=level))
                bar.update()
            found = []
            for a, b in chosen:
                found.append(_difference(values[a.name], values[b.name], **settings))
                bar.update()
            adjusted = CORRECTIONS[correction]([p for _, p, _ in found])
            for (a, b), (interval, p, test), corrected in zip(chosen, found, adjusted.tolist(), strict=True):
                mark = MARK if corrected < 1 - level else ""
                pairs.append(Pair(metric, a.name, b.name, interval, p, corrected, test, mark))
    what = "each with each" if reference is None else f"each with {reference}"
    family = f"the {len(chosen)} pairs under one metric, {what}; metrics are not corrected for one another"
    return Comparison(
        tuple(systems),
        tuple(metrics),
        reference,
        tuple(scores),
        tuple(pairs),
        level,
        samples,
        seed,
        correction,
        family,
    )


def _systems(runs: Sequence[Run]) -> list[System]:
    """Return runs by configuration, named as their file names them where that is distinct."""
    groups = group_seeds(runs)
    shared = Counter(group[0].system for group in groups)
    names = [group[0].system if shared[group[0].system] == 1 else group[0].name for group in groups]
    for name, times in Counter(names).items():
        if times > 1:
            raise InputError(f"system {name!r}: {times} runs have this name; give each its own, or another seed")
    return [System(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def _score(name: str, metric: str, values: np.ndarray, *, level: float) -> Score:
    if len(values) > 1:
        pooled = pool_seeds(values, level=level)
        return Score(name, metric, pooled.interval, pooled.seed_means, pooled.spread)
    interval = mean_interval(values[0], level=level)
    return Score(name, metric, interval, (interval.mean,), None)


def _difference(a: np.ndarray, b: np.ndarray, *, samples: int, seed: int, level: float) -> tuple[Interval, float, str]:
    if len(a) > 1 or len(b) > 1:
        pooled = pooled_difference(a, b, level=level)
        return pooled.interval, pooled.p, TWO_WAY
    interval = paired_bootstrap(a[0], b[0], samples=samples, seed=seed, level=level)
    return interval, randomisation_test(a[0], b[0], samples=samples, seed=seed), RANDOMISATION


def _as_json(part: Score | Pair) -> dict[str, Any]:
    found = asdict(part)
    found["interval"]["rests_on_few"] = part.interval.rests_on_few
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
