"""What the log of reinforcement learning says, summed over processes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llmrec.training.hard_prompts import Collected

COUNTS = ("asked", "no_spread", "resampled", "replaced", "skipped")
OF_TRL = (
    "completions/clipped_ratio", "completions/mean_terminated_length", "completions/min_terminated_length",
    "completions/max_terminated_length",
)  # fmt: skip
"""What TRL logs of end tokens, which no completion here has."""


class RLMeter:
    """Sums over the generation batches and the steps since the last reading.

    Args:
        names: of the rewards.
        weights: of the rewards.
        items: size of the catalogue.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float], *, items: int) -> None:
        self.names, self.weights, self.items = list(names), list(weights), items
        self._forget()

    def _forget(self) -> None:
        self._sums: dict[str, float] = dict.fromkeys(
            (
                *COUNTS, "hits", "found", "places", "added", "flat", "groups", "tokens", "candidates", "rewards",
                *(f"{kind} {name}" for name in self.names for kind in ("sum", "square", "count")),
            ),
            0.0,
        )  # fmt: skip
        self._seen = torch.zeros(self.items, dtype=torch.bool)
        self._policy: Tensor | None = None

    def add_rollouts(self, collected: Collected, *, prompt_tokens: int) -> None:
        """Count a generation batch.

        Args:
            collected: of `llmrec.training.hard_prompts.HardPrompts.collect`.
            prompt_tokens: of the prompts that it ended with, each once.
        """
        sums, group, rewards = self._sums, collected.group, collected.rewards
        for name in COUNTS:
            sums[name] += collected.counts[name]
        hits = group.hits
        sums["hits"] += int(collected.first_hits.sum())
        sums["found"] += int(hits.sum())
        sums["places"] += int(group.target_places[hits].sum())
        sums["added"] += int(group.added.sum())
        sums["flat"] += int((~collected.spread).sum())
        sums["groups"] += len(group)
        sums["tokens"] += prompt_tokens + int((group.token_ids >= 0).sum())
        given = ~rewards.isnan()
        scored = given.any(dim=-1)
        total = (rewards.double() * torch.tensor(self.weights, dtype=torch.float64)).nansum(dim=-1)
        sums["candidates"] += int(scored.sum())
        sums["rewards"] += float(total[scored].sum())
        for part, name in enumerate(self.names):
            values = rewards[..., part][given[..., part]].double()
            sums[f"sum {name}"] += float(values.sum())
            sums[f"square {name}"] += float(values.square().sum())
            sums[f"count {name}"] += len(values)
        self._seen[group.rows.flatten()] = True

    def add_policy(
        self, mask: Tensor, *, entropies: Tensor | None = None, outside: Tensor | None = None, kl: Tensor | None = None
    ) -> None:
        """Count a micro-batch's tokens; what is not given is not logged.

        Args:
            mask: 1 at the tokens that count, of any shape.
            entropies: of the softmax at each token, of the same shape, nats.
            outside: probability mass that it gives to tokens that are no legal child, 0 to 1.
            kl: of each token.
        """
        where = mask.detach().bool()
        found = [where.sum()]
        for values in (entropies, outside, kl):
            none = where.new_full((), torch.nan, dtype=torch.float32)
            found.append(none if values is None else values.detach().float().masked_fill(~where, 0.0).sum())
        kind = torch.float32 if where.device.type == "mps" else torch.float64
        sums = torch.stack([value.to(kind) for value in found])
        self._policy = sums if self._policy is None else self._policy + sums

    def read(
        self, gather: Callable[[Tensor], Tensor], *, device: torch.device | str = "cpu", seconds: float | None = None
    ) -> dict[str, float]:
        """Return what all processes counted since the last reading; empty where they counted nothing.

        Args:
            gather: stacks a ``(1, ...)`` tensor of all processes; every process reads at the same point.
            device: on which it gathers.
            seconds: since the last reading, without evaluations and saving; None logs no speed.

        Returns:
            ``reward``, ``rewards/NAME/mean`` and ``/std``; ``hit_rate``, the share of prompts whose target the first
            search found; ``hit_rank``, its mean place (1 the first) where the group has it; ``added_targets``, the
            share of groups that were given theirs; ``no_spread``, ``resampled``, ``replaced`` and ``skipped`` as
            shares of the prompts asked; ``frac_reward_zero_std`` of the groups trained on; ``distinct_items`` and
            ``coverage`` of the catalogue; ``entropy``, ``outside_mass``, ``kl``; ``tokens_per_second``, each prompt
            counted once, and ``prompts_per_second``.
        """
        kind = torch.float32 if torch.device(device).type == "mps" else torch.float64
        policy = torch.full((4,), torch.nan) if self._policy is None else self._policy
        counted = torch.tensor([*self._sums.values()], dtype=kind, device=device)
        everyone = gather(torch.cat([counted, policy.to(counted)])[None]).sum(dim=0).tolist()
        seen = int(gather(self._seen[None].to(device=device, dtype=torch.uint8)).amax(dim=0).sum())
        sums = dict(zip(self._sums, everyone[:-4], strict=True))
        self._forget()
        logs: dict[str, float] = {}
        tokens, *values = everyone[-4:]
        for name, value in zip(("entropy", "outside_mass", "kl"), values, strict=True):
            if value == value and tokens:
                logs[name] = value / tokens
        if sums["groups"]:
            logs |= self._of_rollouts(sums)
            logs |= {"distinct_items": float(seen), "coverage": seen / self.items}
            if seconds:
                logs["tokens_per_second"] = sums["tokens"] / seconds
                logs["prompts_per_second"] = sums["groups"] / seconds
        return logs

    def _of_rollouts(self, sums: Mapping[str, float]) -> dict[str, float]:
        logs: dict[str, float] = {}
        if sums["candidates"]:
            logs["reward"] = sums["rewards"] / sums["candidates"]
        for name in self.names:
            count = sums[f"count {name}"]
            if count:
                mean = sums[f"sum {name}"] / count
                logs[f"rewards/{name}/mean"] = mean
                logs[f"rewards/{name}/std"] = max(sums[f"square {name}"] / count - mean**2, 0.0) ** 0.5
        logs["hit_rate"] = sums["hits"] / sums["asked"]
        if sums["found"]:
            logs["hit_rank"] = sums["places"] / sums["found"] + 1
        logs["added_targets"] = sums["added"] / sums["groups"]
        logs["frac_reward_zero_std"] = sums["flat"] / sums["groups"]
        return logs | {name: sums[name] / sums["asked"] for name in COUNTS[1:]}


def named_for(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return TRL's logs without those of end tokens, and with KL by its right name.

    Candidates are distinct, found by a search or drawn without replacement, and weigh the same: the mean of TRL's KL
    term over them estimates no divergence, and stands as ``kl_penalty``.

    Args:
        logs: of a step or an evaluation.
    """
    found = {}
    for name, value in logs.items():
        prefix = "eval_" if name.startswith("eval_") else ""
        bare = name.removeprefix(prefix)
        if bare in OF_TRL:
            continue
        found[f"{prefix}kl_penalty" if bare == "kl" else name] = value
    return found
