import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from llmrec.baselines import BASELINES
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.data.splits import leave_one_out
from llmrec.data.synthetic import Process, Synthetic, generate
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate

SMALL = Process(items=60, clusters=6, users=80, min_length=3, max_length=6)


@pytest.fixture(scope="module")
def default() -> Synthetic:
    return generate()


def by_hand() -> Synthetic:
    """Two clusters of two items; test histories end on item 0 (cluster 0) and item 2 (cluster 1)."""
    return Synthetic(
        SMALL,
        Catalog(("a", "b", "c", "d"), {"title": ("A", "B", "C", "D")}),
        Interactions(
            ("u", "v"),
            users=np.array([0, 0, 0, 1, 1, 1]),
            items=np.array([1, 0, 3, 3, 2, 0]),
            timestamps=np.array([1, 2, 3, 1, 2, 3]),
        ),
        np.array([0, 0, 1, 1]),
        np.array([0.75, 0.25, 0.5, 0.5]),
        np.array([[0.8, 0.2], [0.5, 0.5]]),
    )


def test_ceiling_by_hand():
    data = by_hand()
    # After cluster 0: .8 * .75, .8 * .25, .2 * .5, .2 * .5. After cluster 1: .5 times each popularity.
    expected = [[0.6, 0.2, 0.1, 0.1], [0.375, 0.125, 0.25, 0.25]]
    np.testing.assert_allclose(data.next_item_probabilities(), expected)
    assert data.ceiling(1) == pytest.approx((0.6 + 0.375) / 2)
    assert data.ceiling(2) == pytest.approx((0.6 + 0.2 + 0.375 + 0.25) / 2)
    assert data.ceiling(4) == pytest.approx(1)
    second = 1 / math.log2(3)
    assert data.ceiling(2, metric="ndcg") == pytest.approx((0.6 + 0.2 * second + 0.375 + 0.25 * second) / 2)


def test_ceiling_is_what_the_best_lists_reach(default: Synthetic):
    best = np.argsort(-default.next_item_probabilities(), axis=1, kind="stable")[:, :10]
    rows = leave_one_out(default.interactions).test
    hits = np.array([row.target in best[default.cluster_of[row.items[-1]]] for row in rows])
    ceiling = default.ceiling(10)
    # Hits are independent draws, so their mean strays from the ceiling by at most sqrt(p (1 - p) / users) at a time.
    assert hits.mean() == pytest.approx(ceiling, abs=4 * math.sqrt(ceiling * (1 - ceiling) / len(rows)))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["popularity", "transitions", "item_knn"])
def test_counting_items_stays_a_fifth_below_the_ceiling(name: str, seed: int):
    data = generate(Process(seed=seed))
    splits = leave_one_out(data.interactions)
    items = len(data.catalog)
    baseline = BASELINES[name]().fit(splits.sequences, items=items)
    metrics = evaluate(baseline, splits.test, items=items, ks=(5, 10), progress=False).metrics
    for k in (5, 10):
        assert metrics[f"recall@{k}"] <= 0.8 * data.ceiling(k)
    if name == "transitions":
        assert metrics["recall@10"] > 0.3 * data.ceiling(10)


def test_probabilities_sum_to_one(default: Synthetic):
    np.testing.assert_allclose(default.transitions.sum(axis=1), 1)
    np.testing.assert_allclose(default.transitions.sum(axis=0), 1)  # so that all clusters are visited alike
    np.testing.assert_allclose(default.next_item_probabilities().sum(axis=1), 1)
    np.testing.assert_allclose(np.bincount(default.cluster_of, default.popularity), 1)


def test_users_walk_as_the_process_says(default: Synthetic):
    sequences = default.interactions.sequences()
    clusters = default.process.clusters
    counts = np.zeros((clusters, clusters))
    items = np.zeros(len(default.catalog))
    for sequence in sequences:
        walk = default.cluster_of[list(sequence)]
        np.add.at(counts, (walk[:-1], walk[1:]), 1)
        np.add.at(items, list(sequence), 1)
    steps = counts.sum(axis=1, keepdims=True)
    error = np.sqrt(default.transitions * (1 - default.transitions) / steps)
    assert (np.abs(counts / steps - default.transitions) < 5 * error).all()
    visits = np.bincount(default.cluster_of, items)[default.cluster_of]
    error = np.sqrt(default.popularity * (1 - default.popularity) / visits)
    assert (np.abs(items / visits - default.popularity) < 5 * error).all()


