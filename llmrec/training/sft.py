"""Supervised fine-tuning of causal models on TRL's trainer: packed batches, and a head where labels stand."""

import logging
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedModel
from trl import SFTTrainer

from llmrec.errors import InputError
from llmrec.training.collator import LabelledCollator, layout_for
from llmrec.training.config import SFTRecipeConfig
from llmrec.training.forward import add_labelled_forward
from llmrec.training.objectives.base import Objective
from llmrec.training.objectives.cross_entropy import negative_log_likelihood
from llmrec.training.trainer import RecommenderTrainer
from llmrec.vocab import SIDVocab

logger = logging.getLogger(__name__)


class RecommenderSFTTrainer(RecommenderTrainer, SFTTrainer):
    """`SFTTrainer` with our loss, our batches, recommendations at each evaluation, and checkpoints that are bundles.

    Args:
        model: a causal model, with its adapter or without.
        args: its ``packing`` and ``pack_length`` say how batches are laid out.
        vocab: tells the objective which labels are SIDs; None calls all of them text.
        objective: the loss of each label; None is cross-entropy.
        **kwargs: as `RecommenderTrainer` and `SFTTrainer` take them; the datasets have ``input_ids``, ``labels`` and
            ``task``.

    Raises:
        InputError: a setting of `SFTTrainer` that this loss would pass over.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: SFTRecipeConfig,
        *,
        vocab: SIDVocab | None = None,
        objective: Objective | None = None,
        **kwargs: Any,
    ) -> None:
        base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
        layout, reason = layout_for(base, packing=args.packing)
        if reason is not None:
            logger.warning("packing: %s, so rows are padded; train_sampling_strategy: group_by_length helps", reason)
        # TRL would pack the dataset itself, other rows in each step, and let documents see one another under sdpa.
        packing, args.packing = args.packing, False
        args.dataset_kwargs = {**cast(dict, args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        tokenizer = kwargs["processing_class"]
        collator = LabelledCollator(
            tokenizer.pad_token_id,
            layout,
            pack_length=args.pack_length,
            pad_to_multiple_of=cast(int | None, args.pad_to_multiple_of),
        )
        base.config.pad_token_id = tokenizer.pad_token_id
        super().__init__(model=model, args=args, data_collator=collator, **kwargs)
        args.packing = packing
        self.layout = layout
        if self.aux_loss_enabled:
            raise InputError(
                f"model: {base.config.model_type} adds a loss of its router, which is not computed here; set "
                "router_aux_loss_coef: 0 to train without it"
            )
        if getattr(self.model, "is_loaded_in_4bit", False):
            # TRL casts what trains to bfloat16, in which small updates of the SID rows are lost.
            for parameter in cast(PreTrainedModel, self.model).parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        add_labelled_forward(base, objective or negative_log_likelihood, vocab=vocab)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "task"]
