"""Tasks of texts that a model wrote about users: what they look for, and what they like, to the SID of an item."""

import random
from collections.abc import Iterator, Sequence

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.tasks.example import Example
from llmrec.tasks.history_text import sid_texts
from llmrec.tasks.inputs import TaskInputs, given
from llmrec.tasks.option_checks import check_least
from llmrec.tasks.short_text import DESCRIPTION_CHARACTERS, short_text
from llmrec.tasks.wordings import wordings_of
from llmrec.vocab import SIDVocab

TAKEN = "\nTaken so far: "
"""What stands before a history that may be absent."""


def intention_to_sid(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    inputs: TaskInputs | None,
    max_characters: int = DESCRIPTION_CHARACTERS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield one example an intention: what a customer looked for in the prompt, the SID of the item that was taken.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: not read.
        rng: draws the wordings.
        inputs: the dataset folder's ``intentions.parquet``.
        max_characters: most characters of an intention, which is cut at a space.
        wordings: how many wordings are drawn from; None takes all.

    Raises:
        InputError: no such file, or one that does not fit the dataset.

    Paper: LC-Rec (Zheng et al., 2024), items predicted from intentions that a language model reads out of reviews;
    here they are written from titles and histories too, and only about training interactions.
    """
    check_least("intention_to_sid", max_characters=max_characters)
    forms = wordings_of("intention_to_sid", first=wordings)
    for moment, text in given(inputs, "intention_to_sid").written("intentions", history=0):
        prompt = rng.choice(forms).format(text=short_text(text, max_characters))
        yield Example(prompt, vocab.tokens(moment.item), moment.item, "intention_to_sid", item=moment.item)


def preference_to_sid(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    inputs: TaskInputs | None,
    history: int = 10,
    max_characters: int = DESCRIPTION_CHARACTERS,
    wordings: int | None = None,
) -> Iterator[Example]:
    """Yield examples of a customer's preferences: these in words and the SIDs of the history, then the next SID.

    A preference serves the interactions behind what it was written from, up to the user's next preference.

    Args:
        catalog: the items.
        vocab: their SIDs.
        histories: not read.
        rng: draws the wordings.
        inputs: the dataset folder's ``preferences.parquet``.
        history: most recent items in the prompt; 0 leaves the preference alone.
        max_characters: most characters of a preference, which is cut at a space.
        wordings: how many wordings are drawn from; None takes all.

    Raises:
        InputError: no such file, or one that does not fit the dataset.

    Paper: LC-Rec (Zheng et al., 2024), whose model infers preferences from histories; here they are given, and the
    item is predicted.
    """
    check_least("preference_to_sid", max_characters=max_characters)
    check_least("preference_to_sid", least=0, history=history)
    forms = wordings_of("preference_to_sid", first=wordings)
    sids = sid_texts(vocab)
    for moment, text in given(inputs, "preference_to_sid").written("preferences", history=history):
        parts = tuple(sids[row] for row in moment.history)
        taken = f"{TAKEN}{''.join(parts)}" if parts else ""
        prompt = rng.choice(forms).format(text=short_text(text, max_characters), taken=taken)
        yield Example(prompt, sids[moment.item], moment.item, "preference_to_sid", parts)
