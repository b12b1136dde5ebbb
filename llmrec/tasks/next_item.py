"""The task of the field: from a history of SIDs to the next SID."""

import random
from collections.abc import Iterator, Sequence

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.tasks.example import Example
from llmrec.tasks.prompt import history_text
from llmrec.vocab import SIDVocab


def next_item(
    catalog: Catalog, vocab: SIDVocab, histories: Sequence[History], rng: random.Random
) -> Iterator[Example]:
    """Yield one example a row: the SIDs of its history, oldest first, and the SID of its target.

    Paper: TIGER (Rajput et al., 2023); here the SIDs are tokens of a language model, and no user token is used.
    """
    for row in histories:
        yield Example(history_text(vocab, row.items), vocab.tokens(row.target), row.target, "next_item")
