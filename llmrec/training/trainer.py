"""What our trainers share: the loss of each label, its sums by task, speed, and recommendations at evaluations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput

from llmrec.training.bundle_trainer import BundleTrainer
from llmrec.training.steady import SteadyTrainer


class TaskMeter:
    """Sums of losses by task, kept on the device until they are read.

    Args:
        names: of the tasks, in the order of their numbers.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._sums: Tensor | None = None

    def add(self, losses: Tensor, tasks: Tensor, hits: Tensor | None, *, tokens: Tensor | int = 0) -> None:
        """Count the labels of a batch.

        Args:
            losses: ``(labels,)``.
            tasks: ``(labels,)`` task numbers.
            hits: ``(labels,)`` whether the label was the likeliest token, or None.
            tokens: of the batch, without padding.
        """
        if self._sums is None:
            kind = torch.float32 if losses.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
            self._sums = torch.zeros(len(self.names) + 1, 3, dtype=kind, device=losses.device)
        ones = torch.ones_like(losses)
        values = [losses.detach(), ones, ones * torch.nan if hits is None else hits]
        self._sums.index_add_(0, tasks, torch.stack([value.to(self._sums) for value in values], dim=1))
        self._sums[-1, 0] += tokens

    def read(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return what all processes counted since the last reading; empty where they counted nothing.

        Args:
            gather: stacks a ``(1, ...)`` tensor of all processes.

        Returns:
            ``loss``, ``labels``, ``tokens``, ``loss/<task>`` of each task with a label where there are several, and
            ``mean_token_accuracy`` where hits were given.
        """
        if self._sums is None:
            return {}
        sums = gather(self._sums[None]).sum(0).tolist()
        self._sums = None
        by_task = dict(zip(self.names, sums[:-1], strict=True))
        labels = sum(count for _, count, _ in by_task.values())
        found = {"labels": labels, "tokens": sums[-1][0]}
        if labels:
            found["loss"] = sum(loss for loss, _, _ in by_task.values()) / labels
            accuracy = sum(hits for _, _, hits in by_task.values()) / labels
            if accuracy == accuracy:
                found["mean_token_accuracy"] = accuracy
        if len(self.names) > 1:
            found |= {f"loss/{name}": loss / count for name, (loss, count, _) in by_task.items() if count}
        return found


def _tokens(inputs: Mapping[str, Tensor]) -> Tensor | int:
    """Return the tokens of a batch, without padding; a tensor, so that nothing waits for the device."""
    if "rows_of" in inputs:
        return (inputs["rows_of"] >= 0).sum()
    answers = inputs["targets"].numel() if "decoder_input_ids" in inputs else 0
    return inputs["attention_mask"].sum() + answers if "attention_mask" in inputs else inputs["input_ids"].numel()


class RecommenderTrainer(BundleTrainer, SteadyTrainer):
    """The part that our trainers share; stands before the trainer of TRL or transformers in a class's bases.

    The model's forward returns the loss of each label (`add_labelled_forward`, `add_seq2seq_forward`) for the batches
    of its collator. The loss of a step is their sum over the number of labels of the global batch, so that it does not
    depend on packing, processes or accumulation.

    Args:
        *args: as the other trainer takes them.
        task_names: by task number, for ``loss/<task>`` in the logs; None logs the loss alone.
        **kwargs: as `BundleTrainer`, `SteadyTrainer` and the other trainer take them.
    """

    def __init__(self, *args: Any, task_names: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The loss is divided by the labels of the whole step, accumulation included.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.task_names = list(task_names or ["all"])
        self._meters = {"train": TaskMeter(self.task_names), "eval": TaskMeter(["eval"])}
        self._num_tokens = 0.0

    # Loss

    def _get_num_items_in_batch(self, batch_samples: list[Mapping[str, Tensor]], device: torch.device) -> Tensor:
        count = torch.tensor(sum(batch["targets"].numel() for batch in batch_samples), device=device)
        return self._gather(count[None]).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the sum of the labels' losses over the labels of the global batch.

        Args:
            model: wrapped or not.
            inputs: a batch of the collator.
            return_outputs: whether to return the forward's outputs too.
            num_items_in_batch: labels of the step, over processes and accumulation; None takes the batch's own.
        """
        outputs = model(**inputs)
        losses: Tensor = outputs.losses
        count = torch.as_tensor(losses.numel() if num_items_in_batch is None else num_items_in_batch)
        loss = losses.sum() / count.clamp(min=1)
        if num_items_in_batch is not None:
            # DDP and FSDP average gradients over processes; the count is that of all.
            loss = loss * self.args.world_size
        if not self.rehearsing:
            mode = "train" if model.training else "eval"
            tasks = inputs["tasks"] if mode == "train" else torch.zeros_like(inputs["tasks"])
            self._meters[mode].add(losses, tasks, outputs.get("hits"), tokens=_tokens(inputs))
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Return a held-out batch's loss; there are no logits."""
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    # Logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write logs, and beside a training loss that of each task, token accuracy and speed."""
        if "loss" in logs:
            found = self._meters["train"].read(self._gather)
            labels, tokens = found.pop("labels", 0.0), found.pop("tokens", 0.0)
            found.pop("loss", None)
            logs.update(found)
            seconds = self.seconds_trained()
            if seconds is not None and tokens:
                logs["tokens_per_second"], logs["labels_per_second"] = tokens / seconds, labels / seconds
            self._num_tokens += tokens
            logs["num_tokens"] = self._num_tokens
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Return what the other trainer does, with the mean over all labels as the loss."""
        self._meters["eval"].read(self._gather)
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        found = self._meters["eval"].read(self._gather)
        for name in ("loss", "mean_token_accuracy"):
            if name in found and output.metrics is not None:
                output.metrics[f"{prefix}_{name}"] = found[name]
        return output
