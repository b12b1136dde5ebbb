"""TF-IDF and truncated SVD: text embeddings for machines without an encoder."""

import logging
from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize as normalize_rows
from tqdm import tqdm

from llmrec.errors import InputError

logger = logging.getLogger(__name__)


def embed_tfidf(texts: Sequence[str], *, dim: int = 128, seed: int = 0, normalize: bool = True) -> np.ndarray:
    """Embed texts by TF-IDF of words and word pairs (sublinear counts), reduced by truncated SVD.

    A text without a word of two letters or more becomes the zero vector; a warning counts them.

    Args:
        texts: one an item.
        dim: columns to keep; at most the number of texts and of distinct terms.
        seed: of the randomised SVD.
        normalize: scale rows to length 1.

    Returns:
        ``(items, dim)`` float32.

    Raises:
        InputError: no words at all, or ``dim`` below 1 or above what the texts allow.
    """
    if dim < 1:
        raise InputError(f"tfidf: dim {dim}; at least 1")
    with tqdm(total=2, desc="tf-idf, then svd", unit="step", leave=False) as progress:
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)  # pyright: ignore[reportArgumentType]
        try:
            terms = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise InputError(f"tfidf: no words in the {len(texts)} texts ({error}); choose other --columns") from error
        most = min(terms.shape)
        if dim > most:
            raise InputError(
                f"tfidf: dim {dim} for {terms.shape[0]} texts with {terms.shape[1]} distinct terms; set --dim to "
                f"{most} or less"
            )
        progress.update()
        vectors = TruncatedSVD(n_components=dim, random_state=seed).fit_transform(terms).astype(np.float32)
        progress.update()
    empty = int((terms.getnnz(axis=1) == 0).sum())
    if empty:
        logger.warning("tfidf: %d of %d texts hold no word; their embedding is zero", empty, len(texts))
    return np.asarray(normalize_rows(vectors)) if normalize else vectors
