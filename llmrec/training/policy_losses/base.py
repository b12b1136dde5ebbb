"""The form of a policy loss: advantages of a group, and the loss of each token."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmrec.errors import InputError

LEVELS = ("token", "item", "mean")
SPREAD = 1e-4
"""Added to the standard deviation of a group, as TRL does."""


@dataclass(frozen=True)
class PolicyBatch:
    """What a policy loss reads: completions of whole groups, ``num_generations`` rows each.

    Args:
        log_probs: ``(batch, length)`` of the policy, with gradient; 0 where masked.
        old_log_probs: ``(batch, length)`` of the policy that drew the completions.
        mask: ``(batch, length)`` 1 where a token stands.
        advantages: ``(batch, 1)``, ``(batch, length)``, or ``(batch, items)`` where ``segments`` are given.
        ranks: ``(batch,)`` places of the completions in their groups.
        num_generations: candidates in a group.
        segments: ``(batch, length)`` which item of a completion that lists several a token belongs to, from 0, -1
            for none; None where a completion is one item.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    mask: Tensor
    advantages: Tensor
    ranks: Tensor
    num_generations: int
    segments: Tensor | None = None


class PolicyLoss:
    """The clipped loss of GRPO, of which the others change a part.

    Args:
        epsilon: the ratio of new to old probability is clipped below ``1 - epsilon``.
        epsilon_high: and above ``1 + epsilon_high``; None takes ``epsilon``.
        scale: whether advantages are divided by the standard deviation of their group.
        level: what a ratio is of: ``token`` each token; ``item`` the item, the product over its tokens; ``mean`` the
            geometric mean over them.

    Raises:
        InputError: a value out of range.
    """

    name: ClassVar[str] = "policy_loss"
    """As in the YAML."""

    def __init__(
        self, *, epsilon: float = 0.2, epsilon_high: float | None = None, scale: bool = True, level: str = "token"
    ) -> None:
        self.epsilon = self._number("epsilon", epsilon, low=0.0, high=1.0)
        high = epsilon if epsilon_high is None else epsilon_high
        self.epsilon_high = self._number("epsilon_high", high, low=0.0)
        self.scale = self._flag("scale", scale)
        if level not in LEVELS:
            raise InputError(f"policy_loss {self.name}: level {level!r}; choose one of {', '.join(LEVELS)}")
        self.level = level

    def check_group_size(self, size: int) -> None:
        """Raise `InputError` where a group of ``size`` candidates does not serve; call it before training."""

    def advantages(self, rewards: Tensor, *, ranks: Tensor) -> Tensor:
        """Return advantages of candidates.

        Args:
            rewards: ``(groups, candidates of a group)``, weighted and summed.
            ranks: ``(groups, candidates of a group)`` places in the group, from 0.

        Returns:
            As ``rewards``.
        """
        return group_advantages(rewards, scale=self.scale)

    def token_losses(self, batch: PolicyBatch) -> Tensor:
        """Return ``(batch, length)`` losses, 0 where masked; the trainer takes the mean over the tokens of each row.

        Args:
            batch: of the policy.
        """
        advantages = self._spread(batch)
        ratio = self.log_ratios(batch).exp()
        clipped = ratio.clamp(1 - self.epsilon, 1 + self.epsilon_high)
        return -torch.min(ratio * advantages, clipped * advantages) * batch.mask

    def clipped(self, batch: PolicyBatch) -> Tensor:
        """Return ``(batch, length)`` bool: tokens that the clipping leaves without a gradient."""
        advantages, ratio = self._spread(batch), self.log_ratios(batch).exp()
        low = (ratio < 1 - self.epsilon) & (advantages < 0)
        return (low | (ratio > 1 + self.epsilon_high) & (advantages > 0)) & batch.mask.bool()

    def log_ratios(self, batch: PolicyBatch) -> Tensor:
        """Return ``(batch, length)`` logarithms of the ratios of new to old probability, at ``level``."""
        difference = (batch.log_probs - batch.old_log_probs) * batch.mask
        if self.level == "token":
            return difference
        sums = _over_items(difference, batch)
        return sums if self.level == "item" else sums / _over_items(batch.mask.to(sums), batch).clamp(min=1.0)

    def _spread(self, batch: PolicyBatch) -> Tensor:
        """Return advantages that stand at their tokens, ``(batch, length)`` or ``(batch, 1)``."""
        if batch.segments is None:
            return batch.advantages
        found = batch.advantages.gather(1, batch.segments.clamp(min=0))
        return torch.where(batch.segments >= 0, found, 0.0)

    def _number(self, option: str, value: Any, *, low: float, high: float = math.inf) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise InputError(f"policy_loss {self.name}: {option} {value!r}; give a number")
        if not low <= value <= high:
            bound = f"between {low:g} and {high:g}" if high < math.inf else f"at least {low:g}"
            raise InputError(f"policy_loss {self.name}: {option} {value!r}; it is {bound}")
        return float(value)

    def _flag(self, option: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise InputError(f"policy_loss {self.name}: {option} {value!r}; give true or false, without quotes")
        return value


def group_advantages(rewards: Tensor, *, scale: bool) -> Tensor:
    """Return rewards less the mean of their group, divided by its standard deviation where ``scale`` says so.

    Args:
        rewards: ``(groups, candidates of a group, ...)``.
        scale: whether to divide.

    Paper: GRPO (Shao et al., 2024, arXiv:2402.03300). As in TRL the deviation is that of a sample, with 1e-4 added.
    """
    exact = rewards.double()  # in float32 the mean of equal rewards is not quite them, and scaling would show it
    centred = (exact - exact.mean(dim=1, keepdim=True)).to(rewards.dtype)
    return centred / (rewards.std(dim=1, keepdim=True) + SPREAD) if scale else centred


def _over_items(values: Tensor, batch: PolicyBatch) -> Tensor:
    """Return the sum over the tokens of each item, at each of its tokens."""
    if batch.segments is None:
        return values.sum(dim=1, keepdim=True).expand_as(values)
    place = batch.segments + 1  # what belongs to no item is summed apart
    sums = values.new_zeros(len(values), int(place.max()) + 1).scatter_add(1, place, values)
    return sums.gather(1, place)
