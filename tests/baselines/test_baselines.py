"""Counting baselines: by hand, against their slow twins, and on Beauty."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.slow_baselines import item_knn_scores, popularity_order, recommend, transition_scores

from llmrec.baselines import BASELINES, ItemKNN, Popularity, Transitions, base
from llmrec.data.folder import load_dataset
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate

# Counts: item 2 three times, items 0 and 1 twice, item 3 once, item 4 never.
SEQUENCES = [(0, 2, 1), (2, 3), (0, 2), (1,)]


def test_popularity_by_hand():
    model = Popularity().fit(SEQUENCES, items=5)
    assert model.popularity.tolist() == [2, 2, 3, 1, 0]
    assert model.recommend([[2], []], 5).tolist() == [[2, 0, 1, 3, 4]] * 2  # 0 before 1: a tie goes to the lower row
    assert model.recommend([[2, 4], []], 3, exclude_seen=True).tolist() == [[0, 1, 3], [2, 0, 1]]


def test_transitions_by_hand():
    # After 0 came 2 twice; after 2 came 1 and 3, once each, and 1 is the more popular; nothing came after 4.
    full = Transitions(fills_beside_seen=True).fit(SEQUENCES, items=5)
    assert full.recommend([[0], [0, 2], [4], []], 3).tolist() == [[2, 0, 1], [1, 3, 2], [2, 0, 1], [2, 0, 1]]
    bare = Transitions().fit(SEQUENCES, items=5)
    assert bare.recommend([[0], [0, 2], [4], []], 3).tolist() == [[2, -1, -1], [1, 3, -1], [-1] * 3, [-1] * 3]
    assert bare.recommend([[2, 0], [3, 2]], 3, exclude_seen=True).tolist() == [[1, 3, 4], [1, 0, 4]]


def test_item_knn_by_hand():
    # Users of 0: a, c; of 1: a, d; of 2: a, b, c; of 3: b. After the history 1, 3 the last item 3 weighs 1:
    # 2 gets 1 / sqrt(1 x 3) from 3 and 0.5 x 1 / sqrt(2 x 3) from 1, in all .781; 0 gets 0.5 x 1 / sqrt(2 x 2) = .25.
    model = ItemKNN().fit(SEQUENCES, items=5)
    assert model._scores([[1, 3]]).toarray()[0].tolist() == pytest.approx(
        [0.25, 0, 1 / 3**0.5 + 0.5 / 6**0.5, 0, 0], abs=1e-12
    )
    assert model.recommend([[1, 3]], 5).tolist() == [[2, 0, 1, 3, 4]]
    assert model.recommend([[1, 3]], 3, exclude_seen=True).tolist() == [[2, 0, 4]]


def test_an_item_taken_twice_counts_once_in_the_cosine():
    once, twice = ItemKNN().fit([(0, 1), (0, 2)], items=3), ItemKNN().fit([(0, 1, 0, 1), (0, 2)], items=3)
    assert once._scores([[0]]).toarray()[0].tolist() == pytest.approx(twice._scores([[0]]).toarray()[0].tolist())


sequences = st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6).map(tuple), min_size=1, max_size=12)
histories = st.lists(st.lists(st.integers(0, 7), max_size=4), min_size=1, max_size=5)


@pytest.mark.parametrize("dense_scores", [base.DENSE_SCORES, 16])
@pytest.mark.parametrize("name", list(BASELINES))
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_agrees_with_the_slow_twin(name, exclude_seen, dense_scores, monkeypatch):
    monkeypatch.setattr(base, "DENSE_SCORES", dense_scores)  # 16: blocks of two users

    @given(sequences, histories, st.integers(1, 4))
    @settings(max_examples=40, deadline=None)
    def check(sequences, histories, k):
        model = BASELINES[name]().fit(sequences, items=8)
        order = popularity_order(sequences, 8)
        expected = []
        for history in histories:
            scores = {
                "popularity": lambda *_: {},
                "item_knn": item_knn_scores,
                "transitions": transition_scores,
            }[name](sequences, history)
            fill = name != "transitions"
            expected.append(recommend(scores, order, history, k, exclude_seen=exclude_seen, fill=fill))
        found = model.recommend(histories, k, exclude_seen=exclude_seen).tolist()
        assert found == expected

    check()


def test_the_cut_of_many_scores_changes_nothing():
    rng = np.random.default_rng(0)
    sequences = [tuple(rng.integers(0, 60, 12).tolist()) for _ in range(150)]
    histories = [rng.integers(0, 60, 5).tolist() for _ in range(40)]
    model = ItemKNN().fit(sequences, items=60)
    order = popularity_order(sequences, 60)
    assert model._scores(histories).nnz > 4 * 3 * len(histories)  # so the cut is at work
    for exclude_seen in (False, True):
        expected = [
            recommend(item_knn_scores(sequences, history), order, history, 3, exclude_seen=exclude_seen, fill=True)
            for history in histories
        ]
        assert model.recommend(histories, 3, exclude_seen=exclude_seen).tolist() == expected


@pytest.mark.parametrize("k", [0, 5])
def test_k_out_of_range_is_refused(k):
    model = Popularity().fit(SEQUENCES, items=5)
    with pytest.raises(InputError, match=f"k {k}: lists hold 1 to 3 of the 5 items"):
        model.recommend([[0, 1], [2]], k, exclude_seen=True)


def test_bad_sequences_histories_and_settings_are_refused():
    with pytest.raises(InputError, match="no training interactions"):
        Popularity().fit([], items=5)
    with pytest.raises(InputError, match="item row 5 in the training sequences, the catalogue has 5"):
        Popularity().fit([(0, 5)], items=5)
    with pytest.raises(InputError, match="history: item row 9"):
        Popularity().fit(SEQUENCES, items=5).recommend([[9]], 1)
    with pytest.raises(InputError, match="recency 0 lies outside"):
        ItemKNN(recency=0)


@pytest.fixture(scope="module")
def beauty(real_data, tmp_path_factory):
    script = Path(__file__).parents[2] / "data_prep" / "sequences.py"
    out = tmp_path_factory.mktemp("beauty") / "beauty"
    source = real_data / "beauty"
    arguments = ["--source", str(source / "user_sequence.txt"), "--items", str(source / "Amazon_Beauty.item")]
    runpy.run_path(str(script))["main"]([*arguments, "--out", str(out)])
    dataset = load_dataset(out)
    return dataset.split("leave_one_out"), len(dataset.catalog)


# Seen items kept: the known figures leave short lists short; filled up by popularity they are higher.
@pytest.mark.real
@pytest.mark.parametrize(
    ("exclude_seen", "fill", "recall", "ndcg"),
    [(True, False, 0.0667, 0.0439), (False, False, 0.0631, 0.0418), (False, True, 0.0659, 0.0427)],
)
def test_transitions_on_beauty(beauty, exclude_seen, fill, recall, ndcg):
    splits, items = beauty
    model = Transitions(fills_beside_seen=fill).fit(splits.sequences, items=items)
    found = evaluate(model, splits.test, items=items, ks=(10,), exclude_seen=exclude_seen, progress=False)
    assert found.users == 22_363
    assert found.metrics["recall@10"] == pytest.approx(recall, abs=0.0005)
    assert found.metrics["ndcg@10"] == pytest.approx(ndcg, abs=0.0005)


@pytest.mark.real
@pytest.mark.parametrize(("name", "recall", "ndcg"), [("popularity", 0.0114, 0.0054), ("item_knn", 0.0648, 0.0399)])
def test_other_baselines_on_beauty(beauty, name, recall, ndcg):
    splits, items = beauty
    model = BASELINES[name]().fit(splits.sequences, items=items)
    found = evaluate(model, splits.test, items=items, ks=(10,), exclude_seen=True, progress=False)
    assert found.metrics["recall@10"] == pytest.approx(recall, abs=0.0005)
    assert found.metrics["ndcg@10"] == pytest.approx(ndcg, abs=0.0005)
