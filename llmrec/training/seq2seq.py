"""Encoder-decoders: the encoder reads prompts, the decoder answers, and the head is multiplied where labels stand."""

import functools
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments

from llmrec.errors import InputError
from llmrec.training.collator import IGNORED
from llmrec.training.config import SFTRecipeConfig
from llmrec.training.forward import LabelledOutput, level_table
from llmrec.training.labelled import Head, Labelled, sid_numbers
from llmrec.training.objectives.base import Objective
from llmrec.training.objectives.cross_entropy import negative_log_likelihood
from llmrec.training.sft import RecommenderSFTTrainer
from llmrec.training.trainer import RecommenderTrainer
from llmrec.vocab import SIDVocab


class RecommenderSeq2SeqTrainer(RecommenderTrainer, Seq2SeqTrainer):
    """`Seq2SeqTrainer` with our loss, our batches, recommendations at each evaluation, and checkpoints as bundles.

    Args:
        model: a model of `SHARED_ENCODER_MODELS`, with its adapter or without.
        args: as for `RecommenderSFTTrainer`; rows are padded whatever ``packing`` says, and
            ``train_sampling_strategy: group_by_length`` keeps the padding small.
        vocab: tells the objective which labels are SIDs; None calls all of them text.
        objective: the loss of each label; None is cross-entropy.
        **kwargs: as `RecommenderTrainer` and `Seq2SeqTrainer` take them; the datasets have ``input_ids``, ``labels``
            and ``task``.
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
        # What Seq2SeqTrainer reads of its own arguments, which TRL's lack: nothing is generated in its evaluation.
        for field in fields(Seq2SeqTrainingArguments):
            if not hasattr(args, field.name) and field.default is not MISSING:
                setattr(args, field.name, field.default)
        collator = Seq2SeqCollator(kwargs["processing_class"].pad_token_id, base.config.decoder_start_token_id)
        super().__init__(model=model, args=args, data_collator=collator, **kwargs)
        add_seq2seq_forward(base, objective or negative_log_likelihood, vocab=vocab)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "task"]


def trainer_class(
    model: PreTrainedModel | PeftModel,
) -> type[RecommenderSFTTrainer] | type[RecommenderSeq2SeqTrainer]:
    """Return the trainer that fits a model: one for causal models, one for those with an encoder."""
    config: Any = model.config
    return RecommenderSeq2SeqTrainer if config.is_encoder_decoder else RecommenderSFTTrainer


@dataclass(frozen=True)
class Seq2SeqCollator:
    """Split token rows (``input_ids``, ``labels``, ``task``) into what the encoder reads and the decoder answers.

    The rows are those of causal models, a prompt and the completion with its labels in one line, so that mixing,
    length sorting and counting are the same for both. Encoder and decoder rows are padded on the right. A row is
    encoded for its own target alone: the states of an encoder that looks both ways would change with what follows.

    Args:
        pad_token_id: fills what no row fills; it is masked, or stands behind the last label.
        start_token_id: opens the decoder's rows.
    """

    pad_token_id: int
    start_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the batch: prompts, decoder rows, and where labels stand.

        Returns:
            ``input_ids`` and ``attention_mask``, both ``(batch, length)``; ``decoder_input_ids`` ``(batch, answer)``;
            ``places`` ``(labels,)``, positions in the flattened ``(batch * answer)`` that predict, rising; ``targets``
            ``(labels,)``, the tokens to predict; ``tasks`` ``(labels,)``.

        Raises:
            InputError: labels without a prompt before them, or with gaps between them.
        """
        prompts, answers = zip(*(_split(row) for row in rows), strict=True)
        opened = [[self.start_token_id, *answer[:-1]] for answer in answers]
        length = max(len(row) for row in opened)
        tasks = [[int(row.get("task", 0))] * len(answer) for row, answer in zip(rows, answers, strict=True)]
        places = [[number * length + place for place in range(len(answer))] for number, answer in enumerate(answers)]
        return {
            "input_ids": _padded(prompts, self.pad_token_id),
            "attention_mask": _padded([[1] * len(prompt) for prompt in prompts], 0),
            "decoder_input_ids": _padded(opened, self.pad_token_id),
            "places": _flat(places),
            "targets": _flat(answers),
            "tasks": _flat(tasks),
        }


def _split(row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Return a row's prompt and answer; a row without labels, which fills a last batch, is all prompt."""
    labels = list(row["labels"])
    start = next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))
    if start == 0 or IGNORED in labels[start:]:
        raise InputError(
            "training rows: an encoder-decoder wants a prompt, and labels behind it to the row's end; a row has "
            f"{sum(label != IGNORED for label in labels)} labels on {len(labels)} tokens, the first at place {start}; "
            "set supervise: row"
        )
    return list(row["input_ids"][:start]), labels[start:]


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def _flat(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.int64)


def add_seq2seq_forward(model: PreTrainedModel, objective: Objective, *, vocab: SIDVocab | None = None) -> None:
    """Let ``model(**batch)`` of a `Seq2SeqCollator` batch return a `LabelledOutput`; other calls are as before.

    As `add_labelled_forward`, for models with an encoder.

    Args:
        model: a model of `SHARED_ENCODER_MODELS` without its adapter's wrapper; patched in place.
        objective: gives the losses.
        vocab: tells the objective which targets are SIDs.
    """
    original = model.forward
    levels = level_table(vocab, len(cast(nn.Linear, model.get_output_embeddings()).weight))
    where: dict[torch.device, Tensor] = {}

    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel, *args: Any, places: Tensor | None = None, targets: Tensor | None = None,
        tasks: Tensor | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        if places is None or targets is None or tasks is None:
            return original(*args, **kwargs)
        batch = {"places": places, "targets": targets, "tasks": tasks, **kwargs}
        mask = kwargs["attention_mask"]
        encoded = cast(nn.Module, self.get_encoder())(input_ids=kwargs["input_ids"], attention_mask=mask)
        # No mask for the decoder: it looks back alone, and padding stands behind what predicts.
        output = cast(nn.Module, self.get_decoder())(
            input_ids=kwargs["decoder_input_ids"], encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=mask, use_cache=False,
        )  # fmt: skip
        hidden = output.last_hidden_state.flatten(0, 1)[places]
        if targets.device not in where:
            where[targets.device] = levels.to(targets.device)
        level = where[targets.device][targets]
        labelled = Labelled(hidden, targets, tasks, level, sid_numbers(level, places), batch)
        head = Head.of(self, scale=output_scale(self))
        losses = objective(labelled, head)
        return LabelledOutput(losses=losses, hits=head.hits[0] if head.hits else None)

    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]


def output_scale(model: PreTrainedModel) -> float:
    """Return what T5 multiplies the decoder's states by before its head: 1, or ``d_model ** -0.5``."""
    config: Any = model.config
    return config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0
