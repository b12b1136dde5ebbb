"""New rows for SID tokens: grow the embedding tables and give every SID token a start of its own."""

from collections.abc import Collection
from typing import cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.data.items import Catalog
from llmrec.errors import InputError
from llmrec.vocab import SIDVocab


def is_tied(model: PreTrainedModel) -> bool:
    """Return whether the output head shares its rows with the input embeddings."""
    head = model.get_output_embeddings()
    return head is None or head.weight is model.get_input_embeddings().weight


def tables_of(model: PreTrainedModel) -> list[nn.Embedding | nn.Linear]:
    """Return the input embeddings, and the output head where its rows are its own."""
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    return cast(list[nn.Embedding | nn.Linear], tables[:1] if is_tied(model) else tables)


def grow_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Resize the embedding tables to hold every token, never below the rows they have.

    Published tables are padded (Qwen), so ``resize_token_embeddings(len(tokenizer))`` could cut them.

    Returns:
        Rows of the tables afterwards.
    """
    rows = tables_of(model)[0].weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        rows = len(tokenizer)
    return rows


def init_sid_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vocab: SIDVocab,
    *,
    method: str = "mean",
    catalog: Catalog | None = None,
    seed: int = 0,
    without: Collection[int] = (),
) -> None:
    """Set the rows of all SID tokens, by token id, in the input embeddings and in an untied head.

    ``mean``: the mean of the text rows plus noise with each dimension's own standard deviation, so that rows differ as
    much as words do (the default of transformers draws rows that bf16 cannot tell apart).
    ``text``: the mean row of the title words of the items under a code, as a deviation from that mean over all codes
    of its level, scaled to the spread of the text rows, plus a tenth of the ``mean`` noise; codes without items start
    like ``mean``.

    Args:
        model: a model whose tables hold the SID tokens.
        tokenizer: its tokenizer.
        vocab: which tokens are SIDs.
        method: ``mean`` or ``text``.
        catalog: the items; ``text`` needs it.
        seed: of the noise.
        without: item rows whose titles ``text`` does not read.

    Raises:
        InputError: another method, or ``text`` without a catalogue.
    """
    if method not in ("mean", "text"):
        raise InputError(f"sid_init: {method!r}; choose mean or text")
    if method == "text" and catalog is None:
        raise InputError("sid_init: text needs the catalogue's titles; pass catalog, or use mean")
    new = torch.tensor(vocab.trainable_token_indices)
    for number, table in enumerate(module.weight for module in tables_of(model)):
        generator = torch.Generator().manual_seed(seed + number)
        text = _text_rows(table, len(tokenizer), new)
        mean, spread = text.mean(0), text.std(0)
        noise = torch.randn(len(new), table.shape[1], generator=generator) * spread
        rows = mean + noise
        if method == "text" and catalog is not None:
            deviation, used = _code_text(table, tokenizer, vocab, catalog, without)
            scale = spread.norm() / deviation[used].norm(dim=1).mean().clamp_min(1e-12)
            rows = torch.where(used[:, None], mean + deviation * scale + 0.1 * noise, rows)
        with torch.no_grad():
            table[new.to(table.device)] = rows.to(table.device, table.dtype)


def _text_rows(table: Tensor, tokens: int, new: Tensor) -> Tensor:
    """Rows of real tokens, without SIDs and without the padding behind the vocabulary."""
    keep = torch.ones(min(tokens, table.shape[0]), dtype=torch.bool)
    keep[new] = False
    return table.detach()[: len(keep)][keep.to(table.device)].float().cpu()


def _code_text(
    table: Tensor, tokenizer: PreTrainedTokenizerBase, vocab: SIDVocab, catalog: Catalog, without: Collection[int]
) -> tuple[Tensor, Tensor]:
    """Return for each SID token, in `trainable_token_indices` order, its items' words and whether it has items."""
    weights = table.detach().float().cpu()
    encoded = tokenizer(list(catalog.titles), add_special_tokens=False)["input_ids"]
    encoded = [[] if row in without else ids for row, ids in enumerate(encoded)]
    flat = torch.tensor([token for ids in encoded for token in ids] or [0])
    owner = torch.tensor(np.repeat(np.arange(len(encoded)), [len(ids) for ids in encoded]))
    item_text = torch.zeros(len(encoded), weights.shape[1])
    counts = torch.zeros(len(encoded), 1)
    if len(owner):
        item_text.index_add_(0, owner, weights[flat])
        counts.index_add_(0, owner, torch.ones(len(owner), 1))
    item_text /= counts.clamp_min(1)
    position = {token: place for place, token in enumerate(vocab.trainable_token_indices)}
    deviation = torch.zeros(len(position), weights.shape[1])
    used = torch.zeros(len(position), dtype=torch.bool)
    for level, token_ids in enumerate(vocab.level_token_ids):
        codes = torch.from_numpy(vocab.table.codes[:, level])
        has = codes >= 0
        has[list(without)] = False
        sums = torch.zeros(len(token_ids), weights.shape[1]).index_add_(0, codes[has], item_text[has])
        members = torch.bincount(codes[has], minlength=len(token_ids))
        filled = members > 0
        means = sums / members.clamp_min(1)[:, None]
        places = torch.tensor([position[token] for token in token_ids.tolist()])
        deviation[places[filled]] = means[filled] - means[filled].mean(0)
        used[places[filled]] = True
    return deviation, used & (deviation.norm(dim=1) > 0)


def add_residual_dropout(model: PreTrainedModel | PeftModel, probability: float) -> None:
    """Drop out, while training, the embeddings and what each attention and MLP block adds to the residual stream.

    Decoder-only models of today ship without dropout; trained from scratch on a small log they need it. The hooks are
    not part of what `save_pretrained` writes.

    Args:
        model: a decoder whose layers hold ``self_attn`` and ``mlp``, with its adapter if it has one.
        probability: share of values set to zero, in [0, 1).

    Raises:
        InputError: a model without such layers.
    """
    if probability == 0.0:
        return

    def drop(module: nn.Module, _: object, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):
            return (nn.functional.dropout(output[0], probability, module.training), *output[1:])
        return nn.functional.dropout(output, probability, module.training)

    blocks = [module for name, module in model.named_modules() if name.endswith((".self_attn", ".mlp"))]
    if not any(name.endswith(".self_attn") for name, _ in model.named_modules()):
        raise InputError(f"residual_dropout: {type(model).__name__} has no self_attn or mlp blocks; set it to 0")
    for module in (model.get_input_embeddings(), *blocks):
        module.register_forward_hook(drop)
