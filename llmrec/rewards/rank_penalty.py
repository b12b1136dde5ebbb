"""Confident misses: what a wrong candidate costs more the higher it stood."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec.rewards.candidates import read_candidates, read_targets
from llmrec.rewards.groups import by_group, check_groups, read_ranks
from llmrec.rewards.inputs import Reward, RewardInputs
from llmrec.rewards.options import check_flag
from llmrec.vocab import SIDVocab


def rank_penalty(vocab: SIDVocab, *, needs_hit: bool = True, normalize: bool = True, inputs: RewardInputs) -> Reward:
    """Return the penalty of misses by rank: ``-1 / log2(rank + 2)``, divided by the sum of that over the ranks.

    A hit has 0. It says nothing of a group without a hit, for there every candidate is a miss.

    Args:
        vocab: the SIDs.
        needs_hit: whether a group without a hit has 0 throughout.
        normalize: whether to divide by the sum of ``1 / log2(rank + 2)`` over the ``num_generations`` ranks.
        inputs: ``num_generations`` is read.

    Raises:
        InputError: an option that is neither true nor false.

    Paper: MiniOneRec (Kong et al., 2025, arXiv:2510.24431), its ranking reward, after ReRe. How we differ: the place
    is that of the rollout, where theirs is the number of the row modulo the group, which is the same for beam search
    alone; hits are by item, not by text. Later versions of their code reward hits by ``1 / log2(rank + 2)`` instead.
    """
    hit_needed = check_flag("rank_penalty", "needs_hit", needs_hit)
    size = inputs.num_generations
    scale = (1 / np.log2(np.arange(size) + 2)).sum() if check_flag("rank_penalty", "normalize", normalize) else 1.0

    def reward(
        *,
        completion_ids: list[list[int]],
        target: Sequence[int] | None = None,
        rank: Sequence[int] | None = None,
        prompts: Sequence[Any] | None = None,
        **_: Any,
    ) -> list[float]:
        check_groups(len(completion_ids), size, reward="rank_penalty", prompts=prompts)
        candidates = read_candidates(completion_ids, vocab)
        hits = candidates.hits(read_targets(target, candidates, reward="rank_penalty"))
        ranks = read_ranks(rank, len(candidates), reward="rank_penalty")
        penalties = np.where(hits, 0.0, -1 / np.log2(ranks + 2) / scale)
        if hit_needed:
            penalties = np.where(by_group(hits, size).any(axis=1).repeat(size), penalties, 0.0)
        return penalties.tolist()

    return reward
