"""Tasks that tie an item's words to its SID: title both ways, description and attributes one way."""

import random
from collections.abc import Iterator, Sequence

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.tasks.attributes import attribute_columns, attribute_text
from llmrec.tasks.example import Example
from llmrec.tasks.option_checks import check_least
from llmrec.tasks.short_text import (
    DESCRIPTION_CHARACTERS,
    TITLE_CHARACTERS,
    check_column,
    short_column,
    short_text,
    short_titles,
)
from llmrec.tasks.wordings import wordings_of
from llmrec.vocab import SIDVocab


def sid_to_title(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    max_characters: int = TITLE_CHARACTERS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example an item: its SID in the prompt, its title as the completion.

    Items that share a SID each give an example; an item without a title of its own gives none.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: not read.
        rng: draws the wordings.
        max_characters: most characters of a title, which is cut at a space.
        wordings: how many wordings are drawn from; None takes all.

    Paper: LC-Rec (Zheng et al., 2024), mutual alignment of language and SIDs; several wordings, drawn by the seed.
    """
    check_least("sid_to_title", max_characters=max_characters)
    texts = wordings_of("sid_to_title", first=wordings)
    for row, title in enumerate(short_titles(catalog, max_characters)):
        if title:
            yield Example(rng.choice(texts).format(sid=vocab.tokens(row)), f" {title}", None, "sid_to_title", item=row)


def title_to_sid(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    max_characters: int = TITLE_CHARACTERS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example an item: its title in the prompt, its SID as the completion.

    Args:
        catalog: the items; one without a title of its own gives no example.
        vocab: their SIDs.
        histories: not read.
        rng: draws the wordings.
        max_characters: most characters of a title, which is cut at a space.
        wordings: how many wordings are drawn from; None takes all.

    Paper: LC-Rec (Zheng et al., 2024), mutual alignment of language and SIDs; several wordings, drawn by the seed.
    """
    check_least("title_to_sid", max_characters=max_characters)
    texts = wordings_of("title_to_sid", first=wordings)
    for row, title in enumerate(short_titles(catalog, max_characters)):
        if title:
            yield Example(rng.choice(texts).format(title=title), vocab.tokens(row), row, "title_to_sid", item=row)


def description_to_sid(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    column: str = "description",
    max_characters: int = DESCRIPTION_CHARACTERS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example an item that has a description: its description in the prompt, its SID as the completion.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: not read.
        rng: draws the wordings.
        column: of the catalogue, that holds the description.
        max_characters: most characters of a description, which is cut at a space.
        wordings: how many wordings are drawn from; None takes all.

    Raises:
        InputError: the catalogue has no such column.

    Paper: LC-Rec (Zheng et al., 2024), descriptions among the texts that are tied to SIDs.
    """
    check_least("description_to_sid", max_characters=max_characters)
    check_column("description_to_sid", catalog, column)
    texts = wordings_of("description_to_sid", first=wordings)
    for row, text in enumerate(short_column(catalog, column, max_characters)):
        if text:
            yield Example(rng.choice(texts).format(text=text), vocab.tokens(row), row, "description_to_sid", item=row)


def attributes_to_sid(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    columns: Sequence[str] | None = None,
    max_characters: int = TITLE_CHARACTERS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example an item that has any: its attributes ("brand: X; categories: Y") in the prompt, its SID.

    Several items may have the same attributes; each gives an example.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: not read.
        rng: draws the wordings.
        columns: of the catalogue; None takes the short ones besides the title (`attribute_columns`).
        max_characters: most characters of the attributes, which are cut at a space.
        wordings: how many wordings are drawn from; None takes all.

    Raises:
        InputError: a column that the catalogue lacks.
    """
    check_least("attributes_to_sid", max_characters=max_characters)
    texts = wordings_of("attributes_to_sid", first=wordings)
    columns = attribute_columns(catalog, columns)
    for row in range(len(catalog)):
        text = short_text(attribute_text(catalog, row, columns), max_characters)
        if text:
            yield Example(
                rng.choice(texts).format(attributes=text), vocab.tokens(row), row, "attributes_to_sid", item=row
            )
