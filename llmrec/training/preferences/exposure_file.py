"""``exposure.parquet``: what users were shown and passed over, in a file beside a dataset.

A row names its moment as written texts do: ``user_id``, ``position`` (how many interactions of the user came before,
in the whole dataset) and ``item_id`` (what was taken there). ``shown`` is a list of the item ids that stood beside it,
in the order shown. A moment may have several rows; what was taken may stand among the shown and counts for nothing.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec.data.interactions import Interactions
from llmrec.data.splits import Splits
from llmrec.errors import InputError

EXPOSURE_FILE = "exposure.parquet"
SCHEMA = {
    "user_id": pa.string(), "position": pa.int64(), "item_id": pa.string(), "shown": pa.list_(pa.string()),
}  # fmt: skip


@dataclass(frozen=True)
class ItemLists:
    """A list of items for each of some rows, one behind the other.

    Args:
        starts: ``(rows + 1,)`` int64: row ``n`` has the items from ``starts[n]`` to ``starts[n + 1]``.
        items: int64 item rows.
    """

    starts: np.ndarray = field(repr=False)
    items: np.ndarray = field(repr=False)

    def padded(self, rows: np.ndarray, width: int) -> np.ndarray:
        """Return ``(rows, width)`` items of the beginning of each list, -1 behind shorter ones."""
        at = self.starts[rows][:, None] + np.arange(width)
        inside = at < self.starts[np.asarray(rows) + 1][:, None]
        if not len(self.items):
            return np.full(at.shape, -1, dtype=np.int64)
        return np.where(inside, self.items[at.clip(max=len(self.items) - 1)], -1)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return ``(rows,)`` int64 lengths of the lists."""
        return self.starts[np.asarray(rows) + 1] - self.starts[rows]

    @classmethod
    def grouped(cls, owners: np.ndarray, items: np.ndarray, *, count: int) -> "ItemLists":
        """Return lists by owner, each in the order given.

        Args:
            owners: ``(entries,)`` int64 row that each item belongs to.
            items: ``(entries,)`` int64 items.
            count: how many lists.
        """
        order = np.argsort(owners, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))]).astype(np.int64)
        return cls(starts, np.asarray(items, dtype=np.int64)[order])


def load_exposure(folder: str | Path, *, interactions: Interactions, item_ids: tuple[str, ...]) -> ItemLists:
    """Read what was shown beside each interaction of a dataset, and check it against the dataset.

    Args:
        folder: the dataset folder.
        interactions: all of the dataset.
        item_ids: the catalogue's.

    Returns:
        A list for each row of ``interactions``, most of them empty.

    Raises:
        InputError: no such file, a missing column or one of another type, empty values, an unknown user or item, or a
            position at which the user took something else.
    """
    path = Path(folder) / EXPOSURE_FILE
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; write one with the columns {', '.join(SCHEMA)}, name rating_below for datasets "
            "with ratings, or use another source of negatives"
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error}); write it again") from error
    for name, kind in SCHEMA.items():
        if name not in table.column_names:
            raise InputError(f"{path}: no column {name!r}; it has {', '.join(table.column_names)}")
        if table.schema.field(name).type != kind:
            raise InputError(f"{path}: column {name!r} is {table.schema.field(name).type}, expected {kind}")
        if table.column(name).null_count:
            raise InputError(f"{path}: column {name!r} has {table.column(name).null_count} empty values; none may be")
    users = _numbers(table.column("user_id"), interactions.user_ids, path, "user")
    taken = _numbers(table.column("item_id"), item_ids, path, "item")
    positions = table.column("position").to_numpy().astype(np.int64)
    starts = interactions.user_starts()
    counts = np.diff(starts)[users]
    bad = (positions < 0) | (positions >= counts)
    moments = starts[users] + np.where(bad, 0, positions)
    wrong = bad | (interactions.items[moments] != taken)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        there = "nothing" if bad[row] else repr(item_ids[int(interactions.items[moments[row]])])
        raise InputError(
            f"{path}: row {row} says that user {interactions.user_ids[users[row]]!r} took {item_ids[taken[row]]!r} at "
            f"position {int(positions[row])}, where the dataset has {there}; positions count from 0 in this import's "
            "order of time, write the file again"
        )
    lists = table.column("shown").combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    shown = _numbers(pa.chunked_array([lists.flatten()]), item_ids, path, "shown item")
    return ItemLists.grouped(np.repeat(moments, lengths), shown, count=len(interactions))


def _numbers(names: pa.ChunkedArray, known: tuple[str, ...], path: Path, what: str) -> np.ndarray:
    found = pc.index_in(names, value_set=pa.array(known, pa.string()))  # pyright: ignore[reportAttributeAccessIssue]
    if found.null_count:
        row = int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{path}: {what} {names[row].as_py()!r} (entry {row}) is not in the dataset; leave it out")
    return found.to_numpy().astype(np.int64)


def interactions_of_rows(splits: Splits, interactions: Interactions) -> np.ndarray:
    """Return ``(training rows,)`` int64: which interaction of the dataset each training row's target is.

    Rows of a published split are found by user, last item of the history and target; one that is not found has -1.

    Args:
        splits: rows of the dataset.
        interactions: all of the dataset.

    Raises:
        InputError: splits of another dataset.
    """
    rows = splits.train
    users = np.fromiter((row.user for row in rows), dtype=np.int64, count=len(rows))
    targets = np.fromiter((row.target for row in rows), dtype=np.int64, count=len(rows))
    if splits.parts is None:
        last = np.fromiter((row.items[-1] for row in rows), dtype=np.int64, count=len(rows))
        return _found_by_neighbours(users, last, targets, interactions)
    positions = np.arange(len(interactions)) - interactions.user_starts()[interactions.users]
    own = np.flatnonzero((splits.parts == 0) & (positions > 0))
    # Both protocols keep each user's targets in order, so the n-th training target of a user is its n-th row.
    order = np.argsort(users, kind="stable")
    # A protocol by time may leave a user's later item out of training and never an earlier one.
    if len(own) != len(rows) or (interactions.users[own] != users[order]).any():
        raise InputError("splits: their training rows are not those of this dataset; split the dataset again")
    found = np.empty(len(rows), dtype=np.int64)
    found[order] = own
    if (interactions.items[found] != targets).any():
        raise InputError("splits: their training rows are not those of this dataset; split the dataset again")
    return found


def _found_by_neighbours(
    users: np.ndarray, last: np.ndarray, targets: np.ndarray, interactions: Interactions
) -> np.ndarray:
    items = int(max(interactions.items.max(), targets.max(initial=0), last.max(initial=0))) + 1
    there = np.flatnonzero(interactions.users[1:] == interactions.users[:-1])
    keys = (interactions.users[there] * items + interactions.items[there]) * items + interactions.items[there + 1]
    order = np.argsort(keys, kind="stable")
    wanted = (users * items + last) * items + targets
    if not len(keys):
        return np.full(len(users), -1, dtype=np.int64)
    at = np.searchsorted(keys[order], wanted).clip(max=len(keys) - 1)
    return np.where(keys[order][at] == wanted, there[order][at] + 1, -1)
