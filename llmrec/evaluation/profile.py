"""All figures of a system beside its ranking metrics, ready for a results file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.data.folder import DatasetFolder
from llmrec.data.splits import History, Splits, training_popularity
from llmrec.embeddings.store import load_embeddings, load_manifest
from llmrec.errors import InputError
from llmrec.evaluation.beyond import (
    diversity_of,
    gini_of,
    miscalibration_of,
    novelty_of,
    repeat_share_of,
    validity_of,
)
from llmrec.evaluation.categories import SEPARATORS, Categories, categories_of
from llmrec.evaluation.evaluator import Evaluation
from llmrec.evaluation.histories import Histories, target_times
from llmrec.evaluation.metrics import PER_USER, item_counts
from llmrec.evaluation.sid_level import sid_metrics
from llmrec.evaluation.slices import (
    Slicing,
    by_category,
    by_history_length,
    by_popularity,
    by_repetition,
    by_time,
    slice_metrics,
)


@dataclass(frozen=True)
class Facts:
    """What is known of the rows that are scored and of the items; the same for all systems of a table.

    Args:
        histories: the rows.
        popularity: ``(items,)`` int64 training counts.
        slicings: ways to divide the rows.
        categories: of the items; None where they have none.
        vectors: ``(items, dim)`` embeddings for intra-list diversity, the same for all systems; None leaves it out.
        encoder: what made the vectors; it stands beside the figure.
        users: ``(rows,)`` the user of each row; None takes each row as a user of its own.
    """

    histories: Histories
    popularity: np.ndarray = field(repr=False)
    slicings: tuple[Slicing, ...]
    categories: Categories | None = None
    vectors: np.ndarray | None = field(default=None, repr=False)
    encoder: str | None = None
    users: np.ndarray | None = field(default=None, repr=False)


def gather_facts(
    dataset: DatasetFolder,
    splits: Splits,
    rows: Sequence[History],
    *,
    sequences: Sequence[Sequence[int]] | None = None,
    category_column: str | None = None,
    category_separators: str = SEPARATORS,
    embeddings: str | Path | None = None,
) -> Facts:
    """Collect what a dataset knows of the rows of a split.

    Slices are by history length, by how popular the target is in training, and by whether it stands in the history; by
    category where the items have any, and by time where the source has times.

    Args:
        dataset: the dataset folder.
        splits: its splits by the protocol that is scored; popularity comes from their training sequences alone.
        rows: what is scored.
        sequences: training sequences to count popularity in; None takes those of ``splits``.
        category_column: text column of categories; None takes ``categories`` or ``genres``, where there is one.
        category_separators: characters between categories.
        embeddings: file of the items' vectors, as ``data_prep/embed_items.py`` makes it; None measures no diversity.

    Raises:
        InputError: a column that the catalogue lacks, or what `load_embeddings` refuses.
    """
    items = len(dataset.catalog)
    vectors, encoder = None, None
    if embeddings is not None:
        vectors = load_embeddings(embeddings, catalog=dataset.catalog)
        encoder = str(load_manifest(embeddings)["encoder"])
    histories = Histories.of(rows)
    popularity = training_popularity(splits.sequences if sequences is None else sequences, items=items)
    categories = categories_of(dataset.catalog, column=category_column, separators=category_separators)
    slicings = [
        by_history_length(histories.lengths),
        by_popularity(histories.targets, popularity),
        by_repetition(histories, items=items),
    ]
    if categories is not None:
        slicings.append(by_category(histories.targets, categories))
    if dataset.manifest["times"] != "position":
        times = target_times(rows, dataset.interactions)
        if (times >= 0).any():
            slicings.append(by_time(times))
    users = np.fromiter((row.user for row in rows), np.int64, len(rows))
    return Facts(histories, popularity, tuple(slicings), categories, vectors, encoder, users)


def profile(evaluation: Evaluation, facts: Facts, *, labels: np.ndarray | None = None) -> dict[str, Any]:
    """Return the figures of a system beside its ranking metrics, as JSON values.

    Args:
        evaluation: what `evaluate` found, with its lists.
        facts: of the same rows.
        labels: ``(items,)`` numbers of the system's SIDs, as `sid_labels` gives them; scores by SID are given where
            two items share one. None for a system without SIDs.

    Returns:
        ``beyond``: by cut ``gini@k`` and ``novelty@k`` (bits), ``repeats@k`` (share), ``validity@k`` (share),
        ``miscalibration@k`` (nats, where there are categories), ``diversity@k`` (where there are vectors, and then
        ``diversity_encoder``), and ``duplicates`` and ``illegal`` places; None where nothing could be measured.
        ``slices``: what `slice_metrics` gives, by the slicing's name. ``latency``: the fields of `Latency`.
        ``sid_level``: what `sid_metrics` gives, where SIDs are shared.

    Raises:
        InputError: lists that were not kept, or other rows.
    """
    lists, ks = evaluation.recommended, evaluation.ks
    if lists is None:
        raise InputError(f"profile of {evaluation.name!r}: its lists were not kept; evaluate with keep_lists")
    if evaluation.users != len(facts.histories):
        raise InputError(
            f"profile of {evaluation.name!r}: it was scored on {evaluation.users} rows, the facts are of "
            f"{len(facts.histories)}; gather them for the same rows"
        )
    items = max(evaluation.items, len(facts.popularity))
    popularity = np.append(facts.popularity, np.zeros(items - len(facts.popularity), dtype=np.int64))
    counts = item_counts(lists, ks, items=items)
    columns: dict[str, Sequence[float | None]] = {
        "gini": gini_of(counts[:, : evaluation.items]),
        "novelty": novelty_of(counts, popularity),
        "repeats": repeat_share_of(lists, facts.histories, ks=ks, items=items),
        "validity": validity_of(lists, ks=ks),
    }
    if facts.categories is not None:
        columns["miscalibration"] = miscalibration_of(lists, facts.histories, facts.categories, ks=ks)
    if facts.vectors is not None:
        columns["diversity"] = diversity_of(lists, facts.vectors, ks=ks)
    beyond: dict[str, Any] = {
        f"{name}@{k}": column[place] for place, k in enumerate(ks) for name, column in columns.items()
    }
    if facts.encoder is not None:
        beyond["diversity_encoder"] = facts.encoder
    metrics = [f"{name}@{k}" for k in ks for name in PER_USER if name != "map"]
    found: dict[str, Any] = {
        "beyond": {**beyond, "duplicates": evaluation.duplicates, "illegal": evaluation.illegal},
        "slices": {
            slicing.name: slice_metrics(evaluation.ranks, slicing, metrics=metrics, users=facts.users)
            for slicing in facts.slicings
        },
    }
    if evaluation.latency is not None:
        found["latency"] = asdict(evaluation.latency)
    if labels is not None and len(np.unique(labels)) < len(labels):
        found["sid_level"] = sid_metrics(lists, facts.histories.targets, labels, ks=ks)
    return found
