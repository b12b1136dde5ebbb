"""A model's forward that multiplies its head where labels stand, and gives the loss of each label."""

import functools
import types
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from llmrec.training.collator import packed_mask
from llmrec.training.labelled import Head, Labelled, sid_numbers
from llmrec.training.objectives.base import Objective
from llmrec.vocab import SIDVocab


@dataclass
class LabelledOutput(ModelOutput):
    """What the forward of a batch of `LabelledCollator` returns.

    Args:
        losses: ``(labels,)`` float32.
        hits: ``(labels,)`` whether the target is the likeliest token; None where the objective does not ask for its
            log-probability.
    """

    losses: Tensor | None = None
    hits: Tensor | None = None


def level_table(vocab: SIDVocab | None, rows: int) -> Tensor:
    """Return ``(rows,)`` the SID level of each token id, -1 for text.

    Args:
        vocab: the SIDs; None knows none.
        rows: of the model's output table.
    """
    levels = torch.full((rows,), -1)
    for level, token_ids in enumerate(vocab.level_token_ids if vocab is not None else ()):
        levels[torch.as_tensor(token_ids)] = level
    return levels


def add_labelled_forward(model: PreTrainedModel, objective: Objective, *, vocab: SIDVocab | None = None) -> None:
    """Let ``model(**batch)`` of a `LabelledCollator` batch return a `LabelledOutput`; other calls are as before.

    The loss is computed inside the forward, because DDP and FSDP see what happens there alone. The body is read once;
    the head is multiplied at ``places`` only.

    Args:
        model: a causal model without its adapter's wrapper; patched in place.
        objective: gives the losses.
        vocab: tells the objective which targets are SIDs.
    """
    original = model.forward
    levels = level_table(vocab, cast(nn.Module, model.get_output_embeddings()).weight.shape[0])  # type: ignore[union-attr,arg-type]
    where: dict[torch.device, Tensor] = {}

    # `generate` reads the signature to check its arguments
    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel, *args: Any, places: Tensor | None = None, targets: Tensor | None = None,
        tasks: Tensor | None = None, rows_of: Tensor | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        if places is None or targets is None or tasks is None:
            return original(*args, **kwargs)
        batch = {"places": places, "targets": targets, "tasks": tasks, "rows_of": rows_of, **kwargs}
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        kwargs["use_cache"] = False  # packed rows would see one another through a cache's mask
        if rows_of is not None:
            kwargs["attention_mask"] = packed_mask(rows_of, attention_dtype(self))
        # Looked up at each call, since PEFT and FSDP replace modules
        output = cast(nn.Module, self.base_model)(*args, **kwargs)
        hidden = output.last_hidden_state.flatten(0, 1)[places]
        if targets.device not in where:
            where[targets.device] = levels.to(targets.device)
        level = where[targets.device][targets]
        labelled = Labelled(hidden, targets, tasks, level, sid_numbers(level, places), batch)
        head = Head.of(self)
        losses = objective(labelled, head)
        return LabelledOutput(losses=losses, hits=head.hits[0] if head.hits else None)

    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]


def attention_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype in which a model's attention runs: autocast's, or that of its embeddings."""
    device = model.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return cast(torch.dtype, model.dtype)
