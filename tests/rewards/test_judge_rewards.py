"""Rewards by a baseline, by embeddings, by popularity, and by the rest of the group."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.slow_rl import slow_diversity, slow_group_ranks
from scipy import sparse

from llmrec.baselines.base import Baseline
from llmrec.baselines.item_scores import score_items
from llmrec.baselines.sasrec import SASRec
from llmrec.baselines.transitions import Transitions
from llmrec.data.items import Catalog
from llmrec.embeddings.store import save_embeddings
from llmrec.errors import InputError
from llmrec.rewards.build import build_rewards
from llmrec.rewards.collaborative import collaborative
from llmrec.rewards.diversity import diversity
from llmrec.rewards.inputs import RewardInputs
from llmrec.rewards.novelty import novelty
from llmrec.rewards.popularity_corrected import popularity_corrected
from llmrec.rewards.semantic import semantic
from llmrec.rewards.within_group import scale_scores
from llmrec.vocab import SIDVocab

SEQUENCES = [(0, 1, 2), (0, 1, 3), (0, 2), (5, 7, 8), (3, 4, 6)]


class AlwaysTheSame(Baseline):
    """A baseline of a user's own: items by row, the last one best."""

    def _fit(self, flat, users, context):
        pass

    def _scores(self, histories):
        return sparse.csr_array(np.tile(np.arange(1.0, 10.0), (len(histories), 1)))


@pytest.fixture(scope="module")
def judged(inputs: RewardInputs, tmp_path_factory: pytest.TempPathFactory) -> RewardInputs:
    folder = tmp_path_factory.mktemp("dataset")
    Transitions().fit(SEQUENCES, items=9).save_pretrained(folder / "transitions")
    return replace(inputs, sequences=SEQUENCES, folder=folder)


@pytest.fixture(scope="module")
def vectors(catalog: Catalog, judged: RewardInputs) -> np.ndarray:
    """Two numbers an item; item 8 has none. Written into the dataset folder."""
    made = np.array([[1, 0], [1, 1], [0, 1], [-1, 0], [0, -1], [2, 0], [1, 2], [3, 4], [0, 0]], dtype=np.float32)
    assert judged.folder is not None
    save_embeddings(judged.folder / "e.safetensors", made, {"encoder": "hand", "catalog_hash": catalog.hash})
    return made


def sids(vocab: SIDVocab, *rows: int) -> list[list[int]]:
    return [vocab.token_ids(row) for row in rows]


def test_scales_by_hand():
    scores = np.array([[3.0, 1.0, 3.0, -np.inf], [-np.inf] * 4, [2.0] * 4])
    rank = scale_scores(scores, scale="rank")
    assert rank[0] == pytest.approx([2.5 / 3, 1 / 3, 2.5 / 3, 0])
    assert rank[1:].tolist() == [[0.0] * 4, [0.5] * 4]
    weights = [1, math.exp(-2), 1, 0]
    shares = scale_scores(scores, scale="softmax")
    assert shares[0] == pytest.approx([weight / sum(weights) for weight in weights])
    assert shares[1:].tolist() == [[0.0] * 4, [0.25] * 4]
    assert scale_scores(scores, scale="softmax", temperature=2.0)[0, 1] == pytest.approx(
        math.exp(-1) / (2 + math.exp(-1))
    )
    # The one without a score counts as 1: mean 2, deviation 1.
    assert scale_scores(scores, scale="zscore").tolist() == [[1, -1, 1, -1], [0] * 4, [0] * 4]
    assert scale_scores(scores, scale="none").tolist() == [[3, 1, 3, 1], [0] * 4, [2] * 4]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0]), min_size=2, max_size=7))
def test_places_as_counted_slowly(scores: list[float]):
    assert scale_scores(np.array([scores]), scale="rank")[0] == pytest.approx(slow_group_ranks(scores))


def test_a_baseline_judges_candidates(vocab: SIDVocab, judged: RewardInputs):
    """After item 0, item 1 came twice and item 2 once; item 4 and what is no item were never counted."""
    completions = [*sids(vocab, 1, 2, 4), [], *sids(vocab, 3, 0, 2, 1)]
    columns = {"completion_ids": completions, "history": [[0]] * 4 + [[2, 0]] * 4, "prompts": ["a"] * 4 + ["b"] * 4}
    assert judged.folder is not None
    rows = np.array([[1, 2, 4, -1], [3, 0, 2, 1]])
    raw = score_items(Transitions.from_pretrained(judged.folder / "transitions"), [[0], [2, 0]], rows)
    assert raw[0, 0] > raw[0, 1] > raw[0, 2] == 0
    plain = collaborative(vocab, baseline="transitions", scale="none", inputs=judged)(**columns)
    assert plain[:3] + plain[4:] == pytest.approx([*raw[0, :3], *raw[1]])
    ranked = collaborative(vocab, baseline="transitions", inputs=judged)(**columns)
    assert ranked == pytest.approx([*slow_group_ranks(raw[0].tolist()), *slow_group_ranks(raw[1].tolist())])


