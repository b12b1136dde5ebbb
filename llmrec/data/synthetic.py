"""A generated dataset whose best reachable recall is known, because the process that made it is known."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.data.splits import leave_one_out
from llmrec.errors import InputError

PLACES = ("garden", "kitchen", "travel", "office", "camping", "studio", "workshop", "nursery", "bathroom", "bicycle")
KINDS = (
    "lamp", "kettle", "backpack", "notebook", "tent", "brush", "drill", "blanket", "mirror", "pump",
    "shears", "teapot", "wallet", "stapler", "lantern", "easel", "clamp", "crib", "towel", "helmet",
    "hose", "skillet", "pillow", "folder", "stove", "canvas", "sander", "rattle", "soap", "saddle",
    "trowel", "grater", "suitcase", "marker", "hammock", "palette", "ladder", "stroller", "sponge", "basket",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "black", "white", "amber", "violet", "silver", "brown", "teal", "coral", "navy")
MATERIALS = (
    "oak",
    "steel",
    "linen",
    "cotton",
    "bamboo",
    "copper",
    "leather",
    "glass",
    "rubber",
    "wool",
    "cork",
    "slate",
)
BRANDS = ("Alder", "Birch & Co", "Calyx", "Dunmore", "Elmhurst", "Fennel", "Gorse", "Hollin", "Ivybridge", "Juniper")
DAY = 86_400


@dataclass(frozen=True)
class Process:
    """How users of a generated dataset behave: a Markov walk over clusters, a popularity law within each.

    Args:
        items: items in the catalogue, spread evenly over the clusters.
        clusters: kinds of items, at least 2.
        users: users who walk.
        min_length: fewest items of a user, at least 3.
        max_length: most items of a user.
        successors: clusters that a cluster likes to lead to.
        stray: probability, 0 to 1, that a step goes to any cluster instead of a successor.
        exponent: popularity within a cluster falls as ``1 / rank ** exponent``; 0 makes all items alike.
        seed: of everything that is drawn.

    Raises:
        InputError: a value outside its range, named.
    """

    items: int = 1200
    clusters: int = 40
    users: int = 2500
    min_length: int = 6
    max_length: int = 12
    successors: int = 2
    stray: float = 0.1
    exponent: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        most = len(PLACES) * len(KINDS)
        limits: Sequence[tuple[str, float, float, float]] = (
            ("clusters", self.clusters, 2, most),
            ("items", self.items, self.clusters, self.clusters * len(COLOURS) * len(MATERIALS)),
            ("users", self.users, 1, np.inf),
            ("min_length", self.min_length, 3, np.inf),
            ("max_length", self.max_length, self.min_length, np.inf),
            ("successors", self.successors, 1, self.clusters),
            ("stray", self.stray, 0, 1),
            ("exponent", self.exponent, 0, np.inf),
            ("seed", self.seed, 0, np.inf),
        )
        for name, value, low, high in limits:
            if not low <= value <= high:
                raise InputError(f"synthetic data: {name} {value} is out of range; choose {low} to {high}")


@dataclass(frozen=True)
class Synthetic:
    """A generated dataset and the probabilities behind it.

    Args:
        process: the settings that made it.
        catalog: titled items; row order tells nothing about clusters or popularity.
        interactions: what the users took, with times in seconds.
        cluster_of: ``(items,)`` int64 cluster of each item.
        popularity: ``(items,)`` probability of an item, given that its cluster is taken.
        transitions: ``(clusters, clusters)`` probability of the next cluster (column) after the last (row).
    """

    process: Process
    catalog: Catalog = field(repr=False)
    interactions: Interactions = field(repr=False)
    cluster_of: np.ndarray = field(repr=False)
    popularity: np.ndarray = field(repr=False)
    transitions: np.ndarray = field(repr=False)

    def next_item_probabilities(self) -> np.ndarray:
        """Return ``(clusters, items)``: the probability of each next item after an item of each cluster."""
        return self.transitions[:, self.cluster_of] * self.popularity

    def ceiling(self, k: int, *, metric: str = "recall") -> float:
        """Return the best mean value that any recommender can expect on the leave-one-out test rows.

        The next item depends on the last item's cluster alone, so the best list of a row is the ``k`` most probable
        items after that cluster, and what it can expect is the sum of their probabilities: for ``recall`` as they
        are, for ``ndcg`` each divided by ``log2(rank + 1)``. Luck with the sampled targets can lead a little above.

        Args:
            k: items in a list, 1 to the number of items.
            metric: ``recall`` or ``ndcg``.

        Raises:
            InputError: ``k`` out of range, or another metric.
        """
        if not 1 <= k <= len(self.catalog):
            raise InputError(f"ceiling: k {k} is out of range; choose 1 to {len(self.catalog)}, the number of items")
        gains = {"recall": np.ones(k), "ndcg": 1 / np.log2(np.arange(2, k + 2))}
        if metric not in gains:
            raise InputError(f"ceiling: metric {metric!r}; choose one of {', '.join(gains)}")
        best = -np.sort(-self.next_item_probabilities(), axis=1)[:, :k] @ gains[metric]
        last = [row.items[-1] for row in leave_one_out(self.interactions, max_history=1).test]
        return float(best[self.cluster_of[last]].mean())

    def manifest(self, ks: Sequence[int] = (1, 5, 10)) -> dict[str, Any]:
        """Return what the dataset folder's manifest states: where it comes from, the process and its ceiling."""
        return {
            "name": "synthetic",
            "domain": "household goods",
            "source": "generated by llmrec.data.synthetic",
            "licence": "Apache-2.0",
            "times": "seconds",
            "process": asdict(self.process),
            "ceiling": {f"{metric}@{k}": self.ceiling(k, metric=metric) for metric in ("recall", "ndcg") for k in ks},
        }


