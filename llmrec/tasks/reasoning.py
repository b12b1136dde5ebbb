"""Reasoning: a rationale in words before the SID of the next item, or the SID at once."""

import random
from collections.abc import Iterator, Sequence

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.tasks.example import Example
from llmrec.tasks.history_text import sid_texts
from llmrec.tasks.inputs import Moment, TaskInputs, given
from llmrec.tasks.option_checks import check_least
from llmrec.tasks.short_text import DESCRIPTION_CHARACTERS, short_text
from llmrec.tasks.wordings import wordings_of
from llmrec.vocab import SIDVocab

COLUMN = "rationale"


def reasoning(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    inputs: TaskInputs | None,
    direct: float = 0.5,
    history: int = 10,
    max_characters: int = DESCRIPTION_CHARACTERS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example a rationale: SIDs of the history, then the rationale and the next SID, or that SID at once.

    Both answers have wordings of their own, so that the prompt decides which is given. The direct one is what
    evaluation asks for: ``direct: 1.0, wordings: 1``.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: not read.
        rng: draws which examples answer directly, and the wordings.
        inputs: the dataset folder's ``rationales.parquet``, or the column ``rationale`` of the interactions.
        direct: share of the examples that answer directly, 0 to 1.
        history: most recent items in the prompt.
        max_characters: most characters of a rationale, which is cut at a space.
        wordings: how many wordings of each kind are drawn from; None takes all.

    Raises:
        InputError: a share out of range, or no rationales.

    Paper: GREAM (Hong et al., 2025), end-to-end reasoning with a mode that answers directly; here the modes are told
    apart by the prompt, and rationales are given.
    """
    check_least("reasoning", history=history, max_characters=max_characters)
    if isinstance(direct, bool) or not isinstance(direct, int | float) or not 0.0 <= direct <= 1.0:
        raise InputError(f"task 'reasoning': direct {direct!r}; a share of the examples, from 0 to 1")
    at_once = wordings_of("reasoning", first=wordings)
    aloud = wordings_of("reasoning_aloud", first=wordings)
    sids = sid_texts(vocab)
    for moment, text in _rationales(given(inputs, "reasoning"), history):
        text = short_text(text, max_characters)
        if not moment.history or not text:
            continue
        parts = tuple(sids[row] for row in moment.history)
        answer, forms = sids[moment.item], at_once
        if rng.random() >= direct:
            answer, forms = f" {text} {answer}", aloud
        prompt = rng.choice(forms).format(history="".join(parts))
        yield Example(prompt, answer, moment.item, "reasoning", parts, item=moment.item)


def _rationales(inputs: TaskInputs, history: int) -> Iterator[tuple[Moment, str]]:
    if inputs.has_file("rationales") or COLUMN not in inputs.interactions.texts:
        yield from inputs.written("rationales", history=history)
        return
    texts = inputs.texts(COLUMN)
    for moment in inputs.moments(history=history):
        yield moment, texts[moment.row]
