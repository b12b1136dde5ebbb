"""From a history of SIDs to the next items as one list."""

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


def next_session(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    items: int = 5,
    least: int = 2,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example a row: the SIDs of its history, and those of its user's next ``items`` targets as one list.

    The targets are those of the row and of the user's rows that continue it. Where fewer follow, the list is shorter,
    and the prompt says how long it is; below ``least`` there is no example.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: rows to learn, each user's oldest first. A row continues the one before when its history ends with
            that row's target.
        rng: draws the wordings.
        items: most items of a list, at least 2.
        least: fewest items of a list, from 2 to ``items``.
        wordings: how many wordings are drawn from; None takes all.

    Raises:
        InputError: ``least`` above ``items``.

    Paper: OneRec (Deng et al., 2025), session-wise generation; a session here is what comes next, in order, for the
    sets hold no sessions with their feedback.
    """
    check_least("next_session", least=2, items=items)
    if least > items:
        raise InputError(f"task 'next_session': least {least} is above items {items}")
    texts, sids = wordings_of("next_session", first=wordings), sid_texts(vocab)
    following = _following(histories)
    for number, row in enumerate(histories):
        targets, current = [row.target], following[number]
        while current >= 0 and len(targets) < items:
            targets.append(histories[current].target)
            current = following[current]
        if len(targets) >= least:
            parts = tuple(sids[item] for item in row.items)
            prompt = rng.choice(texts).format(history="".join(parts), items=len(targets))
            answer = "".join(sids[target] for target in targets)
            yield Example(prompt, answer, row.target, "next_session", history=parts, targets=tuple(targets))


def _following(histories: Sequence[History]) -> list[int]:
    """For each row the number of the row of its user that continues it, -1 where there is none."""
    following, last = [-1] * len(histories), dict[int, int]()
    for number, row in enumerate(histories):
        before = last.get(row.user, -1)
        if before >= 0 and histories[before].target == row.items[-1]:
            following[before] = number
        last[row.user] = number
    return following
