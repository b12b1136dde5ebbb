"""Groups of an encoder-decoder: the prompt is encoded once, and candidates are branches of one decoder row."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmrec.decoding.branches import additive_mask
from llmrec.decoding.prompts import why_expanded
from llmrec.training.branch_mask import branch_mask, branch_positions


def read_with_encoder(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, completions: Tensor
) -> Tensor:
    """Return ``(prompts, 1 + group * (length - 1), dim)`` decoder states: of the start token, then of candidates.

    The prompt is encoded once. The decoder's row of a prompt is ``[start | c1[:-1] | .. | cG[:-1]]``, so that
    cross-attention projects the prompt's keys and values once too. Models that are no T5 get a decoder row a
    candidate.

    Args:
        model: an encoder-decoder without its adapter's wrapper.
        input_ids: ``(prompts, length)``.
        attention_mask: ``(prompts, length)``.
        completions: ``(prompts, group, length)`` token ids, padded on the right.
    """
    encoded = cast(nn.Module, model.get_encoder())(input_ids=input_ids, attention_mask=attention_mask)
    states, decoder = encoded.last_hidden_state, cast(nn.Module, model.get_decoder())
    prompts, group, length = completions.shape
    start = torch.full((prompts, 1), cast(Any, model.config).decoder_start_token_id, device=input_ids.device)
    if why_expanded(model) is not None:
        output = decoder(
            input_ids=torch.cat([start.repeat_interleave(group, dim=0), completions.flatten(0, 1)[:, :-1]], dim=1),
            encoder_hidden_states=states.repeat_interleave(group, dim=0),
            encoder_attention_mask=attention_mask.repeat_interleave(group, dim=0), use_cache=False,
        )  # fmt: skip
        hidden = output.last_hidden_state.unflatten(0, (prompts, group))
        return torch.cat([hidden[:, :1, 0], hidden[:, :, 1:].flatten(1, 2)], dim=1)
    opened = torch.ones_like(start)
    sees = branch_mask(opened, group=group, length=length - 1)
    depths = branch_positions(opened[:1], group=group, length=length - 1)[0]
    output = decoder(
        input_ids=torch.cat([start, completions[..., :-1].flatten(1)], dim=1),
        attention_mask=additive_mask(sees, states.dtype) + _bias_difference(decoder, depths).to(states.dtype),
        encoder_hidden_states=states, encoder_attention_mask=attention_mask, use_cache=False,
    )  # fmt: skip
    return output.last_hidden_state


def _bias_difference(decoder: nn.Module, depths: Tensor) -> Tensor:
    """Return ``(1, heads, tokens, tokens)`` the position bias by depth, less that by place in the row.

    T5 adds its bias by place to the mask in every layer. The sum is the bias by depth, and so is its gradient; nothing
    on the model is changed, so that layers may be run again by gradient checkpointing.
    """
    attention = cast(Any, decoder).block[0].layer[0].SelfAttention

    def bias(places: Tensor) -> Tensor:
        bucket = attention._relative_position_bucket(
            places[None, :] - places[:, None], bidirectional=False,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )  # fmt: skip
        return attention.relative_attention_bias(bucket).permute(2, 0, 1)[None]

    return bias(depths) - bias(torch.arange(len(depths), device=depths.device))
