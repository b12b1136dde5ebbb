"""Make one clean line of text out of what sources put into the fields of an item."""

import html
import math
from collections.abc import Iterable, Mapping
from typing import Any

from llmrec.data.sources import literal

ALIASES = {
    "movie_title": "title",
    "item_title": "title",
    "product_title": "title",
    "item_name": "title",
    "name": "title",
    "category": "categories",
    "class": "genres",
    "genre": "genres",
    "release_year": "year",
}
_SENTENCES = ("description", "features", "title")


def clean_text(value: Any, column: str = "") -> str:
    """Return a field as one line: lists joined, HTML entities resolved, white space folded; blank for what is no text.

    Lists come as lists or as Python literals in text (``"['a', 'b']"``). Parts of a title, a ``description`` and of
    ``features`` are joined by a space. Other columns may spell a list as ``"'a', 'b'"`` too; their parts are joined by
    a comma. A part that repeats is kept once.

    Args:
        value: text, a number, a list (of lists) of text, or None.
        column: the column's name.
    """
    if isinstance(value, str):
        value = _listed(value, column)
    if isinstance(value, (list, tuple)):
        parts = dict.fromkeys(part for part in (clean_text(part) for part in _flat(value)) if part)
        return (" " if column in _SENTENCES else ", ").join(parts)
    if value is None or isinstance(value, (dict, bytes)) or (isinstance(value, float) and math.isnan(value)):
        return ""
    return " ".join(html.unescape(str(value)).split())


def _listed(text: str, column: str) -> str | list[Any]:
    """The list that ``text`` spells, else ``text``."""
    bare = text.strip()
    if bare.startswith("[") and bare.endswith("]"):
        found = literal(bare)
    elif column not in _SENTENCES and len(bare) > 1 and bare[0] in "'\"" and bare[-1] in "'\"":
        found = literal(f"[{bare}]")
    else:
        return text
    if isinstance(found, list) and all(isinstance(part, str) for part in _flat(found)):
        return found
    return text


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def text_columns(columns: Iterable[str], kinds: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return, for the columns of an item table that may hold text, the name each gets in the catalogue.

    Names that sources give to titles, categories, genres and years are made one (`ALIASES`), unless the table has a
    column of that name already; RecBole's ``float`` columns are left out.

    Args:
        columns: the table's column names, without the item id.
        kinds: RecBole's kind of each column, where there is one.
    """
    columns = list(columns)
    names: dict[str, str] = {}
    for column in columns:
        if (kinds or {}).get(column, "token").startswith("float"):
            continue
        alias = ALIASES.get(column.lower(), column)
        taken = alias != column and (alias in columns or alias in names.values())
        names[column] = column if taken else alias
    return names


def is_number(text: str) -> bool:
    """Return whether ``text`` reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def fallback_title(item_id: str, fields: Mapping[str, str]) -> str:
    """Return the title of an item that has none: ``"brand. categories"`` as far as there are any, else its id."""
    parts = [fields.get("brand", ""), fields.get("categories", "") or fields.get("genres", "")]
    return ". ".join(part for part in parts if part) or item_id
