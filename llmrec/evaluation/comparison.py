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
from llmrec.evaluation.comparable import check_comparable, count_users, group_seeds, users_of
from llmrec.evaluation.corrections import CORRECTIONS
from llmrec.evaluation.intervals import Interval, difference_interval
from llmrec.evaluation.runs import Run
from llmrec.evaluation.seeds import pooled_difference, score_interval
from llmrec.evaluation.significance import randomisation_test

logger = logging.getLogger(__name__)

RANDOMISATION = "randomisation"
TWO_WAY = "two-way t"
MARK = "*"
SAMPLES = 10_000
MOST_SAMPLES = 100_000


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
        """Return ``(seeds, rows)`` values; raises `InputError` as `Run.values`."""
        return np.stack([run.values(metric) for run in self.runs])


@dataclass(frozen=True)
class Score:
    """A system under a metric.

    Args:
        system: its name.
        metric: such as ``ndcg@10``.
        interval: of the mean over rows, by users, and by seeds where there are several.
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
        test: ``randomisation`` over users, all rows of each together; ``two-way t`` where a system has several seeds.
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
        rows: that were scored.
        users: whose they are; None where no file tells and the protocol does not say that each has one row: then rows
            are taken as independent.
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
    rows: int
    users: int | None

    @property
    def least_samples(self) -> int:
        """How many samples would let the least p that is drawn earn a mark; 0 where that holds, or nothing is drawn.

        The least is 1 / (samples + 1), and Holm multiplies the least of the pairs under one metric by their number.
        """
        pairs = sum(pair.metric == self.metrics[0] for pair in self.pairs)
        drawn = self.correction == "holm" and any(pair.test == RANDOMISATION for pair in self.pairs)
        return 0 if not drawn or pairs / (self.samples + 1) < 1 - self.level else _least_samples(pairs, self.level)

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
                    "sources": [str(run.source) for run in system.runs],
                }
                for system in self.systems
            ],
            "rows": self.rows,
            "users": self.users,
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
    samples: int | None = None,
    seed: int = 0,
    level: float = 0.95,
    correction: str = "holm",
    allow_partial: bool = False,
    progress: bool = False,
) -> Comparison:
    """Compare runs on the same rows: means, differences, tests, and a correction for how many there are.

    Runs of one name and configuration whose seeds differ are one system (`llmrec.evaluation.runs.group_seeds`): its
    intervals cover users and seeds. Where a system has a single seed, its intervals and tests are of that one trained
    model, and say nothing of another training. Users, not rows, are what is drawn and exchanged: where the ranks files
    say that users have several rows, all rows of a user go together.

    Args:
        runs: at least one.
        metrics: ``recall@K``, ``ndcg@K``, ``mrr@K``, ``map@K``.
        reference: name of the system that each other is compared with; None compares each with each.
        samples: of bootstraps and of tests that are not counted out, at least 100; None takes `SAMPLES`, and with many
            pairs twice as many as let a p that is drawn earn a mark, up to `MOST_SAMPLES`.
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
    users = users_of(runs)
    if samples is None:
        enough = 2 * _least_samples(len(chosen), level) if 0 < level < 1 else 0
        samples = max(SAMPLES, min(enough, MOST_SAMPLES))
    settings = {"users": users, "samples": samples, "seed": seed, "level": level}
    scores, pairs = [], []
    total = len(metrics) * (len(systems) + len(chosen))
    with tqdm(total=total, desc="compare", unit="interval", disable=not progress) as bar:
        for metric in metrics:
            values = {system.name: system.values(metric) for system in systems}
            for system in systems:
                scores.append(_score(system.name, metric, values[system.name], users, level=level))
                bar.update()
            differences = []
            for a, b in chosen:
                differences.append(_difference(values[a.name], values[b.name], **settings))
                bar.update()
            adjusted = CORRECTIONS[correction]([p for _, p, _ in differences])
            for (a, b), (interval, p, test), corrected in zip(chosen, differences, adjusted.tolist(), strict=True):
                mark = MARK if corrected < 1 - level else ""
                pairs.append(Pair(metric, a.name, b.name, interval, p, corrected, test, mark))
    what = "each with each" if reference is None else f"each with {reference}"
    family = f"the {len(chosen)} pairs under one metric, {what}; metrics are not corrected for one another"
    found = Comparison(
        tuple(systems), tuple(metrics), reference, tuple(scores), tuple(pairs), level, samples, seed, correction,
        family, rows=len(runs[0].ranks), users=count_users(runs),
    )  # fmt: skip
    if found.least_samples:
        logger.warning(
            "comparison of %d pairs with %d samples: no p that is drawn can earn a mark; %d samples are the least",
            len(chosen), samples, found.least_samples,
        )  # fmt: skip
    return found


def _least_samples(pairs: int, level: float) -> int:
    """Return the least samples with which a drawn p, times so many pairs, can lie below 1 less the level."""
    return math.floor(pairs / (1 - level) + 1e-6)


def _systems(runs: Sequence[Run]) -> list[System]:
    """Return runs by configuration, named as their file names them where that is distinct."""
    groups = group_seeds(runs)
    shared = Counter(group[0].system for group in groups)
    names = [group[0].system if shared[group[0].system] == 1 else group[0].name for group in groups]
    for name, times in Counter(names).items():
        if times > 1:
            raise InputError(f"system {name!r}: {times} runs have this name; give each its own, or another seed")
    return [System(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def _score(name: str, metric: str, values: np.ndarray, users: np.ndarray | None, *, level: float) -> Score:
    means = tuple(values.mean(axis=1).tolist())
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return Score(name, metric, score_interval(values, users=users, level=level), means, spread)


def _difference(
    a: np.ndarray, b: np.ndarray, *, users: np.ndarray | None, samples: int, seed: int, level: float
) -> tuple[Interval, float, str]:
    if len(a) > 1 or len(b) > 1:
        pooled = pooled_difference(a, b, users=users, level=level)
        return pooled.interval, pooled.p, TWO_WAY
    drawn = {"users": users, "samples": samples, "seed": seed}
    interval = difference_interval(a[0], b[0], level=level, **drawn)
    return interval, randomisation_test(a[0], b[0], **drawn), RANDOMISATION


def _as_json(part: Score | Pair) -> dict[str, Any]:
    found = asdict(part)
    found["interval"]["rests_on_few"] = part.interval.rests_on_few
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