def generate(process: Process | None = None) -> Synthetic:
    """Draw a catalogue and walks of users from a process.

    Titles hold the words of their cluster and words of their own, so that text alone finds the clusters. A user starts
    in a cluster drawn evenly, takes an item by the cluster's popularity law, and steps on; the next item depends only
    on the last item's cluster. An item may come twice.

    Args:
        process: the settings; None takes the defaults of `Process`.

    Returns:
        The dataset with its probabilities; the same settings give the same dataset.
    """
    process = process or Process()
    # One stream a part: more users leave the catalogue and the clusters' walk as they are.
    catalog_rng, walk_rng, user_rng = (np.random.default_rng([process.seed, part]) for part in range(3))
    cluster_of = catalog_rng.permutation(np.arange(process.items) % process.clusters)
    popularity = _popularity(cluster_of, process, catalog_rng)
    transitions = _transitions(process, walk_rng)
    catalog = _catalog(cluster_of, process, catalog_rng)
    interactions = _walks(cluster_of, popularity, transitions, process, user_rng)
    return Synthetic(process, catalog, interactions, cluster_of, popularity, transitions)


def _popularity(cluster_of: np.ndarray, process: Process, rng: np.random.Generator) -> np.ndarray:
    popularity = np.empty(process.items)
    for cluster in range(process.clusters):
        members = rng.permutation(np.flatnonzero(cluster_of == cluster))
        weights = np.arange(1.0, len(members) + 1) ** -process.exponent
        popularity[members] = weights / weights.sum()
    return popularity


def _transitions(process: Process, rng: np.random.Generator) -> np.ndarray:
    """``successors`` clusters share what does not stray, each half as likely as the one before.

    Every cluster is as often a first, second, .. successor as any other, so that walks visit all clusters alike and no
    part of the catalogue gets dense enough for item counts to do well there.
    """
    shares = 0.5 ** np.arange(process.successors)
    transitions = np.full((process.clusters, process.clusters), process.stray / process.clusters)
    ring = rng.permutation(process.clusters)
    steps = rng.choice(process.clusters, process.successors, replace=False)
    for step, share in zip(steps.tolist(), (shares / shares.sum()).tolist(), strict=True):
        transitions[ring, np.roll(ring, -step)] += (1 - process.stray) * share
    return transitions


def _catalog(cluster_of: np.ndarray, process: Process, rng: np.random.Generator) -> Catalog:
    # Clusters go through the kinds first: no two share both words, and up to 40 clusters not even the kind's.
    names = [
        (PLACES[(number + number // len(KINDS)) % len(PLACES)], KINDS[number % len(KINDS)])
        for number in range(process.clusters)
    ]
    looks = list(itertools.product(COLOURS, MATERIALS))
    titles, brands, categories = [""] * process.items, [""] * process.items, [""] * process.items
    for cluster, (place, kind) in enumerate(names):
        house = rng.choice(len(BRANDS), 3, replace=False)
        chosen = rng.choice(len(looks), int((cluster_of == cluster).sum()), replace=False)
        for row, look in zip(np.flatnonzero(cluster_of == cluster).tolist(), chosen.tolist(), strict=True):
            brands[row] = BRANDS[house[rng.integers(3)]]
            colour, material = looks[look]
            titles[row] = f"{brands[row]} {place} {kind}, {colour} {material}"
            categories[row] = f"{place} > {kind}"
    width = len(str(process.items - 1))
    item_ids = tuple(f"i{row:0{width}d}" for row in range(process.items))
    return Catalog(item_ids, {"title": tuple(titles), "brand": tuple(brands), "categories": tuple(categories)})


def _draw(cumulative: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one column of each row of ``(users, choices)`` cumulative probabilities."""
    points = rng.random(len(cumulative)) * cumulative[:, -1]
    return (cumulative <= points[:, None]).sum(axis=1)


def _walks(
    cluster_of: np.ndarray, popularity: np.ndarray, transitions: np.ndarray, process: Process, rng: np.random.Generator
) -> Interactions:
    members = [np.flatnonzero(cluster_of == cluster) for cluster in range(process.clusters)]
    inside = np.full((process.clusters, max(map(len, members))), 1.0)
    for cluster, rows in enumerate(members):
        inside[cluster, : len(rows)] = np.cumsum(popularity[rows])
        inside[cluster, len(rows) - 1 :] = 1.0
    between = np.cumsum(transitions, axis=1)
    lengths = rng.integers(process.min_length, process.max_length + 1, process.users)
    clusters = rng.integers(process.clusters, size=process.users)
    walks = np.empty((process.users, process.max_length), dtype=np.int64)
    for step in range(process.max_length):
        if step:
            clusters = _draw(between[clusters], rng)
        places = _draw(inside[clusters], rng)
        walks[:, step] = [members[cluster][place] for cluster, place in zip(clusters, places, strict=True)]
    gaps = rng.integers(DAY // 4, 10 * DAY, walks.shape)
    times = 1_600_000_000 + rng.integers(365 * DAY, size=(process.users, 1)) + np.cumsum(gaps, axis=1)
    taken = np.arange(process.max_length) < lengths[:, None]
    width = len(str(process.users - 1))
    return Interactions(
        tuple(f"u{user:0{width}d}" for user in range(process.users)),
        users=np.repeat(np.arange(process.users), lengths),
        items=walks[taken],
        timestamps=times[taken],
    )
