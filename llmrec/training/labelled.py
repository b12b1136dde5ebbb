"""What stands where a label stands, and an output head that is multiplied nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from trl.trainer.utils import maybe_gather_lm_head_ctx

from llmrec.errors import InputError
from llmrec.training.output_columns import Columns, FewRows, Piece, add_product, place_among, product, sum_dtype
from llmrec.training.sid_rows import sid_rows_of

CHUNK_LOGITS = 2**24
"""Most logits held at a time on a CPU: 64 MiB in float32."""

CHUNK_LOGITS_GPU = 2**27
"""Most logits held at a time on a GPU: 512 MiB in float32."""

BLOCK = 8192
"""Most labels that are multiplied with the table at a time."""


@dataclass(frozen=True)
class Labelled:
    """What stands where a label stands, flat over the batch.

    Args:
        hidden: ``(labels, dim)`` hidden states that predict.
        targets: ``(labels,)`` token ids to predict.
        tasks: ``(labels,)`` task number, in the order of the config's tasks.
        levels: ``(labels,)`` SID level of the target, -1 where it is text.
        sids: ``(labels,)`` running number of the SID within the batch, -1 where the target is text.
        batch: what the model's forward was called with, for objectives that ask another model.
    """

    hidden: Tensor
    targets: Tensor
    tasks: Tensor
    levels: Tensor
    sids: Tensor
    batch: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)


def sid_numbers(levels: Tensor, places: Tensor) -> Tensor:
    """Return ``(labels,)`` the running number of each label's SID, -1 where it is text.

    A SID goes on where the level is one more than at the label before, and the position too.

    Args:
        levels: ``(labels,)`` SID levels, -1 for text.
        places: ``(labels,)`` positions within the flattened batch, ascending.
    """
    before = torch.full_like(levels, -1)
    before[1:] = levels[:-1]
    behind = torch.zeros_like(levels, dtype=torch.bool)
    behind[1:] = places[1:] == places[:-1] + 1
    starts = (levels >= 0) & ~(behind & (before >= 0) & (levels == before + 1))
    return torch.where(levels >= 0, starts.cumsum(0) - 1, -1)


@dataclass(frozen=True)
class Head:
    """The output table of a model, multiplied chunk by chunk; gradients are exact.

    Args:
        weight: ``(vocab, dim)``.
        bias: ``(vocab,)`` or None.
        rows: ``(rows, dim)`` that stand in for the rows of ``token_ids``, or None.
        token_ids: ``(rows,)`` ascending, or None.
        scale: what hidden states are multiplied by first (T5's ``dim ** -0.5``, Cohere's ``logit_scale``).
        softcap: Gemma's ``final_logit_softcapping``, or None.
        chunk: most logits held at a time; None takes `CHUNK_LOGITS`, or `CHUNK_LOGITS_GPU` on a GPU.
        tied: whether ``weight`` is a parameter that the hidden states were read with too, and whole on this device.

    Paper: cut cross-entropy (Wijmans et al., 2025), a kernel that keeps no logits, and Liger (Hsu et al., 2024), which
    makes gradients in the forward pass. Here plain matrix products in chunks, for any loss of the log-probabilities,
    with the rows of an adapter beside the table, and less work where the table is frozen.
    """

    weight: Tensor
    bias: Tensor | None = None
    rows: Tensor | None = None
    token_ids: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    chunk: int | None = None
    tied: bool = False
    hits: list[Tensor] = field(default_factory=list, repr=False, compare=False)
    """``(labels,)`` of each call of `log_probs`: whether no other token is more likely than the target."""

    @classmethod
    def of(cls, model: PreTrainedModel, *, scale: float | None = None) -> "Head":
        """Return the head of a model, with the SID rows that an adapter replaces.

        Args:
            model: a model with an output layer.
            scale: what hidden states are multiplied by; None reads it from the config.

        Raises:
            InputError: an output layer that is no table of float rows.
        """
        module = cast(nn.Module, model.get_output_embeddings())
        config: Any = model.config.get_text_config()
        try:
            found = sid_rows_of(module)
        except TypeError as error:
            raise InputError(
                f"model: its output layer is quantized or wrapped ({error}); keep the head in float, without LoRA"
            ) from error
        return cls(
            _whole(found.weight),
            None if found.bias is None else _whole(found.bias),
            found.rows,
            found.token_ids,
            logit_scale(config) if scale is None else scale,
            getattr(config, "final_logit_softcapping", None),
            tied=found.weight is getattr(model.get_input_embeddings(), "weight", None) and _plain(found.weight),
        )

    def log_probs(self, hidden: Tensor, targets: Tensor, *, equal: bool = False) -> Tensor:
        """Return float32 ``(labels,)`` log-probabilities of the targets under the softmax over the whole vocabulary.

        Args:
            hidden: ``(labels, dim)``.
            targets: ``(labels,)`` token ids.
            equal: a promise that all labels weigh alike in the loss; gradients are then made in the forward pass, one
                product with the table in four less.
        """
        hidden = self.scaled(hidden)
        chunk = self.chunk or (CHUNK_LOGITS_GPU if hidden.is_cuda else CHUNK_LOGITS)
        equal = equal and self.rows is None and self.softcap is None and self.weight.requires_grad
        equal = equal and torch.is_grad_enabled() and len(hidden) * len(self.weight) > chunk
        with torch.autocast(hidden.device.type, enabled=False):
            if equal:
                log_probs, hits = _EqualLogProbs.apply(hidden, self.weight, self.bias, targets, chunk)  # type: ignore[misc]
            else:
                log_probs, hits = _LogProbs.apply(  # type: ignore[misc]
                    hidden, self.weight, self.bias, self.rows, targets, self.token_ids, self.softcap, chunk
                )
        self.hits.append(hits)
        return log_probs

    def logits(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """Return float32 ``(labels, tokens)`` logits of a few tokens.

        Args:
            hidden: ``(labels, dim)``.
            token_ids: ``(tokens,)``; labels times tokens is what it holds.
        """
        hidden = self.scaled(hidden)
        return self.few_rows(token_ids, sum_dtype(hidden)).logits(hidden)

    def few_rows(self, token_ids: Tensor, dtype: torch.dtype) -> FewRows:
        """Return the rows of ``(tokens,)`` token ids, for hidden states that `scaled` made."""
        table = _TakenRows.apply(self.weight, token_ids) if self.tied else self.weight[token_ids]
        if self.rows is not None and self.token_ids is not None:
            place, replaced = place_among(self.token_ids, token_ids)
            table = torch.where(replaced[:, None], self.rows[place].to(table.dtype), table)
        bias = None if self.bias is None else self.bias[token_ids].to(dtype)
        return FewRows(table.to(dtype), bias, self.softcap)

    def scaled(self, hidden: Tensor) -> Tensor:
        """Return hidden states as the table is multiplied with them: in autocast's dtype, and scaled."""
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            hidden = hidden.to(torch.get_autocast_dtype(device))
        return hidden if self.scale == 1.0 else hidden * self.scale


