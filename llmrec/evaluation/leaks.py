"""What may have been seen of the rows that are scored: by a split, by its times, by a bundle, by embeddings."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.data.folder import DatasetFolder
from llmrec.data.splits import History, Splits
from llmrec.embeddings.collaborative import sequences_hash
from llmrec.embeddings.store import load_manifest
from llmrec.errors import InputError
from llmrec.evaluation.histories import target_times
from llmrec.sids.fitted_on import leaks
from llmrec.sids.table import SIDTable

logger = logging.getLogger(__name__)


def check_targets(dataset: DatasetFolder, splits: Splits, rows: Sequence[History], *, split: str) -> None:
    """Refuse rows whose target stands in that same user's own training part.

    What is refused is an interaction, not an item: where items are taken again, a target may well stand in the
    training part, as another interaction. The rule counts, and is never wrong about it. Let ``m`` items of the row's
    history, up to its last, stand before its target. If the user's training part (one training row, history and
    target) holds the target after those ``m`` items ``c`` times, then the user must have taken it after them ``c + 1``
    times at least: ``c`` times to be trained on and once to be scored. If ``dataset.interactions`` hold fewer for any
    ``m`` from 0 to the length of the history, one interaction is in both parts.

    Under ``leave_one_out`` and ``temporal`` this cannot happen to rows that `DatasetFolder.split` made; published rows
    (``provided``) are what it is for. What it does not see: one of several interactions of a user with one item after
    the same items, as far as the rows' histories reach; which of them two rows mean cannot be told.

    Args:
        dataset: whose interactions are all there are, each once.
        splits: with the training rows.
        rows: what is scored.
        split: ``valid`` or ``test``; rows of ``train`` are in the training part by right.

    Raises:
        InputError: as said; it names the file, the row and the user's interactions.
    """
    if split == "train":
        return
    asked: dict[int, set[int]] = {}
    for row in rows:
        asked.setdefault(row.user, set()).add(row.target)
    holding = {
        row.user
        for row in splits.train
        if row.user in asked and (row.target in asked[row.user] or not asked[row.user].isdisjoint(row.items))
    }
    if not holding:
        return
    trained: dict[int, list[tuple[int, ...]]] = {user: [] for user in holding}
    for row in splits.train:
        if row.user in holding:
            trained[row.user].append((*row.items, row.target))
    trained = {user: _longest(sequences) for user, sequences in trained.items()}
    starts, items = dataset.interactions.user_starts(), dataset.interactions.items
    for number, row in enumerate(rows):
        if row.user not in holding:
            continue
        taken = tuple(items[starts[row.user] : starts[row.user + 1]].tolist())
        if any(stands_in_both(row.items, row.target, sequence, taken) for sequence in trained[row.user]):
            raise InputError(
                f"{_file_of(dataset, splits, split)}: {split} row {number}: its target, item "
                f"{dataset.catalog.item_ids[row.target]!r}, is trained on: it stands in the training rows of the same "
                f"user, who took it {taken.count(row.target)} time(s) in all; remove those training rows (or choose "
                "another --protocol), or the score would be of what was learned by heart"
            )


def stands_in_both(history: Sequence[int], target: int, trained: Sequence[int], taken: Sequence[int]) -> bool:
    """Return whether one interaction must be in a training row and be the target of a scored one; see `check_targets`.

    Args:
        history: of the scored row, oldest first.
        target: of the scored row.
        trained: the user's training row, history and target end to end.
        taken: all that the user took, oldest first, each interaction once.
    """
    held = sorted(_matches(history, target, trained), reverse=True)
    there = _matches(history, target, taken)
    # Of all m with c places in the training row, the largest asks the most: the c-th longest match.
    return any(count + 1 > sum(match >= m for match in there) for count, m in enumerate(held, start=1))


def _matches(history: Sequence[int], target: int, sequence: Sequence[int]) -> list[int]:
    """Return, for each place of ``target`` in a sequence, how many items before it are the history's last."""
    found = []
    for place in (place for place, item in enumerate(sequence) if item == target):
        same, reach = 0, min(place, len(history))
        while same < reach and sequence[place - 1 - same] == history[-1 - same]:
            same += 1
        found.append(same)
    return found