def test_what_was_seen_is_the_worst(vocab: SIDVocab, judged: RewardInputs):
    columns = {"completion_ids": sids(vocab, 1, 2, 0, 4), "history": [[1, 0]] * 4}
    kept = collaborative(vocab, baseline="transitions", scale="softmax", inputs=judged)(**columns)
    without = collaborative(vocab, baseline="transitions", scale="softmax", exclude_seen=True, inputs=judged)(
        **columns
    )
    assert kept[0] > 0
    assert without[0] == without[2] == 0
    assert without[1] / without[3] == pytest.approx(kept[1] / kept[3])
    assert sum(without) == pytest.approx(1)


def test_several_judges_have_one_voice_each(vocab: SIDVocab, judged: RewardInputs, tmp_path: Path):
    SASRec(dim=8, heads=2, blocks=1, epochs=1, max_history=4).fit(SEQUENCES, items=9).save_pretrained(tmp_path / "net")
    columns = {"completion_ids": sids(vocab, 1, 2, 3, 4), "history": [[0]] * 4}
    names = ["transitions", str(tmp_path / "net")]
    alone = [collaborative(vocab, baseline=name, scale="zscore", inputs=judged)(**columns) for name in names]
    both = collaborative(vocab, baseline=names, scale="zscore", inputs=judged)(**columns)
    assert alone[0] != pytest.approx(alone[1])
    assert both == pytest.approx([(one + other) / 2 for one, other in zip(*alone, strict=True)])
    with pytest.raises(InputError, match=r"baseline \[\]; give a path, or a list of them"):
        collaborative(vocab, baseline=[], inputs=judged)


def test_sasrec_judges_candidates(vocab: SIDVocab, judged: RewardInputs, tmp_path: Path):
    model = SASRec(dim=8, heads=2, blocks=1, epochs=1, max_history=4).fit(SEQUENCES, items=9)
    model.save_pretrained(tmp_path / "sasrec")
    spec = {"collaborative": {"baseline": str(tmp_path / "sasrec"), "scale": "zscore", "weight": 0.2}}
    function = build_rewards(spec, vocab, judged).functions[0]
    columns = {"completion_ids": sids(vocab, 1, 2, 4, 5), "history": [[0, 3]] * 4}
    found = function(**columns)
    scores = score_items(model, [[0, 3]], np.array([[1, 2, 4, 5]]))[0]
    assert found == pytest.approx((scores - scores.mean()) / scores.std(), abs=1e-5)
    # After no history a network has no score, and says nothing.
    assert function(**{**columns, "history": [[]] * 4}) == [0.0] * 4


def test_a_baseline_of_ones_own(vocab: SIDVocab, judged: RewardInputs, tmp_path: Path):
    AlwaysTheSame().fit(SEQUENCES, items=9).save_pretrained(tmp_path / "own")
    with pytest.raises(InputError, match=r"which is not llmrec.s; name its class as kind: package\.module:Class"):
        collaborative(vocab, baseline=str(tmp_path / "own"), inputs=judged)
    kind = f"{AlwaysTheSame.__module__}:AlwaysTheSame"
    reward = collaborative(vocab, baseline=str(tmp_path / "own"), kind=kind, inputs=judged)
    columns = {"completion_ids": sids(vocab, 3, 0, 2, 5), "history": [[1]] * 4}
    assert reward(**columns) == pytest.approx([2 / 3, 0, 1 / 3, 1])


@pytest.mark.parametrize("kind", [Transitions, SASRec])
def test_a_baseline_that_saw_the_test_part_is_refused(
    vocab: SIDVocab, judged: RewardInputs, tmp_path: Path, kind: type[Baseline]
):
    sizes = {"dim": 8, "heads": 2, "blocks": 1, "epochs": 1} if kind is SASRec else {}
    model = kind(**sizes).fit([*SEQUENCES[:-1], (3, 4, 6, 8)], items=9)
    model.save_pretrained(tmp_path / "leaky")
    with pytest.raises(InputError, match=r"more than the training part: it counts item row 8 2 times, training 1"):
        collaborative(vocab, baseline=str(tmp_path / "leaky"), inputs=judged)
    # Fewer users are no leak.
    kind(**sizes).fit(SEQUENCES[:-1], items=9).save_pretrained(tmp_path / "fewer")
    collaborative(vocab, baseline=str(tmp_path / "fewer"), inputs=judged)


