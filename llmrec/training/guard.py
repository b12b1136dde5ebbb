"""A loss that is no number: stop before the weights are spoilt, and say where."""

import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from llmrec.errors import InputError

logger = logging.getLogger(__name__)

SHOWN = 8


class NotFinite(InputError):
    """Loss, gradient or weights became NaN or infinite; no checkpoint holds them."""


def any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Return whether the flag is set on any process; all of them ask at the same point."""
    return flag if accelerator.num_processes == 1 else any(gather_object([flag]))


class FiniteGuard(TrainerCallback):
    """Stops a run before an optimiser step whose loss or gradient is not finite, and before bad weights are saved.

    The optimiser step is not taken and nothing is saved, so that the last checkpoint on disk is a good one.

    Args:
        accelerator: of the run. Where its gradient scaler (fp16) runs, infinite gradients are met on purpose and their
            steps skipped.
        describe_step: says which rows a step has trained on.
    """

    def __init__(self, accelerator: Accelerator, *, describe_step: Callable[[int], str]) -> None:
        self._accelerator, self._describe_step = accelerator, describe_step
        self._scaled = getattr(accelerator, "scaler", None) is not None
        self._losses: Tensor | None = None

    def watch(self, loss: Tensor) -> None:
        """Take note of a micro-batch's loss."""
        self._losses = loss.detach() if self._losses is None else self._losses + loss.detach()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the losses of the step before."""
        self._losses = None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the step's losses and gradients.

        Raises:
            NotFinite: one of them is not finite.
        """
        loss = None if self._losses is None else float(self._losses)
        largest = None if self._scaled else _largest_gradient(kwargs["model"])
        bad_loss = loss is not None and not math.isfinite(loss)
        bad_gradient = largest is not None and not math.isfinite(largest)
        if any_process(bad_loss or bad_gradient, self._accelerator):
            what = f"the loss is {loss}" if bad_loss else f"the loss is {loss}, the largest gradient {largest}"
            raise NotFinite(self._message(what, args, state))

    def check_weights(self, model: nn.Module, args: TrainingArguments, state: TrainerState) -> None:
        """Look at the weights that are about to be saved.

        Args:
            model: as it trains.
            args: of the run.
            state: of the run.

        Raises:
            NotFinite: a weight is not finite.
        """
        if any_process(not _finite_weights(model), self._accelerator):
            raise NotFinite(self._message("a weight is not finite after the step", args, state, done=1))

    def _message(self, what: str, args: TrainingArguments, state: TrainerState, *, done: int = 0) -> str:
        step = state.global_step - done
        kept = get_last_checkpoint(str(args.output_dir))
        there = f"The last good checkpoint is {kept}" if kept else "There is no checkpoint yet"
        start = f"from it in a new folder: --resume_from_checkpoint {kept}" if kept else "in a new folder:"
        return (
            f"step {step + 1}: {what}, so training stopped before it was saved. The batch: "
            f"{self._describe_step(step)}. {there}. Lower learning_rate (now {args.learning_rate}) or max_grad_norm "
            f"(now {args.max_grad_norm}), or look at those rows; then start {start} --output_dir {args.output_dir}-2 "
            f"--learning_rate {args.learning_rate / 2:g}"
        )


def describe_rows(rows: list[int], *, tasks: list[str], lengths: list[int]) -> str:
    """Return one phrase for a batch: how many rows, their numbers, tasks and the longest.

    Args:
        rows: row numbers in the training set.
        tasks: each row's task.
        lengths: each row's tokens.
    """
    numbers = ", ".join(str(row) for row in rows[:SHOWN]) + (", ..." if len(rows) > SHOWN else "")
    mix = ", ".join(f"{task} {count}" for task, count in Counter(tasks).most_common())
    longest = max(range(len(rows)), key=lengths.__getitem__)
    return (
        f"{len(rows)} rows of the training set (numbers {numbers}; tasks: {mix}; the longest is row {rows[longest]} "
        f"with {lengths[longest]} tokens)"
    )


def _whole(value: Tensor) -> Tensor:
    """Return a sharded tensor's whole value."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value  # type: ignore[operator]


def _largest_gradient(model: nn.Module) -> float | None:
    """Return the largest gradient in size; None where an engine keeps them to itself (DeepSpeed)."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(_whole(nn.utils.get_total_norm(gradients, norm_type=math.inf))) if gradients else None


def _finite_weights(model: nn.Module) -> bool:
    trained = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad and parameter.numel()]
    return not trained or math.isfinite(float(_whole(nn.utils.get_total_norm(trained, norm_type=math.inf))))
