"""Losses of preference lists: one chosen completion, and any number of rejected ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from llmrec.errors import InputError

TRL_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
"""Losses of pairs that TRL's `DPOTrainer` computes; each rejected completion of a list makes a pair with the chosen
one."""


@dataclass(frozen=True)
class Preferences:
    """What a loss of lists sees: sums of log-probabilities, the chosen completion first.

    Args:
        policy: ``(batch, beams)`` of the model that trains; beams counts the completions of a prompt.
        reference: ``(batch, beams)`` of the model that it started from.
        present: ``(batch, beams)`` whether a completion is there; shorter lists are padded.
        margins: ``(batch, beams - 1)`` by how much the chosen one is to win, in units of the loss's logit; None is 0.
    """

    policy: Tensor
    reference: Tensor
    present: Tensor
    margins: Tensor | None = None

    def logits(self, beta: float) -> Tensor:
        """Return ``(batch, beams - 1)``: ``beta`` times the chosen log-ratio over that of each rejected one."""
        ratios = self.policy - self.reference
        return beta * (ratios[:, :1] - ratios[:, 1:])


PreferenceLoss = Callable[[Preferences, float], Tensor]


def s_dpo(batch: Preferences, beta: float) -> Tensor:
    """Return ``(batch,)`` losses: minus the log-probability that the chosen one wins against all rejected at once.

    ``log(1 + sum over rejected of exp(-logit))``, which is ``log(1 + m)`` where policy and reference agree.

    Paper: S-DPO (Chen et al., 2024, arXiv 2406.09215). Theirs encodes the prompt anew for each completion; the loss is
    the same.
    """
    terms = (-batch.logits(beta)).masked_fill(~batch.present[:, 1:], -torch.inf)
    return torch.cat([torch.zeros_like(terms[:, :1]), terms], dim=1).logsumexp(dim=1)


def ddro(batch: Preferences, beta: float) -> Tensor:
    """Return ``(batch,)`` losses: the mean over the rejected of minus the log-probability that the chosen one wins.

    Paper: Direct Document Relevance Optimization (Mekonnen et al., 2025, arXiv 2504.05181): DPO's formula with
    document identifiers as completions. Its rows are triples of a query and two documents; here each list counts
    once, however many it rejects, where ``sigmoid`` counts each pair.
    """
    return _mean(-logsigmoid(batch.logits(beta)), batch)


def margin(batch: Preferences, beta: float) -> Tensor:
    """Return ``(batch,)`` losses as `ddro`, where each logit must exceed the row's margin first.

    Paper: DPO with an offset (Amini et al., 2024, arXiv 2402.10571); margins by reward are in Llama 2's reward model
    (Touvron et al., 2023) too. The margins come with the rows, so any reward gives them.

    Raises:
        InputError: rows without margins.
    """
    if batch.margins is None:
        raise InputError("loss_type: margin needs a margin for each rejected item; give rows a column 'margins'")
    return _mean(-logsigmoid(batch.logits(beta) - batch.margins), batch)


def _mean(losses: Tensor, batch: Preferences) -> Tensor:
    present = batch.present[:, 1:]
    return losses.masked_fill(~present, 0.0).sum(dim=1) / present.sum(dim=1).clamp(min=1)


PREFERENCE_LOSSES: Mapping[str, PreferenceLoss] = {"s_dpo": s_dpo, "ddro": ddro, "margin": margin}
"""Losses of whole lists, by name."""


def check_losses(names: Sequence[str]) -> None:
    """Raise `InputError` for an unknown loss, or one that is named twice."""
    known = [*PREFERENCE_LOSSES, *TRL_LOSSES]
    for name in names:
        if name not in known:
            raise InputError(f"loss_type: {name!r} is not known; choose of {', '.join(known)}")
        if list(names).count(name) > 1:
            raise InputError(f"loss_type: {name!r} is named twice; name it once, and weigh it with loss_weights")
    if not names:
        raise InputError(f"loss_type: no loss; choose of {', '.join(known)}")
