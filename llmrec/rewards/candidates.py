"""What items completions stand for, and whether they hit."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from llmrec.errors import InputError
from llmrec.vocab import SIDVocab


@dataclass(frozen=True)
class Candidates:
    """The SIDs at the end of completions.

    Args:
        token_ids: ``(candidates, levels)`` int64 SID tokens, -1 behind a shorter SID, and everywhere where a
            completion holds none, or more in a row than a SID has.
        vocab: the SIDs.
    """

    token_ids: np.ndarray
    vocab: SIDVocab = field(repr=False)

    def __len__(self) -> int:
        return len(self.token_ids)

    @cached_property
    def rows(self) -> np.ndarray:
        """``(candidates,)`` int64 item rows: of items that share a SID the most popular; -1 where no item has it."""
        found = (self.vocab.rows([token for token in row if token >= 0]) for row in self.token_ids.tolist())
        return np.array([rows[0] if rows else -1 for rows in found], dtype=np.int64)

    @cached_property
    def sharers(self) -> np.ndarray:
        """``(candidates,)`` int64: items that have the SID; 0 where none has."""
        rows = (self.vocab.rows([token for token in row if token >= 0]) for row in self.token_ids.tolist())
        return np.array([len(found) for found in rows], dtype=np.int64)

    def matches(self, targets: np.ndarray) -> np.ndarray:
        """Return ``(candidates, levels)`` bool: whether the codes up to each level are those of the target.

        Args:
            targets: ``(candidates,)`` item rows.
        """
        wanted = self.vocab.item_token_ids.numpy()[targets]
        return np.logical_and.accumulate(self.token_ids == wanted, axis=1) & (self.token_ids[:, :1] >= 0)

    def hits(self, targets: np.ndarray) -> np.ndarray:
        """Return ``(candidates,)`` bool: whether the target is among the items of the SID.

        Args:
            targets: ``(candidates,)`` item rows.
        """
        return self.matches(targets)[:, -1]


def read_candidates(completion_ids: Sequence[Sequence[int]], vocab: SIDVocab) -> Candidates:
    """Return the items that completions name: by their last SID tokens in a row.

    So an end token, padding, or words before a SID do not matter.

    Args:
        completion_ids: token ids of each completion.
        vocab: the SIDs.
    """
    known = frozenset(vocab.trainable_token_indices)
    found = np.full((len(completion_ids), vocab.levels), -1, dtype=np.int64)
    for number, ids in enumerate(completion_ids):
        start, stop = last_sid(ids, known)
        if stop - start <= vocab.levels:
            found[number, : stop - start] = ids[start:stop]
    return Candidates(found, vocab)


def last_sid(ids: Sequence[int], known: frozenset[int]) -> tuple[int, int]:
    """Return where the last SID tokens in a row of a completion begin and end; equal where it has none.

    Args:
        ids: of the completion.
        known: ids of all SID tokens.
    """
    stop = len(ids)
    while stop and ids[stop - 1] not in known:
        stop -= 1
    start = stop
    while start and ids[start - 1] in known:
        start -= 1
    return start, stop


def read_targets(target: Sequence[int] | None, candidates: Candidates, *, reward: str) -> np.ndarray:
    """Return ``(candidates,)`` int64 target rows.

    Args:
        target: the column ``target``.
        candidates: of the same completions.
        reward: which asks, for the error message.

    Raises:
        InputError: no such column, another length, or what is no row of the SID table.
    """
    if target is None:
        raise InputError(f"reward {reward}: the dataset has no column 'target'; give each prompt the row of its item")
    if len(target) != len(candidates):
        raise InputError(f"reward {reward}: {len(target)} targets for {len(candidates)} completions; give as many")
    items = len(candidates.vocab)
    for number, row in enumerate(target):
        if isinstance(row, bool) or not isinstance(row, int | np.integer) or not 0 <= row < items:
            raise InputError(
                f"reward {reward}: target {row!r} in row {number} is not in the SID table, whose rows are 0 to "
                f"{items - 1}; targets are item rows"
            )
    return np.asarray(target, dtype=np.int64)
