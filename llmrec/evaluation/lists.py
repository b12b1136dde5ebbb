"""The lists themselves on disk, beside the ranks: what later fusions and worked examples are made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.artifacts import whole_file
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import Evaluation

RANKS_SUFFIX = ".ranks.parquet"
LISTS_SUFFIX = ".lists.parquet"
ROW_COLUMN = "row"
USER_COLUMN = "user"
EXCLUDE_SEEN = "exclude_seen"
LENGTH = "k"
OF_A_SYSTEM = (EXCLUDE_SEEN, LENGTH)
"""What the schema says of a column of its own too, because the systems of a file may differ in it."""


def beside(path: str | Path, suffix: str) -> Path:
    """Return the file with ``suffix`` beside a results file: ``x.ranks.parquet`` for ``x.json``."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".json") + suffix)


def lists_path(path: str | Path) -> Path:
    """Return where the lists of a results file lie: ``x.lists.parquet`` beside ``x.json``."""
    return beside(path, LISTS_SUFFIX)


def write_lists(
    path: str | Path,
    evaluations: Sequence[Evaluation],
    *,
    origin: Mapping[str, str],
    of_systems: Mapping[str, Mapping[str, str]] | None = None,
) -> Path | None:
    """Write the lists of the systems that kept theirs; where none did, lists of an earlier run go away.

    A list is one value of type ``list<int32>``: catalogue rows, best first, -1 in a place left empty. Rows from the
    size of the dataset's catalogue up are items that only the system knows. No user id stands in the file, but what
    was recommended to whom does: it is kept out of git.

    Args:
        path: the results file (``x.json``); lists go to ``x.lists.parquet``.
        evaluations: systems scored on the same rows.
        origin: what the schema says of all, as of the ranks.
        of_systems: what it says of each column, by the system's name.

    Returns:
        The file, or None where no system kept its lists.
    """
    file = lists_path(path)
    kept = {
        evaluation.name: evaluation.recommended for evaluation in evaluations if evaluation.recommended is not None
    }
    if not kept:
        file.unlink(missing_ok=True)
        return None
    columns = {name: _as_column(lists) for name, lists in kept.items()}
    with whole_file(file) as part:
        write_columns(part, columns, origin=origin, of_systems=of_systems or {})
    return file


def _as_column(lists: np.ndarray) -> pa.ListArray:
    users, k = lists.shape
    offsets = pa.array(np.arange(users + 1, dtype=np.int32) * np.int32(k))
    return pa.ListArray.from_arrays(offsets, pa.array(lists.reshape(-1).astype(np.int32, copy=False)))


def read_lists(source: str) -> np.ndarray:
    """Return the lists of a system.

    Args:
        source: ``FILE.lists.parquet``, with ``:name`` behind it where the file holds several systems.

    Returns:
        ``(users, k)`` int64 catalogue rows, best first; -1 in an empty place. ``k`` is the longest list's length.

    Raises:
        InputError: a missing or unreadable file, a name that is missing or unknown, or a column without lists.
    """
    path, name, table = read_columns(source, suffix=LISTS_SUFFIX)
    name = chosen_system(path, name, table)
    column = table.column(name).combine_chunks()
    if not pa.types.is_list(column.type) or not pa.types.is_integer(column.type.value_type) or column.null_count:
        raise InputError(f"{path}: column {name!r} is {column.type}, expected list<int32> without empty values")
    lengths = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    lists = np.full((len(column), int(lengths.max(initial=0))), -1, dtype=np.int64)
    lists[np.arange(lists.shape[1]) < lengths[:, None]] = column.flatten().to_numpy(zero_copy_only=False)
    return lists


def write_columns(
    path: str | Path,
    columns: Mapping[str, pa.Array],
    *,
    origin: Mapping[str, str],
    of_systems: Mapping[str, Mapping[str, str]],
    users: np.ndarray | None = None,
) -> None:
    """Write a parquet file of a column a system behind the column of row numbers, and that of users where known.

    Args:
        path: the file.
        columns: ``(rows,)`` values by the system's name.
        origin: metadata of the schema.
        of_systems: metadata of columns, by name.
        users: ``(rows,)`` number of each row's user; None writes no such column.
    """
    before = [pa.array(np.arange(len(next(iter(columns.values())))))]
    fields = [pa.field(ROW_COLUMN, pa.int64())]
    if users is not None:
        before.append(pa.array(users, pa.int32()))
        fields.append(pa.field(USER_COLUMN, pa.int32()))
    fields += [pa.field(name, column.type, metadata=of_systems.get(name) or None) for name, column in columns.items()]
    schema = pa.schema(fields, metadata=dict(origin))
    pq.write_table(pa.table([*before, *columns.values()], schema=schema), path)


def system_columns(table: pa.Table) -> list[str]:
    """Return the names of the systems in a file of ranks or lists."""
    return [column for column in table.column_names if column not in (ROW_COLUMN, USER_COLUMN)]


def read_columns(source: str, *, suffix: str) -> tuple[Path, str, pa.Table]:
    """Return the file that ``FILE[:name]`` means, the name (mostly empty), and what the file holds.

    Raises:
        InputError: a missing or unreadable file.
    """
    name, path = "", Path(source)
    if not path.is_file():
        before, _, name = source.rpartition(":")
        path = Path(before or source)
    if not path.is_file():
        raise InputError(f"{source}: no such file; give FILE{suffix} or FILE{suffix}:name")
    what = suffix.split(".")[1]
    try:
        return path, name, pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable {what} file ({error}); evaluate again") from error


def chosen_system(path: Path, name: str, table: pa.Table) -> str:
    """Return the name of the system that is meant: the only one where no name is given.

    Raises:
        InputError: an unknown name, or none where there are several systems.
    """
    names = system_columns(table)
    if not name and len(names) == 1:
        return names[0]
    if name not in names:
        asked = f"no system {name!r}" if name else "several systems"
        raise InputError(f"{path}: {asked}; write {path}:NAME with one of {', '.join(names)}")
    return name
