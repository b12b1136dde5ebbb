"""The candidates of a prompt, side by side: the shape in which group rewards see them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec.errors import InputError


def check_groups(count: int, num_generations: int, *, reward: str, prompts: Sequence[Any] | None = None) -> int:
    """Return how many whole groups a process sees.

    Args:
        count: completions.
        num_generations: candidates in a group.
        reward: which asks, for the error message.
        prompts: of the completions, in order; None does not compare them.

    Raises:
        InputError: a group is split over processes or batches, or its rows do not stand together.
    """
    groups, left = divmod(count, num_generations)
    if left or not groups:
        fits = [number * num_generations for number in (groups, groups + 1) if number]
        raise InputError(
            f"reward {reward}: it compares the candidates of a group, and a process sees {count} completions, so a "
            f"group of num_generations {num_generations} is split; per_device_train_batch_size times "
            f"gradient_accumulation_steps (or steps_per_generation) must be a multiple of {num_generations}: "
            f"{' or '.join(map(str, fits))}"
        )
    if prompts is not None:
        for row, prompt in enumerate(prompts):
            first = row - row % num_generations
            if prompt != prompts[first]:
                raise InputError(
                    f"reward {reward}: rows {first} and {row} stand in one group of num_generations "
                    f"{num_generations} and have different prompts; keep the candidates of a prompt together"
                )
    return groups


def by_group(values: np.ndarray, num_generations: int) -> np.ndarray:
    """Return ``(candidates, ...)`` values as ``(groups, candidates of a group, ...)``."""
    return values.reshape(-1, num_generations, *values.shape[1:])


def read_ranks(rank: Sequence[int] | None, count: int, *, reward: str) -> np.ndarray:
    """Return ``(candidates,)`` int64 places of the candidates in their groups, 0 for the one that came first.

    Args:
        rank: the column ``rank``.
        count: completions.
        reward: which asks, for the error message.

    Raises:
        InputError: no such column, another length, or a rank that is no whole number of at least 0.
    """
    if rank is None:
        raise InputError(
            f"reward {reward}: there is no column 'rank', the place of a candidate in its group; llmrec's rollouts "
            "give it, plain generation does not"
        )
    if len(rank) != count:
        raise InputError(f"reward {reward}: {len(rank)} ranks for {count} completions; give as many")
    for row, place in enumerate(rank):
        if isinstance(place, bool) or not isinstance(place, int | np.integer) or place < 0:
            raise InputError(f"reward {reward}: rank {place!r} in row {row}; give a whole number from 0")
    return np.asarray(rank, dtype=np.int64)
