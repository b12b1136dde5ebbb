"""Runs read back from results files."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.artifacts import read_json
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import BOTH
from llmrec.evaluation.lists import EXCLUDE_SEEN, LENGTH, RANKS_SUFFIX, ROW_COLUMN, USER_COLUMN, system_columns
from llmrec.evaluation.metrics import per_user
from llmrec.evaluation.results import ranks_path, read_results

FACTS = ("dataset", "split", "protocol", "catalog", "exclude_seen", "rows")
"""What a ranks file says of its rows and how they were scored."""


@dataclass(frozen=True)
class Run:
    """A system that was scored on the rows of a split.

    Args:
        name: what tables call it; told apart by its file where two files hold systems of one name.
        row: of the results file; the name and the origin alone where there is no such row.
        ranks: ``(rows,)`` int64, the target's place in its list from 0; -1 for a miss.
        k: length of the lists that the ranks were measured in; None where the file does not tell.
        source: the results file, or the ranks file where there is none.
        made_by: command, commit, versions, hardware and date; empty where unknown.
        origin: what the ranks file says of its rows, those of `FACTS`.
        users: ``(rows,)`` the user of each row, numbered in order of first appearance; None where the file does not
            tell.
    """

    name: str
    row: Mapping[str, Any] = field(repr=False)
    ranks: np.ndarray = field(repr=False)
    k: int | None
    source: Path
    made_by: Mapping[str, Any] = field(default_factory=dict, repr=False)
    origin: Mapping[str, str] = field(default_factory=dict, repr=False)
    users: np.ndarray | None = field(default=None, repr=False)

    @property
    def system(self) -> str:
        """The name that the file gives it."""
        return self.row.get("name", self.name)

    @property
    def seed(self) -> int | None:
        """What it was trained with; None where there is no chance in it, or the file does not tell."""
        return self.row.get("seed")

    def fact(self, key: str) -> str | None:
        """Return what the run says of ``dataset``, ``split``, ``protocol``, ``catalog``, ``exclude_seen`` or ``rows``.

        What stands in its row goes before what its ranks file says. None where neither tells.
        """
        if key == "rows":
            return self.origin.get(key) or str(self.row.get(key, len(self.ranks)))
        value = self.row.get(key)
        if value is None:
            return self.origin.get(key)
        return str(value).lower() if isinstance(value, bool) else str(value)

    def values(self, metric: str) -> np.ndarray:
        """Return the metric of every row.

        Args:
            metric: ``recall@K``, ``ndcg@K``, ``mrr@K`` or ``map@K``.

        Returns:
            ``(rows,)`` float64.

        Raises:
            InputError: an unknown metric, or a ``K`` above the length of the lists, in which a miss may be a hit that
                was cut off.
        """
        found = per_user(metric, self.ranks)
        cut = int(metric.partition("@")[2])
        if self.k is not None and cut > self.k:
            raise InputError(
                f"{self.source}: {metric} of {self.name!r} needs lists of {cut} items and they had {self.k}; choose a "
                f"cut up to {self.k}, or evaluate again with --ks {cut}"
            )
        return found


def load_runs(sources: Sequence[str]) -> list[Run]:
    """Return the runs of results files.

    Args:
        sources: ``FILE.json`` for all systems of a file, ``FILE.json:NAME`` for one; ``FILE.ranks.parquet`` with or
            without a name means the results file beside it, and is enough where there is none.

    Returns:
        Runs in the order of the sources, each system of a file once. Where systems of several files share a name, each
        gets the end of its file's path behind it: ``sasrec (office/seed0)``.

    Raises:
        InputError: no source, a missing or unreadable file, an unknown name, or ranks that do not belong to their row.
    """
    if not sources:
        raise InputError("no results files given; name at least one FILE.json or FILE.json:NAME")
    runs: dict[tuple[Path, str], Run] = {}
    for source in sources:
        path, name = _split_source(source)
        for run in _read_file(path, name):
            runs.setdefault((path.with_name(_stem(path)).resolve(), run.name), run)
    return _told_apart(list(runs.values()))


def _stem(path: Path) -> str:
    return path.name.removesuffix(RANKS_SUFFIX).removesuffix(".json")


def _split_source(source: str) -> tuple[Path, str]:
    """Return the file and the name (empty: all systems) of ``FILE[:NAME]``; either may hold colons."""
    for end in (len(source), *(match.start() for match in re.finditer(":", source))):
        if Path(source[:end]).is_file():
            return Path(source[:end]), source[end + 1 :]
    raise InputError(f"{source}: no such file; give FILE.json or FILE.json:NAME")


def _read_file(path: Path, name: str) -> list[Run]:
    """Return the runs of a results file, or of a ranks file; only that of ``name`` where there is one."""
    ranks_file = path if path.name.endswith(RANKS_SUFFIX) else ranks_path(path)
    results = path if ranks_file != path else path.with_name(f"{_stem(path)}.json")
    rows, made_by = {}, {}
    if results.is_file():
        rows = {row["name"]: row for row in read_results(results)}
        made_by = read_json(results, "results file").get("made_by") or {}
    if not ranks_file.is_file():
        raise InputError(f"{path}: its ranks are missing, {ranks_file}; evaluate again, or put that file beside it")
    try:
        table = pq.read_table(ranks_file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{ranks_file}: not a readable ranks file ({error}); evaluate again") from error
    columns = system_columns(table)
    users = _users(table, ranks_file)
    names = list(rows) if rows and path == results else columns
    if name and name not in names:
        raise InputError(f"{path}: no system {name!r}; it holds {', '.join(names)}")
    found = []
    for system in [name] if name else names:
        if system not in columns:
            raise InputError(f"{ranks_file}: no ranks of {system!r}, which {path} holds; evaluate again")
        metadata = _said_of(table, system)
        origin = {key: metadata[key] for key in FACTS if key in metadata}
        row = rows.get(system, {"name": system, **{key: origin[key] for key in origin if key != "rows"}})
        ranks = _ranks(table, system, row, origin, ranks_file)
        source = results if results.is_file() else ranks_file
        found.append(Run(system, row, ranks, _list_length(metadata, row, ranks_file), source, made_by, origin, users))
    return found


def _said_of(table: pa.Table, system: str) -> dict[str, str]:
    """Return what the schema says of a system: of all, and of its column."""
    said = {**(table.schema.metadata or {}), **(table.schema.field(system).metadata or {})}
    found = {key.decode(): value.decode() for key, value in said.items()}
    return {key: value for key, value in found.items() if (key, value) != (EXCLUDE_SEEN, BOTH)}


def _ranks(table: pa.Table, system: str, row: Mapping[str, Any], origin: Mapping[str, str], path: Path) -> np.ndarray:
    """Return the ranks of a system in the order of rows, none of them missing."""
    column = table.column(system)
    if not pa.types.is_integer(column.type):
        raise InputError(f"{path}: ranks of {system!r} are {column.type}, not whole numbers; evaluate again")
    if column.null_count:
        first = column.is_null().to_pylist().index(True)
        raise InputError(
            f"{path}: {system!r} lacks {column.null_count} of {len(column)} users, the first in row {first}; evaluate "
            "it again on all rows"
        )
    ranks = column.to_numpy().astype(np.int64)
    if ROW_COLUMN in table.column_names:
        numbers = table.column(ROW_COLUMN).to_numpy()
        if not np.array_equal(numbers, np.arange(len(ranks))):
            first = np.flatnonzero(~np.isin(np.arange(len(ranks)), numbers))
            what = f"row {first[0]} of the split is not there" if len(first) else "rows are not in order"
            raise InputError(f"{path}: its rows are not 0 to {len(ranks) - 1}, {what}; evaluate again on all rows")
    users = row.get("users", len(ranks))
    if users != len(ranks):
        raise InputError(
            f"{path}: {len(ranks)} ranks of {system!r}, and the results file says {users} users; the two are of "
            "different evaluations: evaluate again"
        )
    if not origin.get("rows", "0").isdecimal():
        raise InputError(f"{path}: rows {origin['rows']!r} in its schema is no number; evaluate again")
    return ranks


def _users(table: pa.Table, path: Path) -> np.ndarray | None:
    """Return the number of each row's user; None where the file does not tell."""
    if USER_COLUMN not in table.column_names:
        return None
    column = table.column(USER_COLUMN)
    if not pa.types.is_integer(column.type) or column.null_count:
        raise InputError(f"{path}: its column {USER_COLUMN!r} is no number in every row; evaluate again")
    return column.to_numpy().astype(np.int32)


