"""The task of the field: from a history of SIDs to the next SID."""

import random
from collections.abc import Iterator, Sequence

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.tasks.example import Example
from llmrec.tasks.history_text import sid_texts
from llmrec.vocab import SIDVocab


def next_item(
    catalog: Catalog, vocab: SIDVocab, histories: Sequence[History], rng: random.Random
) -> Iterator[Example]:
    """Yield one example a row: the SIDs of its history, oldest first, and the SID of its target.

    It has one wording, none in the plain form, so that a row of a user's whole history supervises every position.

    Paper: TIGER (Rajput et al., 2023); here the SIDs are tokens of a language model, and no user token is used.
    """
    sids = sid_texts(vocab)
    for row in histories:
        parts = tuple(sids[item] for item in row.items)
        yield Example("".join(parts), sids[row.target], row.target, "next_item", history=parts)
