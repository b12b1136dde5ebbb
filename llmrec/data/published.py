"""Rows of a published split (history and target) joined into sequences, and training rows recovered from them."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmrec.data.splits import History


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
    user: int, joined: Joined, *, sources: Sequence[bool], starts: Sequence[int], longest: int
) -> tuple[list[History], int]:
    """Recover a user's training rows from the histories of some of the joined rows.

    Every item of such a history but its first is a target, each position once. Targets of published rows, whichever
    split they belong to, are left out, and no history reaches over one.

    Args:
        user: the user's number.
        joined: the user's published rows.
        sources: for each row, whether its history may be trained on (validation rows may, test rows may not).
        starts: for each row, items of its history.
        longest: most items of a recovered history.

    Returns:
        The rows, oldest first, and how many positions were left out because a published row has them as its target.
    """
    held = set(joined.ends)
    shown: set[int] = set()
    targets: set[int] = set()
    for end, source, size in zip(joined.ends, sources, starts, strict=True):
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