def test_text_alone_finds_the_clusters(default: Synthetic):
    assert len(set(default.catalog.titles)) == len(default.catalog)
    vectors = TfidfVectorizer().fit_transform(default.catalog.texts(["title", "brand", "categories"]))
    similar = (vectors @ vectors.T).toarray()
    np.fill_diagonal(similar, -1)
    assert (default.cluster_of[similar.argmax(axis=1)] == default.cluster_of).mean() > 0.99


def test_every_cluster_has_words_of_its_own_up_to_the_most():
    data = generate(Process(items=400, clusters=400, users=5))
    assert len(set(data.catalog.columns["categories"])) == 400


def test_row_order_tells_nothing(default: Synthetic):
    neighbours = (default.cluster_of[1:] == default.cluster_of[:-1]).mean()
    assert neighbours < 3 / default.process.clusters


def test_same_seed_same_data_and_more_users_keep_the_catalogue():
    first, again = generate(SMALL), generate(SMALL)
    assert first.catalog == again.catalog
    np.testing.assert_array_equal(first.interactions.items, again.interactions.items)
    np.testing.assert_array_equal(first.interactions.timestamps, again.interactions.timestamps)
    more = generate(dataclasses.replace(SMALL, users=200))
    assert more.catalog == first.catalog
    np.testing.assert_array_equal(more.transitions, first.transitions)
    other = generate(dataclasses.replace(SMALL, seed=1))
    assert other.catalog.titles != first.catalog.titles


def test_nothing_global_is_seeded():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    generate(SMALL)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


@settings(max_examples=30, deadline=None)
@given(
    clusters=st.integers(2, 12),
    extra=st.integers(0, 40),
    users=st.integers(1, 20),
    lengths=st.tuples(st.integers(3, 6), st.integers(0, 4)),
    stray=st.sampled_from([0.0, 0.3, 1.0]),
    exponent=st.sampled_from([0, 1, 2.5]),
    seed=st.integers(0, 5),
)
def test_any_process_gives_whole_data(clusters, extra, users, lengths, stray, exponent, seed):
    process = Process(
        items=clusters + extra, clusters=clusters, users=users, min_length=lengths[0], max_length=sum(lengths),
        successors=min(3, clusters), stray=stray, exponent=exponent, seed=seed,
    )  # fmt: skip
    data = generate(process)
    sequences = data.interactions.sequences()
    assert len(data.catalog) == clusters + extra
    assert len(sequences) == users
    assert all(lengths[0] <= len(sequence) <= sum(lengths) for sequence in sequences)
    assert data.interactions.items.max() < len(data.catalog)
    ceilings = [data.ceiling(k) for k in range(1, len(data.catalog) + 1)]
    assert ceilings[-1] == pytest.approx(1)
    assert all(low <= high + 1e-12 for low, high in itertools.pairwise(ceilings))
    assert all(data.ceiling(k, metric="ndcg") <= data.ceiling(k) + 1e-12 for k in (1, 2))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("clusters", 1), ("clusters", 401), ("items", 39), ("items", 40 * 144 + 1), ("users", 0), ("min_length", 2),
        ("max_length", 5), ("successors", 0), ("successors", 41), ("stray", -0.1), ("stray", 1.1), ("exponent", -1),
        ("seed", -1), ("stray", float("nan")),
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(setting: str, value: float):
    with pytest.raises(InputError, match=f"{setting} {value} is out of range; choose"):
        Process(**{setting: value})


def test_bad_ceilings_are_refused():
    data = by_hand()
    for k in (0, 5):
        with pytest.raises(InputError, match=f"k {k} is out of range; choose 1 to 4"):
            data.ceiling(k)
    with pytest.raises(InputError, match="metric 'mrr'; choose one of recall, ndcg"):
        data.ceiling(1, metric="mrr")
