"""Build a catalogue and interactions out of collected rows and an item table, mending and counting what is dirty."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmrec.data.collecting import Collected, drop_repeats, name_rules
from llmrec.data.import_rules import ImportRules, Repairs
from llmrec.data.interactions import Interactions, k_core
from llmrec.data.item_text import clean_text, fallback_title, is_number, text_columns
from llmrec.data.items import Catalog
from llmrec.data.sources import Table, read_json_pairs
from llmrec.errors import InputError

FEWEST = 3


class Record(NamedTuple):
    """One line of an item table: raw fields by catalogue column."""

    line: int
    item_id: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Imported:
    """What an importer made, ready to be written.

    Args:
        catalog: the items.
        interactions: the interactions.
        notes: what the manifest says of rules, dropped rows and repairs.
        examples: the first case of each repair.
    """

    catalog: Catalog
    interactions: Interactions
    notes: Mapping[str, Any]
    examples: Mapping[str, str]


def read_items(
    records: Iterable[Record], *, path: Path, repairs: Repairs, wanted: Collection[str] | None = None
) -> dict[str, dict[str, str]]:
    """Return the clean text fields of items by id, in file order.

    Args:
        records: the item table, line by line.
        path: the item table, for error messages.
        repairs: counts ``duplicate_items`` (the first is kept) and ``items_without_id`` (dropped).
        wanted: ids to keep; None keeps all.

    Raises:
        InputError: under ``strict``, the first thing to repair.
    """
    items: dict[str, dict[str, str]] = {}
    for line, item_id, fields in records:
        item_id = item_id.strip()
        if not item_id:
            repairs.note("items_without_id", f"{path}: row {line}", "no item id", "the row is dropped")
        elif wanted is not None and item_id not in wanted:
            continue
        elif item_id in items:
            repairs.note(
                "duplicate_items", f"{path}: row {line}", f"item {item_id!r} stands there again", "the first is kept"
            )
        else:
            items[item_id] = {column: clean_text(value, column) for column, value in fields.items()}
    return items


def table_records(table: Table, *, item_column: str = "item_id", title_column: str | None = None) -> Iterator[Record]:
    """Yield the lines of an item table whose columns `text_columns` names.

    Args:
        table: the item table.
        item_column: the column of the ids.
        title_column: the column of the titles; None finds it by name.

    Raises:
        InputError: the table has no such column.
    """
    table.require([item_column], remedy="expected the item ids there")
    if title_column is not None:
        table.require([title_column], remedy="choose another --title_column")
    names = text_columns((name for name in table.columns if name != item_column), table.kinds)
    if title_column is not None:
        names = {column: name for column, name in names.items() if name != "title"} | {title_column: "title"}
    if "title" not in names.values():
        raise InputError(
            f"{table.path}: no column 'title'; it has {', '.join(table.columns)}: name the one with the titles by "
            "--title_column"
        )

    def records() -> Iterator[Record]:
        for line, row in table.rows:
            item_id = row.get(item_column)
            fields = {name: row.get(column) for column, name in names.items()}
            yield Record(line, "" if item_id is None else str(item_id), fields)

    return records()


def json_records(path: Path) -> Iterator[Record]:
    """Yield the entries of an ``.item.json``, an object of fields by item id.

    Raises:
        InputError: a missing or unreadable file, an item that is no object, or no item with a title.
    """
    pairs = read_json_pairs(path, "item table")
    names: dict[str, str] = {}
    for item_id, fields in pairs:
        if not isinstance(fields, dict):
            raise InputError(f"{path}: item {item_id!r} is {fields!r:.60}; expected an object with a title")
        names.update(dict.fromkeys(fields, ""))
    names = text_columns(names)
    if "title" not in names.values():
        raise InputError(f"{path}: no item has a field 'title'; fields found: {', '.join(names) or 'none'}")
    for number, (item_id, fields) in enumerate(pairs, start=1):
        yield Record(number, item_id, {names[field]: value for field, value in fields.items()})


def build(
    collected: Collected,
    *,
    rules: ImportRules,
    repairs: Repairs,
    records: Iterable[Record] | None,
    items_path: Path | None = None,
    whole_catalogue: bool = False,
    has_times: bool = True,
) -> Imported:
    """Apply the filters that need all rows, read the items that are left, and build catalogue and interactions.

    Args:
        collected: the source's interactions.
        rules: repeats, k-core and unseen items are applied here.
        repairs: counts ``interactions_with_unknown_items`` (dropped) and ``items_without_title`` (see
            `fallback_title`).
        records: the item table, line by line, walked after the filters so that only texts of items that can stay are
            kept; None where the source has no item table, so that every item's title is its id.
        items_path: the item table, for error messages.
        whole_catalogue: keep the item table whole, in the order of numeric ids where all ids are numbers; otherwise
            the catalogue holds the items of kept interactions in order of first appearance.
        has_times: whether timestamps are times; if not, they become positions in the user's sequence.

    Raises:
        InputError: no user keeps three interactions, or, under ``strict``, the first thing to repair.
    """
    collected = drop_repeats(collected, rules.drop_repeats)
    everything = whole_catalogue or rules.keep_unseen_items
    texts: dict[str, dict[str, str]] = {}
    if records is not None:
        # A k-core of fewer interactions lies inside that of more: no text outside this one can be needed.
        candidates = collected.keep(k_core(collected.users, collected.items, rules.k_core))
        wanted = {collected.item_ids[item] for item in np.unique(candidates.items).tolist()}
        path = items_path or collected.path
        texts = read_items(records, path=path, repairs=repairs, wanted=None if everything else wanted)
        known = np.fromiter((item_id in texts for item_id in collected.item_ids), bool, len(collected.item_ids))
        if not everything:
            # Items outside the candidates were not looked up; the k-core below drops them under its own name.
            known |= ~np.fromiter((item_id in wanted for item_id in collected.item_ids), bool, len(known))
        mask = known[collected.items]
        for row in np.flatnonzero(~mask).tolist():
            repairs.note(
                "interactions_with_unknown_items",
                f"{collected.path}: row {collected.lines[row]}",
                f"item {collected.item_ids[collected.items[row]]!r} is not in {items_path}",
                "the interaction is dropped",
            )
        collected = collected.keep(mask)
    collected = collected.keep(k_core(collected.users, collected.items, rules.k_core), "k_core")
    interactions, seen = _interactions(collected, rules, has_times=has_times)
    item_ids = seen
    if everything:
        rest = texts if whole_catalogue else [item_id for item_id in texts if item_id not in set(seen)]
        item_ids = sort_ids(rest) if whole_catalogue else (*seen, *rest)
        row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        rows = np.array([row_of[item_id] for item_id in seen], dtype=np.int64)
        interactions = replace(interactions, items=rows[interactions.items])
    catalog = build_catalog(item_ids, texts, repairs=repairs, path=items_path or collected.path)
    return Imported(catalog, interactions, import_notes(rules, collected, repairs), dict(repairs.examples))


def _interactions(
    collected: Collected, rules: ImportRules, *, has_times: bool
) -> tuple[Interactions, tuple[str, ...]]:
    """Interactions over users and items in order of first appearance, and the ids of those items."""
    counts = np.bincount(collected.users) if len(collected) else np.zeros(1, dtype=np.int64)
    if counts.max() < FEWEST:
        remedies = [f"loosen {name_rules(collected.dropped)}"] if collected.dropped else []
        remedies += ["raise --limit"] if rules.limit is not None else []
        raise InputError(
            f"{collected.path}: of {collected.read} interactions {len(collected)} are left, and no user has "
            f"{FEWEST} of them; {' or '.join(remedies) or 'take a larger source'}"
        )
    users, user_names = _renumber(collected.users)
    items, item_names = _renumber(collected.items)
    timestamps = collected.timestamps if has_times else np.arange(len(users))
    interactions = Interactions.sort(
        tuple(collected.user_ids[user] for user in user_names.tolist()),
        users=users,
        items=items,
        timestamps=timestamps,
        ratings=collected.ratings,
        texts={} if collected.reviews is None else {"review": collected.reviews},
    )
    if not has_times:
        starts = interactions.user_starts()[interactions.users]
        interactions = replace(interactions, timestamps=np.arange(len(interactions)) - starts)
    return interactions, tuple(collected.item_ids[item] for item in item_names.tolist())


def _renumber(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers from 0 in order of first appearance, and the old number behind each."""
    old, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[inverse], old[order]


