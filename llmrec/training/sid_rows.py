"""SID rows at the price of LoRA: PEFT's trainable tokens, of which only the SID rows are multiplied and replaced."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from llmrec.decoding.head import SIDRows, rows_of_adapters, sid_rows_of

__all__ = ["FewRowsLayer", "SIDRows", "multiply_few_rows", "sid_rows_of"]


class FewRowsLayer(TrainableTokensLayer):
    """PEFT's layer with the same parameters and the same file, and another forward.

    PEFT copies the whole table at each forward and, in the backward, fills a gradient as large. Here the base layer
    does its own lookup or product, and the rows of the adapter are put in its place: ``(batch, length, dim)`` more for
    the embeddings, ``(tokens, rows)`` more for the head. Whatever is no plain case (an adapter that is switched off,
    merged or absent, an embedding that renormalises) goes PEFT's way.

    The bias of an output layer is kept, as in the merged model; PEFT drops it.
    """

    def forward_adapters(self, x: Tensor, active_adapters: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """Return embeddings ``(..., dim)`` of token ids, or logits ``(..., vocab)`` of hidden states."""
        base = self.get_base_layer()
        if (
            self.disable_adapters
            or self.merged
            or args
            or kwargs
            or not isinstance(base, nn.Embedding | nn.Linear)
            or getattr(base, "max_norm", None) is not None
            or any(name not in self.trainable_tokens_delta for name in active_adapters)
        ):
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        self._check_overlapping_tokens(list(active_adapters))
        rows, token_ids = rows_of_adapters(self, active_adapters)
        if rows is None or token_ids is None:
            return super().forward_adapters(x, active_adapters)
        if isinstance(base, nn.Embedding):
            return self._look_up(base, x, rows, token_ids)
        return _multiply(base, x, rows, token_ids)

    def _look_up(self, base: nn.Embedding, x: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
        # Through the module, not its weight, so that hooks that gather a sharded table are called.
        found = base(x)
        at = torch.searchsorted(token_ids, x.to(token_ids.dtype)).clamp_(max=len(token_ids) - 1)
        new = embedding(at, rows.to(found.dtype))
        scale = self._get_embed_scale()
        if scale is not None:
            new = new * scale.to(new.dtype)
        return torch.where((token_ids[at] == x)[..., None], new, found)


def _multiply(base: nn.Linear, x: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
    logits = base(x)
    bias = None if base.bias is None else base.bias[token_ids]
    new = linear(x, rows.to(base.weight.dtype), bias)
    # In place: autograd needs no logits for the product's gradient, and a copy would be (tokens, vocab).
    return logits.index_copy_(-1, token_ids, new.to(logits.dtype))


def multiply_few_rows(model: nn.Module) -> int:
    """Give every table with trainable rows in a model the forward of `FewRowsLayer`; parameters stay as they are.

    Args:
        model: with PEFT's ``trainable_token_indices``, or without: then nothing changes.

    Returns:
        How many layers changed.
    """
    changed = 0
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            cast(Any, module).__class__ = FewRowsLayer
            changed += 1
    return changed
