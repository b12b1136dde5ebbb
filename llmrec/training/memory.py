"""A batch that fits into memory: rows a device halved, accumulation doubled, the effective batch kept."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from accelerate.utils.memory import should_reduce_batch_size

from llmrec.errors import InputError

logger = logging.getLogger(__name__)

LESS_MEMORY = "lower max_history or max_length, or set gradient_checkpointing: true, bf16: true or method: lora"


@dataclass(frozen=True)
class BatchSizes:
    """How a global batch is cut.

    Args:
        rows: ``per_device_train_batch_size``.
        accumulation: ``gradient_accumulation_steps``.
    """

    rows: int
    accumulation: int

    def smaller(self) -> "BatchSizes":
        """Return the next smaller cut of the same global batch: half the rows, or the next divisor below.

        Raises:
            InputError: there is one row already.
        """
        if self.rows == 1:
            raise InputError(
                f"per_device_train_batch_size: 1, and a single row does not fit into memory; {LESS_MEMORY}"
            )
        rows = next(rows for rows in range(self.rows // 2, 0, -1) if self.rows % rows == 0)
        return BatchSizes(rows, self.accumulation * (self.rows // rows))

    def __str__(self) -> str:
        return f"per_device_train_batch_size {self.rows}, gradient_accumulation_steps {self.accumulation}"


@dataclass(frozen=True)
class Halving:
    """One time that the memory ended.

    Args:
        step: optimiser steps done by then.
        before: the cut that did not fit.
        after: the cut that followed.
    """

    step: int
    before: BatchSizes
    after: BatchSizes

    def to_dict(self) -> dict[str, object]:
        """Return what the manifest holds of it."""
        return asdict(self)


class RehearsalFailed(RuntimeError):
    """The heaviest batch did not fit into some process's memory before training began."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ended, on a GPU or in torch's own allocator on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | RehearsalFailed) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    )


def heaviest_batch(order: Sequence[int], lengths: Sequence[int], *, rows: int) -> list[int]:
    """Return the rows of the batch that wants most memory, padded: most rows times longest row, then most tokens.

    Args:
        order: row numbers as an epoch has them.
        lengths: tokens of each row.
        rows: of a batch.
    """
    batches = [list(order[first : first + rows]) for first in range(0, len(order), rows)]

    def weight(batch: list[int]) -> tuple[int, int]:
        tokens = [lengths[row] for row in batch]
        return len(batch) * max(tokens), sum(tokens)

    return max(batches, key=weight)
