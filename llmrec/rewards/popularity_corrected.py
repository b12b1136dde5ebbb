"""Hits weighed by how rarely their item was taken, so that popular items do not make up the whole reward."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec.errors import InputError
from llmrec.rewards.candidates import read_candidates, read_targets
from llmrec.rewards.inputs import Reward, RewardInputs
from llmrec.rewards.options import check_number
from llmrec.vocab import SIDVocab


def popularity_corrected(
    vocab: SIDVocab, *, exponent: float = 0.5, most: float = 10.0, penalty: float = 0.0, inputs: RewardInputs
) -> Reward:
    """Return hits weighed by inverse propensity, less a penalty of popular misses.

    An item that was taken ``n`` times in training has the weight ``n ** -exponent``, with ``n`` at least 1, divided by
    the mean over training interactions, and then bounded.

    Within a group every hit has the same target, so GRPO's division by the deviation of the group takes the weight of
    the hit out again: set ``scale_rewards: none`` or ``batch``, add it to another reward, or use ``penalty``, which
    differs within a group.

    Args:
        vocab: the SIDs.
        exponent: from 0 (every hit is worth 1) to 1 (all of an item's interactions together weigh alike).
        most: bound of a weight, at least 1, against variance.
        penalty: what a miss of the most popular item costs, at least 0; others cost ``(n / highest) ** exponent`` of
            it.
        inputs: ``popularity`` is read.

    Raises:
        InputError: an option out of range, or counts of another catalogue.

    Paper: Schnabel et al., Recommendations as Treatments, 2016 (inverse propensity, bounded weights); propensities as
    a power of popularity after Yang et al., 2018. The penalty is ours.
    """
    power = check_number("popularity_corrected", "exponent", exponent, low=0, high=1)
    bound = check_number("popularity_corrected", "most", most, low=1)
    cost = check_number("popularity_corrected", "penalty", penalty, low=0)
    counts = read_counts(inputs, len(vocab), reward="popularity_corrected")
    raw = np.maximum(counts, 1.0) ** -power
    weights = np.minimum(raw / (raw @ counts / counts.sum()), bound)
    costs = cost * (counts / counts.max()) ** power if power else np.full(len(counts), cost)

    def reward(*, completion_ids: list[list[int]], target: Sequence[int] | None = None, **_: Any) -> list[float]:
        candidates = read_candidates(completion_ids, vocab)
        targets = read_targets(target, candidates, reward="popularity_corrected")
        misses = np.where(candidates.rows >= 0, -costs[candidates.rows], 0.0)
        return np.where(candidates.hits(targets), weights[targets], misses).tolist()

    return reward


def read_counts(inputs: RewardInputs, items: int, *, reward: str) -> np.ndarray:
    """Return ``(items,)`` float64 training counts.

    Args:
        inputs: ``popularity``.
        items: size of the catalogue.
        reward: which asks, for the error message.

    Raises:
        InputError: no counts, counts of another catalogue, or none above 0.
    """
    counts = np.asarray(inputs.need("popularity", reward), dtype=np.float64)
    if counts.shape != (items,) or not counts.sum() > 0 or counts.min() < 0:
        raise InputError(
            f"reward {reward}: popularity of shape {counts.shape} with {counts.sum():g} interactions; give training "
            f"counts of the {items} items"
        )
    return counts
