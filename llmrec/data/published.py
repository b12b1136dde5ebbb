"""Rows of a published split (history and target) joined into sequences, and training rows recovered from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmrec.data.import_rules import Repairs
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.data.splits import SPLIT_NAMES, History
from llmrec.errors import InputError


class PublishedRow(NamedTuple):
    """A row of a published split as its file states it: item ids, history oldest first."""

    line: int
    user_id: str
    history: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Published:
    """A published split in numbers, and the interactions that its rows show.

    Args:
        interactions: every interaction once, at its position in what is known of the user's sequence.
        splits: rows by split, those of published files in file order.
        notes: what the manifest says of the training rows.
    """

    interactions: Interactions
    splits: Mapping[str, Sequence[History]] = field(repr=False)
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Joined:
    """What one user's published rows show, put together.

    Args:
        items: the user's items, oldest first, each interaction once.
        ends: for each row, the position of its target in ``items``.
        odd: numbers of the rows that did not simply continue what the earlier rows showed.
    """

    items: tuple[int, ...]
    ends: tuple[int, ...]
    odd: tuple[int, ...]


def join_rows(rows: Sequence[tuple[Sequence[int], int]], *, longest: int) -> Joined:
    """Join one user's rows, oldest first, into one sequence in which no interaction is counted twice.

    A row continues the sequence when its history is all of it, or, having ``longest`` items, its end; then only the
    target is new. Any other row is odd: where history and target stand in the sequence already, nothing is new; else
    the longest end of the sequence with which the row begins is what both share, and the rest of the row is new.

    Args:
        rows: history and target of each row; a history holds at least one item.
        longest: items at which the source cuts histories.
    """
    items: list[int] = []
    ends, odd = [], []
    for number, (history, target) in enumerate(rows):
        row = [*history, target]
        size = len(history)
        if items[-size:] == list(history) and size in (len(items), longest):
            items.append(target)
            ends.append(len(items) - 1)
            continue
        if items:
            odd.append(number)
            start = next((at for at in range(len(items) - size) if items[at : at + size + 1] == row), None)
            if start is not None:
                ends.append(start + size)
                continue
        shared = next(
            size for size in range(min(len(items), len(row)), -1, -1) if items[len(items) - size :] == row[:size]
        )
        items.extend(row[shared:])
        ends.append(len(items) - 1)
    return Joined(tuple(items), tuple(ends), tuple(odd))


def recover_rows(
    user: int, joined: Joined, *, sources: Sequence[bool], sizes: Sequence[int], longest: int
) -> tuple[list[History], int]:
    """Recover a user's training rows from the histories of some of the joined rows.

    Every item of such a history but its first is a target, each position once. Targets of published rows, whichever
    split they belong to, are left out, and no history reaches over one.

    Args:
        user: the user's number.
        joined: the user's published rows.
        sources: for each row, whether its history may be trained on (validation rows may, test rows may not).
        sizes: for each row, items of its history.
        longest: most items of a recovered history.

    Returns:
        The rows, oldest first, and how many positions were left out because a published row has them as its target.
    """
    held = set(joined.ends)
    shown: set[int] = set()
    targets: set[int] = set()
    for end, source, size in zip(joined.ends, sources, sizes, strict=True):
        if source:
            shown.update(range(end - size, end))
            targets.update(range(end - size + 1, end))
    rows = []
    for position in sorted(targets - held):
        first = position
        while first - 1 in shown and first - 1 not in held and position - first < longest:
            first -= 1
        if first < position:
            rows.append(History(user, joined.items[first:position], joined.items[position]))
    return rows, len(targets & held)


def build_published(
    rows: Mapping[str, Sequence[PublishedRow]], *, catalog: Catalog, paths: Mapping[str, Path], repairs: Repairs
) -> Published:
    """Number the rows of a published split, and join them into interactions.

    Args:
        rows: rows of ``valid``, ``test`` and, where it is published, ``train``, in file order.
        catalog: the published item table.
        paths: each split's file, for error messages.
        repairs: counts ``interactions_with_unknown_items`` (taken out of a history; a row with such a target is
            dropped), ``rows_without_history`` (dropped) and ``rows_out_of_step`` (see `join_rows`).

    Raises:
        InputError: a split without rows, no training row to recover, or, under ``strict``, the first thing to repair.
    """
    numbers: dict[str, int] = {}
    known: dict[str, list[History]] = {}
    lines: dict[str, list[int]] = {}
    for split in [name for name in SPLIT_NAMES if name in rows]:
        known[split], lines[split] = [], []
        for row in rows[split]:
            history = _known_history(row, catalog, paths[split], repairs)
            if history is not None:
                user = numbers.setdefault(row.user_id, len(numbers))
                known[split].append(History(user, history, catalog.row_of[row.target]))
                lines[split].append(row.line)
        if not known[split]:
            raise InputError(
                f"{paths[split]}: no row of it can be used; check that item table and split belong together"
            )
    longest = max(len(row.items) for part in known.values() for row in part)
    by_user: list[list[tuple[str, int]]] = [[] for _ in numbers]
    for split, part in known.items():
        for number, row in enumerate(part):
            by_user[row.user].append((split, number))
    sequences: list[tuple[int, ...]] = []
    recovered: list[History] = []
    left_out = 0
    for user, places in enumerate(by_user):
        taken = [known[split][number] for split, number in places]
        joined = join_rows([(row.items, row.target) for row in taken], longest=longest)
        for odd in joined.odd:
            split, number = places[odd]
            repairs.note(
                "rows_out_of_step",
                f"{paths[split]}: row {lines[split][number]}",
                "its history does not continue the user's earlier rows",
                "joined where both agree",
            )
        sequences.append(joined.items)
        if "train" not in known:
            sources = [split == "valid" for split, _ in places]
            sizes = [len(row.items) for row in taken]
            found, held = recover_rows(user, joined, sources=sources, sizes=sizes, longest=longest)
            recovered.extend(found)
            left_out += held
    notes: dict[str, Any] = {"train": "published"}
    if "train" not in known:
        if not recovered:
            raise InputError(
                f"{paths['valid']}: no training row can be recovered from its histories; add the train CSV"
            )
        known["train"] = recovered
        notes = {
            "train": "recovered",
            "recovered": {"rows": len(recovered), "left_out_targets": left_out, "max_history": longest},
        }
    sizes = [len(sequence) for sequence in sequences]
    interactions = Interactions(
        tuple(numbers),
        users=np.repeat(np.arange(len(sequences)), sizes),
        items=np.concatenate([np.array(sequence, dtype=np.int64) for sequence in sequences]),
        timestamps=np.concatenate([np.arange(size) for size in sizes]),
    )
    return Published(interactions, {name: known[name] for name in SPLIT_NAMES}, notes)


def _known_history(row: PublishedRow, catalog: Catalog, path: Path, repairs: Repairs) -> tuple[int, ...] | None:
    """The rows of the history's items in the catalogue; None where the published row cannot be used."""
    place = f"{path}: row {row.line}"
    for item_id in (*row.history, row.target):
        if item_id not in catalog.row_of:
            repairs.note(
                "interactions_with_unknown_items",
                place,
                f"item {item_id!r} is not in the item table",
                "the row is dropped" if item_id == row.target else "left out of the history",
            )
    if row.target not in catalog.row_of:
        return None
    history = tuple(catalog.row_of[item_id] for item_id in row.history if item_id in catalog.row_of)
    if not history:
        repairs.note("rows_without_history", place, f"user {row.user_id!r} has no history there", "the row is dropped")
        return None
    return history
