"""How little known a candidate is."""

from typing import Any

import numpy as np

from llmrec.rewards.candidates import read_candidates
from llmrec.rewards.inputs import Reward, RewardInputs
from llmrec.rewards.popularity_corrected import read_counts
from llmrec.vocab import SIDVocab


def novelty(vocab: SIDVocab, *, inputs: RewardInputs) -> Reward:
    """Return the self-information of a candidate: minus the logarithm of its share of the training interactions.

    It is divided by that of an item taken once, so that it lies between 0 and 1; an item that was never taken counts
    as taken once, and what is no item has 0. On its own it teaches to recommend what nobody takes: keep its weight
    small beside a reward for hits.

    Args:
        vocab: the SIDs.
        inputs: ``popularity`` is read.

    Raises:
        InputError: no counts, or counts of another catalogue.

    Paper: Zhou et al., Solving the apparent diversity-accuracy dilemma of recommender systems, 2010; shares of
    interactions in place of users, as ``novelty@k`` of an evaluation, and divided by the highest there is.
    """
    counts = read_counts(inputs, len(vocab), reward="novelty")
    total = counts.sum()
    bits = np.log2(total / np.maximum(counts, 1.0)) / max(float(np.log2(total)), 1.0)

    def reward(*, completion_ids: list[list[int]], **_: Any) -> list[float]:
        rows = read_candidates(completion_ids, vocab).rows
        return np.where(rows >= 0, bits[rows], 0.0).tolist()

    return reward
