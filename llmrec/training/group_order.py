"""Prompts in an order of seed and epoch alone, groups that stay together, and where a checkpoint may fall."""

from collections.abc import Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from llmrec.errors import InputError


class PromptOrder(Sampler[int]):
    """Prompts of each generation batch, again and again for as many micro-batches as learn from it.

    What is left of an epoch after its last whole generation batch is passed over; the next epoch has another order.

    Args:
        prompts: the training set.
        batch: prompts of a generation batch, over all processes.
        repeats: micro-batches that learn from one generation batch.
        seed: of the order.
        shuffle: False takes the prompts as they stand.

    Raises:
        InputError: fewer prompts than a generation batch has.
    """

    def __init__(self, prompts: Sized, *, batch: int, repeats: int, seed: int, shuffle: bool = True) -> None:
        if len(prompts) < batch:
            raise InputError(
                f"dataset: {len(prompts)} prompts, and a generation batch has {batch} (per_device_train_batch_size x "
                "processes x steps_per_generation / num_generations); lower one of them, or raise prompts"
            )
        self.prompts, self.batch, self.repeats = len(prompts), batch, repeats
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.prompts // self.batch * self.batch * self.repeats

    def __iter__(self) -> Iterator[int]:
        order = torch.arange(self.prompts)
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
            order = torch.randperm(self.prompts, generator=generator)
        for chunk in order.split(self.batch):
            if len(chunk) == self.batch:
                for _ in range(self.repeats):
                    yield from chunk.tolist()


def shuffle_groups(batch: Mapping[str, Any], *, group: int, generator: torch.Generator) -> dict[str, Any]:
    """Return a batch with its groups in a random order; the rows of a group stay together.

    TRL's own shuffle scatters them over micro-batches.

    Args:
        batch: tensors with a row a completion, and tensors without dimensions, which stay.
        group: rows of a group.
        generator: of the order.
    """
    rows = next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim)
    order = torch.randperm(rows // group, generator=generator)
    index = (order[:, None] * group + torch.arange(group)).flatten()
    return {
        name: value[index.to(value.device)] if isinstance(value, Tensor) and value.ndim else value
        for name, value in batch.items()
    }


def check_group_shape(rows: int, *, group: int) -> None:
    """Raise `InputError` where micro-batches would split groups.

    Args:
        rows: completions of a micro-batch (``per_device_train_batch_size``).
        group: ``num_generations``.
    """
    if group < 2:
        raise InputError(f"num_generations: {group}; at least 2, since candidates of a prompt are compared")
    if rows % group:
        below, above = rows // group * group, (rows // group + 1) * group
        choices = " or ".join(str(value) for value in (below, above) if value)
        raise InputError(
            f"per_device_train_batch_size: {rows} completions would split groups of num_generations: {group} over "
            f"micro-batches or processes; set it to {choices} (whole groups; steps_per_generation is free)"
        )


def generation_period(*, accumulation: int, steps_per_generation: int, iterations: int) -> int:
    """Return the optimiser steps from one generation boundary to the next.

    Args:
        accumulation: micro-batches of an optimiser step.
        steps_per_generation: micro-batches that a generation batch is cut into.
        iterations: times that it is learned from.

    Raises:
        InputError: steps and generations that do not fit into one another.
    """
    micro = steps_per_generation * iterations
    if micro % accumulation == 0:
        return micro // accumulation
    if accumulation % micro == 0:
        return 1
    below, above = micro // accumulation * accumulation, (micro // accumulation + 1) * accumulation
    raise InputError(
        f"steps_per_generation: {steps_per_generation} x num_iterations: {iterations} = {micro} micro-batches, and an "
        f"optimiser step has gradient_accumulation_steps: {accumulation}; one must be a multiple of the other, such "
        f"as {' or '.join(str(value) for value in (below, above) if value)} micro-batches"
    )


def check_on_boundary(name: str, steps: float, *, period: int) -> None:
    """Raise `InputError` where checkpoints would fall between generation boundaries.

    Args:
        name: ``save_steps`` or ``eval_steps``.
        steps: its value.
        period: optimiser steps between two boundaries.
    """
    if steps != int(steps) or steps < 1:
        raise InputError(f"{name}: {steps}; give a whole number of steps, a multiple of {period}")
    if int(steps) % period:
        below, above = int(steps) // period * period, (int(steps) // period + 1) * period
        choices = " or ".join(str(value) for value in (below, above) if value)
        raise InputError(
            f"{name}: {int(steps)}; candidates are drawn every {period} steps (steps_per_generation x num_iterations "
            "/ gradient_accumulation_steps), and a run can go on from a checkpoint only where new ones are drawn: set "
            f"{name} to {choices}"
        )
