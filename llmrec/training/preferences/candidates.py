"""What may be rejected: one candidate a SID, and none that the row forbids."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from llmrec.errors import InputError
from llmrec.training.preferences.questions import Questions
from llmrec.vocab import SIDVocab


class Candidates:
    """The SIDs of a catalogue as candidates, numbered from 0.

    Items that share a SID are one candidate, for a policy cannot tell them apart.

    Args:
        vocab: the SIDs; retired items are no candidates.
        popularity: ``(items,)`` training counts; None takes those of ``vocab``.
    """

    def __init__(self, vocab: SIDVocab, *, popularity: np.ndarray | None = None) -> None:
        counts = np.asarray(vocab.popularity if popularity is None else popularity, dtype=np.int64)
        _, number = np.unique(vocab.item_token_ids.numpy(), axis=0, return_inverse=True)
        self.sid_of: np.ndarray = number.reshape(-1).astype(np.int64)
        """``(items,)`` int64 number of each item's SID."""
        self.count = int(self.sid_of.max()) + 1
        """How many SIDs there are."""
        there = np.flatnonzero(~np.asarray(vocab.retired))
        # The first one written for a SID stays: the most popular item, then the lowest row.
        order = there[np.lexsort((there, -counts[there]))][::-1]
        self.row_of = np.full(self.count, -1, dtype=np.int64)
        """``(SIDs,)`` int64 the most popular item of each SID; -1 where all are retired."""
        self.row_of[self.sid_of[order]] = order
        self.popularity = np.bincount(self.sid_of[there], weights=counts[there], minlength=self.count)
        """``(SIDs,)`` float64 training interactions with the items of each SID."""

    @cached_property
    def present(self) -> np.ndarray:
        """``(SIDs,)`` bool: which have an item that is not retired."""
        return self.row_of >= 0

    @property
    def shared(self) -> bool:
        """Whether some items share a SID."""
        return self.count < len(self.sid_of)

    def forbidden(self, questions: Questions, *, history: bool = True, taken: np.ndarray | None = None) -> np.ndarray:
        """Return what each row may not get, as rising ``row * SIDs + SID`` keys, none twice.

        Args:
            questions: the rows; their targets are always forbidden.
            history: forbid what the history shows too.
            taken: ``(rows, n)`` items that a row has already, -1 for none.
        """
        rows = np.arange(len(questions))
        keys = [rows * self.count + self.sid_of[questions.targets]]
        if history:
            owners, items = flat_histories(questions.histories)
            keys.append(owners * self.count + self.sid_of[items])
        if taken is not None and taken.size:
            real = taken >= 0
            keys.append((rows[:, None] * self.count + self.sid_of[taken])[real])
        return np.unique(np.concatenate(keys))

    def first_permitted(self, drawn: np.ndarray, forbidden: np.ndarray, *, count: int) -> np.ndarray:
        """Keep the first ``count`` SIDs of each row that are permitted and no repetition.

        Args:
            drawn: ``(rows, width)`` int64 SIDs in order, -1 for none.
            forbidden: keys of `forbidden`.
            count: how many a row keeps.

        Returns:
            ``(rows, count)`` int64 SIDs, -1 where a row has too few.
        """
        rows = np.arange(len(drawn))[:, None]
        keys = (rows * self.count + drawn).ravel()
        usable = (drawn >= 0).ravel()
        usable[usable] = ~_in_rising(keys[usable], forbidden)
        usable[usable] &= self.present[drawn.ravel()[usable]]
        first = np.zeros(len(keys), dtype=bool)
        at = np.flatnonzero(usable)
        first[at[np.unique(keys[at], return_index=True)[1]]] = True
        kept = first.reshape(drawn.shape)
        place = kept.cumsum(axis=1) - 1
        found = np.full((len(drawn), count), -1, dtype=np.int64)
        row, column = np.nonzero(kept & (place < count))
        found[row, place[row, column]] = drawn[row, column]
        return found

    def left(self, forbidden: np.ndarray, *, rows: int) -> np.ndarray:
        """Return ``(rows,)`` int64: how many SIDs each row may get."""
        real = forbidden[self.present[forbidden % self.count]]
        return int(self.present.sum()) - np.bincount(real // self.count, minlength=rows)

    def rows(self, sids: np.ndarray) -> np.ndarray:
        """Return the items of SIDs, -1 where there is none."""
        return np.where(sids >= 0, self.row_of[sids], -1)


def flat_histories(histories: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the row that each item of histories stands in, and the items, both int64, one behind the other."""
    lengths = np.fromiter((len(history) for history in histories), dtype=np.int64, count=len(histories))
    items = np.fromiter((item for history in histories for item in history), dtype=np.int64, count=int(lengths.sum()))
    return np.repeat(np.arange(len(histories)), lengths), items


def refuse_short(found: np.ndarray, questions: Questions, *, source: str, remedy: str) -> None:
    """Raise when a row has fewer items than were asked for.

    Args:
        found: ``(rows, count)``, -1 where there is none.
        questions: the rows.
        source: name of what drew them.
        remedy: what to do about it.

    Raises:
        InputError: it names the row with the fewest.
    """
    counts = (found >= 0).sum(axis=1)
    if len(counts) and int(counts.min()) < found.shape[1]:
        worst = int(counts.argmin())
        short = int((counts < found.shape[1]).sum())
        raise InputError(
            f"negatives: {source}: {questions.name(worst)} has {int(counts[worst])} candidates of the "
            f"{found.shape[1]} asked for, and so have too few {short} of {len(questions)} rows; {remedy}"
        )


def _in_rising(keys: np.ndarray, rising: np.ndarray) -> np.ndarray:
    if not len(rising):
        return np.zeros(len(keys), dtype=bool)
    return rising[np.searchsorted(rising, keys).clip(max=len(rising) - 1)] == keys
