"""What every method that makes semantic IDs must do."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from llmrec.errors import InputError


class SIDTokenizer(nn.Module, ABC):
    """Maps item embeddings to tuples of codes, one code a level.

    A subclass is fitted once, then encodes any embeddings of the same dimension, items it never saw included.
    """

    codebook_sizes: tuple[int, ...]

    @abstractmethod
    def fit(self, embeddings: Tensor) -> Self:
        """Learn from ``(items, dim)`` float32 embeddings and return self.

        Raises:
            InputError: NaN or infinite values, or fewer items than the largest codebook.
        """

    @abstractmethod
    def encode(self, embeddings: Tensor) -> Tensor:
        """Return ``(items, levels)`` int64 codes of ``(items, dim)`` embeddings; two items may get the same codes."""

    def last_level_costs(self, embeddings: Tensor, codes: Tensor) -> Tensor:
        """Return ``(items, codes)`` costs of every code of the last level, given each item's codes before it.

        Only `reassign_nearest` asks for it; a method that cannot say leaves it out.

        Args:
            embeddings: ``(items, dim)``.
            codes: ``(items, levels)``; the last column is not read for the costs of a learned method.

        Raises:
            InputError: the method has no such costs.
        """
        raise InputError(
            f"{type(self).__name__}: it has no last_level_costs, so reassign_nearest cannot choose a free code; use "
            "append_rank"
        )

    @abstractmethod
    def save_pretrained(self, path: str | Path) -> None:
        """Write ``quantizer.json`` (name and settings) and ``quantizer.safetensors`` into the folder ``path``."""

    @classmethod
    @abstractmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Read what `save_pretrained` wrote.

        Raises:
            InputError: a missing file, or one of another method.
        """
