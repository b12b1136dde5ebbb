"""Log-probabilities of several tokens of one hidden state, over the whole vocabulary, in one pass over the table."""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from trl.trainer.utils import maybe_gather_lm_head_ctx

from llmrec.training.labelled import CHUNK_LOGITS, CHUNK_LOGITS_GPU, Head
from llmrec.training.output_columns import Columns, Piece, add_product, product, sum_dtype


class StateLogProbs(NamedTuple):
    """What a softmax says of states and of the tokens that were written behind them.

    Args:
        log_probs: ``(labels,)``.
        totals: ``(states,)`` log-sum-exp of the logits over the temperature, without gradient.
        entropies: ``(states,)`` in nats, or None.
    """

    log_probs: Tensor
    totals: Tensor
    entropies: Tensor | None


def chunk_of(head: Head, hidden: Tensor) -> int:
    """Return the most logits that a head holds at a time."""
    return head.chunk or (CHUNK_LOGITS_GPU if hidden.is_cuda else CHUNK_LOGITS)


def full_log_probs(
    head: Head,
    hidden: Tensor,
    *,
    owners: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    entropy: bool = False,
    entropy_grad: bool = False,
) -> StateLogProbs:
    """Return log-probabilities under the softmax over the whole vocabulary, and the entropy of each state.

    A state is multiplied with the table once, however many labels it has, and no tensor of logits is larger than the
    head's chunk. Where all logits fit in one chunk their softmax is kept for the backward pass, otherwise logits are
    made again; where the table is frozen too, the expected row under the softmax is gathered on the way instead.

    Args:
        head: the output table.
        hidden: ``(states, dim)``.
        owners: ``(labels,)`` the state that predicts each label.
        targets: ``(labels,)`` token ids.
        temperature: what logits are divided by, above 0.
        entropy: whether entropies are asked for.
        entropy_grad: whether they carry a gradient.
    """
    hidden = head.scaled(hidden)
    options = _Options(1.0 / temperature, head.softcap, chunk_of(head, hidden), entropy, entropy_grad)
    with torch.autocast(hidden.device.type, enabled=False):
        log_probs, totals, entropies = _FullLogProbs.apply(  # type: ignore[misc]
            hidden, head.weight, head.bias, head.rows, owners, targets, head.token_ids, options
        )
    return StateLogProbs(log_probs, totals, entropies)


@dataclass(frozen=True)
class _Options:
    sharpness: float
    softcap: float | None
    chunk: int
    entropy: bool
    entropy_grad: bool


