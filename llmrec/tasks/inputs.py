"""What lies beside catalogue and histories for tasks: ratings, reviews and written texts, never a held-out one."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from llmrec.data.folder import DatasetFolder
from llmrec.data.interactions import Interactions
from llmrec.data.splits import SPLIT_NAMES, Splits
from llmrec.data.written_texts import WrittenTexts, load_written_texts, written_path
from llmrec.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Moment:
    """One interaction that examples may be about.

    Args:
        row: its row in `TaskInputs.interactions`.
        user: the user's number.
        position: how many interactions of the user came before, in the whole dataset.
        history: item rows of the visible interactions before it, oldest first; empty for a user's first.
        item: the item row taken.
    """

    row: int
    user: int
    position: int
    history: tuple[int, ...]
    item: int


@dataclass(frozen=True)
class TaskInputs:
    """What a task may see beside catalogue and training rows.

    Args:
        folder: the dataset folder, or None where there is none.
        interactions: the visible interactions: the training ones, and, where another split is asked for, what that
            split's histories show and its own targets.
        positions: ``(interactions,)`` how many interactions of the user came before, in the whole dataset.
        about: ``(interactions,)`` bool: which of them examples may be about; all of them in training.
        read_written: reads the written texts of a kind and checks them against the whole dataset.
        split: whose targets ``about`` marks.
    """

    folder: Path | None
    interactions: Interactions = field(repr=False)
    positions: np.ndarray = field(repr=False)
    about: np.ndarray = field(repr=False)
    read_written: Callable[[str], WrittenTexts] = field(repr=False)
    split: str = "train"

    @classmethod
    def of(cls, dataset: DatasetFolder, splits: Splits, *, split: str = "train") -> "TaskInputs":
        """Return what tasks may see of a dataset under a protocol.

        Args:
            dataset: the dataset folder.
            splits: its rows.
            split: ``train``, or ``valid`` or ``test`` to evaluate a task on that split's targets.

        Raises:
            InputError: another split, or nothing to see.
        """
        if split not in SPLIT_NAMES:
            raise InputError(f"split {split!r} of task inputs: choose one of {', '.join(SPLIT_NAMES)}")
        whole = dataset.interactions
        parts = _published_parts(whole, splits) if splits.parts is None else splits.parts
        about = parts == SPLIT_NAMES.index(split)
        # A history of validation holds nothing of test; that of test may hold validation targets.
        visible = about
        if split != "train":
            visible = (parts != SPLIT_NAMES.index("test")) | (split == "test")
        positions = np.arange(len(whole)) - whole.user_starts()[whole.users]
        read = partial(load_written_texts, dataset.path, interactions=whole, item_ids=dataset.catalog.item_ids)
        return cls(dataset.path, whole.keep(visible), positions[visible], about[visible], read, split)

    def moments(self, *, history: int | None = None) -> Iterator[Moment]:
        """Yield the interactions that examples may be about, by user and time.

        Args:
            history: most recent items that a moment's history keeps; None keeps all.
        """
        starts = self.interactions.user_starts()
        items, users = self.interactions.items.tolist(), self.interactions.users.tolist()
        positions = self.positions.tolist()
        for row in np.flatnonzero(self.about).tolist():
            start = int(starts[users[row]])
            start = start if history is None else max(start, row - history)
            yield Moment(row, users[row], positions[row], tuple(items[start:row]), items[row])

    def ratings(self) -> np.ndarray:
        """Return ``(interactions,)`` float32 ratings.

        Raises:
            InputError: the dataset has none.
        """
        if self.interactions.ratings is None:
            raise InputError(f"{self.folder}: interactions.parquet has no column 'rating'")
        return self.interactions.ratings

    def texts(self, column: str) -> list[str]:
        """Return ``(interactions,)`` texts of a column, empty where there is none.

        Raises:
            InputError: the dataset has no such column.
        """
        if column not in self.interactions.texts:
            there = ", ".join(self.interactions.texts) or "no text columns"
            raise InputError(f"{self.folder}: interactions.parquet has no column {column!r}; it has {there}")
        return self.interactions.texts[column].to_pylist()

    def has_file(self, kind: str) -> bool:
        """Return whether the folder holds written texts of a kind."""
        return self.folder is not None and written_path(self.folder, kind).is_file()

    def written(self, kind: str, *, history: int | None = None) -> Iterator[tuple[Moment, str]]:
        """Yield the moments that written texts are about, with each text, by user and time.

        ``intentions``, ``explanations`` and ``rationales`` are about the interaction at their position. A preference
        was written from the interactions before its position, so it serves the moments from there to the user's next
        preference. A text whose writer saw an interaction that is held out here serves no moment.

        Args:
            kind: a kind of `llmrec.data.written_texts.KINDS`.
            history: most recent items that a moment's history keeps; None keeps all.

        Raises:
            InputError: no such file, or one that does not fit the dataset.
        """
        if self.folder is None:
            raise InputError(f"{kind}: there is no dataset folder to read {kind}.parquet from")
        found = self.read_written(kind)
        by_user: dict[int, dict[int, list[str]]] = {}
        for user, position, text in zip(found.users.tolist(), found.positions.tolist(), found.texts, strict=True):
            by_user.setdefault(user, {}).setdefault(position, []).append(text)
        served = 0
        for moment in self.moments(history=history):
            texts = by_user.get(moment.user, {})
            place = moment.position
            if kind == "preferences":
                place = max((position for position in texts if position <= place), default=-1)
            for text in texts.get(place, ()):
                served += 1
                yield moment, text
        logger.info("%s.parquet: %d texts, %d examples about the %s split", kind, len(found), served, self.split)


def given(inputs: TaskInputs | None, task: str) -> TaskInputs:
    """Return what a task was given to see.

    Raises:
        InputError: nothing.
    """
    if inputs is None:
        raise InputError(
            f"tasks: {task} reads ratings or texts of a dataset folder, and was given none; hand "
            "TaskInputs.of(dataset, splits) to the mixture"
        )
    return inputs


def _published_parts(whole: Interactions, splits: Splits) -> np.ndarray:
    """Say which split of published rows each interaction belongs to.

    A user's item that is a held-out target once is held out at every place, for rows of items do not say which it was.
    """
    items = int(whole.items.max()) + 1
    keys = whole.users * items + whole.items
    parts = np.full(len(whole), -1, dtype=np.int8)
    for number, name in enumerate(SPLIT_NAMES):
        rows = getattr(splits, name)
        shown = {row.user * items + item for row in rows for item in (row.items if name == "train" else ())}
        shown |= {row.user * items + row.target for row in rows}
        parts[np.isin(keys, np.fromiter(shown, dtype=np.int64))] = number
    return parts
