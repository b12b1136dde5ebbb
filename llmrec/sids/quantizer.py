"""What the built-in SID tokenizers share: checks before a fit, and the two files of a fitted one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmrec.artifacts import read_json, whole_file, write_json
from llmrec.embeddings.store import check_vectors
from llmrec.errors import InputError

FORMAT_VERSION = 1
CONFIG_NAME = "quantizer.json"
WEIGHTS_NAME = "quantizer.safetensors"


def as_codebook_sizes(levels: int, codebook_size: int | Sequence[int]) -> tuple[int, ...]:
    """Return one codebook size a level.

    Args:
        levels: 1 to 26.
        codebook_size: one number for all levels, or one a level; each at least 2.

    Raises:
        InputError: a number out of range, or another count of sizes than levels.
    """
    if not 1 <= levels <= 26:
        raise InputError(f"levels {levels}: 1 to 26 can be named, <a_0> to <z_0>")
    sizes = (codebook_size,) if isinstance(codebook_size, int) else tuple(codebook_size)
    if len(sizes) == 1:
        sizes *= levels
    if len(sizes) != levels:
        raise InputError(f"codebook_size: {len(sizes)} sizes for {levels} levels; give one, or one a level")
    for level, size in enumerate(sizes):
        if size < 2:
            raise InputError(f"codebook_size {size} at level {level}: a codebook holds at least 2 codes")
    return sizes


def check_fit(embeddings: Tensor, codebook_sizes: Sequence[int]) -> None:
    """Check ``(items, dim)`` embeddings before a fit.

    Raises:
        InputError: NaN or infinite values, or fewer items, or fewer distinct embeddings, than the largest codebook.
    """
    vectors = embeddings.detach().cpu().numpy()
    check_vectors(vectors, source="SID fit")
    largest = max(codebook_sizes)
    if largest > len(vectors):
        raise InputError(
            f"codebook_size {largest}: larger than the number of items, {len(vectors)}; choose {len(vectors)} or less"
        )
    distinct = len(np.unique(vectors, axis=0))
    if largest > distinct:
        raise InputError(
            f"codebook_size {largest}: larger than the number of distinct embeddings, {distinct} (of {len(vectors)} "
            f"items); choose {distinct} or less, or embed more --columns"
        )


def save_quantizer(
    path: str | Path, *, method: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write ``quantizer.json`` and ``quantizer.safetensors`` into the folder ``path``.

    Args:
        path: the folder, made when missing.
        method: a key of `SID_TOKENIZERS`, or ``package.module:attribute``.
        settings: constructor arguments.
        tensors: what was learned.
    """
    path = Path(path)
    with whole_file(path / WEIGHTS_NAME) as part:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
    write_json(path / CONFIG_NAME, {"format_version": FORMAT_VERSION, "method": method, "settings": dict(settings)})


def load_quantizer(path: str | Path, *, method: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save_quantizer` wrote.

    Returns:
        Constructor arguments, and the learned tensors on the CPU.

    Raises:
        InputError: a missing or unreadable file, another format version, or another method than ``method``.
    """
    path = Path(path)
    config = read_json(path / CONFIG_NAME, "quantizer config")
    if config.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path / CONFIG_NAME}: format_version {config.get('format_version')!r}, this llmrec reads "
            f"{FORMAT_VERSION}; learn the SIDs again"
        )
    if config.get("method") != method:
        raise InputError(
            f"{path / CONFIG_NAME}: made by method {config.get('method')!r}, not {method!r}; load it with "
            "llmrec.sids.methods.load_sid_tokenizer"
        )
    file = path / WEIGHTS_NAME
    if not file.is_file():
        raise InputError(f"{file}: no such file; learn the SIDs again")
    try:
        return config["settings"], load_file(file)
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{path}: not a readable quantizer ({error}); learn the SIDs again") from error


def as_float_matrix(embeddings: Tensor, *, dim: int | None = None) -> Tensor:
    """Return embeddings as float32 on the CPU.

    Raises:
        InputError: not ``(items, dim)``.
    """
    if embeddings.ndim != 2 or (dim is not None and embeddings.shape[1] != dim):
        expected = "(items, dim)" if dim is None else f"(items, {dim})"
        raise InputError(f"SID tokenizer: embeddings are of shape {tuple(embeddings.shape)}, expected {expected}")
    return embeddings.detach().to(device="cpu", dtype=torch.float32)
