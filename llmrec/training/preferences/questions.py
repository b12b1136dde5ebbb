"""The training rows that preferences are made for, as arrays."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.training.chosen_rows import choose_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Questions:
    """Training rows that get rejected items.

    Args:
        histories: item rows before each target, oldest first, as the prompt shows them.
        targets: ``(rows,)`` int64 items that were taken.
        numbers: ``(rows,)`` int64 number of each row among all training rows; what is drawn for a row depends on it
            and the seed, not on what else is drawn or by how many processes.
        users: ``(rows,)`` int64 user numbers.
    """

    histories: Sequence[Sequence[int]] = field(repr=False)
    targets: np.ndarray = field(repr=False)
    numbers: np.ndarray = field(repr=False)
    users: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def of(cls, rows: Sequence[History], *, numbers: np.ndarray | None = None) -> Self:
        """Return training rows as questions.

        Args:
            rows: training rows alone, so that nothing of validation or test is learned.
            numbers: of the rows among all training rows; None takes those of ``rows`` itself.
        """
        found = np.arange(len(rows)) if numbers is None else np.asarray(numbers, dtype=np.int64)
        return cls(
            [row.items for row in rows],
            np.fromiter((row.target for row in rows), dtype=np.int64, count=len(rows)),
            found,
            np.fromiter((row.user for row in rows), dtype=np.int64, count=len(rows)),
        )

    def take(self, places: np.ndarray) -> Self:
        """Return the questions at some places, in their order."""
        chosen = np.asarray(places, dtype=np.int64)
        histories = [self.histories[place] for place in chosen.tolist()]
        return type(self)(histories, self.targets[chosen], self.numbers[chosen], self.users[chosen])

    def name(self, place: int) -> str:
        """Return what an error calls a row."""
        return f"training row {int(self.numbers[place])} (user {int(self.users[place])})"


def choose_questions(
    rows: Sequence[History],
    *,
    prompts: int = 0,
    seed: int = 0,
    start: int = 0,
    targets: str = "all",
    retired: np.ndarray | None = None,
) -> Questions:
    """Return the rows that `choose_rows` draws, in the order of the data.

    Args:
        rows: all training rows.
        prompts: as `choose_rows`.
        seed: as `choose_rows`.
        start: as `choose_rows`.
        targets: as `choose_rows`.
        retired: as `choose_rows`.

    Raises:
        InputError: no row is left, or a negative number.
    """
    if prompts < 0 or start < 0:
        raise InputError(f"prompts: {prompts}; 0 takes all training rows, another number so many")
    kept, gone = choose_rows(rows, prompts=prompts, seed=seed, start=start, targets=targets, retired=retired)
    if gone:
        logger.info("%d training rows are left out: their target is retired", gone)
    if not len(kept):
        raise InputError("preferences: there is no training row to make them for; give another dataset or protocol")
    return Questions.of([rows[place] for place in kept.tolist()], numbers=kept)
