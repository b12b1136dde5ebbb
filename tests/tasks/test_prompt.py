"""Prompt forms give the same token ids in training, evaluation and the model card."""

import pytest
from bundle_kit import PLAIN, make_info, make_table, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.errors import InputError
from llmrec.hub.card import standalone_code
from llmrec.tasks.mixture import TASKS
from llmrec.tasks.prompt import CHAT_TEMPLATES, PromptForm, chat_text, end_token_id, history_text, start_token_id
from llmrec.vocab import SIDVocab

TABLE = make_table()
TOKENIZER = make_tokenizer(TABLE)
VOCAB = SIDVocab(TOKENIZER, TABLE)
CHAT = PromptForm.named("chat", domain="pens", max_history=4)
WRAPPED = PromptForm("plain", "pens", {"next_item": "{domain}: {prompt}?"}, 4)


@pytest.mark.parametrize("form", [PLAIN, CHAT, WRAPPED])
@given(history=st.lists(st.integers(0, len(TABLE) - 1), max_size=7))
@settings(deadline=None, max_examples=40)
def test_a_history_by_rows_equals_its_text(form: PromptForm, history: list[int]):
    recent = history[-form.max_history :]
    text = history_text(VOCAB, recent)
    assert form.encode_history(TOKENIZER, VOCAB, history) == form.encode(TOKENIZER, text, "next_item")


def test_plain_is_the_start_token_and_the_sids():
    history = [5, 2, 9, 1]  # max_history 3 leaves out the first
    expected = [0, *VOCAB.token_ids(2), *VOCAB.token_ids(9), *VOCAB.token_ids(1)]
    assert PLAIN.encode_history(TOKENIZER, VOCAB, history) == expected


def test_an_empty_history_is_the_start_alone():
    assert PLAIN.encode_history(TOKENIZER, VOCAB, []) == [0]


def test_chat_is_the_templates_text_inside_the_tokenizers():
    ids = CHAT.encode(TOKENIZER, "<a_1><b_2>", "next_item")
    text = CHAT_TEMPLATES["next_item"].replace("{domain}", "pens").replace("{prompt}", "<a_1><b_2>")
    assert TOKENIZER.decode(ids) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_a_task_without_a_template_is_not_wrapped():
    assert CHAT.content("What is <a_1>?", "mine") == "What is <a_1>?"


def test_braces_in_text_are_no_fields():
    form = PromptForm("plain", "{prompt} {0}", {"t": "{domain}|{prompt}"})
    # The domain is put in first: a {prompt} inside it would be filled too, a {domain} inside a prompt stays.
    assert form.content("{domain} {x}", "t").endswith("|{domain} {x}")


def test_to_dict_builds_the_same_form():
    for form in (PLAIN, CHAT, WRAPPED):
        assert PromptForm(**form.to_dict()) == form


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "poem"}, "prompt form 'poem': choose one of plain, chat"),
        ({"max_history": 0}, "max_history 0: a prompt keeps at least 1"),
        ({"templates": {"next_item": "no field"}}, "prompt template of task 'next_item': no {prompt} in 'no field'"),
    ],
)
def test_bad_forms_do_not_construct(settings: dict, message: str):
    with pytest.raises(InputError, match=message):
        PromptForm(**settings)


def test_chat_needs_a_chat_template():
    tokenizer = make_tokenizer(TABLE)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template; use prompt form 'plain'"):
        chat_text(tokenizer, "hello")
    with pytest.raises(InputError, match="no chat template; use prompt form 'plain'"):
        end_token_id(tokenizer, "chat")


@pytest.mark.parametrize(
    ("bos", "eos", "pad", "expected"),
    [
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>"),
        (None, "<|im_end|>", "<|endoftext|>", "<|im_end|>"),
        (None, None, "<|endoftext|>", "<|endoftext|>"),
    ],
)
def test_start_token_is_bos_else_eos_else_padding_in_the_card_too(bos, eos, pad, expected):
    tokenizer = make_tokenizer(TABLE)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = bos, eos, pad
    start = tokenizer.convert_tokens_to_ids(expected)
    assert start_token_id(tokenizer) == start
    code = standalone_code(
        make_info(PLAIN), TABLE, tokenizer,
        name="x/y", history=[], adapter=False, popularity=False, architecture="causal",
    )  # fmt: skip
    assert f"prompt = [{start}] + [token for" in code


def test_without_any_of_them_there_is_no_start():
    tokenizer = make_tokenizer(TABLE)
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = None
    with pytest.raises(InputError, match="no BOS, EOS or padding token"):
        start_token_id(tokenizer)
    with pytest.raises(InputError, match="no EOS token"):
        end_token_id(tokenizer, "plain")


def test_end_token_is_eos_or_the_end_of_a_turn():
    assert TOKENIZER.convert_ids_to_tokens(end_token_id(TOKENIZER, "plain")) == "<|endoftext|>"
    assert TOKENIZER.convert_ids_to_tokens(end_token_id(TOKENIZER, "chat")) == "<|im_end|>"


@pytest.mark.parametrize(
    ("behind", "expected"),
    [(" <|im_end|>", "<|im_end|>"), ("\n<|im_end|>\n", "<|im_end|>"), ("\n", "<|endoftext|>"), ("", "<|endoftext|>")],
)
def test_white_space_before_the_end_of_a_turn_is_no_end(behind: str, expected: str):
    tokenizer = make_tokenizer(TABLE)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}" + behind + "{% endfor %}"
    assert tokenizer.convert_ids_to_tokens(end_token_id(tokenizer, "chat")) == expected


def test_a_chat_model_is_told_how_to_answer():
    assert CHAT.content("Title of <a_1><b_2>:", "sid_to_title") == (
        "Title of <a_1><b_2>:\nAnswer with the title alone."
    )
    assert set(CHAT_TEMPLATES) <= set(TASKS)
    assert all(template.count("{prompt}") == 1 for template in CHAT_TEMPLATES.values())
    # A task with two kinds of answers says in its own prompt which is asked for.
    assert "reasoning" not in CHAT_TEMPLATES
