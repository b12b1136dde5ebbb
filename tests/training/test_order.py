"""The order of rows: whole epochs, the same for any number of processes, none counted twice."""

import math

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from llmrec.errors import InputError
from llmrec.training.order import EpochOrder, WholeRounds, rows_of_step, with_idle_rows


def in_epoch(order: EpochOrder, epoch: int) -> list[int]:
    order.set_epoch(epoch)
    return list(order)


@pytest.mark.parametrize("strategy", ["random", "group_by_length", "sequential"])
def test_every_row_comes_once_an_epoch_and_randomness_outside_does_not_matter(strategy: str) -> None:
    lengths = [5 + row * 7 % 11 for row in range(50)]
    order = EpochOrder(lengths, strategy=strategy, batch=4, seed=3)
    first = in_epoch(order, 0)
    assert sorted(first) == list(range(50))
    with torch.random.fork_rng():
        torch.rand(7)  # a process that drew dropout
        assert in_epoch(EpochOrder(lengths, strategy=strategy, batch=4, seed=3), 0) == first
    assert (in_epoch(order, 1) == first) == (strategy == "sequential")
    assert in_epoch(order, 0) == first


def test_random_order_is_the_one_that_accelerate_draws() -> None:
    """So that runs before this order existed are run again with the same batches."""
    theirs = SeedableRandomSampler(range(40), data_seed=7)  # type: ignore[arg-type]
    order = EpochOrder([1] * 40, strategy="random", batch=4, seed=7)
    for epoch in (0, 1, 5):
        theirs.set_epoch(epoch)
        assert in_epoch(order, epoch) == list(theirs)


def test_like_lengths_stand_side_by_side() -> None:
    lengths = torch.randint(5, 100, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    order = in_epoch(EpochOrder(lengths, strategy="group_by_length", batch=8, seed=0), 0)
    assert max(lengths) == lengths[order[0]], "the longest first, so that memory ends at once or never"
    spread = [
        max(found) - min(found)
        for first in range(8, 400, 8)
        if (found := [lengths[r] for r in order[first : first + 8]])
    ]
    assert sum(spread) / len(spread) < 20, "within a batch of 8; shuffled it would be about 74 of 95"


def test_another_strategy_is_refused() -> None:
    with pytest.raises(InputError, match="train_sampling_strategy: 'batch_rebalance'; choose one of random, group_by"):
        EpochOrder([1], strategy="batch_rebalance", batch=1, seed=0)


@given(rows=st.integers(1, 60), batch=st.integers(1, 5), processes=st.integers(1, 4))
def test_whole_rounds_add_idle_rows_and_nothing_else(rows: int, batch: int, processes: int) -> None:
    order = EpochOrder([1] * rows, strategy="random", batch=batch * processes, seed=0)
    rounds = WholeRounds(order, size=batch * processes, idle=rows)
    found = list(rounds)
    assert len(found) == len(rounds) == math.ceil(rows / (batch * processes)) * batch * processes
    assert [row for row in found if row != rows] == list(order)
    assert found[rows:] == [rows] * (len(found) - rows)


def test_rows_of_a_step_are_found_again() -> None:
    order = EpochOrder([1] * 10, strategy="random", batch=4, seed=1)
    first, second = in_epoch(order, 0), in_epoch(order, 1)
    order.set_epoch(1)
    assert rows_of_step(order, 0, batch=4) == first[:4]
    assert rows_of_step(order, 2, batch=4) == first[8:], "three steps make an epoch of 10 rows"
    assert rows_of_step(order, 4, batch=4) == second[4:8]
    assert order.epoch == 1, "left as it was"


def test_the_idle_row_has_no_label() -> None:
    rows = Dataset.from_list(
        [
            {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "task": 1},
            {"input_ids": [4, 5], "labels": [4, 5], "task": 0},
        ]
    )
    found = with_idle_rows(rows)
    assert len(found) == 3
    assert found[2] == {"input_ids": [1, 2], "labels": [-100, -100], "task": 1}
    assert found[1] == rows[1]
