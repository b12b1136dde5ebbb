"""A training that is never worse than its start: the start is scored, and stays the best until it is beaten."""

import logging
from pathlib import Path
from typing import Any

from transformers import Trainer

logger = logging.getLogger(__name__)


class StartKeptTrainer(Trainer):
    """With ``eval_on_start`` and ``load_best_model_at_end``, the start is a checkpoint like others, and the first.

    ``checkpoint-0`` holds it; the run ends with its weights where no later checkpoint is better on validation. Stands
    before the other trainer in a class's bases.
    """

    def _evaluate(self, *args: Any, skip_scheduler: bool = False, **kwargs: Any) -> dict[str, float]:
        if skip_scheduler and self.state.global_step:  # a run that goes on knows how it began
            return {}
        metrics = super()._evaluate(*args, skip_scheduler=skip_scheduler, **kwargs)
        if skip_scheduler and self._chooses:
            # Before it is saved, so that the checkpoint tells it to a run that goes on from there
            self.state.best_metric = metrics[self._metric]
            self.state.best_model_checkpoint = str(Path(str(self.args.output_dir)) / "checkpoint-0")
            assert self.model_wrapped is not None
            self._save_checkpoint(self.model_wrapped, None)
        return metrics

    @property
    def _chooses(self) -> bool:
        return bool(self.args.load_best_model_at_end and self.args.metric_for_best_model)

    @property
    def _metric(self) -> str:
        return f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"

    def best(self) -> dict[str, Any] | None:
        """Return whose weights the run ended with: ``step``, ``metric``, its ``value``, and that of the ``start``.

        Returns:
            None where validation chose nothing.
        """
        if not self._chooses or self.state.best_metric is None:
            return None
        start = next(
            (logs[self._metric] for logs in self.state.log_history if logs.get("step") == 0 and self._metric in logs),
            None,
        )
        step = self.state.best_global_step or 0
        name = self._metric.removeprefix("eval_")
        found = {"step": step, "metric": name, "value": self.state.best_metric, "start": start}
        if step == 0 and self.args.eval_on_start:
            logger.warning(
                "no checkpoint was better than the start on validation (%s %.4f): the weights are those of the start",
                found["metric"],
                self.state.best_metric,
            )
        return found