class _FullLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor | None, owners: Tensor,
        targets: Tensor, token_ids: Tensor | None, options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        ctx.set_materialize_grads(False)
        columns = Columns(weight, bias, rows, token_ids)
        needs, kind = ctx.needs_input_grad, sum_dtype(hidden)
        width = max(1, options.chunk // max(1, len(hidden)))
        again = options.softcap is not None or options.entropy_grad
        ctx.kept = [] if len(columns) <= width and any(needs) and options.softcap is None else None
        ctx.gather = needs[0] and not needs[1] and not needs[2] and ctx.kept is None and not again
        top = torch.full((len(hidden),), -torch.inf, dtype=kind, device=hidden.device)
        mass, moment = torch.zeros_like(top), torch.zeros_like(top)
        chosen = torch.zeros(len(targets), dtype=kind, device=hidden.device)
        expected = torch.zeros(hidden.shape, dtype=kind, device=hidden.device) if ctx.gather else None
        table, row = columns.find(targets)
        with maybe_gather_lm_head_ctx(*cast(Any, [part for part in (weight, bias) if part is not None])):
            for piece in columns.pieces(width):
                logits = _sharp_logits(piece, hidden, options)
                inside, at = piece.find(table, row)
                chosen = torch.where(inside, logits[owners, at], chosen)
                higher = torch.maximum(top, logits.amax(1))
                # A piece whose every column is replaced has no logit of its own.
                level = higher.masked_fill(higher == -torch.inf, 0.0)
                shrink = (top - level).exp()
                weights = (logits - level[:, None]).exp_() if options.entropy else logits.sub_(level[:, None]).exp_()
                mass = mass * shrink + weights.sum(1)
                if options.entropy:
                    if piece.hidden_columns is not None:
                        logits.index_fill_(1, piece.hidden_columns, 0.0)
                    moment = moment * shrink + torch.linalg.vecdot(weights, logits)
                if expected is not None:
                    found = product(weights.to(hidden.dtype), piece.table.to(hidden.dtype))
                    expected = expected * shrink[:, None] + found
                if ctx.kept is not None:
                    ctx.kept.append((weights, level))
                del logits, weights
                top = higher
        totals = top + mass.log()
        if ctx.kept is not None:
            ctx.kept = [weights.mul_((level - totals).exp()[:, None]) for weights, level in ctx.kept]
        entropies = totals - moment / mass if options.entropy else None
        if expected is not None:
            expected = expected / mass[:, None]
        ctx.options, ctx.token_ids = options, token_ids
        ctx.save_for_backward(hidden, weight, bias, rows, owners, targets, totals, expected, entropies)
        ctx.mark_non_differentiable(totals)
        if entropies is not None and not options.entropy_grad:
            ctx.mark_non_differentiable(entropies)
        return chosen - totals[owners], totals, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, rows, owners, targets, totals, expected, entropies = ctx.saved_tensors
        options, kept, ctx.kept = ctx.options, ctx.kept, None
        kind = sum_dtype(hidden)
        slopes = torch.zeros(len(targets), dtype=kind, device=hidden.device) if grads[0] is None else grads[0].to(kind)
        slopes = slopes * options.sharpness
        bend = grads[2].to(kind) * options.sharpness if options.entropy_grad and grads[2] is not None else None
        falling = torch.zeros(len(hidden), dtype=kind, device=hidden.device).index_add_(0, owners, slopes)
        columns = Columns(weight, bias, rows, ctx.token_ids)
        table, row = columns.find(targets)
        needs = ctx.needs_input_grad
        d_hidden = torch.zeros_like(hidden, dtype=kind) if needs[0] else None  # summed over the pieces unrounded
        d_weight = torch.empty_like(weight) if needs[1] else None  # each row of it is written by one piece
        d_bias = torch.zeros_like(bias) if needs[2] else None
        d_rows = torch.empty_like(rows) if needs[3] else None
        width = max(1, options.chunk // max(1, len(hidden)))
        with maybe_gather_lm_head_ctx(*cast(Any, [part for part in (weight, bias) if part is not None])):
            for place, piece in enumerate(columns.pieces(width, base=expected is None)):
                if kept is None:
                    d_logits = _sharp_logits(piece, hidden, options).sub_(totals[:, None]).exp_()
                else:
                    d_logits, kept[place] = kept[place], None
                curve = None
                if bend is not None and entropies is not None:
                    # d(entropy) / dz = -p (log p + entropy)
                    curve = torch.xlogy(d_logits, d_logits).addcmul_(d_logits, entropies[:, None]).mul_(-bend[:, None])
                d_logits.mul_(-falling[:, None])
                inside, at = piece.find(table, row)
                d_logits.index_put_((owners, at), torch.where(inside, slopes, 0.0), accumulate=True)
                if curve is not None:
                    d_logits.add_(curve)
                if options.softcap is not None:
                    cap = piece.logits(hidden, options.softcap).div_(options.softcap).square_().neg_().add_(1.0)
                    d_logits.mul_(cap.nan_to_num_(0.0, 0.0, 0.0))
                small = d_logits.to(hidden.dtype)
                if d_hidden is not None and expected is None:
                    add_product(d_hidden, small, piece.table.to(hidden.dtype))
                gradient = (d_weight, d_rows)[piece.number]
                if gradient is not None and gradient.dtype == hidden.dtype:
                    torch.mm(small.T, hidden, out=gradient[piece.start : piece.stop])
                elif gradient is not None:
                    gradient[piece.start : piece.stop] = product(small.T, hidden)
                if d_bias is not None:
                    ids = torch.arange(piece.start, piece.stop, device=d_bias.device)
                    ids = ids if piece.number == 0 else ctx.token_ids[ids]
                    d_bias.index_add_(0, ids, d_logits.sum(0).to(d_bias.dtype))
        if d_hidden is not None and expected is not None:
            d_hidden = (-falling[:, None] * expected).index_add_(
                0, owners, slopes[:, None] * columns.rows_of(targets, kind)
            )
        return (
            None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, d_bias, d_rows, None, None, None, None,
        )  # fmt: skip


def _sharp_logits(piece: Piece, hidden: Tensor, options: _Options) -> Tensor:
    logits = piece.logits(hidden, options.softcap)
    return logits if options.sharpness == 1.0 else logits.mul_(options.sharpness)
