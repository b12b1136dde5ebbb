"""Score a bundle on items that it never saw: their SIDs go into the trie, and nothing is trained."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrec.data.folder import DatasetFolder
from llmrec.data.splits import History
from llmrec.decoding.recommender import LLMRecommender
from llmrec.embeddings.again import embed_again, load_new_embeddings
from llmrec.embeddings.neighbours import nearest_rows
from llmrec.errors import InputError
from llmrec.evaluation.bridge import CatalogBridge
from llmrec.evaluation.evaluator import evaluate
from llmrec.evaluation.metrics import PER_USER
from llmrec.evaluation.results import format_table
from llmrec.hub.bundle import Bundle
from llmrec.hub.update import Catalogued
from llmrec.sids.quality import prefix_ids
from llmrec.sids.update import Added, add_items
from llmrec.vocab import SIDVocab


@dataclass(frozen=True)
class NewItems:
    """Items of a dataset that a bundle got after its training.

    Args:
        rows: rows of the dataset that are new to the bundle, with a SID now or without.
        own_rows: rows of the bundle's table that are new.
        figures: how they were placed, see `place_figures`.
    """

    rows: np.ndarray
    own_rows: np.ndarray
    figures: dict[str, Any]

    def among(
        self,
        model: LLMRecommender,
        dataset: DatasetFolder,
        rows: Sequence[History],
        *,
        ks: Sequence[int],
        exclude_seen: bool = False,
    ) -> dict[str, Any]:
        """Score the rows whose target is new with lists of new items alone: how well those are told apart.

        Args:
            model: with the new items.
            dataset: the whole catalogue.
            rows: rows of the split, of the dataset.
            ks: cuts; those above the number of new items are left out.
            exclude_seen: keep each history's items out of its list.

        Returns:
            ``users``, ``items`` and, where there are any, ``metrics``.
        """
        asked = [row for row in rows if row.target in set(self.rows.tolist())]
        cuts = [k for k in ks if k <= len(self.own_rows)]
        found: dict[str, Any] = {"users": len(asked), "items": len(self.own_rows)}
        if not asked or not cuts:
            return found
        bridge = CatalogBridge(_Among(model, self.own_rows), model.vocab.table.item_ids, dataset.catalog.item_ids)
        scored = evaluate(
            bridge, asked, items=bridge.items, ks=cuts, exclude_seen=exclude_seen, batch_users=8192, progress=False
        )
        return found | {"metrics": {key: value for key, value in scored.metrics.items() if "coverage" not in key}}


def bring_new_items(
    bundle: Bundle,
    dataset: DatasetFolder,
    embeddings: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
) -> tuple[Bundle, NewItems]:
    """Give SIDs to the dataset's items that a bundle does not know, by the bundle's own quantizer.

    No old SID and no weight changes. An item for which no SID is free under its first codes stays unknown.

    Args:
        bundle: with the folder that it was read from, which holds the quantizer.
        dataset: the whole catalogue, the bundle's items among it.
        embeddings: ``*.safetensors`` of the whole catalogue, made as those of the bundle's items were; None embeds it
            by the encoder and the settings that the bundle has on record.
        device: where an encoder runs.

    Returns:
        The bundle with the new items behind the old ones, and what is new.

    Raises:
        InputError: no new item, too few of the bundle's items in the dataset to compare with, embeddings made in
            another way, or a bundle without its quantizer.
    """
    known = {item_id: row for row, item_id in enumerate(bundle.table.item_ids)}
    rows = np.array([row for row, item_id in enumerate(dataset.catalog.item_ids) if item_id not in known], np.int64)
    old = np.array([row for row, item_id in enumerate(dataset.catalog.item_ids) if item_id in known], np.int64)
    if not len(rows):
        raise InputError(f"--new_items: the bundle knows all items of {dataset.path}; give a dataset with more items")
    if not len(old):
        raise InputError(
            f"--new_items: {dataset.path} holds no item of the bundle; give the dataset that it grew from"
        )
    source = Catalogued.load(bundle.path or "")
    if embeddings is not None:
        vectors = load_new_embeddings(embeddings, made=source.embeddings, catalog=dataset.catalog)
    else:
        with tempfile.TemporaryDirectory() as cache:
            vectors = embed_again(
                source.embeddings or {}, dataset.catalog, folder=source.sids, cache=cache, device=device
            )
    ids = dataset.catalog.item_ids
    added = add_items(
        bundle.table, source.quantizer(), vectors[rows], item_ids=[ids[row] for row in rows.tolist()], on_full="skip"
    )
    old_codes = bundle.table.codes[[known[ids[row]] for row in old.tolist()]]
    figures = place_figures(added, vectors[rows], old_codes=old_codes, old_vectors=vectors[old])
    popularity = np.concatenate([bundle.vocab.popularity, np.zeros(len(added.taken), dtype=np.int64)])
    vocab = SIDVocab(bundle.tokenizer, added.table, popularity=popularity)
    titles = bundle.titles
    if titles is not None:
        titles = (*titles, *(dataset.catalog.titles[row] for row in rows[added.taken].tolist()))
    own_rows = np.arange(len(bundle.table), len(added.table))
    return replace(bundle, vocab=vocab, table=added.table, titles=titles), NewItems(rows, own_rows, figures)


def place_figures(
    added: Added, vectors: np.ndarray, *, old_codes: np.ndarray, old_vectors: np.ndarray
) -> dict[str, Any]:
    """Measure where new items landed.

    Args:
        added: the table with them, and which of the items given got a SID.
        vectors: ``(new, dim)`` of all items given.
        old_codes: ``(old, levels)`` of the items that were there.
        old_vectors: ``(old, dim)`` of the same.

    Returns:
        ``items`` given, ``placed``, ``moved`` (share of the placed that did not get the code of their own) and
        ``as_nearest``: a row a depth, with the ``share`` of the placed whose first codes, down to that depth, are
        those of the old item nearest by cosine, and the share by ``chance``, with any old item in its place.
    """
    levels, old = old_codes.shape[1], len(old_codes)
    codes = added.table.codes[len(added.table) - len(added.taken) :]
    figures: dict[str, Any] = {"items": len(vectors), "placed": len(added.taken), "moved": None, "as_nearest": []}
    if not len(added.taken):
        return figures
    nearest = nearest_rows(vectors[added.taken], old_vectors, k=1)[0][:, 0]
    ids = prefix_ids(np.concatenate([old_codes, codes]))
    for depth in range(levels):
        there, new = ids[:old, depth], ids[old:, depth]
        counts = np.bincount(there, minlength=int(ids[:, depth].max()) + 1)
        figures["as_nearest"].append(
            {
                "depth": depth + 1,
                "share": float((there[nearest] == new).mean()),
                "chance": float(counts[new].mean() / old),
            }
        )
    return figures | {"moved": float((added.moved > 0).mean())}


def without_items(sequences: Sequence[Sequence[int]], rows: np.ndarray) -> list[tuple[int, ...]]:
    """Return sequences of item rows without those of ``rows``: what a baseline may count that must not know them."""
    gone = set(rows.tolist())
    return [tuple(item for item in sequence if item not in gone) for sequence in sequences]


def by_target(ranks: np.ndarray, targets: np.ndarray, new: np.ndarray, *, ks: Sequence[int]) -> dict[str, Any]:
    """Split a system's metrics by whether the target was new.

    Args:
        ranks: ``(users,)`` int64, -1 for a miss.
        targets: ``(users,)`` item rows.
        new: item rows that were new.
        ks: cuts.

    Returns:
        ``new`` and ``known``, each with ``users`` and, where there are any, ``metrics``.
    """
    is_new = np.isin(targets, new)
    found: dict[str, Any] = {}
    for name, chosen in (("new", is_new), ("known", ~is_new)):
        part = ranks[chosen]
        found[name] = {"users": len(part)}
        if len(part):
            metrics = {f"{metric}@{k}": float(value(part, k).mean()) for k in ks for metric, value in PER_USER.items()}
            found[name]["metrics"] = metrics
    return found


def format_new_items(results: Sequence[Mapping[str, Any]], new: NewItems) -> str:
    """Return what a terminal shows of new items: where they landed, then a line a system and kind of target."""
    figures = new.figures
    lines = [f"{figures['items']:,} new items, {figures['placed']:,} of them with a SID"]
    lines += [
        f"  first {row['depth']} code{'s' * (row['depth'] > 1)} as the nearest known item: {row['share']:.2%} "
        f"(by chance {row['chance']:.2%})"
        for row in figures["as_nearest"]
    ]
    split = [
        {"name": f"{row['name']}, {kind} targets", **row["by_target"][kind]}
        for kind in ("new", "known")
        for row in results
        if row["by_target"][kind]["users"]
    ]
    for row in results:
        among = row.get("new_items", {}).get("among_new", {})
        if "metrics" in among:
            split.append({"name": f"{row['name']}, new targets among new items", **among})
    return "\n".join([*lines, format_table(split)])


class _Among:
    """A model that answers with some of its own rows alone."""

    def __init__(self, model: LLMRecommender, rows: np.ndarray) -> None:
        self.model = model
        self.rows = rows.tolist()

    def recommend(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> Tensor:
        return self.model.recommend(histories, k, exclude_seen=exclude_seen, allow=self.rows)
