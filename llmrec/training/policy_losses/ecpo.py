"""ECPO: early-clipped GRPO, which bounds what a bad item can do."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from llmrec.training.policy_losses.base import PolicyBatch, PolicyLoss


class ECPO(PolicyLoss):
    """GRPO whose ratio is bounded for negative advantages too.

    There GRPO's loss has no upper clip, so an item that became likelier since it was drawn is pushed down by a
    gradient that grows with the ratio. Here its old probability is raised until the ratio is ``1 + epsilon_high +
    delta``; the gradient keeps its direction and is bounded.

    Args:
        delta: above 0; how far the ratio may pass ``1 + epsilon_high``.
        epsilon: as `PolicyLoss`.
        epsilon_high: as `PolicyLoss`.
        scale: as `PolicyLoss`.
        level: as `PolicyLoss`; the paper's is ``item``.

    Raises:
        InputError: a value out of range.

    Paper: OneRec Technical Report (2025, arXiv:2506.13695), with ``delta`` 0.1. There the item's ratio is raised for
    every advantage, which changes nothing above 0, where the clip takes the gradient already. How we differ: none in
    the loss; the paper has no KL term (set ``beta: 0``), for it trains on next items beside, which we do not.
    """

    name: ClassVar[str] = "ecpo"

    def __init__(
        self,
        *,
        delta: float = 0.1,
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        scale: bool = True,
        level: str = "item",
    ) -> None:
        super().__init__(epsilon=epsilon, epsilon_high=epsilon_high, scale=scale, level=level)
        self.delta = self._number("delta", delta, low=1e-6)

    def log_ratios(self, batch: PolicyBatch) -> Tensor:
        """Return ``(batch, length)`` logarithms of the ratios, bounded from above where the advantage is negative."""
        ratios = super().log_ratios(batch)
        over = (ratios.detach() - math.log1p(self.epsilon_high + self.delta)).clamp(min=0.0)
        return ratios - torch.where(self._spread(batch) < 0, over, 0.0)
