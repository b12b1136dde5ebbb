"""Curricula: which training rows come at which step, where tasks start late or stop early."""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainingArguments

from llmrec.errors import InputError
from llmrec.tasks.spec import TaskSpec


class TaskSampler(Sampler[int]):
    """Row numbers in an order in which each step holds rows of the tasks that are drawn at it, and of no other.

    Between two steps at which a task starts or stops, the tasks that are drawn share the rows as their numbers of
    training rows do, to the row. A task's own rows come in a shuffled order, all of them before any comes again. The
    order is made once from the seed for the whole run, by global batch: how many processes or accumulation steps make
    one does not matter, and a run that goes on at some step reads what an uninterrupted one does. Every batch is
    full; an epoch is as many steps as all rows need.

    Args:
        specs: the tasks, in the order of ``tasks``.
        tasks: ``(rows,)`` place of each row's task among the specs; the place behind the last is that of walks, which
            are drawn at every step.
        total_steps: optimiser steps of the whole run.
        batch_size: rows of a step, over all processes and accumulation steps.
        seed: of the order.

    Raises:
        InputError: a step at which no task is drawn, or a task that is drawn at none.

    Paper: the curriculum of LLaRA (Liao et al., 2024) moves from textual to hybrid prompts by a growing probability;
        here tasks start and stop at stated shares of the steps.
    """

    def __init__(
        self,
        specs: Mapping[str, TaskSpec],
        tasks: Sequence[int] | np.ndarray,
        *,
        total_steps: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.tasks = np.asarray(tasks[:], dtype=np.int64)  # [:] reads a column of a dataset at once
        walks = [TaskSpec("walks")] if (self.tasks == len(specs)).any() else []
        self.specs = [*specs.values(), *walks]
        self.total_steps, self.batch_size, self.seed = total_steps, batch_size, seed
        self.epoch = 0
        self.phases = self._phases()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration reads."""
        self.epoch = epoch

    @property
    def steps_per_epoch(self) -> int:
        """Return how many steps make an epoch."""
        return math.ceil(len(self.tasks) / self.batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.batch_size

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * len(self)
        found = self.order[start : start + len(self)]
        # The last epoch of a run may end early; the loader is told the length of a whole one.
        yield from np.concatenate([found, self.order[: len(self) - len(found)]]).tolist()

    def _phases(self) -> list[tuple[int, int, list[int]]]:
        """Return first step, step behind the last, and the tasks drawn between them."""
        spans = []
        for spec in self.specs:
            start, stop = round(spec.start * self.total_steps), round(spec.stop * self.total_steps)
            if start == stop:
                raise InputError(
                    f"tasks: {spec.name} is drawn at no step: its start {spec.start} and stop {spec.stop} are the "
                    f"same of {self.total_steps} steps; move them apart, or leave it out"
                )
            spans.append((start, stop))
        edges = sorted({0, self.total_steps, *(step for span in spans for step in span)})
        phases = []
        for start, stop in pairwise(edges):
            drawn = [number for number, span in enumerate(spans) if span[0] <= start and stop <= span[1]]
            if not drawn:
                raise InputError(
                    f"tasks: none is drawn from step {start} to {stop} of {self.total_steps}; let one start earlier "
                    "or stop later"
                )
            phases.append((start, stop, drawn))
        return phases

    @cached_property
    def order(self) -> np.ndarray:
        """``(total_steps * batch_size,)`` int32 row numbers of the whole run."""
        order = np.empty(self.total_steps * self.batch_size, dtype=np.int32)
        rows = [np.flatnonzero(self.tasks == number) for number in range(len(self.specs))]
        streams = [
            _Stream(own, np.random.default_rng([self.seed, zlib.crc32(spec.name.encode())]))
            for own, spec in zip(rows, self.specs, strict=True)
        ]
        for start, stop, drawn in self.phases:
            slots = (stop - start) * self.batch_size
            counts = _shared_out(slots, [len(rows[number]) for number in drawn])
            rng = np.random.default_rng([self.seed, start])
            whose = rng.permutation(np.repeat(drawn, counts))
            part = order[start * self.batch_size : stop * self.batch_size]
            for number, count in zip(drawn, counts, strict=True):
                part[whose == number] = streams[number].take(count)
        return order


class _Stream:
    """A task's rows without end, in one shuffled order after another."""

    def __init__(self, rows: np.ndarray, rng: np.random.Generator) -> None:
        self.rows, self.rng = rows, rng
        self.left = rows[:0]

    def take(self, count: int) -> np.ndarray:
        parts, missing = [], count
        while missing:
            if not len(self.left):
                self.left = self.rng.permutation(self.rows)
            parts.append(self.left[:missing])
            self.left = self.left[missing:]
            missing -= len(parts[-1])
        return np.concatenate([self.rows[:0], *parts])


def _shared_out(slots: int, sizes: Sequence[int]) -> list[int]:
    """Return whole shares of ``slots`` that follow sizes, by the largest remainder."""
    exact = [slots * size / sum(sizes) for size in sizes]
    counts = [int(share) for share in exact]
    order = sorted(range(len(sizes)), key=lambda place: counts[place] - exact[place])
    for place in order[: slots - sum(counts)]:
        counts[place] += 1
    return counts


def sampler_of(
    specs: Mapping[str, TaskSpec], tasks: Sequence[int], training: TrainingArguments, *, processes: int
) -> TaskSampler | None:
    """Return the sampler of a run's curriculum, None where every task is drawn at every step.

    Args:
        specs: the tasks, in the order of ``tasks``.
        tasks: ``(rows,)`` place of each row's task; walks have the place behind the last.
        training: steps or epochs, batch size, accumulation and seed.
        processes: of the launch.

    Raises:
        InputError: as `TaskSampler`.
    """
    if all(spec.always for spec in specs.values()):
        return None
    batch_size = training.per_device_train_batch_size * training.gradient_accumulation_steps * processes
    epoch = math.ceil(len(tasks) / batch_size)
    total = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * epoch)
    seed = training.seed if training.data_seed is None else training.data_seed
    return TaskSampler(specs, tasks, total_steps=total, batch_size=batch_size, seed=seed)
