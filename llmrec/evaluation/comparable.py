"""Which runs may stand in one table, and which are one system: copies, and seeds of one configuration."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmrec.errors import InputError
from llmrec.evaluation.runs import Run

REMEDIES = {
    "dataset": "compare systems on one dataset",
    "split": "evaluate both with one --split",
    "protocol": "evaluate both with one --protocol",
    "catalog": "evaluate both with one dataset folder, for the catalogues differ",
    "exclude_seen": "evaluate both with the same --exclude_seen",
    "rows": "evaluate both on the same version of the dataset",
}
"""What must be equal for two runs to be compared, and what to do where it is not."""

MEASURED = (
    "seed", "metrics", "users", "seconds", "beyond", "slices", "latency", "sid_level", "by_target", "new_items",
    "model", "revision", "tuned", "leaks",
)  # fmt: skip
"""Keys of a row that differ between seeds of one configuration; ``trained_as`` stands for ``model``."""

ONE_ROW_A_USER = "leave_one_out"

CHOSEN = ("weights", "constant")
"""What a fusion chooses on validation for each seed anew."""


def check_comparable(runs: Sequence[Run], *, allow_partial: bool = False) -> None:
    """Raise `InputError` where two runs were not scored alike; both files, both values and the remedy are named.

    Compared are dataset, split, protocol, catalogue, ``exclude_seen``, the number of rows, and whose each row is. What
    a file does not tell is taken.

    Args:
        runs: to be compared.
        allow_partial: take runs on a part of the split's rows (``--limit_users``), if all have as many.

    Raises:
        InputError: as above; or a run that lacks users of the split.
    """
    for run in runs if not allow_partial else ():
        missing = int(run.fact("rows") or 0) - len(run.ranks)
        if missing:
            raise InputError(
                f"{run.source}: {run.name!r} lacks {missing} of the split's {run.fact('rows')} users; evaluate it "
                "again without --limit_users"
            )
    for key, remedy in REMEDIES.items():
        known = [(run, run.fact(key)) for run in runs if run.fact(key) is not None]
        for run, value in known:
            first, expected = known[0]
            if value != expected:
                raise InputError(
                    f"{run.source}: {key} {value!r} of {run.name!r}, and {first.source} has {expected!r} of "
                    f"{first.name!r}; {remedy}"
                )
    for run in runs:
        if len(run.ranks) != len(runs[0].ranks):
            raise InputError(
                f"{run.source}: {len(run.ranks)} users of {run.name!r}, and {runs[0].source} has "
                f"{len(runs[0].ranks)} of {runs[0].name!r}; evaluate both on the same rows"
            )

    users_of(runs)


def users_of(runs: Sequence[Run]) -> np.ndarray | None:
    """Return ``(rows,)`` the user of each row, that of the first run that tells; None where none does.

    Args:
        runs: on the same rows.

    Raises:
        InputError: two runs whose rows are of different users.
    """
    known = [(run, run.users) for run in runs if run.users is not None]
    for run, users in known:
        first, expected = known[0]
        if not np.array_equal(users, expected):
            raise InputError(
                f"{run.source}: rows of {run.name!r} are of other users than those of {first.name!r} in "
                f"{first.source}; evaluate both on the same version of the dataset"
            )
    return known[0][1] if known else None


def count_users(runs: Sequence[Run]) -> int | None:
    """Return how many users the rows are of; None where no run tells and the protocol does not say one row a user.

    Args:
        runs: on the same rows, at least one.
    """
    users = users_of(runs)
    if users is not None:
        return len(np.unique(users))
    one_each = any(run.fact("protocol") == ONE_ROW_A_USER for run in runs)
    return len(runs[0].ranks) if one_each else None


def words_on_rows(rows: int, users: int | None) -> str:
    """Return how many users were scored, and how many rows where these are more, or users are not known."""
    if users is None:
        return f"{rows:,} rows"
    return f"{rows:,} users" if rows == users else f"{rows:,} rows of {users:,} users"


def by_exclusion(runs: Sequence[Run]) -> dict[str | None, list[Run]]:
    """Return runs by their ``exclude_seen``, ``true`` or ``false``, in order of appearance; None where unknown."""
    found: dict[str | None, list[Run]] = {}
    for run in runs:
        found.setdefault(run.fact("exclude_seen"), []).append(run)
    return found


def without_copies(runs: Sequence[Run]) -> list[Run]:
    """Return runs without repetitions of an earlier one: those of one system and seed with equal ranks, scored alike.

    Every file of ``evaluate.py`` holds the counting baselines; a table of several files needs them once.
    """
    kept: list[Run] = []
    for run in runs:
        facts = _told(run)
        copies = (facts == _told(other) and np.array_equal(run.ranks, other.ranks) for other in kept)
        if not any(copies):
            kept.append(run)
    shared = Counter(run.system for run in kept)
    return [replace(run, name=run.system) if shared[run.system] == 1 else run for run in kept]


def _told(run: Run) -> list[Any]:
    return [run.system, run.seed, run.row.get("settings"), *map(run.fact, REMEDIES)]


def group_seeds(runs: Sequence[Run]) -> list[list[Run]]:
    """Return runs grouped by configuration: those whose rows agree in all but the seed and what was measured.

    Two models of one name may be two methods, or stand on two SID tables: a model's row says so by ``trained_as``, a
    hash of its training without the seed.

    Args:
        runs: in any order.

    Returns:
        Groups in order of their first run. A run without a seed, with one that its group has already, or of a model
        whose row has no ``trained_as``, stands alone.
    """
    groups: list[list[Run]] = []
    for run in runs:
        fitting = (
            group
            for group in groups
            if run.seed is not None
            and _says_its_training(run)
            and all(other.seed not in (None, run.seed) for other in group)
            and _configuration(group[0]) == _configuration(run)
        )
        group = next(fitting, None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return groups


def _says_its_training(run: Run) -> bool:
    return bool(run.row.get("trained_as")) or not (run.row.get("model") or run.row.get("fused"))


def _configuration(run: Run) -> dict[str, Any]:
    left = {key: value for key, value in run.row.items() if key not in MEASURED}
    fused = left.get("fused")
    if isinstance(fused, Mapping) and fused.get("chosen_on"):
        left["fused"] = {key: value for key, value in fused.items() if key not in CHOSEN}
    if isinstance(left.get("settings"), Mapping):
        left["settings"] = {key: value for key, value in left["settings"].items() if key != "seed"}
    return left | {key: run.fact(key) for key in REMEDIES}
