"""Groups of an encoder-decoder: the prompt is encoded once, and candidates are branches of one decoder row."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def read_with_encoder(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, completions: Tensor
) -> Tensor:
    """Return ``(prompts, 1 + group * (length - 1), dim)``: states of the start and candidates' tokens.

    The prompt is encoded once. A decoder row is a candidate's.

    Args:
        model: an encoder-decoder.
        input_ids: ``(prompts, length)``, padded on either side.
        attention_mask: ``(prompts, length)``.
        completions: ``(prompts, group, length)`` token ids.
    """
    encoded = cast(nn.Module, model.get_encoder())(input_ids=input_ids, attention_mask=attention_mask)
    states = encoded.last_hidden_state
    prompts, group = completions.shape[:2]
    start = torch.full((prompts, 1), cast(Any, model.config).decoder_start_token_id, device=input_ids.device)
    rows = torch.cat([start.repeat_interleave(group, dim=0), completions.flatten(0, 1)[:, :-1]], dim=1)
    output = cast(nn.Module, model.get_decoder())(
        input_ids=rows,
        encoder_hidden_states=states.repeat_interleave(group, dim=0),
        encoder_attention_mask=attention_mask.repeat_interleave(group, dim=0),
        use_cache=False,
    )
    hidden = output.last_hidden_state.unflatten(0, (prompts, group))
    return torch.cat([hidden[:, :1, 0], hidden[:, :, 1:].flatten(1, 2)], dim=1)
