"""From an item's SID to the SID of an item that its embedding lies near."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.embeddings.neighbours import nearest_rows, nonzero_rows
from llmrec.embeddings.store import load_embeddings
from llmrec.errors import InputError
from llmrec.tasks.example import Example
from llmrec.tasks.history_text import sid_texts
from llmrec.tasks.inputs import TaskInputs
from llmrec.tasks.option_checks import check_least
from llmrec.tasks.wordings import wordings_of
from llmrec.vocab import SIDVocab

EMBEDDINGS_FILE = "embeddings.safetensors"


def similar_items(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    inputs: TaskInputs | None = None,
    embeddings: str | None = None,
    neighbours: int = 3,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield an example for each item and near item, both ways: one's SID in the prompt, the other's as completion.

    Two items are a pair when either is among the nearest of the other by cosine; a pair gives two examples. Items
    without a vector, and pairs that share a SID, give none.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: not read.
        rng: draws the wordings.
        inputs: whose dataset folder is looked in where ``embeddings`` is not given.
        embeddings: file of vectors in catalogue order; None takes ``embeddings.safetensors`` of the dataset folder.
        neighbours: nearest items of each item; fewer where the catalogue holds fewer.
        wordings: how many wordings are drawn from; None takes all.

    Raises:
        InputError: no embeddings, or those of another catalogue.
    """
    check_least("similar_items", neighbours=neighbours)
    texts, sids = wordings_of("similar_items", first=wordings), sid_texts(vocab)
    for item, near in near_pairs(_vectors(catalog, inputs, embeddings), neighbours=neighbours):
        if sids[item] != sids[near]:
            yield Example(rng.choice(texts).format(sid=sids[item]), sids[near], near, "similar_items", item=item)


def near_pairs(vectors: np.ndarray, *, neighbours: int) -> list[tuple[int, int]]:
    """Return ``(item, near item)`` of all pairs of which one is among the other's nearest, both ways, in order.

    Args:
        vectors: ``(items, dim)``; a zero row has no neighbours and is nobody's.
        neighbours: nearest items of each item.
    """
    rows = np.flatnonzero(nonzero_rows(vectors))
    if len(rows) < 2:
        return []
    known = vectors[rows]
    near, _ = nearest_rows(known, known, k=min(neighbours, len(rows) - 1), leave_out=np.arange(len(rows)))
    items, others = np.repeat(rows, near.shape[1]), rows[near.ravel()]
    both = np.unique(np.stack([np.concatenate([items, others]), np.concatenate([others, items])], axis=1), axis=0)
    return [(item, other) for item, other in both.tolist()]


def _vectors(catalog: Catalog, inputs: TaskInputs | None, embeddings: str | None) -> np.ndarray:
    if embeddings is None:
        if inputs is None or inputs.folder is None or not (inputs.folder / EMBEDDINGS_FILE).is_file():
            raise InputError(
                f"task 'similar_items': no embeddings, and no {EMBEDDINGS_FILE} in the dataset folder; make them with "
                "data_prep/embed_items.py and name the file: similar_items: {weight: 1.0, embeddings: PATH}"
            )
        embeddings = str(inputs.folder / EMBEDDINGS_FILE)
    return load_embeddings(Path(embeddings), catalog=catalog)
