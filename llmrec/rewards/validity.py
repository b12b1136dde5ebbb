"""Whether a completion names an item that may be recommended."""

from typing import Any

import numpy as np

from llmrec.rewards.candidates import read_candidates
from llmrec.rewards.inputs import Reward, RewardInputs
from llmrec.vocab import SIDVocab


def validity(vocab: SIDVocab, *, inputs: RewardInputs) -> Reward:
    """Return 1 where a completion ends with the SID of an item that is not retired, else 0.

    Of constrained rollouts every completion has 1; it is for those that are generated freely, after a rationale.

    Args:
        vocab: the SIDs.
        inputs: unused.

    Paper: OneRec Technical Report (2025, arXiv:2506.13695), its format reward, 1 for a legal SID. There illegal ones
    are left out of the loss; here they have 0 and the advantage that follows.
    """
    gone = np.append(np.asarray(vocab.retired), True)
    # Of items that share a SID one that is not retired is enough.
    for row in np.flatnonzero(gone[:-1]).tolist():
        gone[row] = all(vocab.retired[other] for other in vocab.rows(vocab.token_ids(row)))

    def reward(*, completion_ids: list[list[int]], **_: Any) -> list[float]:
        return (~gone[read_candidates(completion_ids, vocab).rows]).astype(np.float64).tolist()

    return reward
