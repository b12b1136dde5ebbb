"""Curricula by step: which rows, in which order, in how many processes, and after a kill."""

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler
from transformers import TrainingArguments

from llmrec.errors import InputError
from llmrec.tasks.spec import TaskSpec, parse_tasks
from llmrec.training.steady import SteadyTrainer
from llmrec.training.task_sampler import TaskSampler, sampler_of

TASKS = np.array([0] * 30 + [1] * 10 + [2] * 20)


def sampler(tasks: dict, *, steps: int = 20, batch: int = 6, seed: int = 0, rows: np.ndarray = TASKS) -> TaskSampler:
    return TaskSampler(parse_tasks(tasks), rows, total_steps=steps, batch_size=batch, seed=seed)


TEXT_FIRST = {"text": {"stop": 0.5}, "both": 1.0, "sids": {"start": 0.5}}


def test_a_step_holds_rows_of_the_tasks_that_are_drawn_at_it() -> None:
    """60 slots in each half: 30 and 10 rows share the first as 45 and 15, 10 and 20 the second as 20 and 40."""
    drawn = TASKS[sampler(TEXT_FIRST).order]
    assert np.bincount(drawn[:60], minlength=3).tolist() == [45, 15, 0]
    assert np.bincount(drawn[60:], minlength=3).tolist() == [0, 20, 40]


def test_walks_are_drawn_at_every_step() -> None:
    """Their place is behind the last task's. 60 slots in each half: 30 and 30 rows share the first evenly; the second
    is of 20 and 30 rows."""
    rows = np.repeat([0, 1, 2], [30, 20, 30])
    drawn = rows[sampler({"text": {"stop": 0.5}, "sids": {"start": 0.5}}, rows=rows).order]
    assert np.bincount(drawn[:60], minlength=3).tolist() == [30, 0, 30]
    assert np.bincount(drawn[60:], minlength=3).tolist() == [0, 24, 36]
    alone = rows[sampler({"text": {"stop": 0.5}, "sids": {"start": 0.8}}, rows=rows).order]
    assert set(alone[60:96]) == {2}


def test_all_rows_of_a_task_come_before_any_comes_again() -> None:
    order = sampler(TEXT_FIRST).order
    text = order[TASKS[order] == 0]  # 45 of 30 rows
    assert sorted(text[:30]) == list(range(30))
    assert len(set(text[30:])) == 15
    both = order[TASKS[order] == 1]  # 15 + 20 of 10 rows: the order goes on over the edge
    assert sorted(both[10:20]) == sorted(both[:10]) == list(range(30, 40))


def test_the_order_depends_on_the_seed_alone() -> None:
    assert np.array_equal(sampler(TEXT_FIRST).order, sampler(TEXT_FIRST).order)
    assert not np.array_equal(sampler(TEXT_FIRST).order, sampler(TEXT_FIRST, seed=1).order)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=2, max_size=4),
    steps=st.integers(10, 30),
    batch=st.integers(1, 7),
    edge=st.sampled_from([0.3, 0.5, 0.8]),
)
def test_shares_are_exact_to_the_row(sizes: list[int], steps: int, batch: int, edge: float) -> None:
    rows = np.repeat(np.arange(len(sizes)), sizes)
    specs = {f"t{number}": 1.0 for number in range(len(sizes))} | {"t0": {"stop": edge}}
    found = sampler(specs, steps=steps, batch=batch, rows=rows)
    first = round(edge * steps) * batch
    drawn = rows[found.order]
    for part, active in ((drawn[:first], range(len(sizes))), (drawn[first:], range(1, len(sizes)))):
        total = sum(sizes[number] for number in active)
        for number in range(len(sizes)):
            share = len(part) * sizes[number] / total if number in active else 0.0
            assert abs((part == number).sum() - share) < 1.0


def test_epochs_read_the_order_on() -> None:
    found = sampler(TEXT_FIRST)  # 60 rows, 6 a step: 10 steps an epoch
    assert (len(found), found.steps_per_epoch) == (60, 10)
    assert list(found) == found.order[:60].tolist()
    found.set_epoch(1)
    assert list(found) == found.order[60:].tolist()


def test_the_rows_of_a_step_do_not_depend_on_processes() -> None:
    found = sampler(TEXT_FIRST)
    shards = [
        list(BatchSamplerShard(BatchSampler(found, 3, drop_last=False), num_processes=2, process_index=index))
        for index in range(2)
    ]
    steps = [sorted(one + other) for one, other in zip(*shards, strict=True)]
    assert steps == [sorted(found.order[6 * step : 6 * step + 6].tolist()) for step in range(10)]


class Reader(torch.nn.Module):
    """Keeps the rows that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, row: torch.Tensor, **kwargs: object) -> dict[str, torch.Tensor]:
        self.seen.extend(row.tolist())
        return {"loss": self.weight * row.float().mean()}


def rows_read(tmp_path, resume: str | None = None, **changes: object) -> list[int]:
    values = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2,
        "max_steps": 20, "save_steps": 13, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "remove_unused_columns": False, "dataloader_pin_memory": False, "seed": 0,
    }  # fmt: skip
    args = TrainingArguments(**{**values, **changes})
    model = Reader()
    rows = Dataset.from_dict({"row": range(len(TASKS)), "input_ids": [[1]] * len(TASKS)})
    order = sampler_of(parse_tasks(TEXT_FIRST), TASKS.tolist(), args, processes=1)
    trainer = SteadyTrainer(model, args, train_dataset=rows, sampler=order)
    trainer.train(resume_from_checkpoint=resume)
    return model.seen


def test_the_trainer_reads_the_order_and_goes_on_in_the_middle_of_an_epoch(tmp_path) -> None:
    order = sampler(TEXT_FIRST).order.tolist()
    assert rows_read(tmp_path) == order
    resumed = rows_read(tmp_path, resume=str(tmp_path / "checkpoint-13"))
    assert resumed == order[13 * 6 :]


def test_a_run_counted_in_epochs_has_the_same_steps(tmp_path) -> None:
    changes = {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "no"}
    assert rows_read(tmp_path, **changes) == sampler(TEXT_FIRST).order.tolist()


def test_no_sampler_without_a_curriculum() -> None:
    args = TrainingArguments(output_dir="x", report_to="none", use_cpu=True)
    assert sampler_of(parse_tasks({"a": 1.0, "b": {"weight": 2.0}}), [0, 1], args, processes=1) is None


def test_refusals() -> None:
    with pytest.raises(InputError, match="tasks: none is drawn from step 10 to 16 of 20; let one start earlier"):
        sampler({"a": {"stop": 0.5}, "b": {"start": 0.8}, "c": {"start": 0.9}})
    with pytest.raises(InputError, match=r"tasks: a is drawn at no step: its start 0.5 and stop 0.51 .* of 20 steps"):
        sampler({"a": {"start": 0.5, "stop": 0.51}, "b": 1.0, "c": 1.0})
    with pytest.raises(InputError, match=r"tasks: a starts at 0.5 and stops at 0.5; stop lies behind start"):
        TaskSpec("a", start=0.5, stop=0.5)
