"""Three protocols that divide interactions into training, validation and test rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from llmrec.data.interactions import Interactions
from llmrec.errors import InputError

SPLIT_NAMES = ("train", "valid", "test")


@dataclass(frozen=True)
class History:
    """One row to learn or to score: what a user took before (``items``, oldest first) and took next (``target``)."""

    user: int
    items: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        if not self.items:
            raise InputError(f"history of user {self.user}: it is empty; a row needs an item before its target")


@dataclass(frozen=True)
class Splits:
    """The rows of a protocol, and the training interactions that fitting may see.

    Args:
        protocol: ``leave_one_out``, ``temporal`` or ``provided``.
        train: one row a training target.
        valid: rows that choose.
        test: rows that are read once.
        sequences: training interactions alone, one tuple of item rows a user, oldest first; every item of a sequence
            after its first is a training target, and nothing of ``valid`` or ``test`` stands in it.
        parts: ``(interactions,)`` int8: 0, 1 or 2 where an interaction of the dataset belongs to training, validation
            or test, -1 where to none; None where the split is published, and its rows alone say it.
    """

    protocol: str
    train: Sequence[History] = field(repr=False)
    valid: Sequence[History] = field(repr=False)
    test: Sequence[History] = field(repr=False)
    sequences: Sequence[tuple[int, ...]] = field(repr=False)
    parts: np.ndarray | None = field(default=None, repr=False, compare=False)

    def rows(self, split: str) -> Sequence[History]:
        """Return the rows of ``train``, ``valid`` or ``test``.

        Raises:
            InputError: another name, or a split without rows.
        """
        if split not in SPLIT_NAMES:
            raise InputError(f"split {split!r}: choose one of {', '.join(SPLIT_NAMES)}")
        rows = getattr(self, split)
        if not rows:
            raise InputError(f"split {split!r} of protocol {self.protocol!r} has no rows; the dataset is too small")
        return rows


def training_popularity(sequences: Sequence[Sequence[int]], *, items: int) -> np.ndarray:
    """Return ``(items,)`` int64 counts of each item in the training interactions."""
    flat = np.fromiter((item for sequence in sequences for item in sequence), dtype=np.int64)
    return np.bincount(flat, minlength=items)


def _cut(items: Sequence[int], max_history: int | None) -> tuple[int, ...]:
    return tuple(items if max_history is None else items[-max_history:])


def _check_max_history(max_history: int | None) -> None:
    if max_history is not None and max_history < 1:
        raise InputError(f"max_history {max_history}: at least 1 item, or none for no limit")


def leave_one_out(interactions: Interactions, *, max_history: int | None = None) -> Splits:
    """Hold out each user's last item for test and the last but one for validation.

    Users with fewer than three interactions are trained on and not scored. The test history holds the validation item.

    Args:
        interactions: all interactions.
        max_history: most recent items that a row keeps; None keeps all.

    Raises:
        InputError: no user has three interactions.
    """
    _check_max_history(max_history)
    train, valid, test, sequences = [], [], [], []
    parts = np.zeros(len(interactions), dtype=np.int8)
    stops = interactions.user_starts()[1:].tolist()
    for user, items in enumerate(interactions.sequences()):
        known = items
        if len(items) >= 3:
            parts[stops[user] - 2 : stops[user]] = 1, 2
            known = items[:-2]
            valid.append(History(user, _cut(items[:-2], max_history), items[-2]))
            test.append(History(user, _cut(items[:-1], max_history), items[-1]))
        if known:
            sequences.append(known)
        train.extend(History(user, _cut(known[:stop], max_history), known[stop]) for stop in range(1, len(known)))
    if not test:
        raise InputError("leave_one_out: no user has 3 interactions or more; this protocol needs them")
    return Splits("leave_one_out", train, valid, test, sequences, parts)


def temporal(interactions: Interactions, *, max_history: int | None = None) -> Splits:
    """Sort every target after a user's first by time over all users and cut 8:1:1 (MiniOneRec's protocol).

    Ties in time keep user order. A history is all that the user took before the target, so a test history can hold
    validation targets.

    Args:
        interactions: all interactions, with real times.
        max_history: most recent items that a row keeps; None keeps all.

    Raises:
        InputError: fewer than ten targets.
    """
    _check_max_history(max_history)
    starts = interactions.user_starts()
    first = np.zeros(len(interactions), dtype=bool)
    first[starts[:-1][starts[:-1] < starts[1:]]] = True
    targets = np.flatnonzero(~first)
    if len(targets) < 10:
        raise InputError(f"temporal: {len(targets)} targets; the 8:1:1 cut needs 10 or more")
    targets = targets[np.argsort(interactions.timestamps[targets], kind="stable")]
    cuts = (int(len(targets) * 0.8), int(len(targets) * 0.9))
    items, users = interactions.items.tolist(), interactions.users.tolist()

    def row(index: int) -> History:
        start = int(starts[users[index]])
        return History(users[index], _cut(items[start:index], max_history), items[index])

    train, valid, test = ([row(int(index)) for index in part] for part in np.split(targets, cuts))
    training = first.copy()
    training[targets[: cuts[0]]] = True
    # A first item is known from the start, but it is a training interaction only if it is not later than the cut.
    training &= interactions.timestamps <= interactions.timestamps[targets[cuts[0] - 1]]
    sequences = []
    for start, stop in pairwise(starts.tolist()):
        known = interactions.items[start:stop][training[start:stop]]
        if len(known):
            sequences.append(tuple(known.tolist()))
    parts = np.where(training, 0, -1).astype(np.int8)
    parts[targets[cuts[0] : cuts[1]]], parts[targets[cuts[1] :]] = 1, 2
    return Splits("temporal", train, valid, test, sequences, parts)


def chain(rows: Sequence[History]) -> list[tuple[int, ...]]:
    """Join rows of published splits into sequences, so that each row's target is supervised once.

    A row whose history ends as a sequence of its user ends (as far as both reach) lengthens that sequence; any other
    row starts a new one.
    """
    open_sequence: dict[int, list[int]] = {}
    sequences: list[list[int]] = []
    for row in rows:
        sequence = open_sequence.get(row.user)
        overlap = min(len(sequence), len(row.items)) if sequence else 0
        if sequence is not None and overlap and tuple(sequence[-overlap:]) == row.items[-overlap:]:
            sequence.append(row.target)
        else:
            sequence = [*row.items, row.target]
            open_sequence[row.user] = sequence
            sequences.append(sequence)
    return [tuple(sequence) for sequence in sequences]


SPLITS: dict[str, Callable[..., Splits]] = {"leave_one_out": leave_one_out, "temporal": temporal}
