"""Which columns of a catalogue say what an item is like, and one line of text of them."""

from collections.abc import Sequence

from llmrec.data.items import Catalog
from llmrec.errors import InputError

SENTENCES = ("title", "description", "features", "query", "rationale")
"""Columns that hold sentences or requests and are never taken for attributes unless they are named."""
MOST_MEAN_CHARACTERS = 100
"""A column whose texts are longer than this on average is no attribute."""


def attribute_columns(catalog: Catalog, columns: Sequence[str] | None = None) -> list[str]:
    """Return the columns of a catalogue that hold short texts besides the title, such as brand and categories.

    Args:
        catalog: the items.
        columns: takes these instead; None takes all but `SENTENCES` of at most 100 characters on average.

    Raises:
        InputError: a named column that the catalogue lacks, or an empty list.
    """
    if columns is not None:
        columns = [columns] if isinstance(columns, str) else list(columns)
        lacking = [name for name in columns if name not in catalog.columns]
        if lacking or not columns:
            raise InputError(
                f"task 'attributes_to_sid': columns {columns!r}; choose some of {', '.join(sorted(catalog.columns))}"
            )
        return columns
    found = []
    for name, texts in catalog.columns.items():
        lengths = [len(text) for text in texts if text.strip()]
        if name not in SENTENCES and lengths and sum(lengths) <= MOST_MEAN_CHARACTERS * len(lengths):
            found.append(name)
    return found


def attribute_text(catalog: Catalog, row: int, columns: Sequence[str]) -> str:
    """Return ``"brand: X; categories: Y"`` of an item, blank columns left out; empty where all are blank.

    Args:
        catalog: the items.
        row: the item.
        columns: which columns, in this order.
    """
    values = ((name, " ".join(catalog.columns[name][row].split())) for name in columns)
    return "; ".join(f"{name}: {value}" for name, value in values if value)
