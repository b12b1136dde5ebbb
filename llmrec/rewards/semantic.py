"""How near a candidate is to the item that came next, by their embeddings."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec.rewards.candidates import read_candidates, read_targets
from llmrec.rewards.inputs import Reward, RewardInputs
from llmrec.rewards.options import check_flag
from llmrec.rewards.vectors import read_unit_vectors
from llmrec.vocab import SIDVocab


def semantic(vocab: SIDVocab, *, embeddings: str, center: bool = False, inputs: RewardInputs) -> Reward:
    """Return the cosine of candidate and target; a hit has 1, and what is no item -1.

    Of items that share a SID the most popular one is looked at. An item without an embedding has 0.

    Args:
        vocab: the SIDs.
        embeddings: ``*.safetensors`` file of this catalogue, as ``data_prep/embed_items.py`` writes it.
        center: whether the mean of the catalogue is taken off first: text embeddings often lie in a narrow cone, where
            every cosine is high.
        inputs: ``catalog`` and ``folder`` are read.

    Raises:
        InputError: as `read_unit_vectors` says.

    Paper: MiniOneRec (Kong et al., 2025, arXiv:2510.24431), its semantic reward. How we differ: what is no item has
    -1 (theirs takes a random item there); the mean may be taken off.
    """
    unit = read_unit_vectors(
        embeddings, reward="semantic", inputs=inputs, center=check_flag("semantic", "center", center)
    )

    def reward(*, completion_ids: list[list[int]], target: Sequence[int] | None = None, **_: Any) -> list[float]:
        candidates = read_candidates(completion_ids, vocab)
        targets = read_targets(target, candidates, reward="semantic")
        cosines = np.einsum("nd,nd->n", unit[candidates.rows], unit[targets], dtype=np.float64)
        known = np.where(candidates.rows >= 0, cosines.clip(-1.0, 1.0), -1.0)
        return np.where(candidates.hits(targets), 1.0, known).tolist()

    return reward
