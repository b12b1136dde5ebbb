"""Rejected items: by popularity, nearness, the policy's beams and exposure, against slow twins; lists of sessions."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.data.folder import DatasetFolder, load_dataset, write_dataset
from llmrec.data.items import Catalog
from llmrec.data.splits import SPLITS, History, leave_one_out
from llmrec.decoding.recommender import LLMRecommender
from llmrec.embeddings.store import save_embeddings
from llmrec.errors import InputError
from llmrec.tasks.prompt import PromptForm
from llmrec.training.preference_rows import encode_preferences
from llmrec.training.preferences import PreferenceInputs, Questions, choose_questions
from llmrec.training.preferences.build import draw_negatives, parse_negatives, preference_dataset
from llmrec.training.preferences.candidates import Candidates
from llmrec.training.preferences.draws import draw_weighted, uniforms
from llmrec.training.preferences.exposure_file import interactions_of_rows
from llmrec.training.preferences.popularity import popularity_negatives, uniform_negatives
from llmrec.training.preferences.sessions import drawn_lists, find_sessions, own_lists, perturbed_lists
from llmrec.vocab import SIDVocab
from tests.reference.slow_rl import slow_nearest, slow_negatives

HISTORY = 5


@pytest.fixture
def inputs(vocab: SIDVocab, dataset: DatasetFolder) -> PreferenceInputs:
    splits = dataset.split("leave_one_out", max_history=HISTORY)
    return PreferenceInputs.of(vocab, dataset, splits, seed=3)


@pytest.fixture
def questions(inputs: PreferenceInputs) -> Questions:
    assert inputs.splits is not None
    return choose_questions(inputs.splits.train, prompts=40, seed=1)


@pytest.fixture
def recommender(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, vocab: SIDVocab
) -> LLMRecommender:
    return LLMRecommender(make_model(), tokenizer, vocab, PromptForm(max_history=HISTORY))


def shared_sids() -> SimpleNamespace:
    """Seven items with five SIDs: items 1 and 2 share one, items 4 and 5 another; item 6 is retired."""
    codes = np.array([[0, 0], [0, 1], [0, 1], [1, 0], [1, 1], [1, 1], [2, 0]])
    return SimpleNamespace(
        item_token_ids=torch.from_numpy(codes),
        popularity=np.array([5, 1, 4, 2, 3, 3, 9]),
        retired=np.array([False] * 6 + [True]),
    )


# Candidates


def test_items_that_share_a_sid_are_one_candidate():
    candidates = Candidates(shared_sids())  # type: ignore[arg-type]
    assert candidates.sid_of.tolist() == [0, 1, 1, 2, 3, 3, 4]
    assert candidates.row_of.tolist() == [0, 2, 3, 4, -1]  # item 2 was taken more often than 1; of 4 and 5 the first
    assert candidates.popularity.tolist() == [5, 5, 2, 6, 0]
    asked = Questions([[0], [4]], np.array([2, 3]), np.arange(2), np.arange(2))
    forbidden = candidates.forbidden(asked)
    assert forbidden.tolist() == [0, 1, 5 + 2, 5 + 3]
    assert candidates.left(forbidden, rows=2).tolist() == [2, 2]  # four that are not retired, less two
    drawn = np.array([[1, 0, 3, 3, 4, 2], [0, 0, 1, 2, 3, 4]])
    assert candidates.first_permitted(drawn, forbidden, count=3).tolist() == [[3, 2, -1], [0, 1, -1]]
    with_history = candidates.forbidden(asked, history=False, taken=np.array([[0, -1], [1, 0]]))
    assert with_history.tolist() == [0, 1, 5 + 0, 5 + 1, 5 + 2]


# Draws


def test_uniforms_depend_on_seed_row_and_place_alone():
    whole = uniforms(7, np.arange(2000), np.arange(50))
    assert (uniforms(7, np.array([1999, 3]), np.arange(10, 20)) == whole[[1999, 3], 10:20]).all()
    assert (uniforms(8, np.arange(10), np.arange(50)) != whole[:10]).all()
    assert whole.min() >= 0
    assert whole.max() < 1
    # 100,000 numbers: the mean of uniforms lies within 5 standard errors, 5 * 0.2887 / 316 = 0.0046, of a half
    assert abs(whole.mean() - 0.5) < 0.0046
    assert len(np.unique(whole)) == whole.size
    assert abs(np.corrcoef(whole[:, 0], whole[:, 1])[0, 1]) < 0.11  # 5 / sqrt(2000)
    assert abs(np.corrcoef(whole[0], whole[1])[0, 1]) < 0.71  # 5 / sqrt(50)


@pytest.mark.parametrize("exponent", [0.0, 0.75, 1.0])
def test_draws_by_popularity_are_those_of_the_twin(inputs: PreferenceInputs, questions: Questions, exponent: float):
    candidates = inputs.candidates
    found = popularity_negatives(inputs=inputs, exponent=exponent)(questions, count=4)
    weights = [float(count) ** exponent if count else 0.0 for count in candidates.popularity]
    stream = uniforms(3, questions.numbers, np.arange(400))
    histories = [list(history) for history in questions.histories]
    expected = slow_negatives(
        candidates.sid_of.tolist(), weights, questions.targets.tolist(), histories, stream.tolist(), 4
    )
    assert candidates.sid_of[found].tolist() == expected


def test_a_row_gets_the_same_whatever_else_is_drawn(inputs: PreferenceInputs, questions: Questions):
    source = popularity_negatives(inputs=inputs)
    whole = source(questions, count=6)
    places = np.array([30, 2, 17])
    assert (source(questions.take(places), count=6) == whole[places]).all()
    assert (source(questions, count=3) == whole[:, :3]).all()
    other = popularity_negatives(inputs=replace(inputs, seed=4))(questions, count=6)
    assert (other != whole).any()


def test_what_is_drawn_to_the_last_candidate(inputs: PreferenceInputs, questions: Questions):
    """One item has nearly all the weight, so that the stream finds the others only by the last resort."""
    candidates = inputs.candidates
    weights = np.full(candidates.count, 1e-9)
    weights[7] = 1.0
    forbidden = candidates.forbidden(questions, history=False)
    most = candidates.count - 1
    found = draw_weighted(candidates, weights, forbidden, numbers=questions.numbers, count=most, seed=0)
    for row, target in zip(found.tolist(), questions.targets.tolist(), strict=True):
        assert sorted([*row, candidates.sid_of[target]]) == list(range(candidates.count))
        assert row[0] == 7 or candidates.sid_of[target] == 7
    same = draw_weighted(candidates, weights, forbidden[:most], numbers=questions.numbers[:1], count=3, seed=0)
    assert (same[0] == found[0, :3]).all()


def test_popular_items_are_drawn_as_often_as_they_were_taken():
    """Chi-square of 20,000 single draws against counts 1, 2, 4, 8 and 16; 29.9 is beyond 1 in 200,000 at 4 degrees."""
    vocab = SimpleNamespace(
        item_token_ids=torch.arange(6)[:, None], popularity=np.array([1, 2, 4, 8, 16, 0]), retired=np.zeros(6, bool)
    )
    inputs = PreferenceInputs(vocab, np.array([1, 2, 4, 8, 16, 0]))  # type: ignore[arg-type]
    asked = Questions([[]] * 20_000, np.full(20_000, 5), np.arange(20_000), np.zeros(20_000, dtype=np.int64))
    drawn = popularity_negatives(inputs=inputs, exponent=1.0)(asked, count=1)
    observed = np.bincount(drawn[:, 0], minlength=6)[:5]
    expected = 20_000 * np.array([1, 2, 4, 8, 16]) / 31
    assert ((observed - expected) ** 2 / expected).sum() < 29.9


def test_uniform_draws_take_items_that_were_never_taken(inputs: PreferenceInputs, questions: Questions):
    never = replace(inputs, popularity=np.zeros(30, dtype=np.int64))
    found = uniform_negatives(inputs=never)(questions, count=20)
    assert set(np.unique(found)) == set(range(30))
    with pytest.raises(InputError, match="popularity: no item was taken in training; use uniform"):
        popularity_negatives(inputs=never)
    seen = uniform_negatives(inputs=inputs, exclude_history=False)(questions, count=29)
    assert (np.sort(np.c_[seen, questions.targets], axis=1) == np.arange(30)).all()


def test_too_few_candidates_are_one_error(inputs: PreferenceInputs, questions: Questions):
    with pytest.raises(InputError, match=r"uniform: training row \d+ \(user \d+\) has 2[0-9] candidates of the 30"):
        uniform_negatives(inputs=inputs)(questions, count=30)


# Nearness


def embeddings_file(path: Path, catalog: Catalog, seed: int = 0) -> tuple[str, np.ndarray]:
    vectors = np.random.default_rng(seed).normal(size=(len(catalog), 6)).astype(np.float32)
    save_embeddings(path / "e.safetensors", vectors, {"encoder": "made up", "catalog_hash": catalog.hash})
    return str(path / "e.safetensors"), vectors


@pytest.mark.parametrize("skip", [0, 4, 20])
def test_nearest_items_are_those_of_the_twin(
    inputs: PreferenceInputs, questions: Questions, catalog: Catalog, tmp_path: Path, skip: int
):
    path, vectors = embeddings_file(tmp_path, catalog)
    found, taken = draw_negatives({"nearest": {"count": 3, "embeddings": path, "skip": skip}}, questions, inputs)
    sid_of = inputs.candidates.sid_of
    for place, target in enumerate(questions.targets.tolist()):
        forbidden = {int(sid_of[item]) for item in questions.histories[place]}
        expected = slow_nearest(vectors.tolist(), target, forbidden, sid_of.tolist(), skip, 3)
        assert sid_of[taken[place]].tolist() == expected
    assert len(found) == len(questions)


def test_a_pool_of_near_items_is_drawn_from(
    inputs: PreferenceInputs, questions: Questions, catalog: Catalog, tmp_path: Path
):
    path, _ = embeddings_file(tmp_path, catalog)
    _, near = draw_negatives({"nearest": {"count": 8, "embeddings": path}}, questions, inputs)
    _, drawn = draw_negatives({"nearest": {"count": 3, "embeddings": path, "pool": 8}}, questions, inputs)
    assert all(set(some) < set(pool) for some, pool in zip(drawn.tolist(), near.tolist(), strict=True))
    assert (drawn != near[:, :3]).any()


def test_embeddings_that_do_not_serve_are_refused(
    inputs: PreferenceInputs, questions: Questions, catalog: Catalog, tmp_path: Path
):
    path, vectors = embeddings_file(tmp_path, catalog)
    with pytest.raises(InputError, match="pool 2 for 3 items a row"):
        draw_negatives({"nearest": {"count": 3, "embeddings": path, "pool": 2}}, questions, inputs)
    with pytest.raises(InputError, match="nearest: training row"):
        draw_negatives({"nearest": {"count": 3, "embeddings": path, "skip": 29}}, questions, inputs)
    with pytest.raises(InputError, match="skip -1; a whole number"):
        draw_negatives({"nearest": {"embeddings": path, "skip": -1}}, questions, inputs)
    vectors[4] = 0
    manifest = {"encoder": "made up", "catalog_hash": catalog.hash}
    save_embeddings(path, vectors, manifest)
    with pytest.raises(InputError, match="says nothing of item row 4"):
        draw_negatives({"nearest": {"embeddings": path}}, questions, inputs)
    save_embeddings(path, vectors + 1, {**manifest, "protocol": "temporal"})
    with pytest.raises(InputError, match="fitted on the training part of 'temporal'"):
        draw_negatives({"nearest": {"embeddings": path}}, questions, inputs)


# The policy's beams


def test_self_hard_items_are_the_best_of_an_exhaustive_search(
    inputs: PreferenceInputs, questions: Questions, recommender: LLMRecommender
):
    inputs = replace(inputs, policy=lambda: recommender)
    _, found = draw_negatives({"self_hard": {"count": 3, "skip": 1, "beams": 30}}, questions, inputs)
    everything = recommender.recommend(questions.histories, 30)
    for place, order in enumerate(everything.tolist()):
        kept = [item for item in order if item != questions.targets[place] and item not in questions.histories[place]]
        assert found[place].tolist() == kept[1:4]
    assert recommender.num_beams == 20  # as it was


def test_self_hard_items_of_shared_sids_are_one_each(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, vocab: SIDVocab
):
    codes = vocab.table.codes.copy()
    codes[15:] = codes[:15]  # each SID is shared by two items
    twins = SIDVocab(tokenizer, replace(vocab.table, codes=codes), popularity=np.arange(30))
    policy = LLMRecommender(make_model(), tokenizer, twins, PromptForm())
    inputs = PreferenceInputs(twins, policy=lambda: policy)
    asked = Questions([[0, 1], [3]], np.array([17, 4]), np.arange(2), np.arange(2))
    _, found = draw_negatives({"self_hard": 12}, asked, inputs)
    assert sorted(found[0].tolist()) == [18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29]  # 15 and 16 were seen
    assert len(set(found[1].tolist())) == 12
    assert not {18, 19} & set(found[1].tolist())
    with pytest.raises(InputError, match=r"self_hard: training row 0 \(user 0\) has 12 candidates of the 13"):
        draw_negatives({"self_hard": 13}, asked, inputs)
    with pytest.raises(InputError, match="self_hard searches with the policy, and was given none"):
        draw_negatives({"self_hard": 1}, asked, replace(inputs, policy=None))


# Exposure


def with_exposure(folder: Path, rows: list[dict]) -> Path:
    columns = {"user_id": pa.string(), "position": pa.int64(), "item_id": pa.string(), "shown": pa.list_(pa.string())}
    table = {name: pa.array([row[name] for row in rows], kind) for name, kind in columns.items()}
    pq.write_table(pa.table(table), folder / "exposure.parquet")
    return folder


@pytest.fixture
def own_dataset(dataset: DatasetFolder, tmp_path: Path) -> DatasetFolder:
    """A copy, whose folder a test may write into; every user rates 5, 1, 5, 1, ..."""
    ratings = np.where(np.arange(len(dataset.interactions)) % 2 == 0, 5, 1).astype(np.float32)
    interactions = replace(dataset.interactions, ratings=ratings)
    path = tmp_path / "own"
    write_dataset(path, catalog=dataset.catalog, interactions=interactions, manifest=dataset.manifest)
    return load_dataset(path)


@pytest.mark.parametrize("protocol", sorted(SPLITS))
def test_training_rows_are_found_among_the_interactions(dataset: DatasetFolder, protocol: str):
    splits = dataset.split(protocol, max_history=HISTORY)
    found = interactions_of_rows(splits, dataset.interactions)
    whole = dataset.interactions
    for row, at in zip(splits.train, found.tolist(), strict=True):
        assert (whole.users[at], whole.items[at]) == (row.user, row.target)
        before = whole.items[whole.users == row.user][: at - int(np.searchsorted(whole.users, row.user))]
        assert tuple(before[-HISTORY:].tolist()) == row.items
    published = replace(splits, parts=None)
    assert (
        interactions_of_rows(published, whole) == found
    ).mean() > 0.9  # a repeated step is found at its first place


def test_what_was_shown_is_rejected_in_its_order(own_dataset: DatasetFolder, vocab: SIDVocab):
    splits = own_dataset.split("leave_one_out", max_history=HISTORY)
    first = splits.train[0]
    target = f"i{first.target}"
    others = [item for item in range(30) if item != first.target and item not in first.items][:4]
    shown = [target, f"i{first.items[-1]}", *(f"i{item}" for item in others), f"i{others[0]}"]
    with_exposure(own_dataset.path, [{"user_id": "u0", "position": 1, "item_id": target, "shown": shown}])
    inputs = PreferenceInputs.of(vocab, own_dataset, splits)
    every = choose_questions(splits.train)
    asked, found = draw_negatives({"exposure": 3, "uniform": 2}, every, inputs)
    assert len(asked) == 1
    assert asked.numbers.tolist() == [0]
    assert found[0, :3].tolist() == others[:3]
    assert len(set(found[0].tolist())) == 5
    with pytest.raises(InputError, match=r"exposure: 0 of .* training rows have 5 rejected items"):
        draw_negatives({"exposure": 5}, every, inputs)


def test_low_ratings_are_rejected_and_held_out_ones_are_not_read(own_dataset: DatasetFolder, vocab: SIDVocab):
    splits = own_dataset.split("leave_one_out", max_history=HISTORY)
    inputs = PreferenceInputs.of(vocab, own_dataset, splits)
    asked, found = draw_negatives(
        {"exposure": {"count": 2, "rating_below": 3}}, choose_questions(splits.train), inputs
    )
    items = own_dataset.interactions.items.reshape(100, 8)
    assert len(asked) > 100
    for user, target, rejected in zip(asked.users.tolist(), asked.targets.tolist(), found.tolist(), strict=True):
        low = items[user, [1, 3, 5]].tolist()  # 7 is the test item, 6 the validation item
        assert set(rejected) <= set(low)
        assert target in items[user, [2, 4]]
    with pytest.raises(InputError, match=r"no training interaction is rated below 0.5; the lowest has 1"):
        draw_negatives({"exposure": {"rating_below": 0.5}}, asked, inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": "nobody"}, "user 'nobody' .* is not in the dataset"),
        ({"shown": ["i1", "x9"]}, "shown item 'x9' .* is not in the dataset"),
        ({"position": 8}, "took 'i.*' at position 8, where the dataset has nothing"),
        ({"position": 2}, "at position 2, where the dataset has 'i"),
    ],
)
def test_exposures_that_do_not_fit_are_refused(
    own_dataset: DatasetFolder, vocab: SIDVocab, change: dict, message: str
):
    splits = own_dataset.split("leave_one_out", max_history=HISTORY)
    row = {"user_id": "u0", "position": 1, "item_id": f"i{splits.train[0].target}", "shown": ["i1", "i2"]}
    with_exposure(own_dataset.path, [{**row, **change}])
    inputs = PreferenceInputs.of(vocab, own_dataset, splits)
    with pytest.raises(InputError, match=message):
        draw_negatives({"exposure": 1}, choose_questions(splits.train), inputs)


def test_a_dataset_without_exposures_says_what_to_write(own_dataset: DatasetFolder, vocab: SIDVocab):
    inputs = PreferenceInputs.of(vocab, own_dataset, own_dataset.split("leave_one_out"))
    with pytest.raises(InputError, match=r"exposure.parquet: no such file; write one with the columns user_id"):
        draw_negatives("exposure", choose_questions(own_dataset.split("leave_one_out").train), inputs)
    pq.write_table(pa.table({"user_id": ["u0"]}), own_dataset.path / "exposure.parquet")
    with pytest.raises(InputError, match="no column 'position'; it has user_id"):
        draw_negatives("exposure", choose_questions(own_dataset.split("leave_one_out").train), inputs)


# What a YAML says


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "name sources with their numbers"),
        ({"popular": 3}, "unknown source of negatives 'popular': choose one of exposure, nearest"),
        ({"popularity": 0}, "popularity: 0 items a row"),
        ({"popularity": {"count": 2, "power": 1}}, "no option 'power'; it has exponent, exclude_history"),
        ({"nearest": 3}, "nearest: it needs embeddings"),
        ({"popularity": {"exponent": "high"}}, "exponent 'high'; from 0"),
    ],
)
def test_bad_words_are_told(inputs: PreferenceInputs, questions: Questions, spec: dict, message: str):
    with pytest.raises(InputError, match=message):
        draw_negatives(spec, questions, inputs)


def test_sources_of_one_row_share_no_item(inputs: PreferenceInputs, questions: Questions):
    assert [(entry.name, entry.count) for entry in parse_negatives({"popularity": 9, "uniform": {"count": 8}})] == [
        ("popularity", 9), ("uniform", 8),
    ]  # fmt: skip
    _, found = draw_negatives({"popularity": 9, "uniform": 8}, questions, inputs)
    for row, target in zip(found.tolist(), questions.targets.tolist(), strict=True):
        assert len({*row, target}) == 18


def test_rows_are_drawn_anew_until_all_were_drawn(dataset: DatasetFolder):
    rows = leave_one_out(dataset.interactions, max_history=HISTORY).train
    parts = [choose_questions(rows, prompts=100, seed=5, start=start).numbers for start in range(0, len(rows), 100)]
    assert len(rows) == 500
    assert sorted(np.concatenate(parts).tolist()) == list(range(500))
    assert (np.diff(parts[0]) > 0).all()
    again = choose_questions(rows, prompts=100, seed=5, start=500).numbers
    assert (again == parts[0]).all()
    assert len(choose_questions(rows, prompts=0)) == 500
    retired = np.arange(30) < 10
    assert (choose_questions(rows, retired=retired).targets >= 10).all()
    with pytest.raises(InputError, match="there is no training row"):
        choose_questions([])


def test_the_dataset_is_what_the_trainer_reads(
    inputs: PreferenceInputs, questions: Questions, tokenizer: PreTrainedTokenizerBase, vocab: SIDVocab
):
    _, found = draw_negatives({"uniform": 2}, questions, inputs)
    rows = preference_dataset(questions, found, vocab, margins=np.full(found.shape, 0.5))
    assert rows[3]["chosen"] == questions.targets[3]
    assert rows[3]["rejected"] == found[3].tolist()
    encoded = encode_preferences(rows, tokenizer=tokenizer, form=PromptForm(max_history=HISTORY), vocab=vocab)
    form = PromptForm(max_history=HISTORY)
    assert encoded[3]["input_ids"] == form.encode_history(tokenizer, vocab, questions.histories[3])
    assert encoded[3]["completions"][2] == vocab.token_ids(int(found[3, 1]))
    assert encoded[3]["margins"] == [0.5, 0.5]


# Lists


@pytest.fixture
def train_rows(dataset: DatasetFolder) -> list[History]:
    return list(leave_one_out(dataset.interactions, max_history=HISTORY).train)


def test_sessions_are_what_came_next(train_rows: list[History], vocab: SIDVocab, catalog: Catalog):
    sessions = find_sessions(train_rows, vocab=vocab, catalog=catalog, items=3)
    for number, target, listed in zip(
        sessions.questions.numbers.tolist(), sessions.questions.targets, sessions.lists.tolist(), strict=True
    ):
        following = train_rows[number : number + 3]
        assert listed == [row.target for row in following]
        assert target == listed[0]
        assert {row.user for row in following} == {train_rows[number].user}
    assert len(sessions) > 200
    some = find_sessions(train_rows, vocab=vocab, catalog=catalog, items=3, prompts=50, seed=2)
    assert len(some) == 50
    assert set(some.questions.numbers) < set(sessions.questions.numbers)
    with pytest.raises(InputError, match="followed by 7 further distinct items"):
        find_sessions(train_rows, vocab=vocab, catalog=catalog, items=7)


def test_drawn_and_perturbed_lists(inputs: PreferenceInputs, train_rows: list[History], catalog: Catalog):
    vocab = inputs.vocab
    sessions = find_sessions(train_rows, vocab=vocab, catalog=catalog, items=3, prompts=30)
    source = uniform_negatives(inputs=inputs)
    drawn = drawn_lists(sessions, source, count=4)
    for row, real in zip(drawn.reshape(30, 12).tolist(), sessions.lists.tolist(), strict=True):
        assert len({*row, *real}) == 15
    bent = perturbed_lists(sessions, source, count=4, swaps=1, seed=1)
    differs = bent != sessions.lists[:, None]
    assert (differs.sum(axis=2) == 1).all()
    assert differs.any(axis=(0, 1)).all()
    with pytest.raises(InputError, match="swaps 4: of lists of 3 items"):
        perturbed_lists(sessions, source, count=4, swaps=4)


def test_lists_of_the_policy_go_on_with_its_best_next_item(
    inputs: PreferenceInputs, train_rows: list[History], catalog: Catalog, recommender: LLMRecommender
):
    vocab, tokenizer = inputs.vocab, recommender.tokenizer
    sessions = find_sessions(train_rows, vocab=vocab, catalog=catalog, items=2, prompts=2)
    found = own_lists(sessions, recommender, inputs.candidates, count=3)
    for place, prompt in enumerate(sessions.prompts):
        ids = recommender.form.encode(tokenizer, prompt, "next_session")
        seen = list(sessions.questions.histories[place])
        firsts = exhaustive(recommender, ids, without=seen)[:3]
        assert found[place, :, 0].tolist() == firsts
        for listed in found[place].tolist():
            # One beam is greedy: its first token is the best one
            assert vocab.token_ids(listed[1])[0] == greedy_first(recommender, ids, listed[0], [*seen, listed[0]])
            assert listed[1] not in [*seen, listed[0]]
    rows = preference_dataset(sessions.questions, found, vocab, prompts=list(sessions.prompts), chosen=sessions.lists)
    encoded = encode_preferences(rows, tokenizer=tokenizer, form=recommender.form, vocab=vocab)
    assert len(encoded[0]["completions"]) == 4
    assert len(encoded[0]["completions"][0]) == 6


def legal_log_probs(recommender: LLMRecommender, ids: list[int], allowed: list[list[int]]) -> dict[int, float]:
    """The log-probability of each legal next token, by a plain forward pass."""
    with torch.no_grad():
        logits = recommender.model(input_ids=torch.tensor([ids])).logits[0, -1]
    tokens = sorted({sid[0] for sid in allowed})
    return dict(zip(tokens, logits[tokens].log_softmax(0).tolist(), strict=True))


def exhaustive(recommender: LLMRecommender, ids: list[int], *, without: list[int]) -> list[int]:
    """All items by their log-probability over legal tokens, best first."""
    sids = {item: recommender.vocab.token_ids(item) for item in range(30) if item not in without}
    scores: dict[int, float] = {}
    for item, sid in sids.items():
        scores[item] = 0.0
        for level, token in enumerate(sid):
            legal = [other[level:] for other in sids.values() if other[:level] == sid[:level]]
            scores[item] += legal_log_probs(recommender, [*ids, *sid[:level]], legal)[token]
    return sorted(scores, key=lambda item: -scores[item])


def greedy_first(recommender: LLMRecommender, ids: list[int], first: int, without: list[int]) -> int:
    legal = [recommender.vocab.token_ids(item) for item in range(30) if item not in without]
    found = legal_log_probs(recommender, [*ids, *recommender.vocab.token_ids(first)], legal)
    return max(found, key=lambda token: found[token])