def _list_length(metadata: Mapping[str, str], row: Mapping[str, Any], path: Path) -> int | None:
    """Return how long the lists were: what the ranks file says, or the largest cut of the row's metrics."""
    if LENGTH in metadata:
        if not metadata[LENGTH].isdecimal():
            raise InputError(f"{path}: k {metadata[LENGTH]!r} in its schema is no number; evaluate again")
        return int(metadata[LENGTH])
    cuts = [metric.rpartition("@")[2] for metric in row.get("metrics", {})]
    return max((int(cut) for cut in cuts if cut.isdecimal()), default=None)


def _told_apart(runs: list[Run]) -> list[Run]:
    """Return runs whose names differ: those that share one get as much of their file's path as tells them apart."""
    shared = Counter(run.name for run in runs)
    named = []
    for run in runs:
        if shared[run.name] == 1:
            named.append(run)
            continue
        paths = [
            other.source.with_name(_stem(other.source)).resolve().parts for other in runs if other.name == run.name
        ]
        own = run.source.with_name(_stem(run.source)).resolve().parts
        depths = (depth for depth in range(1, len(own)) if sum(path[-depth:] == own[-depth:] for path in paths) == 1)
        label = "/".join(own[-next(depths, len(own)) :])
        named.append(replace(run, name=f"{run.name} ({label})"))
    return named
