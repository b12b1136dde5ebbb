"""Measure what the evaluator itself costs, with the slow and obvious twin of every figure beside it.

    python tests/benchmarks/bench_evaluation.py --out recipes/results/evaluation/cost.json
    python tests/benchmarks/bench_evaluation.py --users 20000 --twin_users 200 --samples 1000

Rows, lists, popularity, categories and vectors are made up. The parts, each timed once:

score      `evaluate`: checks of the lists, ranks, Recall, NDCG, MRR, MAP and coverage at every cut, less the seconds
           in which the recommender makes the lists up
facts      histories laid end to end, and five ways to divide the rows: what all systems of a table share
figures    `profile`: Gini, novelty, repeats, validity, calibration, and the metrics of all slices
diversity  intra-list diversity, timed apart
bootstrap  a paired bootstrap of NDCG against a second run, timed apart

``peak_gib`` is the most memory that the process had held when a part ended, the rows included, which are Python
objects. ``processor_seconds`` are those of all threads, the making up of lists included. The twin runs on the first
``--twin_users`` rows (diversity on 1 % of them, at least 10) and must find the same numbers; ``ratio`` compares
seconds a user. Gini has no part in it, for its twin visits all pairs of items.
"""

import argparse
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference import slow_evaluation as slow

from llmrec.artifacts import made_by, write_json
from llmrec.data.splits import History
from llmrec.errors import InputError, run_command
from llmrec.evaluation.beyond import diversity_of
from llmrec.evaluation.categories import Categories
from llmrec.evaluation.evaluator import Evaluation, evaluate
from llmrec.evaluation.histories import Histories
from llmrec.evaluation.intervals import paired_bootstrap
from llmrec.evaluation.metrics import ndcg_at
from llmrec.evaluation.profile import Facts, profile
from llmrec.evaluation.slices import by_category, by_history_length, by_popularity, by_repetition, by_time

Row = dict[str, Any]
STEP = 7919
"""Prime, so that a list that walks through the items by this step meets none twice."""


