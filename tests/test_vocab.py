"""SIDVocab knows both worlds: item rows and token ids, on a real tokenizer."""

import numpy as np
import pytest
from bundle_kit import ITEMS, make_popularity, make_table, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmrec.errors import InputError
from llmrec.sids.table import SIDTable
from llmrec.vocab import SIDVocab, add_sid_tokens

TOKENIZER = make_tokenizer(make_table())


@pytest.mark.parametrize("shared", [False, True])
def test_every_item_comes_back_from_its_token_ids(shared: bool):
    table = make_table(shared=shared)
    tokenizer = make_tokenizer(table)
    vocab = SIDVocab(tokenizer, table)
    assert (len(vocab), vocab.levels) == (ITEMS, table.levels)
    for row in range(ITEMS):
        assert row in vocab.rows(vocab.token_ids(row))
        assert tokenizer.encode(vocab.tokens(row), add_special_tokens=False) == vocab.token_ids(row)
        if not shared:
            assert vocab.rows(vocab.token_ids(row)) == (row,)


def test_token_ids_are_those_of_the_codes():
    table = make_table(shared=True)
    vocab = SIDVocab(make_tokenizer(table), table)
    # Row 3 has codes (3, 0): two tokens, padded with -1.
    assert vocab.tokens(3) == "<a_3><b_0>"
    assert vocab.item_token_ids[3].tolist() == [*vocab.token_ids(3), -1]
    assert [
        ids.tolist().index(token) for ids, token in zip(vocab.level_token_ids, vocab.token_ids(3), strict=False)
    ] == [3, 0]


def test_items_on_one_sid_come_by_popularity_then_row():
    codes = np.array([[0, 0], [1, 0], [0, 0], [0, 0], [1, 1]])
    table = SIDTable(tuple("abcde"), codes, (2, 2))
    tokenizer = make_tokenizer(table)
    assert SIDVocab(tokenizer, table).rows(SIDVocab(tokenizer, table).token_ids(0)) == (0, 2, 3)
    vocab = SIDVocab(tokenizer, table, popularity=[1, 9, 5, 1, 0])
    assert vocab.rows(vocab.token_ids(0)) == (2, 0, 3)
    assert vocab.rows(vocab.token_ids(1)) == (1,)


def test_token_ids_of_no_item_have_no_rows():
    vocab = SIDVocab(TOKENIZER, make_table(), popularity=make_popularity())
    assert vocab.rows([]) == ()
    assert vocab.rows([0, 1, 2]) == ()
    assert vocab.rows(vocab.token_ids(0)[:-1]) == ()


def test_trainable_token_indices_are_all_sid_tokens_and_no_other():
    vocab = SIDVocab(TOKENIZER, make_table())
    tokens = {token for level in make_table().level_tokens() for token in level}
    assert vocab.trainable_token_indices == sorted(TOKENIZER.get_vocab()[token] for token in tokens)
    assert len(vocab.trainable_token_indices) == 4 + 4 + 4 + 3


def test_sid_tokens_are_ordinary_tokens(tmp_path):
    text = "took <a_1><b_2> then<a_3>."
    tokenizer = make_tokenizer(make_table())
    ids = tokenizer.encode(text, add_special_tokens=False)
    # TRL decodes completions so; special tokens would be gone.
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text, add_special_tokens=False) == ids


@given(st.lists(st.integers(0, ITEMS - 1), max_size=8))
@settings(deadline=None, max_examples=50)
def test_a_history_reads_as_its_items_do(history: list[int]):
    vocab = SIDVocab(TOKENIZER, make_table())
    text = "".join(vocab.tokens(row) for row in history)
    assert TOKENIZER.encode(text, add_special_tokens=False) == [t for row in history for t in vocab.token_ids(row)]


def test_add_sid_tokens_counts_and_refuses_a_second_time():
    tokenizer = make_tokenizer(None)
    before = len(tokenizer)
    assert add_sid_tokens(tokenizer, make_table()) == 15
    assert len(tokenizer) == before + 15
    with pytest.raises(InputError, match=r"it holds '<a_0>' already \(15 of 15 SID tokens\); start from the base"):
        add_sid_tokens(tokenizer, make_table())
    assert len(tokenizer) == before + 15


def test_add_sid_tokens_refuses_even_one_token_that_is_there():
    tokenizer = make_tokenizer(None)
    tokenizer.add_tokens(["<b_2>"])
    with pytest.raises(InputError, match="it holds '<b_2>' already"):
        add_sid_tokens(tokenizer, make_table())


def test_a_tokenizer_without_the_tokens_is_refused():
    with pytest.raises(InputError, match="lacks SID token '<a_0>' \\(4 of that level\\)"):
        SIDVocab(make_tokenizer(None), make_table())
    codes = np.array([[0, 0], [1, 6]])
    with pytest.raises(InputError, match="lacks SID token '<b_4>' \\(3 of that level\\)"):
        SIDVocab(TOKENIZER, SIDTable(("a", "b"), codes, (4, 7)))