def _longest(sequences: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the sequences that are not the beginning of another one."""
    kept: list[tuple[int, ...]] = []
    for sequence in sorted(set(sequences), key=len, reverse=True):
        if not any(other[: len(sequence)] == sequence for other in kept):
            kept.append(sequence)
    return kept


def _file_of(dataset: DatasetFolder, splits: Splits, split: str) -> Path:
    if splits.protocol == "provided":
        return dataset.path / "splits" / f"{split}.parquet"
    return dataset.path / "interactions.parquet"


def later_than_test(dataset: DatasetFolder, splits: Splits) -> float | None:
    """Return the share of training rows that are later in time than the median test target.

    Leave-one-out leaks so by design: what others did after a user's last item is trained on. Rows whose time is not
    known are left out.

    Args:
        dataset: with times in seconds; one without has no such share.
        splits: its splits, with whole histories.

    Returns:
        A share from 0 to 1; None where there are no times, or those of no training or no test row are known.

    Paper: Ji et al., A Critical Study on Data Leakage in Recommender System Offline Evaluation, TOIS 2023, which
    measures what such leaks do; the share is ours.
    """
    if dataset.manifest["times"] == "position":
        return None
    train, test = (target_times(rows, dataset.interactions) for rows in (splits.train, splits.test))
    train, test = train[train >= 0], test[test >= 0]
    if not len(train) or not len(test):
        return None
    return float((train > np.median(test)).mean())


def bundle_leaks(
    info: Mapping[str, Any],
    table: SIDTable,
    *,
    protocol: str,
    dataset: DatasetFolder | None = None,
    splits: Splits | None = None,
) -> list[str] | None:
    """Return, and warn of, what of a bundle was fitted on other interactions than it may be, or on another catalogue.

    Args:
        info: what the bundle's ``llmrec.json`` holds.
        table: its SIDs.
        protocol: by which the rows are split.
        dataset: that it is scored on; None compares no catalogue.
        splits: of the dataset; None compares no training interactions.

    Returns:
        A phrase each, for the results file; None where nothing is known of such.
    """
    trained = info.get("protocol")
    found = [] if trained in (None, protocol) else [f"the model was trained on the training part of {trained!r}"]
    found += leaks(table.settings, protocol)
    others = []
    if dataset is not None:
        others += _other_catalog(table.item_ids, dataset)
        if splits is not None and table.catalog_hash == dataset.catalog.hash:
            others += _other_interactions(table.settings, splits)
    return _warned(found, others, protocol=protocol)


def embedding_leaks(path: str | Path, dataset: DatasetFolder, splits: Splits) -> list[str] | None:
    """Return, and warn of, what the manifest of embeddings says of interactions that they should not know.

    Args:
        path: the ``*.safetensors`` file; embeddings of another catalogue are refused where they are loaded, and named
            here.
        dataset: that is scored.
        splits: its splits.

    Returns:
        A phrase each, for the results file; None where nothing is known of such.

    Raises:
        InputError: no readable manifest.
    """
    made = load_manifest(path)
    settings = {"embeddings": made}
    if made.get("catalog_hash") != dataset.catalog.hash:
        others = ["the embeddings are of another catalogue"]
    else:
        others = _other_interactions(settings, splits)
    return _warned(leaks(settings, splits.protocol), others, protocol=splits.protocol)


def _other_catalog(item_ids: Sequence[str], dataset: DatasetFolder) -> list[str]:
    """Catalogues of the same items in another order are the same."""
    shared = len(set(item_ids) & dataset.catalog.row_of.keys())
    if shared == len(item_ids) == len(dataset.catalog):
        return []
    return [
        f"the model and its SIDs are of another catalogue: {shared} of its {len(item_ids)} items are among the "
        f"dataset's {len(dataset.catalog)}"
    ]


def _other_interactions(settings: Mapping[str, Any], splits: Splits) -> list[str]:
    """Return what was fitted under the protocol of ``splits``, and on other sequences than theirs all the same."""
    found, own = [], None
    # SIDs that saw interactions themselves keep the protocol alone, so nothing more is known of those.
    for what, key in (("vectors of behaviour", "collaborative"), ("the embeddings", "embeddings")):
        made = settings.get(key)
        if not isinstance(made, Mapping) or made.get("protocol") != splits.protocol:
            continue
        fitted = made.get("fitted_on", {}).get("sequences_sha256")
        own = own or sequences_hash(splits.sequences)
        if fitted not in (None, own):
            found.append(f"{what} were fitted on other interactions than the training part of {splits.protocol!r}")
    return found


def _warned(found: list[str], others: list[str], *, protocol: str) -> list[str] | None:
    for phrase in found:
        logger.warning("%s, and is scored by %r: targets may have been seen in training", phrase, protocol)
    for phrase in others:
        logger.warning("%s", phrase)
    return [*found, *others] or None
