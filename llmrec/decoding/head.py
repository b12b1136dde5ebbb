"""The output head a few rows at a time: logits of chosen tokens, and a log-sum-exp in chunks of the vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

CHUNK_LOGITS = 2**22
"""Most logits that the log-sum-exp holds at a time: 16 MiB in float32."""


@dataclass(frozen=True, eq=False)
class SIDRows:
    """An embedding or output table, and the rows that stand in its place for some tokens.

    Args:
        weight: ``(vocab, dim)``, the table itself, gradients and all.
        rows: ``(tokens, dim)`` rows that replace those of the table, often float32 over a table in bfloat16; None
            where nothing is replaced.
        token_ids: ``(tokens,)`` whose rows they are, rising; None where nothing is replaced.
        bias: ``(vocab,)`` of an output layer that has one.
    """

    weight: Tensor
    rows: Tensor | None = None
    token_ids: Tensor | None = None
    bias: Tensor | None = None


def sid_rows_of(module: nn.Module) -> SIDRows:
    """Return the table of a linear or embedding layer, plain or in a wrapper of PEFT; nothing is copied.

    Rows of a wrapper whose adapter is switched off or merged are None: its table alone counts then.

    Raises:
        TypeError: the layer has no plain float table (a quantized or LoRA-wrapped one); ask `has_rows` first.
    """
    if isinstance(module, ModulesToSaveWrapper):
        module = _active_copy(module)
    rows = token_ids = None
    if isinstance(module, TrainableTokensWrapper):
        layer = cast(TrainableTokensLayer, module.token_adapter)
        if not layer.disable_adapters and not layer.merged:
            rows, token_ids = rows_of_adapters(layer, layer.active_adapters)
        module = layer.get_base_layer()
    # Gemma's scaled embedding is a subclass, and no plain table.
    if type(module) not in (nn.Linear, nn.Embedding) or not cast(Tensor, module.weight).is_floating_point():
        raise TypeError(f"{type(module).__name__} has no plain table of rows")
    return SIDRows(cast(Tensor, module.weight), rows, token_ids, cast(Tensor | None, getattr(module, "bias", None)))


def rows_of_adapters(
    layer: TrainableTokensLayer, adapters: Sequence[str]
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return the ``(tokens, dim)`` rows that adapters of a layer train and their ``(tokens,)`` token ids, rising."""
    names = [name for name in adapters if name in layer.trainable_tokens_delta]
    if not names:
        return None, None
    deltas = [cast(Tensor, layer.trainable_tokens_delta[name]) for name in names]
    rows = deltas[0] if len(deltas) == 1 else torch.cat(deltas)
    token_ids, order = _token_ids(layer, names, rows.device)
    return (rows if order is None else rows[order]), token_ids


