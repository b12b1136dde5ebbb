"""A trainer of the steady kind around a tiny model, for tests of what all trainers share."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from llmrec.training.steady import SteadyTrainer


class KitTrainer(SteadyTrainer):
    """The stock loss of a causal model, summed and divided by the labels of the global batch."""

    task_names = ("next_item", "sid_to_title")


def kit_rows(count: int = 22) -> Dataset:
    """Rows of 4 to 10 tokens below 60, the first two without labels."""
    rows = []
    for row in range(count):
        ids = [(7 * row + 3 * place) % 60 for place in range(4 + row % 7)]
        rows.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]], "task": row % 2})
    return Dataset.from_list(rows)


def pad(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A padded batch."""
    rows = [{**row, "mask": [1] * len(row["input_ids"])} for row in rows]
    longest = max(len(row["mask"]) for row in rows)

    def fill(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    return {"input_ids": fill("input_ids", 0), "labels": fill("labels", -100), "attention_mask": fill("mask", 0)}


def kit_trainer(
    model: PreTrainedModel, path: Path, *, kind: type[KitTrainer] = KitTrainer, rows: Dataset | None = None,
    callbacks: list[Any] | None = None, find_batch_size: bool = False, manifest: dict[str, Any] | None = None,
    **settings: Any,
) -> KitTrainer:  # fmt: skip
    """Build a trainer that logs every step and keeps everything on the CPU."""
    defaults = {
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 0, "save_strategy": "no",
        "logging_nan_inf_filter": False, "lr_scheduler_type": "constant", "remove_unused_columns": False,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(path), **{**defaults, **settings})
    return kind(
        model=model,
        args=arguments,
        train_dataset=kit_rows() if rows is None else rows,
        eval_dataset=kit_rows(4),
        data_collator=pad,
        callbacks=callbacks,
        find_batch_size=find_batch_size,
        manifest=manifest,
    )


def losses_of(trainer: SteadyTrainer) -> list[float]:
    """The logged losses, step by step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
