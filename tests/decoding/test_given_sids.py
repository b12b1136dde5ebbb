"""Scores of given SIDs: what walking each of them by hand gives, whatever is shared or excluded."""

import numpy as np
import pytest
import torch
from reference.slow_decoding import TableReader, prompts_of, score_item

from llmrec.decoding.beam import beam_search, constrained_beam_search
from llmrec.decoding.filters import ItemFilter, SearchSpace
from llmrec.decoding.given_sids import score_sids
from llmrec.decoding.prompts import read_prompts
from llmrec.decoding.trie import SIDTrie
from llmrec.errors import InputError

# Of one to three codes; rows 3 and 4 share a SID, row 5 alone stands below (1, 1).
CODES = [[0, 0, 0], [0, 0, 1], [0, 1, -1], [1, 0, 0], [1, 0, 0], [1, 1, 0], [2, -1, -1], [3, 0, 1]]


def leaves_of(trie: SIDTrie, rows: list[int]) -> torch.Tensor:
    return trie.paths(torch.tensor(rows)).amax(dim=1)


@pytest.mark.parametrize("score", ["full", "sids", "allowed"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_scores_are_those_of_each_sid_by_itself(make_vocab, score: str, temperature: float):
    tokenizer, vocab = make_vocab(CODES)
    trie = SIDTrie.from_vocab(vocab)
    reader = TableReader([0, 1, 2], len(tokenizer))
    rows = [[6, 0, 5, 2], [0, 1, 4, 3], [7, 7, 1, 6]]  # in any order, one twice
    leaves = torch.stack([leaves_of(trie, some) for some in rows])
    found = score_sids(
        reader, SearchSpace(trie, 3), leaves, score=score, end_token_id=tokenizer.eos_token_id, temperature=temperature
    )
    lists = [vocab.token_ids(row) for row in range(len(vocab))]
    expected = [
        [
            score_item(
                reader, prompt, lists[row], lists, score=score, temperature=temperature,
                sid_tokens=vocab.trainable_token_indices, end_token_id=tokenizer.eos_token_id,
            )
            for row in some
        ]
        for prompt, some in enumerate(rows)
    ]  # fmt: skip
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_what_a_filter_takes_has_no_probability_and_allowed_is_over_the_rest(make_vocab):
    tokenizer, vocab = make_vocab(CODES)
    trie = SIDTrie.from_vocab(vocab)
    reader = TableReader([0], len(tokenizer))
    space = SearchSpace(trie, 1, [ItemFilter(exclude=[0, 3])])  # row 4 shares the SID of row 3, which stays
    found = score_sids(reader, space, leaves_of(trie, [0, 1, 4])[None], score="allowed")[0]
    left = [vocab.token_ids(row) for row in range(len(vocab)) if row != 0]
    expected = [score_item(reader, 0, vocab.token_ids(row), left, score="allowed") for row in (1, 4)]
    assert found[0] == -torch.inf
    np.testing.assert_allclose(found[1:].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["qwen3", "t5"])
def test_a_search_and_what_it_found_agree(make_vocab, make_model, left_padded, random_codes, kind: str):
    tokenizer, vocab = make_vocab(random_codes(40, (5, 4, 6)))
    model = make_model(kind, len(tokenizer))
    trie = SIDTrie.from_vocab(vocab)
    ids, mask = left_padded([3, 7, 5], len(tokenizer))
    with torch.inference_mode():
        reader = read_prompts(model, ids, mask, branches=60)
        found = beam_search(reader, SearchSpace(trie, 3), num_beams=8)
        reader.rewind()
        again = score_sids(reader, SearchSpace(trie, 3), found.leaves)
        alone = constrained_beam_search(model, ids, mask, trie=trie, num_beams=8)
    assert len(prompts_of(ids, mask)) == 3
    torch.testing.assert_close(again, found.scores, atol=2e-5, rtol=0)
    torch.testing.assert_close(again, alone.scores, atol=2e-5, rtol=0)


def test_an_unknown_score_is_refused(make_vocab):
    tokenizer, vocab = make_vocab(CODES)
    trie = SIDTrie.from_vocab(vocab)
    with pytest.raises(InputError, match="score 'legal': choose one of full, sids, allowed"):
        score_sids(TableReader([0], len(tokenizer)), SearchSpace(trie, 1), leaves_of(trie, [0])[None], score="legal")
