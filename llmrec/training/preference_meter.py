"""What the log of preference training says: rewards, margins and accuracies over all processes."""

from collections.abc import Callable

import torch
from torch import Tensor

from llmrec.training.preference_losses import Preferences

BY_LIST = ("loss", "rewards/chosen", "logps/chosen", "preference/first", "tokens")
BY_PAIR = ("rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/rejected", "preference/accuracy")
BY_TOKEN = ("entropy", "outside_mass")


class PreferenceMeter:
    """Sums over lists, pairs and tokens, kept on the device until they are read.

    ``rewards/..`` are those of DPO, ``beta`` times the log-ratio to the reference, as TRL logs them; all are 0 before
    the first step. ``preference/accuracy`` is the share of pairs of which the policy itself finds the chosen one more
    likely, and ``preference/first`` the share of lists in which no rejected one is as likely.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(
        self, batch: Preferences, rows: Tensor, loss: Tensor, *, beta: float, tokens: Tensor, mask: Tensor,
        entropies: Tensor | None = None, outside: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Count a batch.

        Args:
            batch: its lists.
            rows: ``(batch,)`` bool, which of them count.
            loss: their mean.
            beta: what log-ratios are multiplied by.
            tokens: ``(batch,)`` that were read for each.
            mask: ``(batch, beams, levels)`` which tokens completions have.
            entropies: ``(batch, beams, levels)`` at each of them, or None.
            outside: ``(batch, beams, levels)`` probability outside the trie, or None.
        """
        policy, reference = batch.policy.detach().double(), batch.reference.double()
        rewards, pairs = beta * (policy - reference), batch.present[:, 1:] & rows[:, None]
        margins, wins = rewards[:, :1] - rewards[:, 1:], policy[:, :1] > policy[:, 1:]
        first = (wins | ~batch.present[:, 1:]).all(dim=1)
        by_list = (loss.detach().expand(len(rows)), rewards[:, 0], policy[:, 0], first, tokens)
        by_pair = (rewards[:, 1:], margins > 0, margins, policy[:, 1:], wins)
        places = mask.bool() & batch.present[..., None] & rows[:, None, None]
        by_token = (entropies, outside)
        nothing = policy.new_tensor(0.0)
        sums = [
            *(_sum(value, rows) for value in by_list), rows.sum(),
            *(_sum(value, pairs) for value in by_pair), pairs.sum(),
            *(nothing if value is None else _sum(value, places) for value in by_token),
            *(nothing if value is None else places.sum() for value in by_token),
        ]  # fmt: skip
        found = torch.stack([value.double() for value in sums])
        self._sums = found if self._sums is None else self._sums + found

    def read(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means since the last reading, and ``lists`` and ``tokens`` as sums; empty where nothing counted.

        Args:
            gather: stacks a ``(1, ...)`` tensor of all processes.
        """
        if self._sums is None:
            return {}
        values = iter(gather(self._sums[None]).sum(0).tolist())
        self._sums = None
        by_list, lists = [next(values) for _ in BY_LIST], next(values)
        by_pair, pairs = [next(values) for _ in BY_PAIR], next(values)
        by_token, tokens = [next(values) for _ in BY_TOKEN], [next(values) for _ in BY_TOKEN]
        if not lists or not pairs:
            return {}
        found = {name: value / lists for name, value in zip(BY_LIST, by_list, strict=True)}
        found |= {name: value / pairs for name, value in zip(BY_PAIR, by_pair, strict=True)}
        found |= {name: value / n for name, value, n in zip(BY_TOKEN, by_token, tokens, strict=True) if n}
        return found | {"lists": lists, "tokens": by_list[-1]}


def _sum(value: Tensor, where: Tensor) -> Tensor:
    return value.detach().double().masked_fill(~where, 0.0).sum()
