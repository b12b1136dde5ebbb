"""Prompts and their candidates through a model's body: one row a prompt, in which candidates do not see each other."""

import inspect
import logging
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmrec.decoding.branches import additive_mask
from llmrec.decoding.prompts import why_expanded
from llmrec.training.branch_mask import branch_mask, branch_positions
from llmrec.training.forward import attention_dtype
from llmrec.training.shared_encoder_groups import read_with_encoder

logger = logging.getLogger(__name__)
_told: set[str] = set()


def read_groups(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, completions: Tensor, mask: Tensor
) -> Tensor:
    """Return ``(prompts, 1 + group * (length - 1), dim)`` states: a prompt's end, candidates but their last token.

    Args:
        model: a causal or encoder-decoder model without its adapter's wrapper.
        input_ids: ``(prompts, length)``, padded on the left.
        attention_mask: ``(prompts, length)``.
        completions: ``(prompts, group, length)`` token ids, padded on the right.
        mask: ``(prompts, group, length)``.

    Paper: Prefix Grouper (Liu et al., 2025, arXiv:2506.05433) shares the prompt of a GRPO group by two attention
        calls. Here it is one row under a mask, the tree attention of SpecInfer (Miao et al., 2024), which any
        attention that takes a mask runs, with its gradient.
    """
    if model.config.is_encoder_decoder:
        return read_with_encoder(model, input_ids, attention_mask, completions)
    reason = why_expanded(model)
    if reason is None:
        return _read_shared(model, input_ids, attention_mask, completions)
    if reason not in _told:
        _told.add(reason)
        logger.warning("%s: prompts are read once a candidate, which is slower; the results are the same", reason)
    return _read_rows(model, input_ids, attention_mask, completions, mask)


def _read_shared(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, completions: Tensor) -> Tensor:
    """Read one row a prompt: ``[prompt | c1[:-1] | .. | cG[:-1]]``."""
    row = torch.cat([input_ids, completions[..., :-1].flatten(1)], dim=1)
    sees = branch_mask(attention_mask, group=completions.shape[1], length=completions.shape[2] - 1)
    positions = branch_positions(attention_mask, group=completions.shape[1], length=completions.shape[2] - 1)
    output = cast(nn.Module, model.base_model)(
        input_ids=row, attention_mask=additive_mask(sees, attention_dtype(model)), position_ids=positions,
        use_cache=False,
    )  # fmt: skip
    return output.last_hidden_state[:, input_ids.shape[1] - 1 :]


def _read_rows(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, completions: Tensor, mask: Tensor
) -> Tensor:
    """Read one row a candidate, where attention takes no mask of its own."""
    prompts, group = completions.shape[:2]
    rows = torch.cat([input_ids.repeat_interleave(group, dim=0), completions.flatten(0, 1)[:, :-1]], dim=1)
    seen = torch.cat([attention_mask.repeat_interleave(group, dim=0), mask.flatten(0, 1)[:, :-1]], dim=1)
    body = cast(nn.Module, model.base_model)
    given = {}
    if "position_ids" in inspect.signature(body.forward).parameters:  # absolute positions start behind the padding
        given = {"position_ids": (seen.cumsum(dim=1) - 1).clamp(min=0)}
    output = body(input_ids=rows, attention_mask=seen, use_cache=False, **given)
    hidden = output.last_hidden_state[:, input_ids.shape[1] - 1 :].unflatten(0, (prompts, group))
    # All candidates of a prompt share the state at its end.
    return torch.cat([hidden[:, :1, 0], hidden[:, :, 1:].flatten(1, 2)], dim=1)