def _token_ids(layer: TrainableTokensLayer, names: list[str], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return rising token ids and the order that made them rise, kept at the layer: a list is slow to read."""
    kept: dict[tuple, tuple] = vars(layer).setdefault("_llmrec_token_ids", {})
    lists = [layer.token_indices[name] for name in names]
    key = (*names, str(device))
    if key not in kept or any(before is not now for before, now in zip(kept[key][0], lists, strict=True)):
        found = torch.tensor([token for one in lists for token in one], dtype=torch.long, device=device)
        order = None if bool((found[1:] > found[:-1]).all()) else found.argsort()
        kept[key] = (lists, found if order is None else found[order], order)
    return kept[key][1], kept[key][2]


class TokenRows:
    """Rows of an embedding or output table, those that PEFT's ``trainable_token_indices`` replaces included.

    PEFT itself rebuilds the whole table at each access.

    Args:
        module: a linear or embedding layer, plain or in a wrapper of PEFT.

    Raises:
        TypeError: the layer has no plain float table (a quantized or LoRA-wrapped one); ask `has_rows` first.
    """

    def __init__(self, module: nn.Module) -> None:
        table = sid_rows_of(module)
        self.weight = table.weight.detach()
        self.bias = None if table.bias is None else table.bias.detach()
        self.replaced: tuple[Tensor, Tensor] | None = None
        if table.rows is not None and table.token_ids is not None:
            self.replaced = table.token_ids, table.rows.detach()

    def rows(self, token_ids: Tensor) -> Tensor:
        """Return ``(tokens, dim)`` rows of ``(tokens,)`` token ids."""
        found = self.weight[token_ids]
        if self.replaced is not None:
            index, rows = self.replaced
            at = torch.searchsorted(index, token_ids).clamp(max=len(index) - 1)
            hit = index[at] == token_ids
            found[hit] = rows[at[hit]].to(found)
        return found

    def chunk(self, start: int, stop: int) -> Tensor:
        """Return ``(stop - start, dim)`` rows side by side, a view where nothing is replaced."""
        found = self.weight[start:stop]
        if self.replaced is not None:
            index, rows = self.replaced
            inside = (index >= start) & (index < stop)
            found = found.index_copy(0, index[inside] - start, rows[inside].to(found))
        return found

    def __len__(self) -> int:
        return len(self.weight)


def has_rows(module: nn.Module | None) -> bool:
    """Return whether `TokenRows` can read a layer."""
    if module is None:
        return False
    try:
        TokenRows(module)
    except TypeError:
        return False
    return True


def _active_copy(module: ModulesToSaveWrapper) -> nn.Module:
    names = module.active_adapters
    if module.disable_adapters or not names or names[0] not in module.modules_to_save:
        return cast(nn.Module, module.original_module)
    return module.modules_to_save[names[0]]


def replaced_rows(model: PreTrainedModel) -> TokenRows | None:
    """Return the input table where PEFT would rebuild it at each forward, None where the model looks up by itself."""
    module = cast(nn.Module, model.get_input_embeddings())
    if type(module) is nn.Embedding or not has_rows(module):
        return None
    rows = TokenRows(module)
    return None if rows.replaced is None else rows


class OutputHead:
    """Logits of hidden states.

    Args:
        module: the model's output layer.
        scale: what hidden states are multiplied by before it (T5's ``d_model ** -0.5``).
    """

    def __init__(self, module: nn.Module, *, scale: float = 1.0) -> None:
        self.table = TokenRows(module)
        self.scale = scale

    def logits(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """Return float32 logits ``(..., tokens)`` of hidden states ``(..., dim)`` for ``(tokens,)`` token ids.

        They are multiplied in float32 whatever the model's dtype: in bfloat16 many tokens' logits would be equal.
        """
        rows = self.table.rows(token_ids).float()
        logits = (hidden * self.scale).float() @ rows.T
        return logits if self.table.bias is None else logits + self.table.bias[token_ids].float()

    def log_total(self, hidden: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Return float32 log-sum-exp over the whole vocabulary ``(...)`` of hidden states ``(..., dim)``."""
        flat = (hidden * self.scale).flatten(0, -2)
        step = max(1, CHUNK_LOGITS // max(1, len(flat)))
        total = torch.full((len(flat),), -torch.inf, device=flat.device)
        for start in range(0, len(self.table), step):
            stop = min(start + step, len(self.table))
            logits = _product(flat, self.table.chunk(start, stop))
            if self.table.bias is not None:
                logits += self.table.bias[start:stop].float()
            total = torch.logaddexp(total, (logits / temperature if temperature != 1.0 else logits).logsumexp(-1))
        return total.view(hidden.shape[:-1])


def _product(hidden: Tensor, rows: Tensor) -> Tensor:
    """Return float32 ``(states, tokens)`` products; factors may be bfloat16, the result is not rounded to it."""
    if hidden.dtype != torch.float32 and hidden.is_cuda:
        return torch.mm(hidden, rows.T, out_dtype=torch.float32)
    return hidden.float() @ rows.float().T
