"""The order of training rows: a matter of seed, epoch and global batch alone, whatever the number of processes."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from llmrec.errors import InputError
from llmrec.training.collator import IGNORED

STRATEGIES = ("random", "group_by_length", "sequential")


class EpochOrder(Sampler[int]):
    """Every row once an epoch, in an order that seed and epoch decide.

    The samplers of transformers draw from the process's own random state (``group_by_length``) or group by the batch
    of one process: with dropout, or after a resume, processes would disagree about the order, and a run that goes on
    with another number of processes would see other batches.

    Args:
        lengths: tokens of each row.
        strategy: ``random``, ``group_by_length`` (like lengths side by side) or ``sequential``.
        batch: rows of a global batch, by which lengths are grouped.
        seed: of the order.

    Raises:
        InputError: another strategy.
    """

    def __init__(self, lengths: Sequence[int], *, strategy: str, batch: int, seed: int) -> None:
        if strategy not in STRATEGIES:
            raise InputError(f"train_sampling_strategy: {strategy!r}; choose one of {', '.join(STRATEGIES)}")
        self.lengths, self.strategy, self.batch, self.seed = lengths, strategy, batch, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration orders."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.strategy == "sequential":
            yield from range(len(self.lengths))
        elif self.strategy == "random":
            yield from torch.randperm(len(self.lengths), generator=generator).tolist()
        else:
            yield from get_length_grouped_indices(self.lengths, self.batch, generator=generator)


class WholeRounds(Sampler[int]):
    """Another sampler's rows, then an idle row as often as it takes to give every process a full last batch.

    accelerate would fill the last batches with rows from the epoch's start, which then count twice.

    Args:
        rows: the sampler.
        size: rows of a batch times processes.
        idle: number of the row without labels.
    """

    def __init__(self, rows: Sampler[int], *, size: int, idle: int) -> None:
        self.rows, self.size, self.idle = rows, size, idle

    def set_epoch(self, epoch: int) -> None:
        """Hand the epoch on."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.size) * self.size  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        given = 0
        for row in self.rows:
            yield row
            given += 1
        yield from [self.idle] * (-given % self.size)


def rows_of_step(sampler: Sampler[int], step: int, *, batch: int) -> list[int]:
    """Return the rows of an optimiser step, as the sampler gives them in that step's epoch.

    Args:
        sampler: with a length, and ``set_epoch`` where epochs differ.
        step: counted from 0.
        batch: rows of a global batch.
    """
    steps = max(math.ceil(len(sampler) / batch), 1)  # type: ignore[arg-type]
    before = getattr(sampler, "epoch", 0)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(step // steps)  # type: ignore[attr-defined]
    first = step % steps * batch
    rows = list(sampler)[first : first + batch]
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(before)  # type: ignore[attr-defined]
    return rows


def with_idle_rows(rows: Dataset, count: int = 1) -> Dataset:
    """Return rows with some more at the end: two tokens long, without labels."""
    if not count:
        return rows
    first: dict[str, Any] = rows[0]
    idle = {name: value[:2] if isinstance(value, list) else value for name, value in first.items()}
    idle["labels"] = [IGNORED] * len(idle["labels"])
    return concatenate_datasets([rows, Dataset.from_list([idle] * count, features=rows.features)])
