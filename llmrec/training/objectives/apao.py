"""APAO: beside the likelihood of each token that of each prefix, most weight on the prefix that fares worst."""

import torch
from torch import Tensor

from llmrec.training.labelled import Head, Labelled
from llmrec.training.objectives.base import Objective, ObjectiveContext, check_choice, check_number
from llmrec.training.objectives.sid_labels import sid_grid

SCOPES = ("batch", "sid")


def apao(
    context: ObjectiveContext, *, beta: float = 0.3, eta: float = 1.0, worst_of: str = "batch", tau: float = 1.0
) -> Objective:
    """Return cross-entropy plus ``beta`` times the weighted losses of a SID's prefixes.

    Beam search drops an item as soon as one of its prefixes falls out of the beam, so a SID is as strong as its
    weakest prefix. The loss of the prefix of ``m`` codes is the mean of their cross-entropies, and prefixes are
    weighted by ``softmax(eta * loss)``; weights carry no gradient.

    Args:
        context: unused.
        beta: weight of the prefixes beside cross-entropy, at least 0; the paper's lie in [0.05, 0.4].
        eta: how much the worst prefix weighs more, at least 0; 0 weighs all alike.
        worst_of: ``batch`` weighs by the mean loss of each prefix length in the batch, ``sid`` by the losses of each
            SID itself; the loss of a SID is then the same in any batch.
        tau: divides the prefix losses, above 0.

    Raises:
        InputError: a value out of its range.

    Paper: Yu et al., 2026, "APAO: Adaptive Prefix-Aware Optimization for Generative Recommendation"
    (arXiv:2603.02730), its pointwise form. How we differ: the paper carries the weights from batch to batch and
    multiplies them by ``exp(eta * loss)`` with eta from 5e-6 to 5e-4, which over a short training leaves them near
    uniform; ours start from uniform weights in each batch, so that a training that goes on from a checkpoint is the
    one that was never stopped. The authors' code weighs by ``loss * exp(eta * loss)``, also anew in each batch, and
    leaves out the whole SID; we keep it, as the paper does. SIDs of several lengths may stand in one batch: each has
    the weights of its own prefixes. The pairwise form, with 100 sampled items a target, is left out.
    """
    beta = check_number("apao", "beta", beta, low=0.0)
    eta = check_number("apao", "eta", eta, low=0.0)
    tau = check_number("apao", "tau", tau, low=1e-6)
    by_batch = check_choice("apao", "worst_of", worst_of, SCOPES) == "batch"

    def objective(labelled: Labelled, head: Head) -> Tensor:
        losses = -head.log_probs(labelled.hidden, labelled.targets)
        weights = prefix_weights(losses.detach(), labelled, eta=eta, by_batch=by_batch)
        return losses * (1.0 + beta / tau * weights)

    return objective


def prefix_weights(losses: Tensor, labelled: Labelled, *, eta: float, by_batch: bool) -> Tensor:
    """Return what each label's cross-entropy weighs in the prefix losses of its SID, times the codes of that SID.

    With the weights ``w`` of a SID of ``levels`` codes, the prefix losses sum to
    ``sum_m w_m / m * sum_{l <= m} loss_l``, so level ``l`` (counted from 1) weighs ``sum_{m >= l} w_m / m``. Times
    ``levels``, because a mean over labels gives each SID ``1 / levels`` of what a mean over SIDs would.

    Args:
        losses: ``(labels,)`` cross-entropies, without gradient.
        labelled: the labels.
        eta: sharpness.
        by_batch: whether prefix losses are averaged over the batch before they are weighed.

    Returns:
        ``(labels,)``; 0 for text.
    """
    found = torch.zeros_like(losses)
    grid = sid_grid(labelled)
    if not len(grid):
        return found
    stands = grid >= 0
    values = torch.where(stands, losses[grid.clamp(min=0)], 0.0)
    codes = torch.arange(1, grid.shape[1] + 1, device=losses.device, dtype=losses.dtype)
    whole = stands.cumprod(1).bool()  # a prefix with a code that carries no label has no loss
    prefix = values.cumsum(1) / codes
    if by_batch:
        prefix = ((prefix * whole).sum(0) / whole.sum(0).clamp(min=1)).expand_as(prefix)
    weights = torch.where(whole, eta * prefix, -torch.inf).softmax(1).nan_to_num(0.0)
    level = (weights / codes).flip(1).cumsum(1).flip(1) * whole.sum(1, keepdim=True)
    found[grid[stands]] = level[stands]
    return found
