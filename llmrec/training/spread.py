"""Whether rewards differ within a group, which is all that a group can teach by."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from llmrec.errors import InputError

SAME = 1e-6
"""Rewards that differ by less are the same."""


class NoSpread(InputError):
    """No group had any spread of reward for so long that the run was stopped."""


class SpreadWatch:
    """Stops a run whose rewards never differ within a group.

    Args:
        stop_after: generation steps in a row without any spread; 0 never stops.
        names: of the rewards.
        has_spread: `has_spread` with the run's weights.
    """

    def __init__(self, stop_after: int, names: Sequence[str], has_spread: Callable[[Tensor], Tensor]) -> None:
        self.stop_after, self.names, self._has_spread = stop_after, list(names), has_spread
        self.steps = 0

    def see(self, rewards: Tensor) -> None:
        """Count a generation step.

        Args:
            rewards: ``(groups, G, parts)`` of all processes.

        Raises:
            NoSpread: it is the last that is waited for.
        """
        self.steps = 0 if bool(self._has_spread(rewards).any()) else self.steps + 1
        if not self.stop_after or self.steps < self.stop_after:
            return
        means = rewards.flatten(0, 1).nanmean(dim=0).tolist()
        parts = ", ".join(f"{name} {mean:g}" for name, mean in zip(self.names, means, strict=True))
        raise NoSpread(
            f"rewards: for {self.steps} generation steps in a row all {rewards.shape[1]} candidates of every prompt "
            f"got the same reward (the last means: {parts}), so nothing is learned. Where the target is never found, "
            "raise num_generations, start from a better model, add a reward that is not so sparse (prefix_match: "
            "0.5), or set add_ground_truth: true; where a reward is constant, mend it. hard_prompts: {stop_after: 0} "
            "goes on all the same"
        )

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint keeps."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a checkpoint."""
        self.steps = int(state.get("steps", 0))


def has_spread(rewards: Tensor, weights: Sequence[float], *, by_part: bool = False) -> Tensor:
    """Return whether the weighted sum of rewards differs between the candidates of each group.

    Args:
        rewards: ``(groups, G, parts)``, NaN where a reward gave none; a candidate without any does not count.
        weights: ``(parts,)``.
        by_part: whether one weighted part that differs is enough, for advantages that scale each part before they are
            summed (``multi_objective_aggregation: normalize_then_sum``): sums that are equal may hide it.

    Returns:
        ``(groups,)`` bool.
    """
    weighted = rewards * torch.as_tensor(weights, dtype=rewards.dtype, device=rewards.device)
    gone = rewards.isnan()
    if not by_part:
        weighted, gone = weighted.nansum(dim=-1, keepdim=True), gone.all(dim=-1, keepdim=True)
    highest = weighted.masked_fill(gone, -torch.inf).amax(dim=1)
    lowest = weighted.masked_fill(gone, torch.inf).amin(dim=1)
    return (highest - lowest > SAME).any(dim=-1)


def loss_weights(keep: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what each prompt's loss is multiplied by, so that its mean over all prompts is that over kept ones.

    Args:
        keep: ``(prompts,)`` bool, of this process.
        gather: joins a ``(prompts,)`` tensor of all processes.

    Returns:
        ``(prompts,)`` float32; zeros where no prompt of any process is kept.
    """
    everyone = gather(keep)
    kept = int(everyone.sum())
    return keep.float() * (len(everyone) / kept if kept else 0.0)
