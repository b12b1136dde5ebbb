"""Results on disk: one JSON row a system, and every user's rank beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec.artifacts import made_by, read_json, whole_file, write_json
from llmrec.errors import InputError
from llmrec.evaluation.by_user import number_users
from llmrec.evaluation.evaluator import BOTH, Evaluation
from llmrec.evaluation.lists import (
    EXCLUDE_SEEN,
    LENGTH,
    OF_A_SYSTEM,
    RANKS_SUFFIX,
    ROW_COLUMN,
    USER_COLUMN,
    beside,
    chosen_system,
    read_columns,
    system_columns,
    write_columns,
    write_lists,
)

ORIGIN = ("dataset", "split", "protocol", "catalog", "rows")
"""What decides which rows were scored; a ranks file says it of its rows. ``catalog`` is the hash of the dataset's
catalogue, ``rows`` the number of rows of the whole split, whether all were scored or not."""


def result_row(
    evaluation: Evaluation,
    *,
    dataset: str,
    split: str,
    protocol: str,
    exclude_seen: bool,
    score: str | None = None,
    num_beams: int | None = None,
    seed: int | None = None,
    catalog: str | None = None,
    rows: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return what a results file holds of a system.

    Args:
        evaluation: what was measured.
        dataset: the dataset's name.
        split: ``valid`` or ``test``.
        protocol: how the split was made.
        exclude_seen: whether seen items were kept out of the lists.
        score: what a model's log-probabilities were taken over; None for a system without.
        num_beams: beams of a model's search; None for a system without.
        seed: that the system was trained with; None where there is no chance in it.
        catalog: hash of the dataset's catalogue; None where it is not known, and is left out.
        rows: of the whole split, which ``users`` is less than when only some were scored; None as for ``catalog``.
        more: further JSON values; those that are None are left out.
    """
    return {
        "name": evaluation.name,
        "dataset": dataset,
        "split": split,
        "protocol": protocol,
        "exclude_seen": exclude_seen,
        "score": score,
        "num_beams": num_beams,
        "seed": seed,
        "metrics": evaluation.metrics,
        "users": evaluation.users,
        "seconds": round(evaluation.seconds, 3),
        **{key: value for key, value in {"catalog": catalog, "rows": rows, **more}.items() if value is not None},
    }


def ranks_path(path: str | Path) -> Path:
    """Return where the ranks of a results file lie: ``x.ranks.parquet`` beside ``x.json``."""
    return beside(path, RANKS_SUFFIX)


def check_output(path: str | Path, names: Sequence[str]) -> None:
    """Raise `InputError`, before any work, when results cannot be written to ``path`` or two systems share a name."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"--output {path}: it is a folder; name a file, such as {path / 'results.json'}")
    blocking = next((parent for parent in path.parents if parent.exists()), None)
    if blocking is not None and not blocking.is_dir():
        raise InputError(f"--output {path}: {blocking} is a file, so no folder can be made there")
    for name in names:
        if names.count(name) > 1 or name in (ROW_COLUMN, USER_COLUMN):
            raise InputError(
                f"system name {name!r}: taken by another system or column of the file; choose another --name"
            )


def write_results(
    path: str | Path,
    rows: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Evaluation],
    *,
    users: Sequence[int] | np.ndarray | None = None,
) -> None:
    """Write a results file, its ranks, and the lists of systems that kept them; what stood there is replaced.

    Ranks are kept by row number of the split, and whose row each is by number in order of first appearance, never by
    user id. The schema of their file says `ORIGIN`, and of all
    systems and of each one's column ``exclude_seen`` (``true``, ``false``; ``both`` where the file holds either) and
    ``k``, the length of its lists: a target at or behind that place has rank -1.

    Args:
        path: the JSON file.
        rows: what `result_row` made, one a system.
        evaluations: the same systems, scored on the same rows of the same split.
        users: the user of each of these rows, in any numbers; None where they are not known, so that later intervals
            take rows as independent.

    Raises:
        InputError: as `check_output`, or systems of different splits or with different numbers of rows.
    """
    names = [evaluation.name for evaluation in evaluations]
    check_output(path, names)
    scored = {evaluation.users for evaluation in evaluations}
    if len(scored) != 1:
        raise InputError(
            f"results: systems were scored on {sorted(scored)} users; one file holds systems on the same rows"
        )
    if users is not None and len(users) not in scored:
        raise InputError(f"results: users of {len(users)} rows, and {scored.pop()} were scored; give the user of each")
    for key in ORIGIN:
        values = list(dict.fromkeys(row[key] for row in rows if key in row))
        if len(values) > 1:
            raise InputError(
                f"results: systems of {key} {' and '.join(map(repr, values))}; one file holds systems on the same rows"
            )
    of_systems = _of_systems(rows, evaluations)
    origin = {key: str(row[key]) for row in rows for key in ORIGIN if key in row} | _of_all(of_systems)
    columns = {evaluation.name: pa.array(evaluation.ranks, pa.int32()) for evaluation in evaluations}
    with whole_file(ranks_path(path)) as part:
        numbers = None if users is None else number_users(users)
        write_columns(part, columns, origin=origin, of_systems=of_systems, users=numbers)
    write_lists(path, evaluations, origin=origin, of_systems=of_systems)
    write_json(path, {"results": [dict(row) for row in rows], "made_by": made_by()})


def _of_systems(rows: Sequence[Mapping[str, Any]], evaluations: Sequence[Evaluation]) -> dict[str, dict[str, str]]:
    """Return what is known of `OF_A_SYSTEM`, by the system's name."""
    found: dict[str, dict[str, str]] = {evaluation.name: {} for evaluation in evaluations}
    for row in rows:
        if EXCLUDE_SEEN in row:
            found.setdefault(row["name"], {})[EXCLUDE_SEEN] = str(row[EXCLUDE_SEEN]).lower()
    for evaluation in evaluations:
        if evaluation.ks:
            found[evaluation.name][LENGTH] = str(max(evaluation.ks))
    return found


