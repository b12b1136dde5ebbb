"""From embeddings to a checked SID table: fit, encode, make unique, measure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from llmrec.errors import InputError
from llmrec.registry import resolve
from llmrec.sids.base import SIDTokenizer
from llmrec.sids.collisions import UNIQUE_METHODS, make_unique
from llmrec.sids.methods import SID_TOKENIZERS
from llmrec.sids.quality import quality_report
from llmrec.sids.quantizer import as_codebook_sizes
from llmrec.sids.table import LEVEL_LETTERS, SIDTable


def make_sid_tokenizer(
    method: str,
    *,
    levels: int = 3,
    codebook_size: int | Sequence[int] = 256,
    seed: int = 0,
    method_args: Mapping[str, Any] | None = None,
) -> SIDTokenizer:
    """Build a SID tokenizer by name, not fitted.

    Args:
        method: a key of `SID_TOKENIZERS`, or ``package.module:attribute``.
        levels: codes of a SID.
        codebook_size: codes a level, one number or one a level.
        seed: of whatever the method draws.
        method_args: further arguments of its constructor.

    Raises:
        InputError: an unknown method, or arguments that it does not take.
    """
    build = resolve(method, SID_TOKENIZERS, "SID tokenizer")
    as_codebook_sizes(levels, codebook_size)
    try:
        return build(levels=levels, codebook_size=codebook_size, seed=seed, **(method_args or {}))
    except TypeError as error:
        raise InputError(f"SID tokenizer {method!r}: {error}; check its arguments (--method_args)") from error


def learn_sid_table(
    tokenizer: SIDTokenizer,
    embeddings: np.ndarray,
    *,
    item_ids: Sequence[str],
    unique: str = "append_rank",
    method: str = "unknown",
    settings: Mapping[str, Any] | None = None,
) -> SIDTable:
    """Fit a SID tokenizer (in place) and give every item its SID.

    Args:
        tokenizer: as `make_sid_tokenizer` makes it.
        embeddings: ``(items, dim)`` float32 in catalogue order.
        item_ids: the catalogue's ids.
        unique: a key of `UNIQUE_METHODS`.
        method: the method's name, for the table.
        settings: what the table says of how it was made.

    Raises:
        InputError: embeddings that cannot be fitted, another number of them than items, or collisions that ``unique``
            cannot resolve.
    """
    resolve(unique, UNIQUE_METHODS, "way to make SIDs unique")
    if len(embeddings) != len(item_ids):
        raise InputError(f"SID fit: {len(embeddings)} embeddings for {len(item_ids)} items")
    if unique == "append_rank" and len(tokenizer.codebook_sizes) == len(LEVEL_LETTERS):
        raise InputError(
            f"append_rank: it adds a level to {len(LEVEL_LETTERS)}, the most that can be named; use fewer levels"
        )
    vectors = torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32))
    before = tokenizer.fit(vectors).encode(vectors).cpu().numpy()
    codes, sizes = make_unique(
        before, tokenizer.codebook_sizes, unique=unique, tokenizer=tokenizer, embeddings=vectors
    )
    report = quality_report(codes, sizes, codes_before=before)
    return SIDTable(tuple(item_ids), codes, sizes, method, dict(settings or {}), report)


def adopt_sid_table(published: SIDTable, *, unique: str = "none") -> SIDTable:
    """Return a published table with its collisions resolved, if asked, and measured.

    Args:
        published: as `SIDTable.from_index_json` reads it.
        unique: ``none`` or ``append_rank``.

    Raises:
        InputError: ``reassign_nearest``, which needs the method that made the codes.
    """
    codes, sizes = make_unique(published.codes, published.codebook_sizes, unique=unique)
    report = quality_report(codes, sizes, codes_before=published.codes)
    settings = {**published.settings, "unique": unique}
    return SIDTable(published.item_ids, codes, sizes, published.method, settings, report)
