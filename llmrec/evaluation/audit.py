"""How hard is this dataset: all that an audit measures, as JSON can hold it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmrec.data.folder import DatasetFolder
from llmrec.data.splits import History, Splits, training_popularity
from llmrec.errors import InputError
from llmrec.evaluation.audit_features import features
from llmrec.evaluation.audit_history import (
    CUT,
    history_dependence,
    order_dependence,
    scores_of,
    sequential_rules,
)
from llmrec.evaluation.audit_overlap import (
    duplicates,
    repeats,
    split_overlap,
    tied_times,
    title_groups,
)
from llmrec.evaluation.audit_popularity import skew, target_popularity
from llmrec.evaluation.audit_transitions import branching, median_place, next_pairs, reach, target_places
from llmrec.evaluation.evaluator import Recommender, evaluate
from llmrec.evaluation.leaks import later_than_test

EXAMPLES = 10


def excludes_seen(splits: Splits) -> bool:
    """Return whether lists should leave seen items out: when no training or validation row takes an item again."""
    return not any(row.target in row.items for rows in (splits.valid, splits.train) for row in rows)


def structure(
    dataset: DatasetFolder, splits: Splits, *, vectors: np.ndarray | None = None, encoder: str | None = None
) -> dict[str, Any]:
    """Return what a dataset is like before anything is recommended.

    Test rows are described here (which targets lie how near), and nothing is chosen by them.

    Args:
        dataset: the dataset folder.
        splits: its splits by the protocol that is audited.
        vectors: ``(items, dim)`` embeddings in catalogue order; None leaves the smoothness of features out.
        encoder: what made them.

    Returns:
        ``counts``, ``branching``, ``rules``, ``reach`` and ``median_place`` by split, ``features`` (None without
        embeddings), ``repeats``, ``duplicates``, ``overlap``, ``later_than_test`` and ``tied_times`` (None without
        times), ``popularity`` and ``target_popularity`` by split.

    Raises:
        InputError: a split without rows, no transitions in training, or embeddings of another catalogue.
    """
    items = len(dataset.catalog)
    rows: dict[str, Sequence[History]] = {name: splits.rows(name) for name in ("valid", "test")}
    popularity = training_popularity(splits.sequences, items=items)
    whole = dataset.interactions.sequences()
    lengths = {name: np.array([len(row.items) for row in part]) for name, part in rows.items()}
    return {
        "counts": {
            "users": len(dataset.interactions.user_ids),
            "items": items,
            "interactions": len(dataset.interactions),
            "density": len(dataset.interactions) / len(dataset.interactions.user_ids) / items,
            "training_interactions": int(popularity.sum()),
            "valid_rows": len(splits.valid),
            "test_rows": len(splits.test),
            "median_history": {name: float(np.median(values)) for name, values in lengths.items()},
        },
        "branching": branching(splits.sequences, items=items),
        "rules": sequential_rules(splits.sequences, items=items),
        "reach": {
            name: reach(splits.sequences, part, items=items, popularity=popularity) for name, part in rows.items()
        },
        "median_place": {
            name: median_place(target_places(splits.sequences, part, items=items, popularity=popularity))
            for name, part in rows.items()
        },
        "features": None
        if vectors is None
        else {"encoder": encoder, **features(vectors, splits.sequences, rows, popularity=popularity)},
        "repeats": repeats(whole, splits, items=items),
        "duplicates": duplicates(dataset.catalog, whole),
        "overlap": split_overlap(splits, items=items),
        "later_than_test": later_than_test(dataset, splits),
        "tied_times": tied_times(dataset),
        "popularity": skew(popularity),
        "target_popularity": {name: target_popularity(part, popularity) for name, part in rows.items()},
    }


def heuristics(
    baselines: Mapping[str, Recommender],
    variants: Mapping[str, Recommender],
    rows: Sequence[History],
    *,
    items: int,
    exclude_seen: bool,
    ordered: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Return what heuristics without training reach on validation, with how much of the history.

    Args:
        baselines: fitted recommenders by name.
        variants: one heuristic with several weights of age, for `history_dependence`.
        rows: of validation; test is read once, and not for this.
        items: size of the catalogue.
        exclude_seen: keep each history's items out of its list.
        ordered: names of the baselines that are asked with shuffled histories too.
        progress: show progress bars.

    Returns:
        ``rows``, ``exclude_seen``, ``chance`` (recall@10 of ten items at random), ``systems`` (by name what
        `scores_of` returns), ``history`` (`history_dependence`) and ``order`` (by name what `order_dependence`
        returns).

    Raises:
        InputError: fewer than ten items, or what `evaluate` raises.

    Paper: Ferrari Dacrema et al., Are We Really Making Much Progress?, RecSys 2019, on heuristics as the measure.
    """
    if items < CUT:
        raise InputError(f"audit: a catalogue of {items} items; lists hold {CUT}, so it takes at least as many")
    systems, order = {}, {}
    for name, recommender in baselines.items():
        found = evaluate(
            recommender, rows, items=items, ks=(CUT,), exclude_seen=exclude_seen, name=name, progress=progress,
            keep_lists=False,
        )  # fmt: skip
        systems[name] = scores_of(found, rows)
        if name in ordered:
            order[name] = order_dependence(
                recommender, rows, items=items, exclude_seen=exclude_seen, name=name, progress=progress
            )
    return {
        "rows": len(rows),
        "exclude_seen": exclude_seen,
        "chance": CUT / items,
        "systems": systems,
        "history": history_dependence(variants, rows, items=items, exclude_seen=exclude_seen, progress=progress),
        "order": order,
    }


def examples(dataset: DatasetFolder, splits: Splits, *, most: int = EXAMPLES) -> dict[str, Any]:
    """Return real titles for the page: the most frequent transitions, and the largest groups of one title.

    They stand in no JSON that is kept.

    Args:
        dataset: the dataset folder.
        splits: its splits; transitions are of training.
        most: how many of each.

    Returns:
        ``transitions``: title, next title, count and share of what followed the first; ``titles``: title and items.
    """
    items, titles = len(dataset.catalog), dataset.catalog.titles
    first, second = next_pairs(splits.sequences)
    keys, counts = np.unique(first * items + second, return_counts=True)
    left = np.bincount(first, minlength=items)
    best = np.lexsort((keys, -counts))[:most].tolist()
    return {
        "transitions": [
            (titles[keys[at] // items], titles[keys[at] % items], int(counts[at]),
             float(counts[at] / left[keys[at] // items]))
            for at in best
        ],
        "titles": [(titles[rows[0]], len(rows)) for rows in title_groups(dataset.catalog)[:most]],
    }  # fmt: skip
