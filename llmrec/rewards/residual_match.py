"""Near misses told apart: more for a longer right prefix, and less for the longest of them than for a hit."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec.errors import InputError
from llmrec.rewards.candidates import read_candidates, read_targets
from llmrec.rewards.inputs import Reward, RewardInputs
from llmrec.rewards.options import check_number
from llmrec.vocab import SIDVocab

MOST = 0.95
"""What a miss may get at most, unless the YAML says otherwise."""


def residual_match(vocab: SIDVocab, *, values: Sequence[float] | None = None, inputs: RewardInputs) -> Reward:
    """Return the residual-sensitive reward: 1 for a hit, else by how many codes are right from the first on.

    Args:
        vocab: the SIDs.
        values: what 1, 2, .. right codes of a miss are worth, one less than there are levels, each from 0 to below 1
            and not falling; None takes ``sqrt(right / (levels - 1))``, at most 0.95.
        inputs: unused.

    Raises:
        InputError: another number of values, one out of range, or one below that before it.

    Paper: GREAM (Hong et al., 2025, arXiv:2510.20815), the reward half of SRPO. The default is the authors' code for
    their five levels (0.5, 0.707, 0.866, 0.95), which we stretch to other numbers of levels. How we differ: their
    reward is 0 where the answer has a wrong form; here that is the reward ``output_format``, and hits are by item.
    """
    worth = np.concatenate([[0.0], _values(values, vocab.levels), [0.0]])

    def reward(*, completion_ids: list[list[int]], target: Sequence[int] | None = None, **_: Any) -> list[float]:
        candidates = read_candidates(completion_ids, vocab)
        targets = read_targets(target, candidates, reward="residual_match")
        right = (candidates.matches(targets) & (candidates.token_ids >= 0)).sum(axis=1)
        return np.where(candidates.hits(targets), 1.0, worth[right]).tolist()

    return reward


def _values(values: Sequence[float] | None, levels: int) -> np.ndarray:
    if values is None:
        return np.minimum(np.sqrt(np.arange(1, levels) / max(levels - 1, 1)), MOST)
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != levels - 1:
        raise InputError(
            f"reward residual_match: values {values!r}; give a list of {levels - 1} numbers, for 1 to {levels - 1} "
            "right codes"
        )
    checked = np.array([check_number("residual_match", "a value", value, low=0, high=1) for value in values])
    if (checked >= 1).any() or (np.diff(checked) < 0).any():
        raise InputError(f"reward residual_match: values {list(values)}; they rise and stay below 1, what a hit gets")
    return checked
