"""Rejected items that are like the target, by the cosine of embeddings."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmrec.embeddings.neighbours import nearest_rows, nonzero_rows
from llmrec.embeddings.store import load_embeddings, load_manifest
from llmrec.errors import InputError
from llmrec.sids.fitted_on import check_fitted_on
from llmrec.training.preferences.candidates import refuse_short
from llmrec.training.preferences.draws import uniforms
from llmrec.training.preferences.inputs import PreferenceInputs
from llmrec.training.preferences.questions import Questions

MORE = 4
"""Each time that neighbours do not suffice, so many times as many are looked at."""


@dataclass(frozen=True)
class NearestNegatives:
    """The items nearest to the target, or a draw of them."""

    vectors: np.ndarray = field(repr=False)
    skip: int
    pool: int | None
    exclude_history: bool
    inputs: PreferenceInputs = field(repr=False)
    may_fall_short: bool = False

    def __call__(self, questions: Questions, *, count: int, taken: np.ndarray | None = None) -> np.ndarray:
        """Return ``(rows, count)`` items."""
        pool = count if self.pool is None else self.pool
        if pool < count:
            raise InputError(f"negatives: nearest: pool {pool} for {count} items a row; at least as many as that")
        candidates = self.inputs.candidates
        forbidden = candidates.forbidden(questions, history=self.exclude_history, taken=taken)
        targets, back = np.unique(questions.targets, return_inverse=True)
        most = len(self.vectors) - 1
        found = np.full((len(questions), pool), -1, dtype=np.int64)
        open_rows, width = np.arange(len(questions)), self.skip + 2 * pool
        while len(open_rows):
            asked = np.unique(back[open_rows])
            near, _ = nearest_rows(
                self.vectors[targets[asked]], self.vectors, k=min(width, most), leave_out=targets[asked]
            )
            drawn = np.full((len(questions), near.shape[1] - min(self.skip, near.shape[1])), -1, dtype=np.int64)
            sids = candidates.sid_of[near[:, self.skip :]]
            drawn[open_rows] = sids[np.searchsorted(asked, back[open_rows])]
            found[open_rows] = candidates.first_permitted(drawn, forbidden, count=pool)[open_rows]
            open_rows = open_rows[found[open_rows, count - 1] < 0]
            if width >= most:
                break
            width *= MORE
        if pool > count:
            order = uniforms(self.inputs.seed, questions.numbers, np.arange(pool))
            order[found < 0] = 2.0
            found = np.take_along_axis(found, np.argsort(order, axis=1, kind="stable")[:, :count], axis=1)
        remedy = "ask for fewer, or lower skip"
        refuse_short(found, questions, source="nearest", remedy=remedy)
        return candidates.rows(found)


def nearest_negatives(
    *,
    inputs: PreferenceInputs,
    embeddings: str,
    skip: int = 5,
    pool: int | None = None,
    exclude_history: bool = True,
) -> NearestNegatives:
    """Take the items whose embeddings are nearest to the target's: hard ones, which words alone do not tell apart.

    Args:
        inputs: with the dataset that the embeddings must belong to.
        embeddings: a file of ``data_prep/embed_items.py``.
        skip: so many of the very nearest items are left out, for they may be as good as the target (another size of
            the same thing).
        pool: draw the row's items from so many nearest ones behind those; None takes the nearest.
        exclude_history: never take an item of the history.

    Raises:
        InputError: no such embeddings, embeddings of another catalogue or fitted on another protocol's training part,
            an item without any (a zero row), or numbers out of range.

    Paper: hard negatives by embedding as in ANCE (Xiong et al., 2021, https://arxiv.org/abs/2007.00808); here the
        embeddings stay as they are and nearness is to the target, not to the prompt.
    """
    for name, value, least in (("skip", skip, 0), ("pool", pool, 1)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise InputError(f"negatives: nearest: {name} {value!r}; a whole number, at least {least}")
    dataset = inputs.dataset
    vectors = load_embeddings(Path(embeddings), catalog=None if dataset is None else dataset.catalog)
    if len(vectors) != len(inputs.vocab):
        raise InputError(
            f"negatives: nearest: {embeddings} has {len(vectors)} items and the policy {len(inputs.vocab)}; give the "
            "embeddings of its catalogue"
        )
    if inputs.splits is not None:
        made = {"embeddings": load_manifest(embeddings)}
        check_fitted_on(made, inputs.splits.protocol, source=f"negatives: nearest: {embeddings}")
    if not nonzero_rows(vectors).all():
        empty = int(np.flatnonzero(~nonzero_rows(vectors))[0])
        raise InputError(
            f"negatives: nearest: {embeddings} says nothing of item row {empty} (a row of zeros), so nothing is near "
            "it; embed its text, or use another source"
        )
    return NearestNegatives(vectors, skip, pool, exclude_history, inputs)
