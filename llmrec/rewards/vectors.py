"""Embeddings of the items as rewards read them."""

from typing import Any

import numpy as np

from llmrec.embeddings.neighbours import unit_rows
from llmrec.embeddings.store import load_embeddings
from llmrec.rewards.inputs import RewardInputs
from llmrec.rewards.saved_baseline import find_path


def read_unit_vectors(path: Any, *, reward: str, inputs: RewardInputs, center: bool = False) -> np.ndarray:
    """Return ``(items, dim)`` float32 embeddings of length 1; an item of zeros stays zeros.

    Args:
        path: the ``*.safetensors`` file; a relative path may also start at the dataset folder.
        reward: which asks, for the error message.
        inputs: ``catalog`` and ``folder``.
        center: whether the mean of the catalogue is taken off first.

    Raises:
        InputError: no catalogue, no file, or embeddings of another catalogue, as `load_embeddings` says.
    """
    catalog = inputs.need("catalog", reward)
    file = find_path(path, reward=reward, option="embeddings", inputs=inputs)
    vectors = load_embeddings(file, catalog=catalog)
    known = np.abs(vectors).max(axis=1) > 0
    if center and known.any():
        vectors = np.where(known[:, None], vectors - vectors[known].mean(axis=0), 0.0)
    return unit_rows(vectors)
