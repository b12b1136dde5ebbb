"""Search: from a request in words to the SID of an item."""

import random
import re
from collections.abc import Iterator, Sequence

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.tasks.categories import category_of
from llmrec.tasks.example import Example
from llmrec.tasks.option_checks import check_least
from llmrec.tasks.short_text import TITLE_CHARACTERS, short_text, short_titles
from llmrec.tasks.wordings import wordings_of
from llmrec.vocab import SIDVocab

WORD = re.compile(r"[^\W_](?:[\w'\u2019&.-]*[^\W_])?")
MOST_WORDS = 3


def query_to_sid(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    column: str = "query",
    queries: int = 2,
    max_characters: int = TITLE_CHARACTERS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield examples of search: a query in the prompt, the SID of an item that answers it.

    Where the catalogue has the column, each of its lines is a query; elsewhere queries are made (`make_query`).

    Args:
        catalog: the items; one without words gives no example.
        vocab: their SIDs.
        histories: not read.
        rng: draws the queries and the wordings.
        column: of the catalogue, that holds queries.
        queries: how many are made for an item where there is no such column; the same one may come twice.
        max_characters: most characters of a query, which is cut at a space.
        wordings: how many wordings are drawn from; None takes all.

    Paper: Text2Tracks (Palumbo et al., 2025), retrieval of tracks by generated ids from requests; its requests are
    written by people and models, those made here are words of the item.
    """
    check_least("query_to_sid", queries=queries, max_characters=max_characters)
    forms = wordings_of("query_to_sid", first=wordings)
    written = catalog.columns.get(column)
    titles, categories = short_titles(catalog), category_of(catalog)
    brands = catalog.columns.get("brand", ("",) * len(catalog))
    for row in range(len(catalog)):
        if written is not None:
            found = written[row].splitlines()
        else:
            found = [make_query(titles[row], brands[row], categories[row], rng=rng) for _ in range(queries)]
        for query in found:
            query = short_text(query, max_characters)
            if query:
                prompt = rng.choice(forms).format(query=query)
                yield Example(prompt, vocab.tokens(row), row, "query_to_sid", item=row)


def make_query(title: str, brand: str, category: str, *, rng: random.Random) -> str:
    """Return a query in small letters: one to three words of a title, then, each half of the time, brand and category.

    Args:
        title: of the item; blank allowed.
        brand: of the item; blank allowed.
        category: of the item; blank allowed.
        rng: draws.
    """
    words = list(dict.fromkeys(WORD.findall(title)))
    places = sorted(rng.sample(range(len(words)), min(len(words), rng.randint(1, MOST_WORDS))))
    parts = [words[place] for place in places]
    # A title can begin with the brand.
    for more in (brand, category):
        if rng.random() < 0.5 and more and more.lower() not in [part.lower() for part in parts]:
            parts.append(more)
    return " ".join(" ".join(parts).lower().split()) or " ".join((brand or category).lower().split())
