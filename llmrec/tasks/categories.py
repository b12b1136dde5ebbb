"""Tasks of categories: what an item is, and what the first codes of a SID stand for."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.tasks.example import Example
from llmrec.tasks.option_checks import check_least
from llmrec.tasks.wordings import wordings_of
from llmrec.vocab import SIDVocab

COLUMNS = ("categories", "genres")
"""Columns that hold categories; the first with text counts."""
SEPARATORS = (">", "|", ";", ",")
"""What may stand between the levels of a category; the first that stands anywhere in the column divides all texts."""
LEAST_ITEMS = 5


def category_of(catalog: Catalog, *, min_items: int = LEAST_ITEMS) -> list[str]:
    """Return each item's category: the most specific level of its text that ``min_items`` items share.

    A text such as ``"Beauty, Makeup, Eyes"`` names levels from the widest to the most specific. An item none of whose
    levels is shared by so many keeps its widest.

    Args:
        catalog: the items.
        min_items: how many items must name a level, at least 1.

    Returns:
        ``(items,)`` names; blank for an item without a category, and for all where no column of `COLUMNS` has text.
    """
    column = next((name for name in COLUMNS if any(catalog.columns.get(name, ()))), None)
    if column is None:
        return [""] * len(catalog)
    texts = catalog.columns[column]
    separator = next((mark for mark in SEPARATORS if any(mark in text for text in texts)), SEPARATORS[0])
    levels = [[" ".join(part.split()) for part in text.split(separator) if part.strip()] for text in texts]
    shared = Counter(part for own in levels for part in set(own))
    return [
        next((part for part in reversed(own) if shared[part] >= min_items), own[0] if own else "") for own in levels
    ]


def sid_to_category(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    min_items: int = LEAST_ITEMS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example an item that has a category: its SID in the prompt, its category as the completion.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: not read.
        rng: draws the wordings.
        min_items: how many items share the level that is named (`category_of`).
        wordings: how many wordings are drawn from; None takes all.
    """
    check_least("sid_to_category", min_items=min_items)
    texts = wordings_of("sid_to_category", first=wordings)
    for row, category in enumerate(category_of(catalog, min_items=min_items)):
        if category:
            yield Example(
                rng.choice(texts).format(sid=vocab.tokens(row)), f" {category}", None, "sid_to_category", item=row
            )


def prefix_to_category(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    levels: int = 1,
    min_items: int = LEAST_ITEMS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example a SID prefix: its first codes in the prompt, the most common category under it.

    Ties go to the category that an earlier item has. A whole SID is no prefix: shorter SIDs are left out.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: not read.
        rng: draws the wordings.
        levels: how many codes a prefix has.
        min_items: how many items share the level that is named (`category_of`).
        wordings: how many wordings are drawn from; None takes all.

    Paper: TIGER (Rajput et al., 2023) shows in a chart which categories stand under a first code; here it is a task.
    """
    check_least("prefix_to_category", levels=levels, min_items=min_items)
    texts = wordings_of("prefix_to_category", first=wordings)
    for prefix, category in prefix_categories(catalog, vocab, levels=levels, min_items=min_items).items():
        yield Example(rng.choice(texts).format(prefix=prefix), f" {category}", None, "prefix_to_category")


def prefix_categories(
    catalog: Catalog, vocab: SIDVocab, *, levels: int = 1, min_items: int = LEAST_ITEMS
) -> dict[str, str]:
    """Return the most common category by prefix (its tokens as text), in the order of the prefix's first item.

    Args:
        catalog: the items.
        vocab: their SIDs.
        levels: how many codes a prefix has.
        min_items: as `category_of` takes it.
    """
    under: dict[str, Counter[str]] = defaultdict(Counter)
    for row, category in enumerate(category_of(catalog, min_items=min_items)):
        tokens = vocab.table.tokens(row)
        if category and len(tokens) > levels:
            under["".join(tokens[:levels])][category] += 1
    return {prefix: counts.most_common(1)[0][0] for prefix, counts in under.items()}