def test_counts_serve_where_there_are_no_sequences(
    vocab: SIDVocab, judged: RewardInputs, caplog: pytest.LogCaptureFixture
):
    few = replace(judged, sequences=None, popularity=np.zeros(9))
    with pytest.raises(InputError, match="it counts item row 0 3 times, training 0"):
        collaborative(vocab, baseline="transitions", inputs=few)
    with caplog.at_level(logging.WARNING):
        collaborative(vocab, baseline="transitions", inputs=replace(judged, sequences=None, popularity=None))
    assert "no training sequences to hold baseline" in caplog.text


def test_baselines_that_do_not_fit(vocab: SIDVocab, judged: RewardInputs, tmp_path: Path):
    with pytest.raises(InputError, match=r"baseline nowhere and .*nowhere: no such file or folder"):
        collaborative(vocab, baseline="nowhere", inputs=judged)
    with pytest.raises(InputError, match="baseline 3; give a path"):
        collaborative(vocab, baseline=3, inputs=judged)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"holds no baseline.json"):
        collaborative(vocab, baseline=str(tmp_path), inputs=judged)
    Transitions().fit([(0, 1)], items=2).save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="knows 2 items and the SID table 9"):
        collaborative(vocab, baseline=str(tmp_path / "small"), inputs=judged)
    reward = collaborative(vocab, baseline="transitions", inputs=judged)
    with pytest.raises(InputError, match="0 histories for 4 completions; the dataset needs a column 'history'"):
        reward(completion_ids=sids(vocab, 1, 2, 3, 4))


def test_a_folder_names_no_code_to_run(vocab: SIDVocab, judged: RewardInputs, tmp_path: Path):
    (tmp_path / "baseline.json").write_text(json.dumps({"baseline": "os:system", "format_version": 1}))
    with pytest.raises(InputError, match="'os:system', which is not llmrec's"):
        collaborative(vocab, baseline=str(tmp_path), inputs=judged)


def test_cosines_to_the_target_by_hand(vocab: SIDVocab, judged: RewardInputs, vectors: np.ndarray):
    # Target item 0, (1, 0); candidates (1, 0), (1, 1), (-1, 0), nothing, zeros, and the SID of 6 and 7, (3, 4).
    completions = [*sids(vocab, 0, 1, 3), [], *sids(vocab, 8, 6)]
    reward = semantic(vocab, embeddings="e.safetensors", inputs=judged)
    found = reward(completion_ids=completions, target=[0] * 6)
    assert found == pytest.approx([1, math.sqrt(0.5), -1, -1, 0, 3 / 5])
    # A hit has 1 even where the SID's most popular item, 7, is not the target.
    assert reward(completion_ids=sids(vocab, 6), target=[6]) == [1.0]


def test_cosines_around_the_mean(vocab: SIDVocab, judged: RewardInputs, vectors: np.ndarray):
    mean = vectors[:8].mean(axis=0)
    a, b = vectors[0] - mean, vectors[2] - mean
    wanted = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    reward = semantic(vocab, embeddings="e.safetensors", center=True, inputs=judged)
    assert reward(completion_ids=sids(vocab, 2, 8), target=[0, 0]) == pytest.approx([wanted, 0], abs=1e-6)


def test_embeddings_of_another_catalogue_are_refused(vocab: SIDVocab, judged: RewardInputs, tmp_path: Path):
    save_embeddings(tmp_path / "other.safetensors", np.ones((9, 2)), {"encoder": "hand", "catalog_hash": "other"})
    with pytest.raises(InputError, match="embeddings of another catalogue"):
        semantic(vocab, embeddings=str(tmp_path / "other.safetensors"), inputs=judged)
    with pytest.raises(InputError, match="reward semantic: it needs the catalogue"):
        semantic(vocab, embeddings="e.safetensors", inputs=replace(judged, catalog=None))