class MadeUp:
    """Lists of distinct items that begin at a popular one; user by user in the order of the rows."""

    def __init__(self, users: int, items: int, seed: int) -> None:
        self.items = items
        self.starts = (items * np.random.default_rng(seed).random(users) ** 3).astype(np.int64)
        self.answered = 0

    def lists(self, start: int, stop: int, k: int) -> np.ndarray:
        return (self.starts[start:stop, None] + STEP * np.arange(k)) % self.items

    def recommend(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> Tensor:
        before, self.answered = self.answered, self.answered + len(histories)
        return torch.from_numpy(self.lists(before, self.answered, k))


def make_rows(recommender: MadeUp, args: argparse.Namespace) -> list[History]:
    """Return rows of 4 to 14 items, a quarter of whose targets stand in the lists and some in the histories."""
    rng = np.random.default_rng(args.seed + 1)
    rows = []
    for start in range(0, args.users, 10_000):
        stop = min(start + 10_000, args.users)
        lengths = rng.integers(4, 15, stop - start)
        flat = (args.items * rng.random(int(lengths.sum())) ** 3).astype(np.int64)
        targets = rng.integers(0, args.items, stop - start)
        place = rng.integers(0, 4 * args.k, stop - start)
        hit = place < args.k
        targets[hit] = recommender.lists(start, stop, args.k)[hit, place[hit]]
        ends = np.cumsum(lengths)
        again = rng.random(stop - start) < 0.05
        targets[again] = flat[ends[again] - 1]
        items, ends, targets = flat.tolist(), ends.tolist(), targets.tolist()
        before = 0
        for user, (end, target) in enumerate(zip(ends, targets, strict=True), start):
            rows.append(History(user, tuple(items[before:end]), target))
            before = end
    return rows


def peak_gib() -> float:
    """Return the most memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


@contextmanager
def timed(rows: list[Row], part: str) -> Iterator[Row]:
    """Append a row of seconds, processor seconds and peak memory of what runs inside."""
    row: Row = {"part": part}
    started, used = time.perf_counter(), time.process_time()
    yield row
    row["seconds"] = time.perf_counter() - started - row.pop("not_ours", 0.0)
    row["processor_seconds"] = time.process_time() - used
    row["peak_gib"] = peak_gib()
    rows.append(row)
    print(
        f"  {part:<10} {row['seconds']:8.2f} s   processor {row['processor_seconds']:8.2f} s   peak "
        f"{row['peak_gib']:.2f} GiB",
        flush=True,
    )


def gather(rows: Sequence[History], popularity: np.ndarray, categories: Categories, times: np.ndarray) -> Facts:
    """Return what `gather_facts` does of a dataset folder with categories and times."""
    histories = Histories.of(rows)
    slicings = (
        by_history_length(histories.lengths),
        by_popularity(histories.targets, popularity),
        by_repetition(histories, items=len(popularity)),
        by_category(histories.targets, categories),
        by_time(times),
    )
    return Facts(histories, popularity, slicings, categories)


def score(rows: Sequence[History], facts: Facts, found: Evaluation, ks: Sequence[int]) -> dict[str, float]:
    """Return the slow twin's figures of the rows."""
    lists, histories = found.recommended.tolist(), [row.items for row in rows]
    popularity, names = facts.popularity.tolist(), facts.categories.names
    own = [[names[number] for number in item.nonzero()[0]] for item in facts.categories.shares.toarray()]
    figures = {}
    for k in ks:
        per_user = {
            name: [twin(row, {target.target}, k) for row, target in zip(lists, rows, strict=True)]
            for name, twin in (
                ("recall", slow.recall), ("ndcg", slow.ndcg), ("mrr", slow.mrr), ("map", slow.average_precision),
            )
        }  # fmt: skip
        figures |= {f"{name}@{k}": sum(values) / len(values) for name, values in per_user.items()}
        figures[f"coverage@{k}"] = slow.coverage(lists, k, len(popularity))
        figures[f"novelty@{k}"] = slow.novelty(lists, k, popularity)
        figures[f"repeats@{k}"] = slow.repeats(lists, histories, k)
        figures[f"validity@{k}"] = slow.validity(lists, k)
        figures[f"miscalibration@{k}"] = slow.miscalibration(lists, histories, own, k)
        for slicing in facts.slicings:
            labels = [slicing.labels[member] for member in slicing.member.tolist()]
            for name in ("recall", "ndcg", "mrr"):
                for label, (_, mean, _) in slow.slice_means(per_user[name], labels).items():
                    figures[f"{slicing.name}/{label}/{name}@{k}"] = mean
    return figures


def flatten(found: Evaluation, profiled: Row) -> dict[str, float | None]:
    """Return the fast side's figures by the names of the twin's."""
    figures = {**found.metrics, **profiled["beyond"]}
    for name, rows in profiled["slices"].items():
        for row in rows:
            figures |= {f"{name}/{row['slice']}/{metric}": mean for metric, mean in row["metrics"].items()}
    return figures


def compare(expected: dict[str, float], figures: dict[str, float | None], tolerance: float) -> float:
    """Return the largest difference from the twin.

    Raises:
        InputError: one above the tolerance, or a figure that the fast side lacks.
    """
    largest = 0.0
    for name, value in expected.items():
        got = figures.get(name)
        difference = math.inf if got is None else abs(got - value)
        if difference > tolerance:
            raise InputError(f"{name}: {got}, and the slow twin finds {value}; the evaluator is wrong")
        largest = max(largest, difference)
    return largest


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call and what it returned."""
    started = time.perf_counter()
    value = work()
    return time.perf_counter() - started, value


def main(argv: Sequence[str] | None = None) -> None:
    """Make up, measure, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--k", type=int, default=50, help="places of a list (default: 50)")
    parser.add_argument("--ks", type=int, nargs="+", default=[5, 10, 20, 50], help="cuts (default: 5 10 20 50)")
    parser.add_argument("--items", type=int, default=12_101, help="of the catalogue (default: those of Beauty)")
    parser.add_argument("--categories", type=int, default=250)
    parser.add_argument("--dim", type=int, default=384, help="of the vectors of diversity")
    parser.add_argument("--samples", type=int, default=10_000, help="of the bootstrap")
    parser.add_argument("--twin_users", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file for the figures")
    args = parser.parse_args(argv)
    if max(args.ks) != args.k or args.items <= args.k or not args.items % STEP or args.users < args.twin_users:
        raise InputError(
            f"--ks {args.ks}, --k {args.k}, --items {args.items}, --twin_users {args.twin_users}: the largest cut is "
            f"--k, there are more items than that, no multiple of {STEP}, and no more users than --users in the twin"
        )
    torch.set_num_threads(args.threads)

    rng = np.random.default_rng(args.seed)
    recommender = MadeUp(args.users, args.items, args.seed)
    popularity = np.sort(rng.integers(0, 40, args.items) ** 2)[::-1].copy()
    names = np.array([f"kind {number}" for number in range(args.categories)])
    texts = [", ".join(names[rng.integers(0, args.categories, rng.integers(1, 5))]) for _ in range(args.items)]
    categories = Categories.of(texts)
    vectors = rng.normal(size=(args.items, args.dim)).astype(np.float32)
    times = rng.integers(0, 2**30, args.users)
    made = [{"part": "imports", "peak_gib": peak_gib()}]
    print(f"{args.users:,} users x {args.k} of {args.items:,} items, {args.threads} threads", flush=True)
    rows = make_rows(recommender, args)
    made.append({"part": "rows", "peak_gib": peak_gib()})

    parts: list[Row] = []
    with timed(parts, "score") as row:
        found = evaluate(recommender, rows, items=args.items, ks=args.ks, progress=False)
        row["not_ours"] = args.users / found.latency.users_per_second
    with timed(parts, "facts"):
        facts = gather(rows, popularity, categories, times)
    with timed(parts, "figures"):
        profile(found, facts)
    whole = {
        "seconds": sum(part["seconds"] for part in parts),
        "processor_seconds": sum(part["processor_seconds"] for part in parts),
        "peak_gib": peak_gib(),
    }
    with timed(parts, "diversity"):
        diversity_of(found.recommended, vectors, ks=args.ks)
    other = np.where(rng.random(args.users) < 0.1, -1, found.ranks)
    with timed(parts, "bootstrap"):
        paired_bootstrap(ndcg_at(found.ranks, args.k), ndcg_at(other, args.k), samples=args.samples)

    first = rows[: args.twin_users]
    few = max(10, args.twin_users // 100)
    some = gather(first, popularity, categories, times[: args.twin_users])
    again = evaluate(MadeUp(args.users, args.items, args.seed), first, items=args.items, ks=args.ks, progress=False)
    twin_seconds, expected = seconds_of(lambda: score(first, some, again, args.ks))
    largest = compare(expected, flatten(again, profile(again, some)), 1e-9)
    lists = again.recommended[:few]
    diversity_seconds, slow_diversity = seconds_of(
        lambda: {f"diversity@{k}": slow.diversity(lists.tolist(), vectors.tolist(), k) for k in args.ks}
    )
    fast_diversity = profile(replace(again, recommended=lists, users=few, ranks=again.ranks[:few]),
                             Facts(Histories.of(first[:few]), popularity, (), None, vectors))["beyond"]  # fmt: skip
    twins = [
        {"part": "score, facts, figures", "users": args.twin_users, "seconds": twin_seconds, "difference": largest,
         "ratio": twin_seconds / args.twin_users / (whole["seconds"] / args.users)},
        {"part": "diversity", "users": few, "seconds": diversity_seconds,
         "difference": compare(slow_diversity, fast_diversity, 1e-5),
         "ratio": diversity_seconds / few / (parts[3]["seconds"] / args.users)},
    ]  # fmt: skip
    print(f"  all metrics {whole['seconds']:.2f} s, peak {whole['peak_gib']:.2f} GiB (rows {made[1]['peak_gib']:.2f})")
    for twin in twins:
        print(
            f"  slow twin of {twin['part']}: {twin['seconds']:.2f} s for {twin['users']:,} users, "
            f"{twin['ratio']:,.0f} times the seconds a user; largest difference {twin['difference']:.1e}"
        )
    if args.out:
        settings = {name: value for name, value in vars(args).items() if name != "out"}
        report = {"settings": settings, "before": made, "parts": parts, "all_metrics": whole, "twins": twins}
        write_json(args.out, {**report, "cores": os.cpu_count(), "made_by": made_by()})
        print(f"written to {args.out}")


if __name__ == "__main__":
    run_command(main)
