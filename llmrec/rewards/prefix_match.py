"""Credit for each code that is right, from the first on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec.errors import InputError
from llmrec.rewards.candidates import read_candidates, read_targets
from llmrec.rewards.inputs import Reward, RewardInputs
from llmrec.rewards.options import check_number
from llmrec.vocab import SIDVocab


def prefix_match(vocab: SIDVocab, *, weights: Sequence[float] | None = None, inputs: RewardInputs) -> Reward:
    """Return the reward of a right prefix: the weights of the levels up to the first wrong code.

    The weights are divided by their sum over the target's levels, so that the whole SID is worth 1.

    Args:
        vocab: the SIDs.
        weights: one a level, at least 0, the first above 0; None weighs all alike. A level that tells nothing of the
            item, such as a rank that was appended to make SIDs unique, may have 0.
        inputs: unused.

    Raises:
        InputError: another number of weights than levels, a weight below 0, or nothing for the first level.

    Paper: GREAM (Hong et al., 2025, arXiv:2510.20815) rewards the matching prefix among wrong answers; here it is a
    reward of its own. `llmrec.training.policy_losses.srpo` carries theirs.
    """
    by_level = _check_weights(weights, vocab.levels)
    lengths = (vocab.item_token_ids.numpy() >= 0).sum(axis=1)
    whole = np.cumsum(by_level)

    def reward(*, completion_ids: list[list[int]], target: Sequence[int] | None = None, **_: Any) -> list[float]:
        candidates = read_candidates(completion_ids, vocab)
        targets = read_targets(target, candidates, reward="prefix_match")
        length = lengths[targets]
        right = candidates.matches(targets) & (np.arange(vocab.levels) < length[:, None])
        return ((right * by_level).sum(axis=1) / whole[length - 1]).tolist()

    return reward


def _check_weights(weights: Sequence[float] | None, levels: int) -> np.ndarray:
    if weights is None:
        return np.ones(levels)
    if isinstance(weights, str) or not isinstance(weights, Sequence) or len(weights) != levels:
        raise InputError(f"reward prefix_match: weights {weights!r}; give a list of {levels} numbers, one a level")
    checked = [check_number("prefix_match", f"weight of level {n}", value, low=0) for n, value in enumerate(weights)]
    if not checked[0]:
        raise InputError("reward prefix_match: the weight of level 0 is 0; give the first level more than nothing")
    return np.array(checked)