def test_rare_hits_are_worth_more_by_hand(vocab: SIDVocab, inputs: RewardInputs):
    # Counts 10 5 1 3 2 4 1 6 0, 32 in all. With exponent 1 the mean weight over interactions is 8 / 32: eight items
    # with 1 each. Item 0 has (1 / 10) / (1 / 4) = 0.4, item 2 has 4, bounded by 3.
    completions = sids(vocab, 0, 2, 3, 0)
    reward = popularity_corrected(vocab, exponent=1.0, most=3.0, inputs=inputs)
    assert reward(completion_ids=completions, target=[0, 2, 2, 2]) == pytest.approx([0.4, 3.0, 0, 0])
    # Misses: item 3, taken 3 times of 10, costs 0.3 of the penalty.
    strict = popularity_corrected(vocab, exponent=1.0, penalty=0.5, inputs=inputs)
    found = strict(completion_ids=[*completions, []], target=[0, 2, 2, 2, 2])
    assert found == pytest.approx([0.4, 4.0, -0.15, -0.5, 0])
    flat = popularity_corrected(vocab, exponent=0, inputs=inputs)
    assert flat(completion_ids=completions, target=[0, 2, 2, 2]) == [1, 1, 0, 0]


def test_weights_of_hits_have_mean_one_over_training(vocab: SIDVocab, inputs: RewardInputs):
    counts = np.asarray(inputs.popularity)
    reward = popularity_corrected(vocab, exponent=0.7, most=100.0, inputs=inputs)
    weights = reward(completion_ids=sids(vocab, *range(9)), target=list(range(9)))
    assert np.dot(weights, counts) / counts.sum() == pytest.approx(1.0)


def test_novelty_by_hand(vocab: SIDVocab, inputs: RewardInputs):
    # 32 interactions, 5 bits: item 5 has 4 of them, 3 bits; item 2 one; item 8 none, which counts as one.
    found = novelty(vocab, inputs=inputs)(completion_ids=[*sids(vocab, 5, 2, 8), []])
    assert found == pytest.approx([3 / 5, 1, 1, 0])


def test_first_codes_that_differ_by_hand(vocab: SIDVocab, inputs: RewardInputs):
    # First codes 0, 0, 1, 3: one of three others differs from 0 .. twice two of three, then all.
    completions = sids(vocab, 0, 1, 3, 6)
    assert diversity(vocab, inputs=inputs)(completion_ids=completions) == pytest.approx([2 / 3, 2 / 3, 1, 1])
    # By two codes: (0, 0), (0, 0), (0, 1), and what is no item.
    found = diversity(vocab, levels=2, inputs=inputs)(completion_ids=[*sids(vocab, 0, 1, 2), []])
    assert found == pytest.approx([1 / 2, 1 / 2, 1, 0])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-1, 6), min_size=8, max_size=8))
def test_diversity_as_counted_slowly(vocab: SIDVocab, judged: RewardInputs, vectors: np.ndarray, rows: list[int]):
    shown = {6: 7}  # the most popular of those that share a SID
    completions = [vocab.token_ids(row) if row >= 0 else [] for row in rows]
    found = diversity(vocab, embeddings="e.safetensors", inputs=judged)(completion_ids=completions)
    own = [None if row < 0 else vectors[shown.get(row, row)].tolist() for row in rows]
    assert found == pytest.approx([*slow_diversity(own[:4]), *slow_diversity(own[4:])], abs=1e-6)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (collaborative, {"baseline": "transitions", "scale": "minmax"}, "scale 'minmax'; choose one of rank, softmax"),
        (collaborative, {"baseline": "transitions", "exclude_seen": 1}, "exclude_seen 1; give true or false, without"),
        (collaborative, {"baseline": "transitions", "temperature": 0}, "temperature 0; it is at least 1e-06"),
        (popularity_corrected, {"exponent": 2}, "exponent 2; it is between 0 and 1"),
        (popularity_corrected, {"most": 0.5}, "most 0.5; it is at least 1"),
        (diversity, {"levels": 4}, "levels 4; the SIDs have 1 to 3"),
        (diversity, {"embeddings": "none.safetensors"}, "embeddings none.safetensors and .*: no such file"),
    ],
)
def test_options_that_are_wrong(vocab: SIDVocab, judged: RewardInputs, factory, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        factory(vocab, **options, inputs=judged)


@pytest.mark.parametrize("factory", [popularity_corrected, novelty])
def test_counts_are_needed(vocab: SIDVocab, inputs: RewardInputs, factory):
    with pytest.raises(InputError, match="it needs training counts of the items"):
        factory(vocab, inputs=replace(inputs, popularity=None))
    with pytest.raises(InputError, match="with 0 interactions; give training counts of the 9 items"):
        factory(vocab, inputs=replace(inputs, popularity=np.zeros(9)))
