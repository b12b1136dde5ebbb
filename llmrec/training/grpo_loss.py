"""A policy loss of ours in place of TRL's: advantages of a group, and the sum of loss, KL term and entropy bonus."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmrec.training.policy_losses.base import PolicyBatch, PolicyLoss


def own_advantages(loss: PolicyLoss, rewards: Tensor, *, weights: Sequence[float], ranks: Tensor) -> Tensor:
    """Return the advantages that a loss gives candidates; one without any reward has the mean of its group.

    Args:
        loss: of the policy.
        rewards: ``(groups, candidates of a group, parts)``, NaN for none.
        weights: ``(parts,)``.
        ranks: ``(groups, candidates of a group)`` places in the group, from 0.

    Returns:
        ``(batch,)``, group after group, or ``(batch, items)`` where a completion lists items.
    """
    total = (rewards * torch.tensor(list(weights))).nansum(dim=-1)
    gone = rewards.isnan().all(dim=-1)
    means = total.masked_fill(gone, torch.nan).nanmean(dim=1, keepdim=True).nan_to_num(0.0)
    return loss.advantages(torch.where(gone, means, total), ranks=ranks).flatten(0, 1)


def own_loss(
    loss: PolicyLoss,
    batch: PolicyBatch,
    *,
    entropies: Tensor,
    reference: Tensor | None,
    beta: float,
    correct_kl: bool,
    scale: Tensor | float,
    entropy_coef: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a micro-batch, aggregated as TRL does ``grpo``, and what is logged of it.

    Args:
        loss: of the policy.
        batch: what it reads.
        entropies: ``(batch, length)`` of the softmax at each token.
        reference: ``(batch, length)`` log-probabilities of the reference; needed where ``beta`` is not 0.
        beta: weight of the KL term.
        correct_kl: whether that is weighted by the ratio of new to old probability, as TRL does.
        scale: what the mean over rows is multiplied by where some count for nothing.
        entropy_coef: weight of the entropy bonus.

    Returns:
        The loss, and ``(batch, length)`` values by their names in the log.
    """
    mask = batch.mask
    losses = loss.token_losses(batch)
    logged = {"entropy": entropies, "clip_ratio/region_mean": loss.clipped(batch).float()}
    if beta != 0.0:
        assert reference is not None
        ratio = reference - batch.log_probs
        logged["kl"] = ratio.exp() - ratio - 1
        if correct_kl:
            logged["kl"] = logged["kl"] * (batch.log_probs - batch.old_log_probs).exp()
        losses = losses + beta * logged["kl"]
    total = ((losses * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean() * scale
    if entropy_coef != 0.0:
        total = total - entropy_coef * (entropies * mask).sum() / mask.sum().clamp(min=1.0)
    return total, logged
