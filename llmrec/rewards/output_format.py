"""The form of an answer that reasons: a rationale between its tags, one SID, and nothing behind it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec.errors import InputError
from llmrec.rewards.candidates import last_sid
from llmrec.rewards.inputs import Reward, RewardInputs
from llmrec.rewards.options import check_flag
from llmrec.vocab import SIDVocab

THINK = ("<think>", "</think>")


def output_format(
    vocab: SIDVocab,
    *,
    think: Sequence[str] | None = THINK,
    opened: bool = False,
    end: bool = False,
    graded: bool = False,
    inputs: RewardInputs,
) -> Reward:
    """Return 1 where a completion has the asked form, else 0.

    The form has three parts: words between the tags and nothing but space around them; the SID of an item; behind it
    nothing but end and padding tokens.

    Args:
        vocab: the SIDs.
        think: opening and closing tag, each once; None asks for a SID alone.
        opened: whether the prompt ends with the opening tag, so that the completion has none.
        end: whether the end token must stand behind the SID: a completion that ran into its longest length has none.
        graded: whether each part that is right counts a third, in place of all or nothing.
        inputs: ``tokenizer`` is read.

    Raises:
        InputError: no tokenizer, tags that are not two texts, or what should be true or false and is not.

    Paper: GREAM (Hong et al., 2025, arXiv:2510.20815) and DeepSeek-R1 (2025) reward the form of the answer. How we
    differ: the SID must be an item's, and theirs multiplies the other rewards, which here are added.
    """
    tokenizer = inputs.need("tokenizer", "output_format")
    tags = _check_tags(think)
    is_open = check_flag("output_format", "opened", opened)
    needs_end, parts = check_flag("output_format", "end", end), check_flag("output_format", "graded", graded)
    known = frozenset(vocab.trainable_token_indices)
    last = tokenizer.eos_token_id
    closing = {token for token in (last, tokenizer.pad_token_id) if token is not None}
    if needs_end and last is None:
        raise InputError("reward output_format: end: true, but the tokenizer has no end token; set end: false")

    def reward(*, completion_ids: list[list[int]], **_: Any) -> list[float]:
        right = np.zeros((len(completion_ids), 3))
        texts = []
        for number, ids in enumerate(completion_ids):
            start, stop = last_sid(ids, known)
            behind = ids[stop:]
            closed = all(token in closing for token in behind) and (not needs_end or last in behind)
            right[number, 1:] = bool(vocab.rows(ids[start:stop])), start < stop and closed
            texts.append(list(ids[:start] if start < stop else ids))
        words = tokenizer.batch_decode(texts, skip_special_tokens=False)
        right[:, 0] = [is_rationale(text, tags, opened=is_open) for text in words]
        worth = right.mean(axis=1) if parts else right.min(axis=1)
        return np.asarray(worth).tolist()

    return reward


def is_rationale(text: str, tags: tuple[str, str] | None, *, opened: bool) -> bool:
    """Return whether a text is words between two tags, each once, and nothing else but space.

    Args:
        text: what stands before the SID.
        tags: opening and closing; None asks for space alone.
        opened: whether the opening one is not in the text.
    """
    text = text.strip()
    if tags is None:
        return not text
    start, stop = ("" if opened else tags[0]), tags[1]
    if len(text) < len(start) + len(stop) or not text.startswith(start) or not text.endswith(stop):
        return False
    words = text[len(start) : len(text) - len(stop)]
    return bool(words.strip()) and not any(tag in words for tag in tags)


def _check_tags(think: Any) -> tuple[str, str] | None:
    if think is None:
        return None
    if isinstance(think, str) or len(think) != 2 or not all(isinstance(tag, str) and tag for tag in think):
        raise InputError(f"reward output_format: think {think!r}; give opening and closing tag, or null for none")
    return think[0], think[1]
