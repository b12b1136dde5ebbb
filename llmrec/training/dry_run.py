"""What a run will cost, before anything is spent: parameters, memory, tokens, steps, and time from a few steps."""

import copy
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from llmrec.artifacts import write_json
from llmrec.training.config import SFTRecipeConfig
from llmrec.training.memory import heaviest_batch
from llmrec.training.order import IGNORED
from llmrec.training.steady import SteadyTrainer

WARM_UP, MEASURED = 2, 6
"""Steps run before the clock counts, and steps that it counts."""

PATIENCE = 90.0
"""Seconds after which no further step is begun once one was measured."""

SAMPLED = 64
"""Batches of the first epoch that are laid out to see how full they are."""


@dataclass(frozen=True)
class Parameters:
    """A group of parameters.

    Args:
        name: ``embeddings``, ``head``, ``SID rows``, ``LoRA`` or ``layers``.
        all: numbers in it.
        trained: numbers that train.
    """

    name: str
    all: int
    trained: int


@dataclass(frozen=True)
class TaskRows:
    """A task's share of the training set.

    Args:
        name: of the task.
        rows: token rows.
        tokens: of its rows, prompts and answers.
        labels: tokens that are learned.
    """

    name: str
    rows: int
    tokens: int
    labels: int


@dataclass(frozen=True)
class DryRun:
    """What a run will cost.

    Args:
        parameters: by group.
        memory: bytes on this process: ``weights``, ``gradients``, ``optimiser``, ``activations`` (what the backward
            pass of the heaviest batch keeps) and, on a GPU, ``peak`` as it was measured.
        tasks: the training set by task.
        rows_per_device: of a batch, as they will be (halved where memory ended).
        accumulation: batches of a step.
        processes: of the launch.
        filled: share of a batch's places that hold a token and no padding.
        steps: of the run.
        steps_per_epoch: of the first epoch.
        measured_steps: on which the time rests.
        seconds_per_step: mean.
        device: where it was measured.
    """

    parameters: tuple[Parameters, ...]
    memory: dict[str, int]
    tasks: tuple[TaskRows, ...]
    rows_per_device: int
    accumulation: int
    processes: int
    filled: float
    steps: int
    steps_per_epoch: int
    measured_steps: int
    seconds_per_step: float
    device: str

    @property
    def seconds(self) -> float:
        """Time of all steps, without evaluations and checkpoints."""
        return self.steps * self.seconds_per_step

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--dry_run_json`` writes."""
        return {**asdict(self), "seconds": self.seconds}

    def table(self) -> str:
        """Return it as text to read."""
        lines = ["", f"{'parameters':<28}{'all':>16}{'trained':>16}"]
        total = Parameters("all", *(sum(getattr(g, f) for g in self.parameters) for f in ("all", "trained")))
        lines += [f"  {group.name:<26}{group.all:>16,}{group.trained:>16,}" for group in (*self.parameters, total)]
        lines += ["", f"{'memory of a process':<28}{'':>16}{'MiB':>16}"]
        known = {"all of these": sum(size for name, size in self.memory.items() if name != "peak")}
        for name, size in {**self.memory, **known}.items():
            lines.append(f"  {name:<42}{size / 2**20:>16,.1f}")
        lines += ["", f"{'training set':<28}{'rows':>16}{'tokens':>16}{'labels':>16}"]
        for task in self.tasks:
            lines.append(f"  {task.name:<26}{task.rows:>16,}{task.tokens:>16,}{task.labels:>16,}")
        batch = self.rows_per_device * self.accumulation * self.processes
        tokens, rows = sum(task.tokens for task in self.tasks), sum(task.rows for task in self.tasks)
        rate = tokens / max(rows, 1) * batch / self.seconds_per_step
        lines += [
            "",
            f"a step      {batch} rows: {self.rows_per_device} a device, {self.processes} processes, accumulated "
            f"{self.accumulation} times; {self.filled:.0%} of the places hold a token",
            f"steps       {self.steps:,}, {self.steps_per_epoch:,} an epoch, {self.steps / self.steps_per_epoch:.1f} "
            "epochs",
            f"time        {self.seconds_per_step:.3g} s a step, {rate:,.0f} tokens a second ({self.measured_steps} "
            f"steps measured on {self.device})",
            f"in all      {_duration(self.seconds)}, without evaluations and checkpoints",
            "",
        ]
        return "\n".join(lines)


def leave_no_trace(training: SFTRecipeConfig) -> Any:
    """Return a run's settings, typed as those of `Stage.settings`, for its dry run: another folder, nobody is told.

    Args:
        training: as the run has them; left as they are.
    """
    dry = copy.copy(training)
    dry.output_dir = tempfile.mkdtemp(prefix="llmrec-dry-run-")
    dry.report_to = []
    dry.push_to_hub = False
    dry.resume_from_checkpoint = None
    dry.save_strategy = dry.eval_strategy = "no"  # type: ignore[assignment]
    dry.load_best_model_at_end = False
    dry.eval_on_start = False
    return dry


def dry_run(trainer: SteadyTrainer, *, task_names: Sequence[str], path: Path | str | None = None) -> DryRun:
    """Count a run, and train its model for a few steps to see what one takes; the model is of no use afterwards.

    Args:
        trainer: made with settings of `leave_no_trace`.
        task_names: of the training set's ``task`` column.
        path: file for the JSON, or None; the main process writes it.
    """
    args, rows = trainer.args, trainer.train_dataset
    assert isinstance(rows, Dataset)
    order, lengths = list(trainer.order), trainer.lengths
    per_epoch = max(math.ceil(len(order) / trainer.global_batch), 1)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)

    batch = trainer.global_batch
    places = np.linspace(0, max(len(order) // batch - 1, 0), WARM_UP + MEASURED).astype(int)
    chosen = [row for place in places for row in order[place * batch : (place + 1) * batch]]
    clock = _Clock(trainer)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(clock)
    args.max_steps = len(places)
    if args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(args.device)
    with trainer.rows_in_order(_Given(chosen)):
        trainer.train()
    shutil.rmtree(str(args.output_dir), ignore_errors=True)

    model = trainer.accelerator.unwrap_model(trainer.model)
    heaviest = heaviest_batch(order, lengths, rows=args.per_device_train_batch_size)
    report = DryRun(
        parameters=count_parameters(model),
        memory=_memory(trainer, model, [rows[row] for row in heaviest]),
        tasks=count_rows(rows, lengths, task_names),
        rows_per_device=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        processes=args.world_size,
        filled=_filled(trainer, rows, order, lengths),
        steps=steps,
        steps_per_epoch=per_epoch,
        measured_steps=len(clock.seconds),
        seconds_per_step=float(np.mean(clock.seconds)),
        device=torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else str(args.device),
    )
    if path is not None and args.process_index == 0:
        write_json(Path(path), report.to_dict())
    return report


def count_parameters(model: nn.Module) -> tuple[Parameters, ...]:
    """Return a model's parameters by group; tied ones count once, and 4-bit ones as the numbers they stand for.

    Args:
        model: with its adapter, if it has one; not wrapped for several processes.
    """
    tables = {
        id(parameter): name
        for name, table in (
            ("head", model.get_output_embeddings()),  # type: ignore[operator]
            ("embeddings", model.get_input_embeddings()),  # type: ignore[operator]
        )
        if table is not None
        for parameter in table.parameters()
    }
    found: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            group = "SID rows"
        elif "lora_" in name:
            group = "LoRA"
        else:
            group = tables.get(id(parameter), "layers")
        count = parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
        sums = found.setdefault(group, [0, 0])
        sums[0] += count
        sums[1] += count if parameter.requires_grad else 0
    return tuple(Parameters(name, *sums) for name, sums in found.items())


def count_rows(rows: Dataset, lengths: Sequence[int], names: Sequence[str]) -> tuple[TaskRows, ...]:
    """Return rows, tokens and labels by task.

    Args:
        rows: token rows, with or without a ``task`` column.
        lengths: tokens of each row.
        names: of the tasks.
    """
    tasks = np.asarray(rows["task"]) if "task" in rows.column_names else np.zeros(len(rows), dtype=int)
    labels = np.array([sum(label != IGNORED for label in row) for row in rows["labels"]])
    tokens = np.asarray(lengths)
    return tuple(
        TaskRows(name, int(own.sum()), int(tokens[own].sum()), int(labels[own].sum()))
        for number, name in enumerate(names)
        if (own := tasks == number).any()
    )


class _Given(Sampler[int]):
    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)


class _Clock(TrainerCallback):
    """Times whole steps, the loading of their rows included."""

    def __init__(self, trainer: SteadyTrainer) -> None:
        self._trainer = trainer
        self.seconds: list[float] = []
        self._began = self._last = time.perf_counter()
        self._steps = 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        now = time.perf_counter()
        self._steps += 1
        if self._steps > WARM_UP:
            self.seconds.append(now - self._last)
        self._last = now
        if self._trainer.any_process(bool(self.seconds) and now - self._began > PATIENCE):
            control.should_training_stop = True


def _memory(trainer: SteadyTrainer, model: nn.Module, rows: list[dict[str, Any]]) -> dict[str, int]:
    parameters = list(model.parameters())
    found = {
        "weights": _bytes([*parameters, *model.buffers()]),
        "gradients": _bytes([parameter for parameter in parameters if parameter.requires_grad]),
    }
    optimiser: Any = trainer.optimizer
    if optimiser is not None:
        states = [value for state in optimiser.state.values() for value in state.values()]
        found["optimiser"] = _bytes([value for value in states if isinstance(value, Tensor)])
    if trainer.args.device.type == "cuda":
        found["peak"] = torch.cuda.max_memory_allocated(trainer.args.device)
    found["activations"] = held_for_backward(trainer, rows)
    return found


def held_for_backward(trainer: SteadyTrainer, rows: Sequence[dict[str, Any]]) -> int:
    """Return the bytes that a batch's forward pass keeps for its backward pass, weights not counted.

    Args:
        trainer: after its model was prepared.
        rows: token rows of the batch.
    """
    model = trainer.model
    assert model is not None
    own = {_storage(parameter).data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = trainer.loss_of(rows)
    del loss
    return sum(kept.values())


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return getattr(tensor, "_local_tensor", tensor).untyped_storage()  # a shard's own


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _filled(trainer: SteadyTrainer, rows: Dataset, order: Sequence[int], lengths: Sequence[int]) -> float:
    size = trainer.args.per_device_train_batch_size
    firsts = np.linspace(0, max(len(order) - size, 0), min(SAMPLED, math.ceil(len(order) / size))).astype(int)
    tokens = places = 0
    for first in firsts:
        chosen = order[first : first + size]
        tokens += sum(lengths[row] for row in chosen)
        batch = trainer.data_collator([rows[row] for row in chosen])
        places += sum(batch[name].numel() for name in ("input_ids", "decoder_input_ids") if name in batch)
    return tokens / places


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
