"""The form of an answer that reasons."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from llmrec.errors import InputError
from llmrec.rewards.inputs import RewardInputs
from llmrec.rewards.output_format import output_format
from llmrec.vocab import SIDVocab

GOOD = "<think> red pens </think> <a_0><b_0><c_1>"


def encode(tokenizer: PreTrainedTokenizerBase, *texts: str, end: bool = False) -> list[list[int]]:
    tail: list[Any] = [tokenizer.eos_token_id] if end else []
    return [tokenizer.encode(text, add_special_tokens=False) + tail for text in texts]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (GOOD, (1, 1, 1)),
        ("<think>red</think><a_2>", (1, 1, 1)),  # a short SID
        ("red pens </think> <a_0><b_0><c_1>", (0, 1, 1)),
        ("<think> red pens <a_0><b_0><c_1>", (0, 1, 1)),
        ("<think> </think> <a_0><b_0><c_1>", (0, 1, 1)),  # nothing thought
        ("so <think> red </think> <a_0><b_0><c_1>", (0, 1, 1)),
        ("<think> red </think> so <a_0><b_0><c_1>", (0, 1, 1)),
        ("<think> red <think> pens </think> <a_0><b_0><c_1>", (0, 1, 1)),
        ("<think> red </think> pens </think> <a_0><b_0><c_1>", (0, 1, 1)),
        ("<think> red </think> <a_1><b_0><c_1>", (1, 0, 1)),  # no item has it
        ("<think> red </think> <a_0><b_0>", (1, 0, 1)),
        ("<think> red </think> <a_0><b_0><c_1><a_0><b_0><c_1>", (1, 0, 1)),
        ("<think> red </think> <a_0><b_0><c_1> pens", (1, 1, 0)),
    ],
)
def test_forms_by_hand(
    vocab: SIDVocab, inputs: RewardInputs, tokenizer: PreTrainedTokenizerBase, text: str, parts: tuple[int, ...]
):
    ids = encode(tokenizer, text)
    assert output_format(vocab, inputs=inputs)(completion_ids=ids) == [float(all(parts))]
    assert output_format(vocab, graded=True, inputs=inputs)(completion_ids=ids) == pytest.approx([sum(parts) / 3])


def test_nothing_is_no_form(vocab: SIDVocab, inputs: RewardInputs, tokenizer: PreTrainedTokenizerBase):
    ids = encode(tokenizer, "", "<think> red </think>")
    assert output_format(vocab, graded=True, inputs=inputs)(completion_ids=ids) == [0, 1 / 3]


def test_the_end_is_asked_for(vocab: SIDVocab, inputs: RewardInputs, tokenizer: PreTrainedTokenizerBase):
    ids = encode(tokenizer, GOOD) + encode(tokenizer, GOOD, end=True)
    assert output_format(vocab, inputs=inputs)(completion_ids=ids) == [1, 1]
    assert output_format(vocab, end=True, inputs=inputs)(completion_ids=ids) == [0, 1]


def test_a_tag_in_the_prompt_and_no_tags(vocab: SIDVocab, inputs: RewardInputs, tokenizer: PreTrainedTokenizerBase):
    ids = encode(tokenizer, "red </think><a_2>", GOOD, "<a_2>")
    assert output_format(vocab, opened=True, inputs=inputs)(completion_ids=ids) == [1, 0, 0]
    assert output_format(vocab, think=None, inputs=inputs)(completion_ids=ids) == [0, 0, 1]
    assert output_format(vocab, think=["<think> red", "</think>"], inputs=inputs)(completion_ids=ids) == [0, 1, 0]


def test_what_is_refused(vocab: SIDVocab, inputs: RewardInputs):
    with pytest.raises(InputError, match="think '<think>'; give opening and closing tag"):
        output_format(vocab, think="<think>", inputs=inputs)
    with pytest.raises(InputError, match="it needs the tokenizer of the model"):
        output_format(vocab, inputs=replace(inputs, tokenizer=None))
