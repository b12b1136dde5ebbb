"""What stands in a dataset twice: repeated items, equal titles, equal histories, and what splits have in common."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from llmrec.data.folder import DatasetFolder
from llmrec.data.items import Catalog
from llmrec.data.splits import History, Splits
from llmrec.evaluation.audit_transitions import flat_sequences
from llmrec.evaluation.histories import Histories


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def repeats(sequences: Sequence[Sequence[int]], splits: Splits, *, items: int) -> dict[str, Any]:
    """Return how often users take an item again.

    Args:
        sequences: all interactions of each user, item rows, oldest first.
        splits: whose validation and test targets are looked at.
        items: size of the catalogue.

    Returns:
        ``interactions``; ``again``, how many of an item that the same user had taken before; ``at_once``, how many
        of the item right before; ``again_share``; ``targets``, by split the share of targets that stand in their own
        history, None for a split without rows.
    """
    flat, owner = flat_sequences(sequences)
    again = len(flat) - len(np.unique(owner * items + flat))
    at_once = int(((owner[1:] == owner[:-1]) & (flat[1:] == flat[:-1])).sum())
    seen = {
        name: float(Histories.of(rows).targets_seen(items=items).mean()) if rows else None
        for name, rows in (("valid", splits.valid), ("test", splits.test))
    }
    return {
        "interactions": len(flat),
        "again": again,
        "at_once": at_once,
        "again_share": _share(again, len(flat)),
        "targets": seen,
    }


def title_groups(catalog: Catalog) -> list[list[int]]:
    """Return groups of item rows that have one title, case and white space aside: of two or more, largest first."""
    groups: dict[str, list[int]] = {}
    for row, title in enumerate(catalog.titles):
        groups.setdefault(" ".join(title.casefold().split()), []).append(row)
    return sorted((rows for rows in groups.values() if len(rows) > 1), key=lambda rows: (-len(rows), rows[0]))


def duplicates(catalog: Catalog, sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Count items with one title and users with one history.

    Args:
        catalog: the items.
        sequences: all interactions of each user, item rows, oldest first.

    Returns:
        ``titles_shared``, titles that several items have; ``items_sharing``, those items, and their share
        ``items_sharing_share``; ``histories_shared``, whole sequences that several users have; ``users_sharing``.
    """
    groups = title_groups(catalog)
    same = [users for users in Counter(map(tuple, sequences)).values() if users > 1]
    sharing = sum(map(len, groups))
    return {
        "titles_shared": len(groups),
        "items_sharing": sharing,
        "items_sharing_share": sharing / len(catalog),
        "histories_shared": len(same),
        "users_sharing": sum(same),
    }


def _own(rows: Sequence[History], *, items: int, histories: bool) -> np.ndarray:
    """Return sorted distinct ``user * items + item`` of the targets of rows, and of their histories if asked."""
    laid = Histories.of(rows)
    users = np.fromiter((row.user for row in rows), np.int64, len(rows))
    keys = users * items + laid.targets
    if histories:
        keys = np.concatenate([keys, np.repeat(users, laid.lengths) * items + laid.items])
    return np.unique(keys)


def split_overlap(splits: Splits, *, items: int) -> dict[str, Any]:
    """Count what of the test rows stands in training and validation too.

    Args:
        splits: the rows; targets must lie in the catalogue.
        items: size of the catalogue.

    Returns:
        ``test_rows``; ``same_rows_train`` and ``same_rows_valid``, test rows whose history and target together are
        those of a row there, of whichever user; ``users``, distinct users of the test rows, of whom ``users_in_train``
        and ``users_in_valid`` have rows there; ``target_in_own_train``, test rows whose target the same user took in a
        training row, as target or in its history; ``target_is_own_valid``, those whose target is a validation target
        of the same user; ``valid_target_in_history``, test rows whose history holds a validation target of the same
        user (all of them, by design, under ``leave_one_out``).

    Paper: Meng et al., Exploring Data Splitting Strategies, RecSys 2020, and Ji et al., A Critical Study on Data
    Leakage in Recommender System Offline Evaluation, TOIS 2023, on what splits let through.
    """
    test, laid = splits.test, Histories.of(splits.test)
    users = np.fromiter((row.user for row in test), np.int64, len(test))
    wanted = Counter((row.items, row.target) for row in test)

    def same(rows: Sequence[History]) -> int:
        found = {key for row in rows if (key := (row.items, row.target)) in wanted}
        return sum(wanted[key] for key in found)

    trained = _own(splits.train, items=items, histories=True)
    valid = _own(splits.valid, items=items, histories=False)
    keys = users * items + laid.targets
    held = np.isin(np.repeat(users, laid.lengths) * items + laid.items, valid)
    distinct = np.unique(users)
    return {
        "test_rows": len(test),
        "same_rows_train": same(splits.train),
        "same_rows_valid": same(splits.valid),
        "users": len(distinct),
        "users_in_train": int(np.isin(distinct, [row.user for row in splits.train]).sum()),
        "users_in_valid": int(np.isin(distinct, [row.user for row in splits.valid]).sum()),
        "target_in_own_train": int(np.isin(keys, trained).sum()),
        "target_is_own_valid": int(np.isin(keys, valid).sum()),
        "valid_target_in_history": len(np.unique(np.repeat(np.arange(len(test)), laid.lengths)[held])),
    }


def tied_times(dataset: DatasetFolder) -> float | None:
    """Return the share of steps from an interaction to the user's next that take no time; None without times.

    The order within such a step is that of the file, and what is called sequence is none there.

    Paper: Woolridge et al., Sequence or Pseudo-Sequence?, 2021.
    """
    if dataset.manifest["times"] == "position":
        return None
    starts = dataset.interactions.user_starts().tolist()
    times = dataset.interactions.timestamps
    steps = [np.diff(times[start:stop]) == 0 for start, stop in pairwise(starts)]
    tied = np.concatenate(steps) if steps else np.zeros(0)
    return float(tied.mean()) if len(tied) else None
