"""Token rows: the loss lies on completions alone, and one row a user equals one row a target."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data.splits import History, Splits
from llmrec.errors import InputError
from llmrec.tasks.example import Example
from llmrec.tasks.next_item import next_item
from llmrec.tasks.prompt import PromptForm, end_token_id, start_token_id
from llmrec.training.examples import IGNORED, encode_examples, encode_sequences, to_dataset, training_rows

PLAIN = PromptForm("plain", "pens", max_history=20)
CHAT = PromptForm.named("chat", domain="pens", max_history=20)


def encode(example: Example, tokenizer, form: PromptForm, max_length: int | None = None) -> dict[str, list[int]]:
    return next(encode_examples([example], tokenizer=tokenizer, form=form, max_length=max_length))


def test_plain_next_item_row(tokenizer, vocab) -> None:
    example = Example(vocab.tokens(3) + vocab.tokens(7), vocab.tokens(9), 9, "next_item")
    row = encode(example, tokenizer, PLAIN)
    start = start_token_id(tokenizer)
    assert row["input_ids"] == [start, *vocab.token_ids(3), *vocab.token_ids(7), *vocab.token_ids(9)]
    assert row["labels"] == [IGNORED] * 7 + vocab.token_ids(9), "no end token: the next SID of a history follows"


def test_plain_text_row_learns_its_end(tokenizer, vocab) -> None:
    row = encode(Example(f"Title of {vocab.tokens(3)}:", " black pen", None, "sid_to_title"), tokenizer, PLAIN)
    learned = [token for token in row["labels"] if token != IGNORED]
    assert learned[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(learned[:-1]) == " black pen"


def test_chat_row_learns_the_end_of_turn(tokenizer, vocab) -> None:
    row = encode(Example(vocab.tokens(3), vocab.tokens(9), 9, "next_item"), tokenizer, CHAT)
    learned = [token for token in row["labels"] if token != IGNORED]
    assert learned == [*vocab.token_ids(9), tokenizer.convert_tokens_to_ids("<|im_end|>")]
    prompt = tokenizer.decode(row["input_ids"][: -len(learned)])
    assert prompt.startswith("<|im_start|>user\nA customer took these pens, oldest first: <a_3><b_0><c_0>\n")
    assert prompt.endswith("<|im_start|>assistant\n")
    assert end_token_id(tokenizer, "plain") == tokenizer.eos_token_id


def test_too_long_a_row_is_refused(tokenizer, vocab) -> None:
    with pytest.raises(
        InputError, match="an example has 10 tokens, max_length is 9, and no shorter history would help"
    ):
        encode(Example(vocab.tokens(3) * 2, vocab.tokens(9), 9, "next_item"), tokenizer, PLAIN, max_length=9)


@pytest.mark.parametrize("max_history", [1, 2, 5, 20])
def test_history_row_equals_target_rows(make_model, tokenizer, vocab, catalog, dataset, max_history: int) -> None:
    """Logits at each target of the first window, against the row-a-target form of the same target."""
    form = PromptForm("plain", "pens", max_history=max_history)
    splits = dataset.split("leave_one_out", max_history=max_history)
    model = make_model().double()
    sequence = splits.sequences[0]
    row = next(encode_sequences([sequence], tokenizer=tokenizer, vocab=vocab, max_history=max_history))
    with torch.no_grad():
        whole = model(torch.tensor([row["input_ids"]])).logits[0]
    targets = [history for history in splits.train if history.user == 0][:max_history]
    assert targets
    for place, example in enumerate(next_item(catalog, vocab, targets, None), start=1):  # type: ignore[arg-type]
        single = encode(example, tokenizer, form)
        with torch.no_grad():
            alone = model(torch.tensor([single["input_ids"]])).logits[0]
        stop = 1 + 3 * (place + 1)
        torch.testing.assert_close(alone[-4:-1], whole[stop - 4 : stop - 1], atol=1e-9, rtol=0)
        assert single["labels"][-3:] == row["labels"][stop - 3 : stop]


@given(length=st.integers(0, 40), max_history=st.integers(1, 12))
def test_windows_supervise_each_target_once(tokenizer, vocab, length: int, max_history: int) -> None:
    sequence = [item % 30 for item in range(length)]
    rows = list(encode_sequences([sequence], tokenizer=tokenizer, vocab=vocab, max_history=max_history))
    learned = [token for row in rows for token in row["labels"] if token != IGNORED]
    assert learned == [token for item in sequence[1:] for token in vocab.token_ids(item)]
    for number, row in enumerate(rows):
        items = (len(row["input_ids"]) - 1) // 3
        assert items <= max_history + 1
        seen_by_first_target = (sum(label == IGNORED for label in row["labels"]) - 1) // 3
        assert seen_by_first_target == (1 if number == 0 else max(max_history // 2, 1))


@given(length=st.integers(0, 40), max_history=st.integers(1, 12), data=st.data())
def test_windows_of_a_stated_stride(tokenizer, vocab, length: int, max_history: int, data) -> None:
    stride = data.draw(st.integers(1, max_history))
    sequence = [item % 30 for item in range(length)]
    rows = list(encode_sequences([sequence], tokenizer=tokenizer, vocab=vocab, max_history=max_history, stride=stride))
    learned = [token for row in rows for token in row["labels"] if token != IGNORED]
    assert learned == [token for item in sequence[1:] for token in vocab.token_ids(item)]
    for row in rows[1:]:
        seen_by_first_target = (sum(label == IGNORED for label in row["labels"]) - 1) // 3
        assert seen_by_first_target == max_history + 1 - stride
        assert sum(label != IGNORED for label in row["labels"]) <= 3 * stride


def test_a_stride_of_one_is_the_row_a_target_form(tokenizer, vocab) -> None:
    """Behind the first window each further target has a row of its own, with its whole history of two items."""
    rows = list(encode_sequences([[4, 5, 6, 7, 8]], tokenizer=tokenizer, vocab=vocab, max_history=2, stride=1))
    start, sid = start_token_id(tokenizer), vocab.token_ids
    assert [row["input_ids"] for row in rows] == [
        [start, *sid(4), *sid(5), *sid(6)], [start, *sid(5), *sid(6), *sid(7)], [start, *sid(6), *sid(7), *sid(8)],
    ]  # fmt: skip
    assert rows[1]["labels"] == [IGNORED] * 7 + sid(7)
    with pytest.raises(InputError, match=r"history_stride: 3; from 1 .* to max_history \(2\)"):
        next(encode_sequences([[4, 5]], tokenizer=tokenizer, vocab=vocab, max_history=2, stride=3))


def test_too_long_an_example_loses_its_oldest_items(tokenizer, vocab, catalog, caplog) -> None:
    """A start token, three tokens an item and three of the target: 13 tokens hold three items of history."""
    histories = [History(0, (1, 2, 3, 4, 5), 6), History(1, (7, 8), 9), History(2, (1, 2, 3, 4), 9)]
    examples = next_item(catalog, vocab, histories, None)  # type: ignore[arg-type]
    rows = list(encode_examples(examples, tokenizer=tokenizer, form=PLAIN, max_length=13))
    start, sid = start_token_id(tokenizer), vocab.token_ids
    assert [row["input_ids"] for row in rows] == [
        [start, *sid(3), *sid(4), *sid(5), *sid(6)], [start, *sid(7), *sid(8), *sid(9)],
        [start, *sid(2), *sid(3), *sid(4), *sid(9)],
    ]  # fmt: skip
    assert "task next_item: 2 examples lost the oldest items of a history to max_length 13" in caplog.text
    with pytest.raises(
        InputError, match="an example has 19 tokens, max_length is 6, and no shorter history would help"
    ):
        next(
            encode_examples(next_item(catalog, vocab, histories, None), tokenizer=tokenizer, form=PLAIN, max_length=6)
        )  # type: ignore[arg-type]


def test_mixture_in_training_rows(tokenizer, vocab, catalog, dataset) -> None:
    splits = dataset.split("leave_one_out", max_history=20)

    def rows(tasks: dict[str, float], supervise: str):
        return training_rows(
            splits, tasks=tasks, supervise=supervise, catalog=catalog, tokenizer=tokenizer, vocab=vocab, form=PLAIN,
            max_length=None, seed=0, progress=False,
        )  # fmt: skip

    # 100 users of 8 items: 6 train, so 5 targets each; 30 items give 30 titles.
    assert len(rows({"next_item": 1.0}, "history")) == 100
    assert len(rows({"next_item": 1.0}, "row")) == 500
    assert len(rows({"next_item": 1.0, "sid_to_title": 0.5, "title_to_sid": 2.0}, "history")) == 100 + 15 + 60
    assert len(rows({"next_item": 0.5}, "history")) == 50
    assert rows({"sid_to_title": 1.0, "next_item": 1.0}, "history")["task"] == [0] * 30 + [1] * 100, "in order"
    assert rows({"sid_to_title": 0.5}, "row")[:] == rows({"sid_to_title": 0.5}, "row")[:], "seeded"


def test_nothing_to_learn_is_refused(tokenizer, vocab, catalog) -> None:
    splits = Splits("leave_one_out", [], [], [], [(1,), (2,)])
    with pytest.raises(InputError, match="training rows: none has a label to learn"):
        training_rows(
            splits, tasks={"next_item": 1.0}, supervise="history", catalog=catalog, tokenizer=tokenizer, vocab=vocab,
            form=PLAIN, max_length=None, seed=0, progress=False,
        )  # fmt: skip
    with pytest.raises(InputError, match="validation rows: none has a label"):
        to_dataset([{"input_ids": [1], "labels": [IGNORED]}], what="validation")


def test_walks_stand_beside_the_tasks(tokenizer, vocab, catalog, dataset) -> None:
    splits = dataset.split("leave_one_out", max_history=20)
    rows = training_rows(
        splits, tasks={"next_item": 0.5, "sid_to_title": 1.0}, supervise="history", catalog=catalog,
        tokenizer=tokenizer, vocab=vocab, form=PLAIN, max_length=None, seed=0, walks=[(1, 2, 3), (4, 5)],
        progress=False,
    )  # fmt: skip
    assert len(rows) == 50 + 30 + 2, "all walks, whatever the weight of next_item"
    assert rows["task"][-2:] == [2, 2]
    learned = [token for token in rows[-2]["labels"] if token != IGNORED]
    assert learned == [*vocab.token_ids(2), *vocab.token_ids(3)]
