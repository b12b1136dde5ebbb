"""Profiles of users in a few words, made by a rule from what their histories hold."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.tasks.categories import LEAST_ITEMS, category_of
from llmrec.tasks.example import Example
from llmrec.tasks.history_text import sid_texts
from llmrec.tasks.option_checks import check_least
from llmrec.tasks.wordings import wordings_of
from llmrec.vocab import SIDVocab


def user_profile(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    history: int = 10,
    terms: int = 3,
    min_items: int = LEAST_ITEMS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example a row: the SIDs of its history in the prompt, the profile of that history as the completion.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: the rows.
        rng: draws the wordings.
        history: most recent items of the row, which the profile is made from.
        terms: most categories in a profile.
        min_items: how many items share a category that is named (`category_of`).
        wordings: how many wordings are drawn from; None takes all.

    Paper: ULMRec (Shao et al., 2024), user profiles beside histories; here made from categories and brands by a rule.
    """
    check_least("user_profile", history=history, terms=terms, min_items=min_items)
    forms, sids = wordings_of("user_profile", first=wordings), sid_texts(vocab)
    for row, profile in _profiled(catalog, histories, history, terms, min_items):
        parts = tuple(sids[item] for item in row.items[-history:])
        # Not given as parts: a shorter history would have another profile.
        yield Example(rng.choice(forms).format(history="".join(parts)), f" {profile}", None, "user_profile")


def profile_to_sid(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    history: int = 10,
    terms: int = 3,
    min_items: int = LEAST_ITEMS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example a row: the profile and the SIDs of its history in the prompt, the next SID as the completion.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: the rows.
        rng: draws the wordings.
        history: most recent items of the row, which the profile is made from.
        terms: most categories in a profile.
        min_items: how many items share a category that is named (`category_of`).
        wordings: how many wordings are drawn from; None takes all.

    Paper: ULMRec (Shao et al., 2024), user profiles beside histories; here made from categories and brands by a rule.
    """
    check_least("profile_to_sid", history=history, terms=terms, min_items=min_items)
    forms, sids = wordings_of("profile_to_sid", first=wordings), sid_texts(vocab)
    for row, profile in _profiled(catalog, histories, history, terms, min_items):
        parts = tuple(sids[item] for item in row.items[-history:])
        prompt = rng.choice(forms).format(profile=profile, history="".join(parts))
        yield Example(prompt, sids[row.target], row.target, "profile_to_sid", parts)


def profile_of(
    items: Sequence[int], *, categories: Sequence[str], brands: Sequence[str] | None, terms: int = 3
) -> str:
    """Return the most frequent categories of items, and the brand that stands at least twice: ``"pens; ink; by BIC"``.

    Of categories and brands that are as frequent, the more recent comes first.

    Args:
        items: item rows, oldest first.
        categories: ``(items of the catalogue,)`` names, blank where there is none.
        brands: ``(items of the catalogue,)`` names; None where the catalogue has none.
        terms: most categories.
    """
    latest = list(reversed(items))
    # Counter keeps the order of first appearance among equals: the most recent first.
    kinds = Counter(categories[item] for item in latest if categories[item])
    words = [name for name, _ in kinds.most_common(terms)]
    if brands is not None:
        makers = Counter(brands[item] for item in latest if brands[item])
        words += [f"by {name}" for name, count in makers.most_common(1) if count > 1]
    return "; ".join(words)


def _profiled(
    catalog: Catalog, histories: Sequence[History], history: int, terms: int, min_items: int
) -> Iterator[tuple[History, str]]:
    """Yield the rows whose history has a profile, with it."""
    categories = category_of(catalog, min_items=min_items)
    column = catalog.columns.get("brand")
    brands = None if column is None else [" ".join(name.split()) for name in column]
    for row in histories:
        profile = profile_of(row.items[-history:], categories=categories, brands=brands, terms=terms)
        if profile:
            yield row, profile
