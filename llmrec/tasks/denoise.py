"""Denoising: name the item of a history that does not belong there."""

import random
from collections.abc import Iterator, Sequence

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.tasks.example import Example
from llmrec.tasks.history_text import sid_texts
from llmrec.tasks.option_checks import check_least
from llmrec.tasks.wordings import wordings_of
from llmrec.vocab import SIDVocab

DRAWS = ("popularity", "uniform")
FEWEST = 2
TRIES = 100


def denoise(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    history: int = 10,
    draw: str = "popularity",
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example a row with two items or more: its history with a strange item put in, whose SID is the answer.

    The strange item is none of the row's own, its target included. Its place may be any. The prompt cannot be
    shortened, for the answer might go.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: the rows.
        rng: draws items, places and wordings.
        history: most recent items of the row, to which one is added.
        draw: ``popularity`` takes the target of another row, so that how common an item is tells nothing; ``uniform``
            any item of the catalogue.
        wordings: how many wordings are drawn from; None takes all.

    Raises:
        InputError: another ``draw``.

    Paper: LLM4DSR (Wang et al., 2024), whose model names an item that was replaced at random and proposes another;
    here it is put in, and only named.
    """
    check_least("denoise", least=FEWEST, history=history)
    if draw not in DRAWS:
        raise InputError(f"task 'denoise': draw {draw!r}; choose one of {', '.join(DRAWS)}")
    forms, sids = wordings_of("denoise", first=wordings), sid_texts(vocab)
    for row in histories:
        items = row.items[-history:]
        if len(items) < FEWEST:
            continue
        strange = _strange(row, histories, rng) if draw == "popularity" else None
        if strange is None:
            strange = _any(row, len(catalog), rng)
        if strange is None:
            continue
        place = rng.randint(0, len(items))
        shown = "".join(sids[item] for item in (*items[:place], strange, *items[place:]))
        yield Example(rng.choice(forms).format(history=shown), sids[strange], strange, "denoise")


def _strange(row: History, histories: Sequence[History], rng: random.Random) -> int | None:
    """The target of another row that is no item of this one; None where there is hardly one."""
    own = {*row.items, row.target}
    for _ in range(TRIES):
        item = histories[rng.randrange(len(histories))].target
        if item not in own:
            return item
    return None


def _any(row: History, items: int, rng: random.Random) -> int | None:
    """An item that is none of the row's; None where the row holds all."""
    own = {*row.items, row.target}
    if len(own) >= items:
        return None
    while (item := rng.randrange(items)) in own:
        pass
    return item
