"""Rank-GRPO: every place of a list has its own return, its own baseline and its own ratio."""

from typing import ClassVar

import torch
from torch import Tensor

from llmrec.errors import InputError
from llmrec.training.policy_losses.base import SPREAD, PolicyLoss, group_advantages
from llmrec.training.spread import has_spread

CREDITS = ("own", "rest")
BASELINES = ("group", "rank")


class RankGRPO(PolicyLoss):
    """GRPO by places of a list.

    A completion that lists several items is what the paper has: rewards are ``(groups, candidates, items)``, and each
    place is compared with the same place of the other lists of its prompt. Where every candidate is one item of one
    beam list, which is what our rollouts draw, the places are those of the group: there is one list a prompt.

    Args:
        credit: what a place is worth: ``own`` its reward; ``rest`` the rewards from there on, each divided by
            ``log2(place + 2)``, for what stands later in a written list was written after. None takes ``rest`` for
            completions that list items and ``own`` for candidates, none of which was written after another.
        baseline: of candidates: ``group`` the mean of their group, ``rank`` the mean of the candidates that stand at
            the same place in the batch of the process, so that a miss costs most where hits are the rule; that needs
            several groups. Lists of items always have the paper's: the same place in the same group.
        epsilon: as `PolicyLoss`.
        epsilon_high: as `PolicyLoss`.
        scale: as `PolicyLoss`.
        level: as `PolicyLoss`; the paper's is ``mean``.

    Raises:
        InputError: a value out of range, or another word.

    Paper: Rank-GRPO (Zhu et al., 2025, arXiv:2510.20150): returns ``DCG@k:N`` or the place's own hit, advantages
    within the group by place, and the geometric mean of an item's token ratios. How we differ: with beam lists there
    is no second list of the same prompt, so the baseline of a place comes from its group or from other prompts; extra
    rewards and penalties for the length of a list are left out, for our lists have one length.
    """

    name: ClassVar[str] = "rank_grpo"

    def __init__(
        self,
        *,
        credit: str | None = None,
        baseline: str = "group",
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        scale: bool = True,
        level: str = "mean",
    ) -> None:
        super().__init__(epsilon=epsilon, epsilon_high=epsilon_high, scale=scale, level=level)
        if credit is not None and credit not in CREDITS:
            raise InputError(f"policy_loss {self.name}: credit {credit!r}; choose one of {', '.join(CREDITS)}")
        if baseline not in BASELINES:
            raise InputError(f"policy_loss {self.name}: baseline {baseline!r}; choose one of {', '.join(BASELINES)}")
        self.credit, self.baseline = credit, baseline

    def advantages(self, rewards: Tensor, *, ranks: Tensor) -> Tensor:
        """Return advantages by place.

        Args:
            rewards: ``(groups, candidates of a group)``, or ``(groups, candidates, items)`` of completions that list
                items.
            ranks: ``(groups, candidates of a group)``, each place from 0 once; not read for lists of items.

        Returns:
            As ``rewards``.

        Raises:
            InputError: ranks that are not each place once, or one group alone where the baseline is by rank.
        """
        if rewards.dim() == 3:
            return group_advantages(self._returns(rewards, self.credit or "rest"), scale=self.scale)
        credit = self.credit or "own"
        if credit == "own" and self.baseline == "group":
            return group_advantages(rewards, scale=self.scale)
        order = self._order(ranks)
        returns = self._returns(rewards.gather(1, order), credit)
        if self.baseline == "group":
            by_place = group_advantages(returns, scale=self.scale)
            # What comes later in a list is less, however its items do: without spread there is nothing to learn.
            by_place[~has_spread(rewards[..., None], [1.0])] = 0.0
        else:
            if len(rewards) < 2:
                raise InputError(
                    f"policy_loss {self.name}: baseline rank compares the groups of a batch, and there is one; raise "
                    "per_device_train_batch_size or gradient_accumulation_steps, or take baseline: group"
                )
            by_place = returns - returns.mean(dim=0)
            by_place[:, ~has_spread(returns.T[..., None], [1.0])] = 0.0  # where all have one, the mean is rounded
            if self.scale:
                # One deviation for all: at places that rarely hit, one hit would otherwise outweigh the batch.
                by_place = by_place / (by_place.pow(2).mean().sqrt() + SPREAD)
        return torch.empty_like(by_place).scatter(1, order, by_place)

    def _order(self, ranks: Tensor) -> Tensor:
        """Return ``(groups, candidates of a group)`` columns in the order of their places."""
        order = ranks.argsort(dim=1)
        wrong = (ranks.gather(1, order) != torch.arange(ranks.shape[1], device=ranks.device)).any(dim=1)
        if wrong.any():
            group = int(wrong.nonzero()[0, 0])
            raise InputError(
                f"policy_loss {self.name}: group {group} has ranks {sorted(ranks[group].tolist())}; each of 0 to "
                f"{ranks.shape[1] - 1} stands once"
            )
        return order

    def _returns(self, rewards: Tensor, credit: str) -> Tensor:
        if credit == "own":
            return rewards
        places = torch.arange(rewards.shape[-1], device=rewards.device, dtype=rewards.dtype)
        return (rewards / torch.log2(places + 2)).flip(-1).cumsum(-1).flip(-1)