def _of_all(of_systems: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return what the systems have in common: the shortest ``k``, ``both`` where some leave seen items out."""
    said = {key: [of[key] for of in of_systems.values() if key in of] for key in OF_A_SYSTEM}
    found = {}
    if said[EXCLUDE_SEEN]:
        found[EXCLUDE_SEEN] = BOTH if len(set(said[EXCLUDE_SEEN])) > 1 else said[EXCLUDE_SEEN][0]
    if said[LENGTH]:
        found[LENGTH] = min(said[LENGTH], key=int)
    return found


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a results file.

    Raises:
        InputError: a missing or unreadable file, or one without ``results``.
    """
    value = read_json(path, "results file")
    if not isinstance(value, dict) or not isinstance(value.get("results"), list):
        raise InputError(f"{path}: no list 'results'; evaluate.py and baselines.py write such files")
    for number, row in enumerate(value["results"]):
        for key in ("name", "dataset", "metrics"):
            if key not in row:
                raise InputError(f"{path}: row {number} of 'results' has no {key!r}; write the file again")
    return value["results"]


def read_ranks(source: str) -> np.ndarray:
    """Return the ranks of a system.

    Args:
        source: ``FILE.ranks.parquet``, with ``:name`` behind it where the file holds several systems.

    Returns:
        ``(users,)`` int64 ranks, -1 for a miss.

    Raises:
        InputError: a missing or unreadable file, or a name that is missing or unknown.
    """
    path, name, table = read_columns(source, suffix=RANKS_SUFFIX)
    return table.column(chosen_system(path, name, table)).to_numpy().astype(np.int64)


def read_origin(source: str) -> dict[str, str]:
    """Return what a file of ranks or lists says of its rows, as text.

    Args:
        source: as for `read_ranks`. With a name, or in a file of one system, ``exclude_seen`` and ``k`` are those of
            that system.

    Returns:
        Those of `ORIGIN`, ``exclude_seen`` and ``k`` that it says; files of older versions say fewer, or nothing.

    Raises:
        InputError: a missing or unreadable file, or an unknown name.
    """
    path, name, table = read_columns(source, suffix=RANKS_SUFFIX)
    said = dict(table.schema.metadata or {})
    if name or len(system_columns(table)) == 1:
        said |= table.schema.field(chosen_system(path, name, table)).metadata or {}
    return {key: said[key.encode()].decode() for key in (*ORIGIN, *OF_A_SYSTEM) if key.encode() in said}


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return results as aligned text: a line a system, a column a metric; MAP, which is MRR here, is left to files."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["metrics"]))
    metrics = [metric for metric in metrics if not metric.startswith("map@")]
    lines = [["system", *metrics, "users", "seconds"]]
    for row in rows:
        values = [f"{row['metrics'][metric]:.4f}" if metric in row["metrics"] else "" for metric in metrics]
        lines.append([row["name"], *values, str(row.get("users", "")), f"{row.get('seconds', 0.0):.1f}"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )
