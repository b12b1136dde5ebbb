"""1 for the item that came next, 0 for any other."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec.rewards.candidates import read_candidates, read_targets
from llmrec.rewards.inputs import Reward, RewardInputs
from llmrec.rewards.options import check_choice
from llmrec.vocab import SIDVocab

SHARED = ("any", "share", "first")


def exact_match(vocab: SIDVocab, *, shared: str = "any", inputs: RewardInputs) -> Reward:
    """Return the reward of the item that came next.

    It is decided by item: a candidate is a SID, and it hits where the target is among the items that have it.

    Args:
        vocab: the SIDs.
        shared: what a hit is worth where several items share the SID: ``any`` 1, ``share`` 1 divided by their number
            (what a draw among them hits on average), ``first`` 1 where the target is the most popular of them, which
            is the item that a list shows first, and else 0. Where no SID is shared the three are one.
        inputs: unused.

    Raises:
        InputError: another word for ``shared``.

    Paper: MiniOneRec (Kong et al., 2025, arXiv:2510.24431), its rule-based reward. There the texts of completion and
    target are compared, so that a SID that several items share counts as a hit of each.
    """
    how = check_choice("exact_match", "shared", shared, SHARED)

    def reward(*, completion_ids: list[list[int]], target: Sequence[int] | None = None, **_: Any) -> list[float]:
        candidates = read_candidates(completion_ids, vocab)
        targets = read_targets(target, candidates, reward="exact_match")
        hits = candidates.hits(targets).astype(np.float64)
        if how == "share":
            hits /= np.maximum(candidates.sharers, 1)
        if how == "first":
            hits *= candidates.rows == targets
        return hits.tolist()

    return reward
