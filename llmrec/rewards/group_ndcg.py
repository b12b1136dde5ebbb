"""NDCG of the group's list, dealt to its candidates."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec.rewards.candidates import read_candidates, read_targets
from llmrec.rewards.groups import by_group, check_groups, read_ranks
from llmrec.rewards.inputs import Reward, RewardInputs
from llmrec.rewards.options import check_choice
from llmrec.vocab import SIDVocab

CREDITS = ("own", "difference", "whole")


def group_ndcg(vocab: SIDVocab, *, credit: str = "own", inputs: RewardInputs) -> Reward:
    """Return what each candidate adds to the NDCG of its group's list: ``1 / log2(rank + 2)`` of the hit.

    Args:
        vocab: the SIDs.
        credit: ``own`` gives the hit its gain and misses 0, so that a group's rewards sum to its NDCG; ``difference``
            gives each candidate the list's NDCG less what it would be without that candidate, the ones below it one
            place higher: above a hit a miss costs, below it nothing; ``whole`` gives all of a group the list's NDCG,
            from which GRPO learns nothing, for a group has no spread then: log it with ``weight: 0``.
        inputs: ``num_generations`` is read.

    Raises:
        InputError: another word for ``credit``.

    Paper: Järvelin and Kekäläinen, 2002, for the gain; the difference is the difference reward of Wolpert and Tumer,
    2002. ``own`` is also what later versions of MiniOneRec's code call the rank reward.
    """
    how = check_choice("group_ndcg", "credit", credit, CREDITS)
    size = inputs.num_generations

    def reward(
        *,
        completion_ids: list[list[int]],
        target: Sequence[int] | None = None,
        rank: Sequence[int] | None = None,
        prompts: Sequence[Any] | None = None,
        **_: Any,
    ) -> list[float]:
        check_groups(len(completion_ids), size, reward="group_ndcg", prompts=prompts)
        candidates = read_candidates(completion_ids, vocab)
        hits = by_group(candidates.hits(read_targets(target, candidates, reward="group_ndcg")), size)
        ranks = by_group(read_ranks(rank, len(candidates), reward="group_ndcg"), size)
        gains = hits / np.log2(ranks + 2)
        if how == "own":
            return gains.ravel().tolist()
        best = gains.max(axis=1, keepdims=True)
        if how == "whole":
            return np.broadcast_to(best, gains.shape).ravel().tolist()
        # Candidates of a rollout are distinct, so a group has one hit or none; of several the first counts.
        hit_rank = np.where(hits.any(axis=1), np.where(hits, ranks, ranks.max() + 1).min(axis=1), -1)[:, None]
        above = (ranks < hit_rank) & ~hits
        without = 1 / np.log2(np.maximum(hit_rank, 1) + 1)
        return np.where(hits, gains, np.where(above, best - without, 0.0)).ravel().tolist()

    return reward
