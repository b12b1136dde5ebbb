"""Tasks that tie an item's title to its SID, both ways."""

import random
from collections.abc import Iterator, Sequence

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.tasks.example import Example
from llmrec.vocab import SIDVocab

TITLE_CHARACTERS = 200


def short_title(title: str) -> str:
    """Return a title of at most 200 characters, cut at the last space where it is longer."""
    if len(title) <= TITLE_CHARACTERS:
        return title
    return (
        title[: title.rfind(" ", 1, TITLE_CHARACTERS + 1)]
        if " " in title[1:TITLE_CHARACTERS]
        else title[:TITLE_CHARACTERS]
    )


def sid_to_title(
    catalog: Catalog, vocab: SIDVocab, histories: Sequence[History], rng: random.Random
) -> Iterator[Example]:
    """Yield one example an item: its SID in the prompt, its title (at most 200 characters) as the completion.

    Items that share a SID each give an example.

    Paper: LC-Rec (Zheng et al., 2024), mutual alignment of language and SIDs.
    """
    for row, title in enumerate(catalog.titles):
        yield Example(f"Title of {vocab.tokens(row)}:", f" {short_title(title)}", None, "sid_to_title")


def title_to_sid(
    catalog: Catalog, vocab: SIDVocab, histories: Sequence[History], rng: random.Random
) -> Iterator[Example]:
    """Yield one example an item: its title (at most 200 characters) in the prompt, its SID as the completion.

    Paper: LC-Rec (Zheng et al., 2024), mutual alignment of language and SIDs.
    """
    for row, title in enumerate(catalog.titles):
        yield Example(f"ID of {short_title(title)}:", vocab.tokens(row), row, "title_to_sid")
