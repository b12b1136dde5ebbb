"""Tasks of what users said: reviews, ratings and explanations of training interactions."""

import math
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

EXPLANATIONS = ("explanation", "review")
"""Columns of the interactions that explain why an item was taken; the first that is there counts."""


def review_to_sid(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    inputs: TaskInputs | None,
    column: str = "review",
    max_characters: int = DESCRIPTION_CHARACTERS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example a reviewed interaction: its review in the prompt, the item's SID as the completion.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: not read.
        rng: draws the wordings.
        inputs: the visible interactions with their texts.
        column: of the interactions, that holds the review.
        max_characters: most characters of a review, which is cut at a space.
        wordings: how many wordings are drawn from; None takes all.

    Raises:
        InputError: the interactions have no such column.

    Paper: P5 (Geng et al., 2022), its tasks of reviews; here the answer is an item.
    """
    check_least("review_to_sid", max_characters=max_characters)
    forms = wordings_of("review_to_sid", first=wordings)
    inputs = given(inputs, "review_to_sid")
    texts = inputs.texts(column)
    for moment in inputs.moments(history=0):
        text = short_text(texts[moment.row], max_characters)
        if text:
            prompt = rng.choice(forms).format(text=text)
            yield Example(prompt, vocab.tokens(moment.item), moment.item, "review_to_sid", item=moment.item)


def rating(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    inputs: TaskInputs | None,
    history: int = 10,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example a rated interaction that has a history: SIDs of history and item, then the rating as text.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: not read.
        rng: draws the wordings.
        inputs: the visible interactions with their ratings.
        history: most recent items in the prompt.
        wordings: how many wordings are drawn from; None takes all.

    Raises:
        InputError: the interactions have no ratings.

    Paper: P5 (Geng et al., 2022), rating prediction; here the user is the history, not a token.
    """
    check_least("rating", history=history)
    forms = wordings_of("rating", first=wordings)
    sids, inputs = sid_texts(vocab), given(inputs, "rating")
    ratings = inputs.ratings().tolist()
    known = [value for value in ratings if not math.isnan(value)]
    low, high = (f"{value:g}" for value in (min(known, default=0.0), max(known, default=0.0)))
    for moment in inputs.moments(history=history):
        value = ratings[moment.row]
        if moment.history and not math.isnan(value):
            parts = tuple(sids[row] for row in moment.history)
            prompt = rng.choice(forms).format(history="".join(parts), sid=sids[moment.item], low=low, high=high)
            yield Example(prompt, f" {value:g}", None, "rating", parts)


def explanation(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    inputs: TaskInputs | None,
    column: str | None = None,
    history: int = 10,
    max_characters: int = DESCRIPTION_CHARACTERS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example an explained interaction that has a history: SIDs of history and item, then the explanation.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: not read.
        rng: draws the wordings.
        inputs: the visible interactions with their texts, or the dataset folder's ``explanations.parquet``.
        column: of the interactions, that holds the explanation; None takes ``explanation``, else the file, else
            ``review``.
        history: most recent items in the prompt.
        max_characters: most characters of an explanation, which is cut at a space.
        wordings: how many wordings are drawn from; None takes all.

    Raises:
        InputError: the dataset has no text that explains.

    Paper: P5 (Geng et al., 2022), explanation generation; here without its feature words.
    """
    check_least("explanation", history=history, max_characters=max_characters)
    forms = wordings_of("explanation", first=wordings)
    sids = sid_texts(vocab)
    for moment, text in _explained(given(inputs, "explanation"), column, history):
        text = short_text(text, max_characters)
        if moment.history and text:
            parts = tuple(sids[row] for row in moment.history)
            prompt = rng.choice(forms).format(history="".join(parts), sid=sids[moment.item])
            yield Example(prompt, f" {text}", None, "explanation", parts, item=moment.item)


def _explained(inputs: TaskInputs, column: str | None, history: int) -> Iterator[tuple[Moment, str]]:
    there = inputs.interactions.texts
    if column is None and EXPLANATIONS[0] not in there and inputs.has_file("explanations"):
        yield from inputs.written("explanations", history=history)
        return
    column = column or next((name for name in EXPLANATIONS if name in there), None)
    if column is None:
        raise InputError(
            f"tasks: explanation: {inputs.folder} has no explanations.parquet, and interactions.parquet no column "
            f"{' or '.join(EXPLANATIONS)}; write them with data_prep/write_texts.py --kind explanations"
        )
    texts = inputs.texts(column)
    for moment in inputs.moments(history=history):
        yield moment, texts[moment.row]
