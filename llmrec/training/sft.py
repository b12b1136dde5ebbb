"""Supervised fine-tuning on TRL's trainer: validation by recommendation, checkpoints that are bundles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl import SFTTrainer

from llmrec.training.validation import Validation


class RecommenderSFTTrainer(SFTTrainer):
    """`SFTTrainer` that scores recommendations at each evaluation and saves whole bundles.

    Args:
        *args: as `SFTTrainer` takes them.
        validation: scores the model at each evaluation, beside the loss; its ``eval_recall@k`` and ``eval_ndcg@k`` can
            be named by ``metric_for_best_model``.
        save_sidecars: writes what belongs beside the weights (tokenizer, SID table, manifest) into a folder.
        **kwargs: as `SFTTrainer` takes them.
    """

    def __init__(
        self, *args: Any, validation: Validation | None, save_sidecars: Callable[[Path], None], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.model is not None and getattr(self.model, "is_loaded_in_4bit", False):
            # TRL casts what trains to bfloat16, in which small updates of the SID rows are lost.
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        self._validation = validation
        self._save_sidecars = save_sidecars

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Return the loss and token metrics of `SFTTrainer`, and Recall and NDCG over the whole catalogue."""
        metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._validation is not None:
            model = self.accelerator.unwrap_model(self.model)
            found = self._validation.metrics(model, self.accelerator, prefix=metric_key_prefix)
            self.log(dict(found))
            metrics.update(found)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or str(self.args.output_dir))
        self._save_sidecars(folder)
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, and run.json says more

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: the bundle's own card is written when the run ends."""
