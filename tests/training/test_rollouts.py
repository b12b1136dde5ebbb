"""Rollouts: exactly G distinct legal items a prompt, with their rank and exact log-probability."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference.slow_decoding import score_item, slow_beams
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration

from llmrec.decoding.trie import SIDTrie
from llmrec.errors import InputError
from llmrec.sids.table import SIDTable
from llmrec.training.adapters import attach_adapter
from llmrec.training.rollouts import Group, Rollouts, rollout_generator
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

PROMPTS = [[1, 300, 305], [1, 301], [1, 299, 304, 310, 298], [1]]
ROWS = 640
KINDS = ("beam", "sample", "mixed")


def ragged() -> tuple[PreTrainedTokenizerBase, SIDVocab]:
    """SIDs of two and three codes; rows 3 and 4 share one, row 4 being the more popular; row 0 is retired."""
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 1, -1], [1, 0, 0], [1, 0, 0], [1, 1, 0], [2, 0, -1]])
    table = SIDTable(tuple(f"i{row}" for row in range(len(codes))), codes, (3, 2, 2))
    table = replace(table, retired=np.arange(len(codes)) == 0)
    tokenizer = train_tokenizer(["red pen", "blue pen"], vocab_size=300)
    add_sid_tokens(tokenizer, table)
    return tokenizer, SIDVocab(tokenizer, table, popularity=[9, 1, 1, 1, 5, 1, 1])


def make_rollouts(vocab: SIDVocab, kind: str = "beam", size: int = 6, **settings) -> Rollouts:
    return Rollouts(kind, size, trie=SIDTrie.from_vocab(vocab), vocab=vocab, end_token_id=2, **settings)


def token_lists(vocab: SIDVocab) -> list[list[int]]:
    return [vocab.token_ids(row) for row in range(len(vocab))]


def expected_log_prob(rollouts: Rollouts, model, prompt, tokens, lists) -> float:
    score, temperature = rollouts.distribution
    return score_item(
        model, prompt, tokens, lists, score=score, temperature=temperature,
        sid_tokens=rollouts.vocab.trainable_token_indices, end_token_id=2,
    )  # fmt: skip


def check(group: Group, rollouts: Rollouts, model, prompts=PROMPTS, lists=None) -> None:
    """What holds for all groups: distinct legal SIDs by falling exact log-probability."""
    vocab, size = rollouts.vocab, rollouts.num_generations
    given = group.completions()
    assert group.token_ids.shape == (len(prompts), size, vocab.levels)
    assert group.ranks.tolist() == [list(range(size))] * len(prompts)
    for number, prompt in enumerate(prompts):
        tokens = given[number * size : (number + 1) * size]
        assert len({tuple(ids) for ids in tokens}) == size
        for place, ids in enumerate(tokens):
            assert int(group.rows[number, place]) in vocab.rows(ids)
        exact = [expected_log_prob(rollouts, model, prompt, ids, lists or token_lists(vocab)) for ids in tokens]
        np.testing.assert_allclose(group.log_probs[number].numpy(), exact, atol=3e-5)
        assert (group.log_probs[number].diff() <= 0).all()


@pytest.mark.parametrize("score", ["full", "sids", "allowed"])
def test_beams_are_those_of_a_slow_search(vocab: SIDVocab, make_model: Callable, score: str):
    model, rollouts = make_model(rows=ROWS), make_rollouts(vocab, score=score)
    group = rollouts(model, PROMPTS)
    check(group, rollouts, model)
    for number, prompt in enumerate(PROMPTS):
        expected = slow_beams(
            model, prompt, token_lists(vocab), 6, score=score, sid_tokens=vocab.trainable_token_indices, end_token_id=2
        )
        assert group.token_ids[number].tolist() == [tokens for _, tokens in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_on_an_encoder_decoder(vocab: SIDVocab, kind: str):
    config = T5Config(
        vocab_size=ROWS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=2, initializer_factor=1.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model = T5ForConditionalGeneration(config).eval()
    rollouts = make_rollouts(vocab, kind, temperature=2.0, score="sids")
    check(rollouts(model, PROMPTS, generator=rollout_generator(0, 0)), rollouts, model)


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_with_the_rows_of_an_adapter(vocab: SIDVocab, make_model: Callable, kind: str):
    model = attach_adapter(make_model(rows=ROWS), vocab, method="lora", rank=2, alpha=4, dropout=0.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "delta" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    rollouts = make_rollouts(vocab, kind, temperature=2.0)
    group = rollouts(model, PROMPTS, generator=rollout_generator(0, 0))
    model.eval()
    check(group, rollouts, model)


def test_draws_have_the_law_of_what_the_beams_leave(make_model: Callable):
    """Mixed with G = 3: two best of six SIDs, and one drawn by ``P(i) / (1 - P(best two))``."""
    _, vocab = ragged()
    model, rollouts = make_model(rows=ROWS), make_rollouts(vocab, "mixed", 3, score="allowed", temperature=2.0)
    draws = 3000
    group = rollouts(model, [[1, 300]] * draws, generator=rollout_generator(3, 0))
    lists = token_lists(vocab)[1:]  # row 0 is retired
    best = [tuple(tokens) for _, tokens in slow_beams(model, [1, 300], lists, 2, score="allowed")]
    found = [tuple(ids) for ids in group.completions()]
    others = [[ids for ids in found[start : start + 3] if ids not in best] for start in range(0, 3 * draws, 3)]
    assert {len(left) for left in others} == {1}
    rest = sorted({tuple(ids) for ids in lists} - set(best))
    law = np.exp([score_item(model, [1, 300], list(ids), lists, score="allowed", temperature=2.0) for ids in rest])
    law /= law.sum()
    counts = np.array([sum(left[0] == ids for left in others) for ids in rest])
    error = np.sqrt(draws * law * (1 - law))
    assert (np.abs(counts - draws * law) < 4 * error).all(), (counts, draws * law)


def test_the_best_half_of_mixed_is_what_beam_search_finds(vocab: SIDVocab, make_model: Callable):
    model, rollouts = make_model(rows=ROWS), make_rollouts(vocab, "mixed", 7, temperature=3.0)
    group = rollouts(model, PROMPTS, generator=rollout_generator(0, 0))
    check(group, rollouts, model)
    for number, prompt in enumerate(PROMPTS):
        best = {tuple(tokens) for _, tokens in slow_beams(model, prompt, token_lists(vocab), 4)}
        assert best <= {tuple(ids) for ids in group.token_ids[number].tolist()}


def test_shorter_shared_and_retired_sids(make_model: Callable):
    _, vocab = ragged()
    model = make_model(rows=ROWS)
    for kind in KINDS:
        rollouts = make_rollouts(vocab, kind, 5)
        assert rollouts.sids == 5  # seven rows, one retired, two that share a SID
        group = rollouts(model, PROMPTS, [3, 4, 0, 5], generator=rollout_generator(0, 0))
        check(group, rollouts, model, lists=token_lists(vocab)[1:])
        assert [sorted(rows) for rows in group.rows.tolist()] == [[1, 2, 4, 5, 6]] * 4  # 4 is more popular than 3
        assert group.hits.tolist() == [True, True, False, True]  # row 3 is hit by its SID, retired row 0 never
        assert (group.token_ids[group.rows == 2][:, 2] == -1).all()


def test_the_ground_truth_takes_the_last_place_where_it_is_missing(vocab: SIDVocab, make_model: Callable):
    model = make_model(rows=ROWS)
    plain = make_rollouts(vocab)(model, PROMPTS)
    missing = [next(row for row in range(30) if row not in rows) for rows in plain.rows.tolist()]
    targets = [missing[0], int(plain.rows[1, 2]), missing[2], int(plain.rows[3, 5])]
    rollouts = make_rollouts(vocab, add_ground_truth=True)
    group = rollouts(model, PROMPTS, targets)
    check(group, rollouts, model)
    assert group.added.tolist() == [True, False, True, False]
    assert group.hits.tolist() == [False, True, False, True]
    assert group.target_places.tolist() == [-1, 2, -1, 5]
    for number, target in enumerate(targets):
        assert target in group.rows[number].tolist()
        kept = plain.rows[number].tolist()[: 5 if group.added[number] else 6]
        assert set(kept) <= set(group.rows[number].tolist())


def test_a_target_just_behind_the_group_has_a_place(vocab: SIDVocab, make_model: Callable):
    model = make_model(rows=ROWS)
    wide = make_rollouts(vocab, size=10)(model, PROMPTS)
    rollouts = make_rollouts(vocab, look_beyond=4)
    group = rollouts(model, PROMPTS, wide.rows[:, 8].tolist())
    assert group.target_places.tolist() == [8] * 4
    assert not group.hits.any()
    assert group.rows.tolist() == wide.rows[:, :6].tolist()
    assert make_rollouts(vocab)(model, PROMPTS, wide.rows[:, 8].tolist()).target_places.tolist() == [-1] * 4
    assert make_rollouts(vocab, size=30, look_beyond=9)(model, PROMPTS).rows.shape == (4, 30)  # there are 30


@pytest.mark.parametrize("kind", KINDS)
def test_seen_items_do_not_come_and_probabilities_are_those_of_the_rest(make_model: Callable, kind: str):
    _, vocab = ragged()
    model, rollouts = make_model(rows=ROWS), make_rollouts(vocab, kind, 4, score="allowed", exclude_seen=True)
    histories = [[4, 1], [4], [3, 4], [0, 6]]  # row 3 stays where row 4, which shares its SID, was seen
    group = rollouts(model, PROMPTS, [1, 3, 3, 2], histories=histories, generator=rollout_generator(0, 0))
    for number, (prompt, history) in enumerate(zip(PROMPTS, histories, strict=True)):
        assert not set(group.rows[number].tolist()) & set(history)
        left = [vocab.token_ids(row) for row in range(1, 7) if row not in history]
        check(group.take([number]), rollouts, model, [prompt], left)
    assert group.target_places[0] == group.target_places[2] == -1  # seen, or all items of its SID seen
    added = make_rollouts(vocab, kind, 4, score="allowed", exclude_seen=True, add_ground_truth=True)
    again = added(model, PROMPTS, [1, 3, 3, 2], histories=histories, generator=rollout_generator(0, 0))
    assert not again.added[0]
    assert not again.added[2]
    assert {3, 4} & set(again.rows[1].tolist()) == {3}


def test_drawing_again_keeps_the_distribution_that_log_probabilities_are_taken_under(
    vocab: SIDVocab, make_model: Callable
):
    model = make_model(rows=ROWS)
    for kind, distribution in (("beam", ("full", 1.0)), ("sample", ("allowed", 0.7))):
        rollouts = make_rollouts(vocab, kind, temperature=0.7)
        assert rollouts.distribution == distribution
        drawn = rollouts.drawn(4.0)
        assert drawn.distribution == distribution
        assert (drawn.kind, drawn.temperature, rollouts.temperature) == ("sample", 4.0, 0.7)
        check(drawn(model, PROMPTS, generator=rollout_generator(0, 0)), drawn, model)


@pytest.mark.parametrize("kind", ["beam", "mixed"])
def test_the_size_of_search_batches_changes_nothing(vocab: SIDVocab, make_model: Callable, kind: str):
    model = make_model(rows=ROWS)
    whole = make_rollouts(vocab, kind)(model, PROMPTS, generator=rollout_generator(0, 0))
    single = make_rollouts(vocab, kind, max_tokens_per_batch=1)(model, PROMPTS, generator=rollout_generator(0, 0))
    if kind == "beam":
        assert whole.rows.tolist() == single.rows.tolist()
        torch.testing.assert_close(whole.log_probs, single.log_probs, atol=1e-5, rtol=0)
    assert {len(set(rows)) for rows in single.rows.tolist()} == {6}


def test_draws_follow_seed_step_and_process(vocab: SIDVocab, make_model: Callable):
    model, rollouts = make_model(rows=ROWS), make_rollouts(vocab, "sample", temperature=5.0)

    def rows(*args, **kwargs) -> list[list[int]]:
        return rollouts(model, PROMPTS, generator=rollout_generator(*args, **kwargs)).rows.tolist()

    assert rows(1, 5) == rows(1, 5)
    assert len({str(rows(*where)) for where in ((1, 5), (1, 6), (2, 5))} | {str(rows(1, 5, process=1))}) == 4


def test_training_goes_on_behind_rollouts(vocab: SIDVocab, make_model: Callable):
    model, trie = make_model(rows=ROWS).train(), SIDTrie.from_vocab(vocab)
    group = Rollouts("mixed", 4, trie=trie, vocab=vocab)(model, PROMPTS, generator=rollout_generator(0, 0))
    assert model.training
    # Tensors of inference mode could not be used in a loss, nor could what the trie keeps of itself.
    assert not any(tensor.is_inference() for tensor in (group.log_probs, group.token_ids, *trie.level_tokens))
    weights = model.get_output_embeddings().weight
    (weights[trie.level_tokens[0]].sum() * group.log_probs.sum()).backward()
    assert weights.grad is not None


def test_groups_are_put_together(vocab: SIDVocab, make_model: Callable):
    model, rollouts = make_model(rows=ROWS), make_rollouts(vocab)
    group = rollouts(model, PROMPTS)
    other = rollouts(model, PROMPTS[::-1])
    found = group.put([1, 3], other.take([0, 2]))
    assert found.rows.tolist() == [group.rows[0].tolist(), other.rows[0].tolist(), group.rows[2].tolist(),
                                   other.rows[2].tolist()]  # fmt: skip
    assert group.put([], other.take([])).rows.tolist() == group.rows.tolist()


def test_bad_settings_are_refused(vocab: SIDVocab, make_model: Callable):
    with pytest.raises(InputError, match="num_generations 31: 30 items with 30 SIDs can be reached; set it to 30"):
        make_rollouts(vocab, size=31)
    with pytest.raises(InputError, match="num_generations 6: 6 items with 5 SIDs can be reached"):
        make_rollouts(ragged()[1], size=6)
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"kind": "greedy"}, "rollouts 'greedy': choose one of beam, sample, mixed"),
        ({"score": "legal"}, "score 'legal': choose one of"),
        ({"size": 1}, "num_generations 1: at least 2"),
        ({"temperature": 0.0}, "temperature 0.0: above 0; for the best SIDs take rollouts: beam"),
        ({"look_beyond": -1}, "look_beyond -1: at least 0"),
    )
    for settings, message in refused:
        with pytest.raises(InputError, match=message):
            make_rollouts(vocab, **settings)
    with pytest.raises(InputError, match="score 'sids': it is taken over the SID tokens and the end token"):
        Rollouts("beam", 4, trie=SIDTrie.from_vocab(vocab), vocab=vocab, score="sids")


def test_bad_requests_are_refused(make_model: Callable):
    _, vocab = ragged()
    model = make_model(rows=ROWS)
    with pytest.raises(InputError, match="prompt 1: target 7 is not in the SID table of 7 items"):
        make_rollouts(vocab, size=2)(model, PROMPTS, [0, 7, 1, 1])
    with pytest.raises(InputError, match="add_ground_truth: it needs the target"):
        make_rollouts(vocab, size=2, add_ground_truth=True)(model, PROMPTS)
    seen = make_rollouts(vocab, size=4, exclude_seen=True)
    with pytest.raises(InputError, match="exclude_seen: it needs the history"):
        seen(model, PROMPTS)
    with pytest.raises(InputError, match="prompt 2: num_generations 4, but exclude_seen leaves 3 of 5 SIDs"):
        seen(model, PROMPTS, histories=[[1], [1], [2, 5, 3], [1]])


def test_a_gpu_without_memory_says_what_to_lower(vocab: SIDVocab, make_model: Callable, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("llmrec.training.rollouts.read_prompts", full)
    with pytest.raises(
        InputError,
        match=r"no memory for 4 prompts of up to 5 tokens with 6 candidates each; lower rollout_tokens \(now",
    ):
        make_rollouts(vocab)(make_model(rows=ROWS), PROMPTS)
