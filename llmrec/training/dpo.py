"""DPO and its kin on TRL's trainer: a prompt is read once for its chosen and all its rejected completions."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput
from trl import DPOConfig, DPOTrainer

from llmrec.errors import InputError
from llmrec.training.bundle_trainer import BundleTrainer
from llmrec.training.group_softmax import GroupSoftmax
from llmrec.training.order import with_idle_rows
from llmrec.training.pair_losses import trl_pair_loss
from llmrec.training.policy import disable_dropout
from llmrec.training.preference_losses import PREFERENCE_LOSSES, TRL_LOSSES, Preferences, check_losses
from llmrec.training.preference_meter import PreferenceMeter
from llmrec.training.preference_rows import PreferenceCollator, row_lengths
from llmrec.training.reference_cache import reference_log_probs, weights_hash
from llmrec.training.reference_policy import REFERENCE, same_parameters_train
from llmrec.training.shared_prefix import add_group_forward
from llmrec.training.start_kept import StartKeptTrainer
from llmrec.training.steady import SteadyTrainer
from llmrec.vocab import SIDVocab

logger = logging.getLogger(__name__)


class PreferenceTrainer(StartKeptTrainer, BundleTrainer, SteadyTrainer, DPOTrainer):
    """`DPOTrainer` for lists: one pass a prompt, a reference on disk, and checkpoints that are bundles.

    The loss of a step is the mean over its lists (of a loss of TRL's: over its pairs), whatever the processes and the
    accumulation are.

    Args:
        model: the policy as it starts, with its adapter or without; causal, or an encoder-decoder.
        args: a `DPOConfig`; its ``loss_type`` may name losses of `PREFERENCE_LOSSES` too.
        softmax: what log-probabilities are taken over.
        vocab: the SIDs.
        reference: another model that log-ratios are taken to; None takes the policy as it starts. It is asked once,
            before training, and not kept.
        reference_dir: where log-probabilities of references lie, by what they depend on.
        reference_file: a file of them to use; it must be of this reference and these rows.
        train_dataset: rows of `encode_preferences`.
        eval_dataset: held-out rows, or None.
        **kwargs: as `BundleTrainer`, `SteadyTrainer` and `DPOTrainer` take them.

    Raises:
        InputError: an unknown loss, margins that are missing, a model with a router's loss, or a reference that was
            made of other weights, rows or settings.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: DPOConfig,
        *,
        softmax: GroupSoftmax,
        vocab: SIDVocab,
        reference_dir: str | Path,
        reference: PreTrainedModel | PeftModel | None = None,
        reference_file: str | Path | None = None,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        **kwargs: Any,
    ) -> None:
        check_losses(args.loss_type)
        for name, rows in (("training", train_dataset), ("held-out", eval_dataset)):
            if "margin" in args.loss_type and rows is not None and not rows[0]["margins"]:
                raise InputError(
                    f"loss_type: margin, and the {name} rows have no margins; give them a column 'margins'"
                )
        args.precompute_ref_log_probs = True  # so that TRL loads no reference
        tokenizer = kwargs["processing_class"]
        self.softmax, self._vocab = softmax, vocab
        self._meters = {"train": PreferenceMeter(), "eval": PreferenceMeter()}
        self._num_tokens, self._pairs_of_step = 0.0, torch.tensor(0)
        add_group_forward(_base(model), softmax, vocab=vocab)
        # TRL casts what trains over 4 bits to bfloat16, and the policy would no longer be the bundle's.
        with same_parameters_train(model):
            model.requires_grad_(False)
            super().__init__(
                model=model, args=args, data_collator=PreferenceCollator(tokenizer.pad_token_id),
                train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs,
            )  # fmt: skip
            if REFERENCE in getattr(model, "peft_config", {}):
                # TRL's copy of the adapter; it lacks the SID rows, and the reference is on disk.
                cast(PeftModel, model).delete_adapter(REFERENCE)
        if args.disable_dropout:
            disable_dropout(model)
        if self.aux_loss_enabled:
            raise InputError(
                f"model: {_base(model).config.model_type} adds a loss of its router, which is not computed here; set "
                "router_aux_loss_coef: 0 to train without it"
            )
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True  # the loss is that of the whole step
        self._add_reference(model if reference is None else reference, Path(reference_dir), reference_file)

    # What TRL would do with text

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset  # `_add_reference` does, when the model is as it was again

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "completions", "margins", "reference"]

    @property
    def _settings(self) -> DPOConfig:
        return cast(DPOConfig, self.args)

    # Reference

    def _add_reference(self, model: Any, folder: Path, file: str | Path | None) -> None:
        """Give the rows a column with the reference's log-probabilities."""
        if model is not self.model:
            add_group_forward(_base(model), self.softmax, vocab=self._vocab)
            model.to(self.args.device)
        was_training = model.training
        model.eval()
        precision = (
            str(torch.get_autocast_dtype(self.args.device.type)) if self._autocasts else str(_base(model).dtype)
        )
        key = {
            "weights": weights_hash(model), "sid_hash": self._vocab.table.hash, "softmax": self.softmax.kind,
            "temperature": self.softmax.temperature, "dtype": precision,
        }  # fmt: skip
        for name in ("train", "eval"):
            rows = getattr(self, f"{name}_dataset")
            if rows is None:
                continue
            found = reference_log_probs(
                rows, key, lambda numbers, rows=rows: self._reference_of(model, rows, numbers),
                accelerator=self.accelerator, folder=folder, lengths=row_lengths(rows),
                file=None if file is None else _named(Path(file), name),
                batch_size=self._settings.precompute_ref_batch_size or self.args.per_device_eval_batch_size,
            )  # fmt: skip
            rows = rows.add_column("reference", found)
            if name == "eval" and self.args.world_size > 1:  # accelerate would fill the last batches with rows again
                rows = with_idle_rows(rows, -len(rows) % (self.args.world_size * self.args.eval_batch_size))
            setattr(self, f"{name}_dataset", rows)
        model.train(was_training)

    @property
    def _autocasts(self) -> bool:
        return self.accelerator.mixed_precision != "no"

    def _reference_of(self, model: nn.Module, rows: Dataset, numbers: Sequence[int]) -> Tensor:
        batch = cast(dict[str, Tensor], self._prepare_inputs(self.data_collator([rows[row] for row in numbers])))
        with torch.no_grad(), self.accelerator.autocast():
            return _score(model, batch).log_probs.sum(dim=-1)

    # Loss

    @property
    def lengths(self) -> list[int]:
        """Tokens that each training row's pass reads, prompt and completions."""
        return row_lengths(cast(Dataset, self.train_dataset))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        rows = sum(int(batch["real"].sum()) for batch in batch_samples)
        pairs = sum(int((batch["present"][:, 1:] & batch["real"][:, None]).sum()) for batch in batch_samples)
        counts = self._gather(torch.tensor([[rows, pairs]], device=device)).sum(0)
        self._pairs_of_step = counts[1]
        return counts[0]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, as its share of the step's.

        Args:
            model: wrapped or not.
            inputs: a batch of `PreferenceCollator`, with the reference.
            return_outputs: whether to return the forward's outputs too.
            num_items_in_batch: lists of the step, over processes and accumulation; None takes the batch's own.
        """
        mode, mask, real = "train" if model.training else "eval", inputs["completion_mask"], inputs["real"]
        output = _score(model, inputs, entropy=mode == "eval")
        preferences = Preferences(
            output.log_probs.sum(dim=-1), inputs["reference"], inputs["present"], inputs.get("margins")
        )
        weights = dict(zip(self._settings.loss_type, self.loss_weights, strict=True))
        losses = sum(
            (weight * PREFERENCE_LOSSES[name](preferences, self.beta) for name, weight in weights.items()
             if name in PREFERENCE_LOSSES), torch.zeros_like(preferences.policy[:, 0]),
        )  # fmt: skip
        total, lists = cast(Tensor, losses).masked_fill(~real, 0.0).sum(), real.sum()
        ours, theirs, pairs = total / lists.clamp(min=1), total.new_tensor(0.0), lists
        of_trl = {name: weight for name, weight in weights.items() if name in TRL_LOSSES}
        if of_trl:
            theirs, pairs = trl_pair_loss(
                of_trl, preferences, log_probs=output.log_probs, mask=mask, rows=real, settings=self.args
            )
        if not self.rehearsing:
            self._meters[mode].add(
                preferences, real, ours + theirs, beta=self.beta, mask=mask, entropies=output.entropies,
                tokens=inputs["attention_mask"].sum(1) + mask.sum((1, 2)), outside=output.outside,
            )  # fmt: skip
        loss = ours + theirs
        if num_items_in_batch is not None:
            # DDP averages gradients over processes; the counts are those of all.
            step = self._pairs_of_step if not self.rehearsing else pairs
            loss = ours * lists / torch.as_tensor(num_items_in_batch).clamp(min=1) + theirs * pairs / step.clamp(min=1)
            loss = loss * self.args.world_size
        return (loss, output) if return_outputs else loss

    # Logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write logs, and beside a training loss rewards, margins, accuracies and speed."""
        if "loss" in logs:
            found = self._meters["train"].read(self._gather)
            lists, tokens = found.pop("lists", 0.0), found.pop("tokens", 0.0)
            found.pop("loss", None)
            logs.update(found)
            seconds = self.seconds_trained()
            if seconds is not None and tokens:
                logs["tokens_per_second"], logs["prompts_per_second"] = tokens / seconds, lists / seconds
            self._num_tokens += tokens
            logs["num_tokens"] = self._num_tokens
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Return what the other trainer does, with means over all held-out lists and pairs."""
        self._meters["eval"].read(self._gather)
        output = super().evaluation_loop(*args, **kwargs)
        found = self._meters["eval"].read(self._gather)
        prefix = kwargs.get("metric_key_prefix", "eval")
        if output.metrics is not None:
            output.metrics.update({
                f"{prefix}_{name}": value for name, value in found.items() if name not in ("lists", "tokens")
            })  # fmt: skip
        return output


def _base(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def _named(file: Path, name: str) -> Path:
    return file if name == "train" else file.with_name(f"{file.stem}-eval{file.suffix}")


def _score(model: nn.Module, batch: dict[str, Tensor], *, entropy: bool = False) -> Any:
    names = ("input_ids", "attention_mask", "completions", "completion_mask")
    return model(**{name: batch[name] for name in names}, entropy=entropy)
