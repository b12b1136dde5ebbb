"""The candidates of some prompts: which items, how probable, and where the target stood."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The candidates of some prompts, by falling log-probability; all tensors are on the CPU.

    Args:
        token_ids: ``(prompts, G, levels)`` int64 SID tokens without an end token, -1 behind a shorter SID.
        rows: ``(prompts, G)`` int64 catalogue rows; of items that share a SID the most popular one.
        ranks: ``(prompts, G)`` int64 places in the group, 0 the most probable.
        log_probs: ``(prompts, G)`` float32 under `Rollouts.distribution`.
        leaves: ``(prompts, G)`` int64 leaves of the trie: one to each SID.
        target_places: ``(prompts,)`` int64 where the search had the target: below G it is in the group, from G on it
            came just behind it (`look_beyond`), -1 where it was not found or no target was given.
        added: ``(prompts,)`` bool, whether the target was put into the group instead of its last candidate.
    """

    token_ids: Tensor
    rows: Tensor
    ranks: Tensor
    log_probs: Tensor
    leaves: Tensor
    target_places: Tensor
    added: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_generations(self) -> int:
        """Candidates a prompt."""
        return self.rows.shape[1]

    @property
    def hits(self) -> Tensor:
        """``(prompts,)`` bool, whether the search itself found the target for the group."""
        return (self.target_places >= 0) & (self.target_places < self.num_generations)

    def completions(self) -> list[list[int]]:
        """Return the SID tokens of all candidates, prompt after prompt, without padding."""
        return [[token for token in tokens if token >= 0] for tokens in self.token_ids.flatten(0, 1).tolist()]

    def take(self, places: Sequence[int]) -> "Group":
        """Return the groups of some prompts."""
        index = torch.as_tensor(places, dtype=torch.int64)
        return Group(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def put(self, places: Sequence[int], other: "Group") -> "Group":
        """Return the groups with those at some places replaced by others."""
        index = torch.as_tensor(places, dtype=torch.int64)
        found = {field.name: getattr(self, field.name).clone() for field in fields(self)}
        for name, tensor in found.items():
            tensor[index] = getattr(other, name)
        return Group(**found)
