"""What every trainer of ours does with a bundle: score it on validation, time it, and write it whole."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer

from llmrec.training.layers import TrainedParts
from llmrec.training.validation import Validation


class BundleTrainer(Trainer):
    """Validation, speed and saving; stands before the trainer whose loss is used in a class's bases.

    Args:
        *args: as the other trainer takes them.
        validation: scores the model at each evaluation; its ``eval_recall@k`` and ``eval_ndcg@k`` can be named by
            ``metric_for_best_model``.
        save_sidecars: writes what belongs beside the weights (tokenizer, SID table, manifest) into a folder.
        measures: further scores, each called with model and accelerator at each evaluation, returning metrics.
        parts: what trains, and at which learning rate; None trains all at one.
        **kwargs: as the other trainer takes them.
    """

    evaluates_loss: ClassVar[bool] = True
    """Whether an evaluation reads held-out rows for a loss; without, it is ``validation`` and ``measures`` alone."""

    def __init__(
        self,
        *args: Any,
        validation: Validation | None,
        save_sidecars: Callable[[Path], None],
        measures: Sequence[Callable[..., Mapping[str, float]]] = (),
        parts: TrainedParts | None = None,
        **kwargs: Any,
    ) -> None:
        self._parts = parts
        super().__init__(*args, **kwargs)
        self._validation, self._save_sidecars, self._measures = validation, save_sidecars, list(measures)
        self._since: float | None = None
        self._paused = 0.0

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Return the other trainer's optimiser, its parameters divided by learning rate."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if new and self._parts is not None and self.model is not None:
            self._parts.set_rates(optimizer, self.model)
        return optimizer

    def _gather(self, tensor: Tensor) -> Tensor:
        """Return ``(processes, ...)`` from the ``(1, ...)`` tensors of all processes."""
        return cast(Tensor, self.accelerator.gather(tensor)) if self.args.world_size > 1 else tensor

    # Speed

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return a micro-batch's loss; the clock starts with the first."""
        if self._since is None:
            self._since, self._paused = time.perf_counter(), 0.0
        return super().training_step(*args, **kwargs)

    def seconds_trained(self) -> float | None:
        """Return the seconds since the first batch after the last call, without evaluations and saving.

        Returns:
            None where there was no batch since.
        """
        if self._since is None:
            return None
        seconds = max(time.perf_counter() - self._since - self._paused, 1e-9)
        self._since = None
        return seconds

    # Evaluation

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Return Recall and NDCG over the whole catalogue, further measures, and the loss where one is evaluated."""
        start = time.perf_counter()
        metrics: dict[str, float] = {}
        if self.evaluates_loss:
            metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        measures = [] if self._validation is None else [self._validation.metrics]
        for measure in (*measures, *self._measures):
            found = dict(measure(model, self.accelerator, prefix=metric_key_prefix))
            self.log(dict(found))
            metrics.update(found)
        if not self.evaluates_loss:
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._paused += time.perf_counter() - start
        return metrics

    # Saving

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        start = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self._paused += time.perf_counter() - start

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or str(self.args.output_dir))
        self._save_sidecars(folder)
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, and run.json says more

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: the bundle's own card is written when the run ends."""