def sort_ids(item_ids: Iterable[str]) -> tuple[str, ...]:
    """Return ids in the order of their numbers where all are numbers, else as they come."""
    item_ids = tuple(item_ids)
    return tuple(sorted(item_ids, key=int)) if all(item_id.isdecimal() for item_id in item_ids) else item_ids


def build_catalog(
    item_ids: Sequence[str], texts: Mapping[str, Mapping[str, str]], *, repairs: Repairs, path: object
) -> Catalog:
    """Build a catalogue, giving every item a title and leaving out columns that hold no text.

    Args:
        item_ids: the items in catalogue order.
        texts: clean fields by item id.
        repairs: counts ``items_without_title``.
        path: the item table, for error messages.

    Raises:
        InputError: under ``strict``, an item without a title.
    """
    titles = []
    for item_id in item_ids:
        fields = texts.get(item_id, {})
        title = fields.get("title", "")
        if not title:
            title = fallback_title(item_id, fields)
            repairs.note("items_without_title", path, f"item {item_id!r} has no title", f"its title is {title!r}")
        titles.append(title)
    columns = {"title": tuple(titles)}
    for name in dict.fromkeys(name for item_id in item_ids for name in texts.get(item_id, {})):
        values = tuple(texts.get(item_id, {}).get(name, "") for item_id in item_ids)
        filled = [value for value in values if value]
        if name not in ("title", "item_id") and filled and (name == "year" or not all(map(is_number, filled))):
            columns[name] = values
    return Catalog(tuple(item_ids), columns)


def import_notes(rules: ImportRules, collected: Collected, repairs: Repairs) -> dict[str, Any]:
    """Return what the manifest says of an import: its rules, the rows read and dropped by them, and the repairs."""
    return {
        "rules": {name: value for name, value in asdict(rules).items() if value is not None and value is not False},
        "rows_read": collected.read,
        "dropped": dict(collected.dropped),
        "repairs": dict(sorted(repairs.counts.items())),
    }
