"""Tasks in which a history stands in one form and the next item in the other: titles to SID, SIDs to words."""

import random
from collections.abc import Iterator, Sequence

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.tasks.example import Example
from llmrec.tasks.option_checks import check_least
from llmrec.tasks.short_text import TITLE_CHARACTERS, check_column, short_column, short_titles
from llmrec.tasks.wordings import wordings_of
from llmrec.vocab import SIDVocab

HISTORY = 10
"""Most recent items that a history in words keeps."""
HISTORY_TITLE_CHARACTERS = 100


def sid_texts(vocab: SIDVocab) -> list[str]:
    """Return each item's SID as text: the parts that a history of SIDs is put together from."""
    return [vocab.tokens(row) for row in range(len(vocab))]


def title_texts(catalog: Catalog, vocab: SIDVocab, characters: int = HISTORY_TITLE_CHARACTERS) -> list[str]:
    """Return each item as a line of a list of titles; an item without a title of its own is named by its SID.

    Args:
        catalog: the items.
        vocab: their SIDs.
        characters: most characters of a title.
    """
    titles = short_titles(catalog, characters)
    return [f"\n- {title or vocab.tokens(row)}" for row, title in enumerate(titles)]


def history_title_to_sid(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    history: int = HISTORY,
    max_characters: int = HISTORY_TITLE_CHARACTERS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example a row: the titles of its history, oldest first, and the SID of its target.

    Args:
        catalog: the items; one without a title of its own is named by its SID.
        vocab: their SIDs.
        histories: rows to learn.
        rng: draws the wordings.
        history: most recent items that are named.
        max_characters: most characters of each title.
        wordings: how many wordings are drawn from; None takes all.

    Paper: LC-Rec (Zheng et al., 2024), asymmetric item prediction.
    """
    check_least("history_title_to_sid", history=history, max_characters=max_characters)
    texts = wordings_of("history_title_to_sid", first=wordings)
    lines, sids = title_texts(catalog, vocab, max_characters), sid_texts(vocab)
    for row in histories:
        parts = tuple(lines[item] for item in row.items[-history:])
        prompt = rng.choice(texts).format(history="".join(parts))
        yield Example(prompt, sids[row.target], row.target, "history_title_to_sid", history=parts)


def sid_history_to_title(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    max_characters: int = TITLE_CHARACTERS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example a row: the SIDs of its history, oldest first, and the title of its target.

    A row whose target has no title of its own gives none.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: rows to learn.
        rng: draws the wordings.
        max_characters: most characters of a title, which is cut at a space.
        wordings: how many wordings are drawn from; None takes all.

    Paper: LC-Rec (Zheng et al., 2024), asymmetric item prediction; MiniOneRec (Kong et al., 2025), fusion task.
    """
    check_least("sid_history_to_title", max_characters=max_characters)
    answers = short_titles(catalog, max_characters)
    yield from _words_of_next("sid_history_to_title", answers, vocab, histories, rng, wordings=wordings)


def sid_history_to_description(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    column: str = "description",
    max_characters: int = TITLE_CHARACTERS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example a row: the SIDs of its history, oldest first, and the description of its target.

    A row whose target has no description gives none.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: rows to learn.
        rng: draws the wordings.
        column: of the catalogue, that holds the description.
        max_characters: most characters of a description, which is cut at a space.
        wordings: how many wordings are drawn from; None takes all.

    Raises:
        InputError: the catalogue has no such column.

    Paper: LC-Rec (Zheng et al., 2024), asymmetric item prediction; MiniOneRec (Kong et al., 2025), fusion task.
    """
    check_least("sid_history_to_description", max_characters=max_characters)
    check_column("sid_history_to_description", catalog, column)
    answers = short_column(catalog, column, max_characters)
    yield from _words_of_next("sid_history_to_description", answers, vocab, histories, rng, wordings=wordings)


def _words_of_next(
    task: str,
    answers: Sequence[str],
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    wordings: int | None,
) -> Iterator[Example]:
    texts, sids = wordings_of(task, first=wordings), sid_texts(vocab)
    for row in histories:
        if answers[row.target]:
            parts = tuple(sids[item] for item in row.items)
            prompt = rng.choice(texts).format(history="".join(parts))
            yield Example(prompt, f" {answers[row.target]}", row.target, task, history=parts)
