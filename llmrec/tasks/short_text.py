"""Text of items as prompts and answers hold it: one line, cut at a word, blank where there is none."""

from collections.abc import Sequence

from llmrec.data.items import Catalog
from llmrec.errors import InputError

TITLE_CHARACTERS = 200
DESCRIPTION_CHARACTERS = 300


def short_text(text: str, characters: int) -> str:
    """Return a text as one line of at most ``characters``, cut at the last space where it is longer.

    Args:
        text: any text; white space is folded.
        characters: most characters, at least 1.
    """
    text = " ".join(text.split())
    if len(text) <= characters:
        return text
    end = text.rfind(" ", 1, characters + 1)
    return text[:end] if end > 0 else text[:characters]


def short_titles(catalog: Catalog, characters: int = TITLE_CHARACTERS) -> list[str]:
    """Return each item's title, cut, and blank for an item whose title is its id.

    Importers put the id in place of a title where an item has no text at all; such a title teaches nothing. Where
    every title is the item's id, the ids are names, and stay.

    Args:
        catalog: the items.
        characters: most characters of a title.
    """
    named = all(title == item_id for title, item_id in zip(catalog.titles, catalog.item_ids, strict=True))
    return [
        short_text(title, characters) if named or title != item_id else ""
        for title, item_id in zip(catalog.titles, catalog.item_ids, strict=True)
    ]


def short_column(catalog: Catalog, column: str, characters: int) -> Sequence[str]:
    """Return each item's text of a column, cut; blank where it has none, and throughout where there is no column.

    Args:
        catalog: the items.
        column: of the catalogue.
        characters: most characters of a text.
    """
    texts = catalog.columns.get(column)
    return [""] * len(catalog) if texts is None else [short_text(text, characters) for text in texts]


def check_column(task: str, catalog: Catalog, column: str) -> None:
    """Raise when a task is told to read a column that is not there.

    Args:
        task: its name.
        catalog: the items.
        column: that it reads.

    Raises:
        InputError: the catalogue has no such column.
    """
    if column not in catalog.columns:
        raise InputError(
            f"task {task!r}: no column {column!r}; the catalogue has {', '.join(sorted(catalog.columns))}"
        )
