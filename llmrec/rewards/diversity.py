"""How much a candidate differs from the others of its group."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec.errors import InputError
from llmrec.rewards.candidates import Candidates, read_candidates
from llmrec.rewards.groups import by_group, check_groups
from llmrec.rewards.inputs import Reward, RewardInputs
from llmrec.rewards.vectors import read_unit_vectors
from llmrec.vocab import SIDVocab


def diversity(vocab: SIDVocab, *, embeddings: str | None = None, levels: int = 1, inputs: RewardInputs) -> Reward:
    """Return the mean distance of a candidate from the others of its group; what is no item has 0.

    The mean over a group is the intra-list diversity of its list.

    Args:
        vocab: the SIDs.
        embeddings: ``*.safetensors`` file of this catalogue: the distance is 1 less the cosine. None goes by codes:
            the distance is 1 where the first ``levels`` codes differ, else 0.
        levels: codes that are compared; not read with ``embeddings``.
        inputs: ``num_generations``, and with ``embeddings`` ``catalog`` and ``folder``, are read.

    Raises:
        InputError: levels that the SIDs do not have, or as `read_unit_vectors` says.

    Paper: Ziegler et al., Improving Recommendation Lists Through Topic Diversification, 2005, over embeddings or codes
    in place of topics, and dealt to the candidates.
    """
    if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= vocab.levels:
        raise InputError(f"reward diversity: levels {levels!r}; the SIDs have 1 to {vocab.levels}")
    unit = None if embeddings is None else read_unit_vectors(embeddings, reward="diversity", inputs=inputs)
    size = inputs.num_generations

    def reward(*, completion_ids: list[list[int]], prompts: Sequence[Any] | None = None, **_: Any) -> list[float]:
        check_groups(len(completion_ids), size, reward="diversity", prompts=prompts)
        candidates = read_candidates(completion_ids, vocab)
        known = by_group(candidates.rows >= 0, size)
        alike = _same_codes(candidates, levels, size) if unit is None else _cosines(candidates, unit, size)
        pairs = known[:, :, None] & known[:, None, :] & ~np.eye(size, dtype=bool)
        others = pairs.sum(axis=2)
        far = np.where(pairs, 1.0 - alike, 0.0).sum(axis=2)
        return np.divide(far, others, out=np.zeros_like(far), where=others > 0).ravel().tolist()

    return reward


def _same_codes(candidates: Candidates, levels: int, size: int) -> np.ndarray:
    codes = by_group(candidates.token_ids[:, :levels], size)
    return (codes[:, :, None] == codes[:, None, :]).all(axis=3).astype(np.float64)


def _cosines(candidates: Candidates, unit: np.ndarray, size: int) -> np.ndarray:
    vectors = by_group(unit[candidates.rows], size).astype(np.float64)
    return vectors @ vectors.transpose(0, 2, 1)
