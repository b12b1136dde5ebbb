"""SRPO: a bonus for the rare successes of a group, by the chance that a few draws hold one."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from llmrec.errors import InputError
from llmrec.training.policy_losses.base import PolicyLoss, group_advantages

TINY = 1e-6


class SRPO(PolicyLoss):
    """GRPO's advantage plus one of pass@k, which is high where successes are few.

    Its other half is a reward that tells near misses apart, ``residual_match`` in `llmrec.rewards`; put it in
    ``rewards``, with ``exact_match`` or alone.

    Args:
        k: draws of a group of which one success is enough, at least 1 and below the size of a group.
        bonus: weight of the pass@k advantage, at least 0.
        success: a candidate whose reward is at least this is a success: with one reward of weight 1 that gives a hit
            1, keep 1; with other weights, what a hit gets.
        epsilon: as `PolicyLoss`.
        epsilon_high: as `PolicyLoss`.
        scale: as `PolicyLoss`, of GRPO's part.
        level: as `PolicyLoss`; theirs is ``token``.

    Raises:
        InputError: a value out of range.

    Paper: GREAM (Hong et al., 2025, arXiv:2510.20815), sparse-regularised group policy optimisation; the advantage
    of pass@k after Chen et al., 2025 (arXiv:2508.10751). What is built is what the authors' code does (``k`` 4, the
    two advantages added). How we differ: a success is a reward of at least ``success``, where theirs is exactly 1, so
    that rewards may be weighted.
    """

    name: ClassVar[str] = "srpo"

    def __init__(
        self,
        *,
        k: int = 4,
        bonus: float = 1.0,
        success: float = 1.0,
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        scale: bool = True,
        level: str = "token",
    ) -> None:
        super().__init__(epsilon=epsilon, epsilon_high=epsilon_high, scale=scale, level=level)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"policy_loss {self.name}: k {k!r}; give a whole number of at least 1")
        self.k = k
        self.bonus = self._number("bonus", bonus, low=0.0)
        self.success = self._number("success", success, low=-1e9)

    def check_group_size(self, size: int) -> None:
        """Raise `InputError` unless a group has more candidates than ``k``."""
        if self.k >= size:
            raise InputError(f"policy_loss srpo: k {self.k} draws of a group of {size}; k is below num_generations")

    def advantages(self, rewards: Tensor, *, ranks: Tensor) -> Tensor:
        """Return advantages of candidates.

        Args:
            rewards: ``(groups, candidates of a group)``, weighted and summed.
            ranks: not read.

        Returns:
            As ``rewards``.

        Raises:
            InputError: groups of no more than ``k`` candidates.
        """
        self.check_group_size(rewards.shape[1])
        hits = rewards >= self.success - TINY
        return group_advantages(rewards, scale=self.scale) + self.bonus * pass_at_k_advantages(hits, self.k)


def pass_at_k_advantages(hits: Tensor, k: int) -> Tensor:
    """Return the advantages of candidates when the reward is that ``k`` of a group, drawn at random, hold a success.

    With ``p`` the chance that they do, a success has ``(1 - p) / sqrt(p (1 - p))`` and a miss the same less the
    chance that ``k - 1`` others hold none, over the same root. A group without a success, or with so many that every
    draw holds one, has 0 throughout.

    Args:
        hits: ``(groups, candidates of a group)`` bool.
        k: draws, below the size of a group.

    Returns:
        ``(groups, candidates of a group)`` float32.
    """
    size = hits.shape[1]
    misses = size - hits.sum(dim=1, keepdim=True).float()
    none = _none_in(misses, size, k)
    none_of_others = _none_in(misses - 1, size - 1, k - 1)
    root = (none * (1 - none)).sqrt() + TINY
    found = torch.where(hits, none, none - none_of_others) / root
    return torch.where((none > 0) & (none < 1), found, 0.0)


def _none_in(misses: Tensor, size: int, draws: int) -> Any:
    """Return the chance that ``draws`` of ``size``, of which ``misses`` are misses, hold no success."""
    chance = torch.ones_like(misses)
    for drawn in range(draws):
        chance = chance * ((misses - drawn).clamp(min=0.0) / (size - drawn))
    return chance
