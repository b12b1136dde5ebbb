"""Rewards that compare a candidate with the item that came next."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.slow_rl import slow_difference_ndcg, slow_prefix_match, slow_rank_penalty
from transformers import PreTrainedTokenizerBase

from llmrec.errors import InputError
from llmrec.rewards.candidates import read_candidates
from llmrec.rewards.exact_match import exact_match
from llmrec.rewards.group_ndcg import group_ndcg
from llmrec.rewards.inputs import RewardInputs
from llmrec.rewards.prefix_match import prefix_match
from llmrec.rewards.rank_penalty import rank_penalty
from llmrec.rewards.residual_match import residual_match
from llmrec.rewards.validity import validity
from llmrec.vocab import SIDVocab


def sids(vocab: SIDVocab, *rows: int) -> list[list[int]]:
    return [vocab.token_ids(row) for row in rows]


def test_a_hit_is_by_item(vocab: SIDVocab, inputs: RewardInputs):
    reward = exact_match(vocab, inputs=inputs)
    assert reward(completion_ids=sids(vocab, 0, 1, 5, 8), target=[0, 0, 5, 8]) == [1.0, 0.0, 1.0, 1.0]
    # Items 6 and 7 have one SID: it hits for either.
    assert reward(completion_ids=sids(vocab, 6, 7, 6, 7), target=[6, 6, 7, 0]) == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(("shared", "wanted"), [("any", [1, 1, 1]), ("share", [0.5, 0.5, 1]), ("first", [0, 1, 1])])
def test_what_a_shared_sid_is_worth(vocab: SIDVocab, inputs: RewardInputs, shared: str, wanted: list[float]):
    # Item 7 was taken six times, item 6 once: a list shows item 7 first.
    reward = exact_match(vocab, shared=shared, inputs=inputs)
    assert reward(completion_ids=sids(vocab, 6, 6, 0), target=[6, 7, 0]) == wanted


def test_a_sid_is_found_at_the_end(vocab: SIDVocab, inputs: RewardInputs, tokenizer: PreTrainedTokenizerBase):
    word, end = tokenizer.encode("pen", add_special_tokens=False), [tokenizer.eos_token_id]
    a, b = vocab.token_ids(0), vocab.token_ids(3)
    completions = [word + a + end, a + word + b, word, [], a + b, a[:2]]
    assert read_candidates(completions, vocab).rows.tolist() == [0, 3, -1, -1, -1, -1]
    reward = exact_match(vocab, inputs=inputs)
    assert reward(completion_ids=completions, target=[0] * 6) == [1, 0, 0, 0, 0, 0]


def test_right_prefixes_by_hand(vocab: SIDVocab, inputs: RewardInputs):
    # Target (0, 0, 0); candidates (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0).
    candidates = sids(vocab, 0, 1, 2, 3)
    even = prefix_match(vocab, inputs=inputs)
    assert even(completion_ids=candidates, target=[0] * 4) == pytest.approx([1, 2 / 3, 1 / 3, 0])
    steep = prefix_match(vocab, weights=[1, 2, 5], inputs=inputs)
    assert steep(completion_ids=candidates, target=[0] * 4) == pytest.approx([1, 3 / 8, 1 / 8, 0])
    # Target (3, 1), of two codes: (3, 0, 0) has the first, worth 1 of 1 + 2; the whole is 1.
    assert steep(completion_ids=sids(vocab, 6, 8), target=[8, 8]) == pytest.approx([1 / 3, 1])


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_right_prefixes_as_counted_slowly(vocab: SIDVocab, inputs: RewardInputs, data: st.DataObject):
    rows = st.integers(0, 8)
    pairs = data.draw(st.lists(st.tuples(rows, rows), min_size=1, max_size=8))
    weights = data.draw(st.lists(st.integers(1, 5), min_size=3, max_size=3))
    found = prefix_match(vocab, weights=weights, inputs=inputs)(
        completion_ids=[vocab.token_ids(a) for a, _ in pairs], target=[b for _, b in pairs]
    )
    wanted = [slow_prefix_match(vocab.token_ids(a), vocab.token_ids(b), weights) for a, b in pairs]
    assert found == pytest.approx(wanted)


def test_near_misses_by_hand(vocab: SIDVocab, inputs: RewardInputs):
    # Three levels: sqrt(1 / 2) for one right code, min(sqrt(2 / 2), 0.95) for two, 1 for a hit.
    candidates = sids(vocab, 0, 1, 2, 3)
    reward = residual_match(vocab, inputs=inputs)
    assert reward(completion_ids=candidates, target=[0] * 4) == pytest.approx([1, 0.95, math.sqrt(0.5), 0])
    given_values = residual_match(vocab, values=[0.1, 0.4], inputs=inputs)
    assert given_values(completion_ids=candidates, target=[0] * 4) == pytest.approx([1, 0.4, 0.1, 0])
    # (3, 0, 0) against (3, 1): one code is right; padding behind a short SID is no code.
    assert given_values(completion_ids=sids(vocab, 6, 5), target=[8, 5]) == pytest.approx([0.1, 1])


def test_confident_misses_by_hand(vocab: SIDVocab, inputs: RewardInputs):
    weights = [1 / math.log2(place + 2) for place in range(4)]  # 1, .631, .5, .431
    total = sum(weights)
    columns = {"completion_ids": sids(vocab, 1, 0, 2, 3), "rank": [0, 1, 2, 3]}
    reward = rank_penalty(vocab, inputs=inputs)
    wanted = [-weights[0] / total, 0.0, -weights[2] / total, -weights[3] / total]
    assert reward(target=[0] * 4, **columns) == pytest.approx(wanted)
    assert reward(target=[5] * 4, **columns) == [0.0] * 4, "no hit, nothing to say"
    plain = rank_penalty(vocab, needs_hit=False, normalize=False, inputs=inputs)
    assert plain(target=[5] * 4, **columns) == pytest.approx([-weight for weight in weights])


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_ranked_rewards_as_counted_slowly(vocab: SIDVocab, inputs: RewardInputs, data: st.DataObject):
    rows, ranks, target = [], [], data.draw(st.integers(0, 5))
    for _ in range(2):
        rows += data.draw(st.permutations(range(6)))[:4]
        ranks += data.draw(st.permutations(range(4)))
    columns = {"completion_ids": sids(vocab, *rows), "rank": ranks, "target": [target] * 8}
    penalties = rank_penalty(vocab, inputs=inputs)(**columns)
    differences = group_ndcg(vocab, credit="difference", inputs=inputs)(**columns)
    for start in (0, 4):
        group = slice(start, start + 4)
        hits = [row == target for row in rows[group]]
        assert penalties[group] == pytest.approx(slow_rank_penalty(hits, ranks[group]))
        assert differences[group] == pytest.approx(slow_difference_ndcg(hits, ranks[group]))


def test_ndcg_is_dealt_by_hand(vocab: SIDVocab, inputs: RewardInputs):
    columns = {"completion_ids": sids(vocab, 1, 2, 0, 3), "rank": [0, 1, 2, 3], "target": [0] * 4}
    gain, higher = 1 / math.log2(4), 1 / math.log2(3)  # of the hit at place 2, and of place 1
    assert group_ndcg(vocab, inputs=inputs)(**columns) == pytest.approx([0, 0, gain, 0])
    assert group_ndcg(vocab, credit="whole", inputs=inputs)(**columns) == pytest.approx([gain] * 4)
    # Without one of the two misses above it the hit would stand at place 1, and without the hit there is none.
    found = group_ndcg(vocab, credit="difference", inputs=inputs)(**columns)
    assert found == pytest.approx([gain - higher, gain - higher, gain, 0])


def test_valid_completions(vocab: SIDVocab, inputs: RewardInputs):
    completions = [*sids(vocab, 0, 4, 6), vocab.token_ids(3)[:1], []]  # 4 is retired
    assert validity(vocab, inputs=inputs)(completion_ids=completions) == [1, 0, 1, 0, 0]


def test_a_group_that_is_split_is_refused(vocab: SIDVocab, inputs: RewardInputs):
    reward = rank_penalty(vocab, inputs=inputs)
    columns = {"completion_ids": sids(vocab, 0, 1, 2, 3, 0, 1), "target": [0] * 6, "rank": [0, 1, 2, 3, 0, 1]}
    with pytest.raises(InputError, match=r"6 completions.*num_generations 4 is split.*multiple of 4: 4 or 8"):
        reward(**columns)
    with pytest.raises(InputError, match=r"2 completions.*multiple of 4: 4$"):
        reward(completion_ids=sids(vocab, 0, 1), target=[0, 0], rank=[0, 1])


def test_shuffled_groups_are_refused(vocab: SIDVocab, inputs: RewardInputs):
    columns = {"completion_ids": sids(vocab, 0, 1, 2, 3), "target": [0] * 4, "rank": [0, 1, 2, 3]}
    with pytest.raises(InputError, match=r"rows 0 and 2 stand in one group.*different prompts"):
        group_ndcg(vocab, inputs=inputs)(**columns, prompts=["a", "a", "b", "b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": None}, "no column 'target'"),
        ({"target": [0, 1]}, "2 targets for 4 completions"),
        ({"target": [0, 0, 9, 0]}, r"target 9 in row 2 is not in the SID table, whose rows are 0 to 8"),
        ({"target": [0, 0, "i1", 0]}, "target 'i1' in row 2"),
        ({"rank": None}, "no column 'rank'"),
        ({"rank": [0, 1]}, "2 ranks for 4 completions"),
        ({"rank": [0, 1, -1, 2]}, "rank -1 in row 2"),
    ],
)
def test_columns_that_are_wrong(vocab: SIDVocab, inputs: RewardInputs, change: dict, message: str):
    columns = {"completion_ids": sids(vocab, 0, 1, 2, 3), "target": [0] * 4, "rank": [0, 1, 2, 3], **change}
    with pytest.raises(InputError, match=message):
        rank_penalty(vocab, inputs=inputs)(**columns)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (exact_match, {"shared": "some"}, "shared 'some'; choose one of any, share, first"),
        (prefix_match, {"weights": [1, 2]}, r"weights \[1, 2\]; give a list of 3 numbers"),
        (prefix_match, {"weights": [1, -2, 1]}, "weight of level 1 -2; it is at least 0"),
        (prefix_match, {"weights": [0, 2, 1]}, "weight of level 0 is 0"),
        (residual_match, {"values": [0.5]}, "give a list of 2 numbers"),
        (residual_match, {"values": [0.5, 0.4]}, "they rise and stay below 1"),
        (residual_match, {"values": [0.5, 1.0]}, "they rise and stay below 1"),
        (rank_penalty, {"needs_hit": "yes"}, "needs_hit 'yes'; give true or false"),
        (group_ndcg, {"credit": "all"}, "credit 'all'; choose one of own, difference, whole"),
    ],
)
def test_options_that_are_wrong(vocab: SIDVocab, inputs: RewardInputs, factory, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        factory(vocab, **options, inputs=inputs)


def test_groups_of_one_are_refused(inputs: RewardInputs):
    with pytest.raises(InputError, match="num_generations 1; a group has at least 2"):
        replace(inputs, num_generations=1)


def test_numpy_columns_are_taken(vocab: SIDVocab, inputs: RewardInputs):
    columns = {"completion_ids": sids(vocab, 0, 1, 2, 3), "target": np.zeros(4, dtype=np.int64)}
    assert exact_match(vocab, inputs=inputs)(**columns) == [1, 0, 0, 0]
