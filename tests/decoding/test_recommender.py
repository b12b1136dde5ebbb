"""Histories in, items out: order, exclusion, shared SIDs, ids, and what is refused."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from reference.slow_decoding import score_item

import llmrec.decoding.recommender
import llmrec.decoding.request_filters
from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.tasks.prompt import PromptForm
from llmrec.vocab import SIDVocab

HISTORIES = [[3, 1, 4], [], [5] * 12, [9, 2], [7], [0, 1, 2, 3, 4, 5]]


@pytest.fixture
def build(make_vocab, make_model, random_codes):
    def make(codes=None, *, popularity=None, kind="qwen3", form=PromptForm(max_history=8), retired=(), **settings):  # noqa: B008
        tokenizer, vocab = make_vocab(random_codes(20, (4, 3, 3)) if codes is None else codes, popularity)
        if retired:
            table = replace(vocab.table, retired=np.isin(np.arange(len(vocab)), retired))
            vocab = SIDVocab(tokenizer, table, popularity=popularity)
        model = make_model(kind, len(tokenizer))
        return LLMRecommender(model, tokenizer, vocab, form, **settings)

    return make


@pytest.fixture
def full_recommender(build):
    return build(num_beams=20)


def test_lists_are_the_exhaustive_order(build):
    recommender = build(num_beams=20)
    rows, scores = recommender.rank(HISTORIES, 20)
    vocab = recommender.vocab
    token_lists = [vocab.token_ids(row) for row in range(20)]
    for history, items, found in zip(HISTORIES, rows.tolist(), scores.tolist(), strict=True):
        prompt = recommender.form.encode_history(recommender.tokenizer, vocab, history)
        expected = [score_item(recommender.model, prompt, tokens, token_lists) for tokens in token_lists]
        assert items == sorted(range(20), key=lambda row: -expected[row])
        assert found == pytest.approx(sorted(expected, reverse=True), abs=1e-4)


@pytest.mark.parametrize("max_tokens_per_batch", [1, 300, 10**6])
def test_batches_change_nothing(build, max_tokens_per_batch):
    expected = [build().recommend([history], 5)[0].tolist() for history in HISTORIES]
    assert build(max_tokens_per_batch=max_tokens_per_batch).recommend(HISTORIES, 5).tolist() == expected


def test_seen_items_are_excluded_and_others_take_their_places(build):
    recommender = build(num_beams=20)
    everything = recommender.recommend(HISTORIES, 20).tolist()
    found = recommender.recommend(HISTORIES, 14, exclude_seen=True).tolist()
    for history, order, items in zip(HISTORIES, everything, found, strict=True):
        assert items == [row for row in order if row not in history][:14]


def test_items_beyond_the_prompt_are_excluded_too(build):
    long = [[11, 12, 13, *range(8)]]  # a prompt keeps the last 8: 11, 12 and 13 are cut off
    assert not {11, 12, 13} & set(build().recommend(long, 9, exclude_seen=True)[0].tolist())


def test_k_counts_items_where_sids_are_shared(build):
    # Items 0, 2 and 3 share a SID; 3 is the most popular, then 0 and 2 by row.
    recommender = build([[0, 0], [1, 0], [0, 0], [0, 0], [1, 1]], popularity=[1, 0, 1, 7, 0], num_beams=2)
    rows, scores = recommender.rank([[1], [4]], 5)
    for items, values in zip(rows.tolist(), scores.tolist(), strict=True):
        place = items.index(3)
        assert items[place : place + 3] == [3, 0, 2]
        assert len(set(values[place : place + 3])) == 1
        assert sorted(items) == [0, 1, 2, 3, 4]
    without = recommender.recommend([[3, 1]], 3, exclude_seen=True)[0].tolist()
    assert sorted(without) == [0, 2, 4]
    assert without.index(2) == without.index(0) + 1


def test_few_beams_still_give_full_lists(build):
    found = build(num_beams=1).recommend(HISTORIES, 12)
    assert all(len(set(items)) == 12 for items in found.tolist())


def test_training_mode_and_gradients_come_back(build):
    recommender = build()
    recommender.model.train()
    recommender.recommend(HISTORIES, 3)
    assert recommender.model.training
    assert all(parameter.requires_grad for parameter in recommender.model.parameters())


def test_hostile_generation_config_changes_nothing(build):
    expected = build().recommend(HISTORIES, 5).tolist()
    recommender = build()
    recommender.model.generation_config.update(
        do_sample=True, top_k=1, top_p=0.01, repetition_penalty=9.0, num_beams=1
    )
    assert recommender.recommend(HISTORIES, 5).tolist() == expected


def test_ids_in_ids_titles_scores_and_sids_out(build):
    recommender = build(titles=[f"Title {row}" for row in range(20)])
    [first, _] = recommender.recommend_ids([["i3", "i1"], []], k=4)
    rows, scores = recommender.rank([[3, 1]], 4)
    assert [answer["item_id"] for answer in first] == [f"i{row}" for row in rows[0].tolist()]
    assert [answer["title"] for answer in first] == [f"Title {row}" for row in rows[0].tolist()]
    assert [answer["sid"] for answer in first] == [recommender.vocab.tokens(row) for row in rows[0].tolist()]
    assert [answer["score"] for answer in first] == pytest.approx(scores[0].tolist(), abs=1e-5)


def test_unknown_ids_are_named_or_skipped_when_asked(build, caplog):
    recommender = build()
    with pytest.raises(InputError, match="the bundle does not know 'x9', 'y8'"):
        recommender.recommend_ids([["i3", "x9"], ["y8", "x9"]], k=2)
    with caplog.at_level(logging.WARNING):
        found = recommender.recommend_ids([["i3", "x9"], ["y8", "x9"]], k=2, unknown="skip")
    assert "left out 3 history items of 2 ids" in caplog.text
    expected = recommender.recommend_ids([["i3"], []], k=2)
    assert [[answer["item_id"] for answer in answers] for answers in found] == [
        [answer["item_id"] for answer in answers] for answers in expected
    ]
    with pytest.raises(InputError, match="unknown 'maybe'"):
        recommender.recommend_ids([["i3"]], k=2, unknown="maybe")


def test_one_list_of_allowed_items_holds_for_all(build):
    recommender = build(num_beams=20)
    everything = recommender.recommend(HISTORIES, 20).tolist()
    allow = [3, 5, 8, 13, 19, 0]
    found = recommender.recommend(HISTORIES, 6, allow=allow).tolist()
    assert found == [[row for row in order if row in allow] for order in everything]
    assert recommender.recommend(HISTORIES, 6, allow=np.array(allow)).tolist() == found
    assert recommender.recommend(HISTORIES, 6, allow=torch.tensor(allow)).tolist() == found


def test_filters_of_each_request_join(build):
    recommender = build(num_beams=20)
    everything = recommender.recommend(HISTORIES, 20).tolist()
    allow = [None, range(10), [1, 2, 5, 6, 9], list(range(20)), np.arange(5, 20), None]
    exclude = [[0, 1], [2], [], None, [7, 8, 9], list(range(6, 12))]
    found = recommender.recommend(HISTORIES, 3, allow=allow, exclude=exclude, exclude_seen=True).tolist()
    for user, order in enumerate(everything):
        legal = set(range(20) if allow[user] is None else allow[user])
        legal -= {*(exclude[user] or ()), *HISTORIES[user]}
        assert found[user] == [row for row in order if row in legal][:3]


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_long_shared_exclusion_is_one_compiled_list(build, monkeypatch, limit):
    monkeypatch.setattr(llmrec.decoding.request_filters, "SHARED_EXCLUDE", limit)
    recommender = build(num_beams=20)
    everything = recommender.recommend(HISTORIES, 20).tolist()
    seen = []
    search = recommender._search
    monkeypatch.setattr(
        recommender,
        "_search",
        lambda prompts, beams, filters, trie: seen.append(filters) or search(prompts, beams, filters, trie),
    )
    found = recommender.recommend(HISTORIES, 5, exclude=[0, 1, 2, 3], allow=range(2, 20), exclude_seen=True).tolist()
    for history, order, items in zip(HISTORIES, everything, found, strict=True):
        assert items == [row for row in order if row >= 4 and row not in history][:5]
    compiled = {id(item_filter.allow) for filters in seen for item_filter in filters}
    assert len(compiled) == 1
    longest = max(len(item_filter.exclude) for filters in seen for item_filter in filters)
    assert longest == (6 if limit == 0 else 10)  # what was seen alone, or the four excluded with it


def test_a_prefix_of_codes_opens_every_sid(build):
    recommender = build(num_beams=20)
    everything = recommender.recommend(HISTORIES, 20).tolist()
    codes = recommender.vocab.table.codes
    first = [int(code) for code in codes[everything[0][3], :1]]
    under = [row for row in range(20) if codes[row, 0] == first[0]]
    found = recommender.recommend(HISTORIES, len(under), prefix=first).tolist()
    assert found == [[row for row in order if row in under] for order in everything]
    own = [list(codes[row, :2]) if row % 2 else None for row in range(len(HISTORIES))]
    for user, [item] in enumerate(recommender.recommend(HISTORIES, 1, prefix=own).tolist()):
        legal = [row for row in everything[user] if own[user] is None or list(codes[row, :2]) == own[user]]
        assert item == legal[0]


def test_items_that_share_a_sid_are_filtered_one_by_one(build):
    recommender = build([[0, 0], [1, 0], [0, 0], [0, 0], [1, 1]], popularity=[1, 0, 1, 7, 0], num_beams=5)
    found = recommender.recommend([[1], [4], []], 2, allow=[[2, 0], [3, 4], [0, 2, 3]], exclude=[[], [], [3]])
    assert found[0].tolist() == [0, 2]  # as popular as one another: by row
    assert sorted(found[1].tolist()) == [3, 4]
    assert found[2].tolist() == [0, 2]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_filters_leave_the_order_of_what_they_leave(full_recommender, data):
    recommender = full_recommender
    rows = st.lists(st.integers(0, 19), max_size=12)
    histories = data.draw(st.lists(rows, min_size=1, max_size=4))
    allow = [data.draw(st.none() | rows) for _ in histories]
    exclude = [data.draw(st.none() | rows) for _ in histories]
    exclude_seen = data.draw(st.booleans())
    lists = []
    for user, order in enumerate(recommender.recommend(histories, 20).tolist()):
        legal = set(range(20) if allow[user] is None else allow[user]) - set(exclude[user] or ())
        lists.append([row for row in order if row in legal - set(histories[user] if exclude_seen else ())])
    most = min(map(len, lists))
    asked = {"allow": allow, "exclude": exclude, "exclude_seen": exclude_seen}
    if most:
        assert recommender.recommend(histories, most, **asked).tolist() == [items[:most] for items in lists]
    named = f"request {lists.index(min(lists, key=len))}: " if most < 20 else "k 21: choose 1 to 20"
    with pytest.raises(InputError, match=named):
        recommender.recommend(histories, most + 1, **asked)


def test_filters_by_id(build):
    recommender = build(num_beams=20)
    histories = [["i3", "i1"], []]
    allow, exclude = ["i3", "i5", "i8", "i13"], [["i5"], ["i3", "i13"]]
    found = recommender.recommend_ids(histories, 2, allow=allow, exclude=exclude, exclude_seen=True)
    rows = recommender.recommend([[3, 1], []], 2, allow=[3, 5, 8, 13], exclude=[[5], [3, 13]], exclude_seen=True)
    assert [[answer["item_id"] for answer in one] for one in found] == [[f"i{row}" for row in one] for one in rows]
    assert {answer["item_id"] for answer in found[0]} == {"i8", "i13"}
    with pytest.raises(InputError, match="allow: the bundle does not know 'x9'"):
        recommender.recommend_ids(histories, 2, allow=["i3", "x9"])
    with pytest.raises(InputError, match="exclude: the bundle does not know 'x9'"):
        recommender.recommend_ids(histories, 2, exclude=[["x9"], None])
    skipped = recommender.recommend_ids(histories, 2, exclude=["i5", "x9"], unknown="skip")
    assert skipped == recommender.recommend_ids(histories, 2, exclude=["i5"])


def test_retired_items_stand_in_histories_and_never_come_out(build):
    recommender = build(num_beams=20, retired=(3, 7))
    everything = build(num_beams=20).recommend(HISTORIES, 20).tolist()
    found = recommender.recommend(HISTORIES, 18).tolist()
    assert found == [[row for row in order if row not in (3, 7)] for order in everything]
    with pytest.raises(InputError, match="k 19: choose 1 to 18; the catalogue has 20 items, 2 of them retired"):
        recommender.recommend(HISTORIES, 19)
    # Of the history 3, 1, 4 two could have come out.
    assert recommender.recommend(HISTORIES[:1], 16, exclude_seen=True).shape == (1, 16)
    with pytest.raises(InputError, match=r"choose 1 to 16.* 2 of them retired; exclude_seen takes 2"):
        recommender.recommend(HISTORIES[:1], 17, exclude_seen=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"k": 21}, "k 21: choose 1 to 20; the catalogue has 20 items"),
        ({"k": 0}, "k 0: choose 1 to 20"),
        (
            {"k": 15, "exclude_seen": True},
            "request 5: k 15: choose 1 to 14, or loosen a filter; the catalogue has 20 items; exclude_seen takes 6",
        ),
        # Of the 8 that are allowed 6 and 7 go, then what was seen of 0 to 5.
        (
            {"k": 4, "exclude_seen": True, "allow": range(8), "exclude": [6, 7, 8]},
            "request 5: no item is left: the catalogue has 20 items; allow takes 12, exclude takes 2, "
            "exclude_seen takes 6, and with that the last one; loosen exclude_seen",
        ),
        (
            {"k": 4, "exclude_seen": True, "allow": range(9), "exclude": [6, 7]},
            "request 5: k 4: choose 1 to 1, or loosen a filter; the catalogue has 20 items; allow takes 11, exclude "
            "takes 2, exclude_seen takes 6",
        ),
        ({"k": 2, "allow": []}, "request 0: no item is left: .*; allow takes 20, and with that the last one"),
        ({"k": 2, "prefix": [4]}, r"request 0: prefix \[4\]: no item .* the levels have 4, 3, 3 codes, from 0"),
        ({"k": 2, "prefix": [0, 0, 0, 0]}, r"request 0: prefix \[0, 0, 0, 0\]: no item"),
        ({"k": 2, "prefix": [0.5]}, r"request 0: prefix \[0.5\]: no item"),
        ({"k": 2, "allow": [1, 20]}, "request 0: allow: item row 20 is outside the catalogue of 20 items"),
        ({"k": 2, "exclude": [[-1]] * 6}, "request 0: exclude: item row -1 is outside"),
        ({"k": 2, "exclude": [0.5]}, "request 0: exclude: give item rows, a list of integers; it is float64"),
        ({"k": 2, "allow": [[1]] * 5}, "allow: 5 lists for 6 requests; give one list, or one a request"),
        ({"k": 2, "exclude": [[1], 2, [3], [4], [5], [6]]}, "exclude: 2 stands among the lists, at 1"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_the_model_runs(build, monkeypatch, call, message):
    recommender = build()
    monkeypatch.setattr(recommender, "_search", lambda *_: pytest.fail("searched"))
    with pytest.raises(InputError, match=message):
        recommender.recommend(HISTORIES, **call)


def test_a_row_outside_the_catalogue_is_refused(build):
    with pytest.raises(InputError, match="request 1: history: item row 20 is outside the catalogue of 20 items"):
        build().recommend([[0], [20]], 3)
    with pytest.raises(InputError, match="line 7: history: item row -1 is outside"):
        build().rank([[-1]], 3, names=["line 7"])


def test_a_history_longer_than_the_context_loses_its_oldest_items(build, caplog):
    # 64 positions less 3 for the SID leave 61: the start token and 20 items of 3 tokens.
    recommender = build(num_beams=20, form=PromptForm(max_history=100))
    long = [row % 20 for row in range(7, 57)]
    with caplog.at_level(logging.WARNING):
        found = recommender.rank([long, [1, 2], long[:20], long[:21]], 5)
    assert "2 of 4 histories lost their oldest items: their prompts exceed the 61 tokens" in caplog.text
    assert len(caplog.records) == 1
    assert recommender.truncated == 2
    expected = recommender.rank([long[-20:], [1, 2], long[:20], long[1:21]], 5)
    assert found[0].tolist() == expected[0].tolist()
    assert recommender.truncated == 0


def test_the_text_around_a_history_counts_too(build):
    form = PromptForm(templates={"next_item": "red green {prompt} blue"}, max_history=100)
    recommender = build(form=form)  # a start token and three words: 57 tokens are left, 19 items
    long = list(range(20)) * 2
    assert recommender.recommend([long], 5).tolist() == recommender.recommend([long[-19:]], 5).tolist()
    assert recommender.truncated == 0
    recommender.recommend([long], 5)
    assert recommender.truncated == 1


def test_a_form_whose_bare_text_exceeds_the_context_is_refused(build):
    recommender = build(form=PromptForm(templates={"next_item": "red " * 61 + "{prompt}"}))
    with pytest.raises(InputError, match="its text alone takes 62 tokens, and the model's context has room for 61"):
        recommender.recommend([[1]], 5)


def test_a_model_without_a_limit_reads_everything(build):
    recommender = build(kind="t5", form=PromptForm(max_history=100))
    assert recommender.recommend([list(range(20)) * 4], 5).shape == (1, 5)
    assert recommender.truncated == 0


def test_diverse_lists_hold_few_items_of_one_first_code(build):
    recommender = build(num_beams=20, max_per_first_code=2)
    codes = recommender.vocab.table.codes
    everything = build(num_beams=20).recommend(HISTORIES, 20).tolist()
    for order, items in zip(everything, recommender.recommend(HISTORIES, 6).tolist(), strict=True):
        counts = np.bincount(codes[items, 0])
        assert counts.max() <= 2
        assert len(set(items)) == 6
        assert items[0] == order[0]
    with pytest.raises(InputError, match=r"request \d: max_per_first_code 2 leaves 8 of k 9 items; raise max_per"):
        recommender.recommend(HISTORIES, 9)


def test_batches_hold_no_more_than_was_allowed(build, monkeypatch):
    recommender = build(num_beams=5, max_tokens_per_batch=100)
    sizes, search = [], recommender._search
    monkeypatch.setattr(
        recommender,
        "_search",
        lambda prompts, *rest: sizes.append([len(prompt) for prompt in prompts]) or search(prompts, *rest),
    )
    recommender.recommend([[1] * (number % 9) for number in range(40)], 3)
    assert sum(map(len, sizes)) == 40
    assert [length for batch in sizes for length in batch] == sorted(
        (length for batch in sizes for length in batch), reverse=True
    )
    # Five beams of three levels are ten positions behind each prompt.
    assert all(len(batch) * (max(batch) + 10) <= 100 for batch in sizes)
    assert any(len(batch) > 3 for batch in sizes)


def test_a_full_gpu_gets_smaller_batches(build, monkeypatch, caplog):
    recommender = build()
    histories = [[row, row + 1] for row in range(17)]
    expected = recommender.recommend(histories, 5).tolist()
    sizes, search = [], recommender._search

    def crowded(prompts, *rest):
        sizes.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return search(prompts, *rest)

    monkeypatch.setattr(recommender, "_search", crowded)
    with caplog.at_level(logging.WARNING):
        assert recommender.recommend(histories, 5).tolist() == expected
        assert sizes[:4] == [17, 8, 4, 2]
        sizes.clear()
        assert recommender.recommend(histories, 5).tolist() == expected
    assert max(sizes) == 2  # what was found out stays known
    assert caplog.text.count("ran out of memory with 17 requests at a time") == 1
    assert len(caplog.records) == 1
    monkeypatch.setattr(recommender, "_search", lambda *_: crowded([None] * 4))
    with pytest.raises(InputError, match="request 0: the GPU has no memory for one request of 4 tokens and 20 beams"):
        recommender.recommend([[1]], 5)


def test_logits_that_are_nan_are_refused(build):
    recommender = build()
    with torch.no_grad():
        next(recommender.model.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="model: its logits are NaN"):
        recommender.recommend(HISTORIES, 5)


def test_permuted_users_get_permuted_lists(build):
    recommender = build(max_tokens_per_batch=200)
    order = [4, 0, 5, 2, 1, 3]
    found = recommender.recommend(HISTORIES, 5).tolist()
    assert recommender.recommend([HISTORIES[user] for user in order], 5).tolist() == [found[user] for user in order]


def test_alone_answers_the_same_without_a_bar_and_without_others(build, capsys):
    shared = build(progress=True, across_processes=True)
    alone = shared.alone()
    assert alone.model is shared.model
    assert (alone.progress, alone._processes, shared.progress) == (False, None, True)
    found = alone.recommend(HISTORIES, 5)
    assert "recommend" not in capsys.readouterr().err
    assert found.equal(shared.recommend(HISTORIES, 5))
    assert "recommend" in capsys.readouterr().err


def test_no_requests_give_no_lists(build):
    assert build().recommend([], 5).shape == (0, 5)
    assert build().recommend_ids([], allow=["i1"], k=1) == []


def test_the_fingerprint_tells_models_apart(build):
    first = build().fingerprint
    assert build(num_beams=3).fingerprint == first
    changed = build()
    with torch.no_grad():
        changed.model.model.norm.weight[0] += 1
    others = [changed, build(retired=(3,)), build(form=PromptForm(max_history=7))]
    assert len({first, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    ("name", "value"), [("score", "best"), ("num_beams", 0), ("max_tokens_per_batch", 0), ("max_per_first_code", 0)]
)
def test_bad_settings_are_refused(build, name, value):
    with pytest.raises(InputError, match=f"{name} {value!r}"):
        build(**{name: value})


def test_weights_are_aligned_and_stay_what_they_were(build):
    model = build().model
    where = {}
    for name, parameter in model.named_parameters():
        shifted = torch.empty(parameter.numel() + 1)[1:].view(parameter.shape)
        where[name] = shifted.copy_(parameter.detach())
        parameter.data = shifted
        assert parameter.data_ptr() % 64 == 4
    llmrec.decoding.recommender._align(model)
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() % 64 == 0
        assert torch.equal(parameter, where[name])


def test_an_adapter_and_a_model_set_up_for_training_answer_alike(build):
    expected = build().recommend(HISTORIES, 5).tolist()
    recommender = build()
    recommender.model.gradient_checkpointing_enable()
    recommender.model.config.use_cache = False
    recommender.model.train()
    assert recommender.recommend(HISTORIES, 5).tolist() == expected
    recommender = build()
    recommender.model = get_peft_model(recommender.model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert recommender.recommend(HISTORIES, 5).tolist() == expected  # a fresh adapter changes nothing


@pytest.mark.parametrize("score", ["full", "allowed"])
def test_an_allow_that_all_share_is_a_trie_of_its_own(build, score):
    recommender = build(score=score)
    allow = [1, 3, 4, 6, 7, 9]
    shared = recommender.rank(HISTORIES, 4, allow=allow, exclude=[4])
    one_each = recommender.rank(HISTORIES, 4, allow=[list(allow) for _ in HISTORIES], exclude=[4])
    assert shared[0].tolist() == one_each[0].tolist()
    torch.testing.assert_close(shared[1], one_each[1], atol=1e-5, rtol=0)
    kept = recommender._allowed
    recommender.rank(HISTORIES[:1], 2, allow=allow)
    assert recommender._allowed is kept  # the next chunk of a shop's requests compiles nothing
    assert set(recommender.recommend(HISTORIES, 2, allow=[2, 5]).flatten().tolist()) == {2, 5}


@pytest.mark.parametrize("form", [np.array, torch.tensor, tuple, iter])
def test_a_prefix_comes_in_any_form(build, form):
    recommender = build(num_beams=20)
    first = int(recommender.vocab.table.codes[7, 0])
    rows = recommender.recommend(HISTORIES, 2, prefix=form([first]))
    assert set(recommender.vocab.table.codes[rows.flatten().tolist(), 0]) == {first}
    each = recommender.recommend(HISTORIES[:2], 2, prefix=[form([first]), None])
    assert set(recommender.vocab.table.codes[each[0].tolist(), 0]) == {first}


def test_filters_of_ids_come_in_any_form(build):
    recommender = build(num_beams=20)
    ids = recommender.vocab.table.item_ids
    histories = [[ids[row] for row in history] for history in HISTORIES]
    best = [answers[0]["item_id"] for answers in recommender.recommend_ids(iter(histories), 1)]
    assert len(best) == len(histories)
    left_out = recommender.recommend_ids(histories, 1, exclude=([item_id] for item_id in best))
    for item_id, [answer] in zip(best, left_out, strict=True):
        assert answer["item_id"] != item_id
    allow = np.array([[item_id] for item_id in ids[: len(histories)]])
    only = recommender.recommend_ids(histories, 1, allow=allow)
    assert [answer["item_id"] for [answer] in only] == list(ids[: len(histories)])
    with pytest.raises(InputError, match="is str, no list"):
        recommender.recommend_ids([ids[3]], 1)
    with pytest.raises(InputError, match=r"exclude: .* is str, no list"):
        recommender.recommend_ids(histories, 1, exclude=ids[3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": "3"}, "k '3': a whole number from 1"),
        ({"k": 3.0}, "k 3.0: a whole number from 1"),
        ({"prefix": 12}, "prefix: 12 is int, no list"),
        ({"prefix": [True]}, r"prefix \[True\]"),
        ({"allow": 3}, "allow: 3 is int, no list"),
    ],
)
def test_arguments_of_another_kind_are_refused(build, settings, message):
    with pytest.raises(InputError, match=message):
        build().recommend(HISTORIES, **{"k": 3, **settings})


def test_numbers_of_the_constructor_are_whole(build):
    with pytest.raises(InputError, match=r"num_beams 2\.5: at least 1, a whole number"):
        build(num_beams=2.5)


@pytest.mark.parametrize(
    ("device", "message"),
    [("foo", "device 'foo': torch knows no such device"), ("cuda:99", "device 'cuda:99': torch sees . GPUs")],
)
def test_a_device_that_is_not_there_is_refused(device, message):
    with pytest.raises(InputError, match=message):
        LLMRecommender.from_pretrained("nowhere", device=device)