def logit_scale(config: Any) -> float:
    """Return what a causal model multiplies its logits by, as its config says."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)  # Granite and MiniCPM divide by it, HyperCLOVA X multiplies
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)


def _whole(tensor: Tensor) -> Tensor:
    """Return a parameter that FSDP2 may hold in parts as one tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _plain(weight: Tensor) -> bool:
    """Return whether a table is a parameter that autograd keeps whole: not sharded, gathered, nor made of others."""
    return type(weight) is nn.Parameter and weight.is_leaf and not hasattr(weight, "ds_id")


class _TakenRows(torch.autograd.Function):
    """Rows of a table that has another, dense gradient in the same backward pass, as of the tokens that were read.

    The gradient of the rows is sparse: autograd adds it to the other one in place, where a dense one would fill and
    add a whole table.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, token_ids: Tensor) -> Tensor:
        """Return ``(tokens, dim)`` rows."""
        ctx.save_for_backward(token_ids)
        ctx.shape = weight.shape
        return weight[token_ids]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the table, sparse."""
        (token_ids,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(token_ids[None], grads[0], ctx.shape, check_invariants=False), None


class _LogProbs(torch.autograd.Function):
    """Log-probabilities of targets; logits are made again in the backward pass unless all of them fit in one chunk.

    Where the table is frozen (LoRA), the expected row under the softmax is gathered in the forward pass, after which
    the backward pass needs the rows that train alone.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor | None, targets: Tensor,
        token_ids: Tensor | None, softcap: float | None, chunk: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        columns = Columns(weight, bias, rows, token_ids)
        needs = ctx.needs_input_grad
        fits = len(hidden) * len(columns) <= chunk and len(hidden) <= BLOCK and softcap is None
        # All logits fit in one chunk: their softmax is kept for the backward pass.
        ctx.kept = [] if fits and any(needs) else None
        # The table is frozen: its part of the gradient of `hidden` is the expected row, no need to come back to it.
        ctx.gather = needs[0] and not needs[1] and not needs[2] and not fits and softcap is None
        found = []
        with maybe_gather_lm_head_ctx(*cast(Any, [part for part in (weight, bias) if part is not None])):
            for block, wanted in zip(hidden.split(BLOCK), targets.split(BLOCK), strict=True):
                found.append(_read(ctx, columns, block, wanted, max(1, chunk // max(1, len(block))), softcap))
        log_probs, total, hits, expected = (list(values) for values in zip(*found, strict=True))
        ctx.softcap, ctx.chunk, ctx.token_ids = softcap, chunk, token_ids
        gathered = torch.cat(expected) if ctx.gather else None
        ctx.save_for_backward(hidden, weight, bias, rows, targets, torch.cat(total), gathered)
        top = torch.cat(hits)
        ctx.mark_non_differentiable(top)
        return torch.cat(log_probs), top

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, rows, targets, total, expected = ctx.saved_tensors
        columns = Columns(weight, bias, rows, ctx.token_ids)
        kept, ctx.kept = ctx.kept, None
        kind, blocks = sum_dtype(hidden), len(hidden.split(BLOCK))
        grad = grads[0].to(kind)
        # Sums over several blocks are not rounded in between.
        d_hidden, d_weight, d_bias, d_rows = (
            torch.zeros(of.shape, dtype=of.dtype if blocks == 1 and of is not hidden else kind, device=of.device)
            if needed
            else None
            for of, needed in zip((hidden, weight, bias, rows), ctx.needs_input_grad, strict=False)
        )
        with maybe_gather_lm_head_ctx(*cast(Any, [part for part in (weight, bias) if part is not None])):
            for number in range(blocks):
                part = slice(number * BLOCK, (number + 1) * BLOCK)
                block, slopes = hidden[part], grad[part]
                table, row = columns.find(targets[part])
                pieces = columns.pieces(max(1, ctx.chunk // max(1, len(block))), base=expected is None)
                for place, piece in enumerate(pieces):
                    if kept is None:
                        logits = piece.logits(block, ctx.softcap)
                        cap = None if ctx.softcap is None else 1.0 - (logits / ctx.softcap).square()
                        d_logits = logits.sub_(total[part, None]).exp_()
                    else:
                        cap, d_logits = None, kept[place]
                    d_logits.mul_(-slopes[:, None])
                    _add_targets(d_logits, piece, table, row, slopes)
                    if cap is not None:
                        d_logits.mul_(cap.nan_to_num_(0.0, 0.0, 0.0))
                    small = d_logits.to(hidden.dtype)
                    if d_hidden is not None and expected is None:
                        add_product(d_hidden[part], small, piece.table.to(hidden.dtype))
                    gradient = (d_weight, d_rows)[piece.number]
                    if gradient is not None:
                        add_product(gradient[piece.start : piece.stop], small.T, block)
                    if d_bias is not None:
                        ids = torch.arange(piece.start, piece.stop, device=d_bias.device)
                        ids = ids if piece.number == 0 else ctx.token_ids[ids]
                        d_bias.index_add_(0, ids, d_logits.sum(0).to(d_bias.dtype))
        if d_hidden is not None and expected is not None:
            d_hidden = grad[:, None] * (columns.rows_of(targets, kind) - expected)
        made = ((d_hidden, hidden), (d_weight, weight), (d_bias, bias), (d_rows, rows))
        gradients = (None if gradient is None else gradient.to(of.dtype) for gradient, of in made)
        return (*gradients, None, None, None, None)


class _EqualLogProbs(torch.autograd.Function):
    """Log-probabilities of targets that weigh alike, with the gradients of their sum made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        kind, step = sum_dtype(hidden), max(1, chunk // len(weight))
        single = len(hidden) <= step
        d_hidden = torch.zeros_like(hidden, dtype=kind)
        d_weight = torch.zeros_like(weight, dtype=weight.dtype if single else kind)
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=kind)
        log_probs, hits = [], []
        with maybe_gather_lm_head_ctx(*cast(Any, [part for part in (weight, bias) if part is not None])):
            table = weight.to(hidden.dtype)
            for place, (block, wanted) in enumerate(zip(hidden.split(step), targets.split(step), strict=True)):
                logits = product(block, table.T)
                if bias is not None:
                    logits += bias.to(kind)
                chosen, top = logits.gather(1, wanted[:, None]), logits.amax(1, keepdim=True)
                mass = logits.sub_(top).exp_().sum(1, keepdim=True)
                log_probs.append((chosen - top - mass.log())[:, 0])
                hits.append((chosen >= top)[:, 0])
                slopes = logits.div_(mass).scatter_add_(1, wanted[:, None], torch.full_like(chosen, -1.0))
                small = slopes.to(hidden.dtype)
                add_product(d_hidden[place * step : place * step + len(block)], small, table)
                add_product(d_weight, small.T, block)
                if d_bias is not None:
                    d_bias += slopes.sum(0)
        ctx.gradients = (d_hidden.to(hidden.dtype), d_weight.to(weight.dtype), d_bias)
        top_hits = torch.cat(hits)
        ctx.mark_non_differentiable(top_hits)
        return torch.cat(log_probs), top_hits

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad = grads[0]
        torch._assert_async((grad == grad[0]).all())  # the promise; a GPU is not waited for
        scale = -grad[0]
        if ctx.gradients is None:
            raise RuntimeError("log-probabilities of equal weight: their gradients were handed out already")
        gradients, ctx.gradients = ctx.gradients, None
        return (*(None if made is None else made.mul_(scale.to(made.dtype)) for made in gradients), None, None)


def _read(
    ctx: Any, columns: Columns, hidden: Tensor, targets: Tensor, width: int, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return log-probabilities, log-sum-exp, whether the target is on top, and the expected row or None."""
    kind = sum_dtype(hidden)
    table, row = columns.find(targets)
    top = torch.full((len(hidden),), -torch.inf, dtype=kind, device=hidden.device)
    mass = torch.zeros_like(top)
    chosen = torch.zeros_like(top)
    expected = torch.zeros(hidden.shape, dtype=kind, device=hidden.device) if ctx.gather else None
    for piece in columns.pieces(width):
        logits = piece.logits(hidden, softcap)
        inside = (table == piece.number) & (row >= piece.start) & (row < piece.stop)
        at = (row - piece.start).clamp(0, piece.stop - piece.start - 1)
        chosen = torch.where(inside, logits.gather(1, at[:, None])[:, 0], chosen)
        higher = torch.maximum(top, logits.amax(1))
        # A piece whose every column is replaced has no logit of its own.
        level = higher.masked_fill(higher == -torch.inf, 0.0)
        logits.sub_(level[:, None]).exp_()
        shrink = (top - level).exp()
        mass = mass * shrink + logits.sum(1)
        if expected is not None:
            expected = expected * shrink[:, None] + product(logits.to(hidden.dtype), piece.table.to(hidden.dtype))
        if ctx.kept is not None:
            ctx.kept.append((logits, level))
        top = higher
    total = top + mass.log()
    if ctx.kept is not None:
        ctx.kept = [part[0].mul_((part[1] - total).exp()[:, None]) for part in ctx.kept]
    return chosen - total, total, chosen >= top, None if expected is None else expected / mass[:, None]


def _add_targets(d_logits: Tensor, piece: Piece, table: Tensor, row: Tensor, grad: Tensor) -> None:
    inside = (table == piece.number) & (row >= piece.start) & (row < piece.stop)
    at = (row - piece.start).clamp(0, piece.stop - piece.start - 1)
    d_logits.scatter_add_(1, at[:, None], torch.where(inside, grad, 0.0)[:, None])
