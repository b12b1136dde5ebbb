"""The measures of an audit agree with slow, obvious versions, and with counts made by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import slow_evaluation as slow

from llmrec.data.items import Catalog
from llmrec.data.splits import History, Splits, training_popularity
from llmrec.errors import InputError
from llmrec.evaluation.audit_features import near_targets, pair_cosines, smoothness
from llmrec.evaluation.audit_history import sequential_rules, shuffled
from llmrec.evaluation.audit_overlap import duplicates, repeats, split_overlap
from llmrec.evaluation.audit_popularity import skew, target_popularity, top_share
from llmrec.evaluation.audit_transitions import WAYS, branching, median_place, reach, target_places

ITEMS = 7
ITEM = st.integers(0, ITEMS - 1)
SEQUENCES = st.lists(st.lists(ITEM, min_size=1, max_size=6).map(tuple), min_size=1, max_size=6)
ROWS = st.lists(
    st.builds(History, st.integers(0, 3), st.lists(ITEM, min_size=1, max_size=4).map(tuple), ITEM),
    min_size=1,
    max_size=8,
)


def popularity_of(sequences: Any) -> np.ndarray:
    return training_popularity(sequences, items=ITEMS)


@given(SEQUENCES)
@settings(max_examples=60, deadline=None)
def test_entropies_equal_the_slow_ones(sequences: list[tuple[int, ...]]):
    pairs = slow.next_items(sequences)
    if not pairs:
        with pytest.raises(InputError, match="no training sequence holds two items"):
            branching(sequences, items=ITEMS)
        return
    found = branching(sequences, items=ITEMS)
    assert found["transitions"] == len(pairs)
    assert found["distinct"] == len(set(pairs))
    assert found["next_bits"] == pytest.approx(slow.entropy([second for _, second in pairs]), abs=1e-9)
    assert found["next_given_last_bits"] == pytest.approx(slow.conditional_entropy(pairs), abs=1e-9)
    assert found["information_bits"] == pytest.approx(found["dealt_anew_bits"] - found["next_given_last_bits"])
    after = [len({second for first, second in pairs if first == item}) for item in {first for first, _ in pairs}]
    assert found["successors"]["mean"] == pytest.approx(sum(after) / len(after))
    assert found["successors"]["most"] == max(after)


def test_a_cycle_says_all_and_a_deal_says_nothing():
    # 40 users walk 0 1 2 3 0 1 2 3: each item has one successor, so 0 bits are left of the log2(4) = 2 (3 is left 40
    # times, the others 80, and items arrive as they are left: bits of shares 1/7 2/7 2/7 2/7 after 1, 2, 3, 0).
    cycle = [(0, 1, 2, 3) * 2] * 40
    found = branching(cycle, items=4)
    shares = [1 / 7, 2 / 7, 2 / 7, 2 / 7]
    assert found["next_given_last_bits"] == pytest.approx(0, abs=1e-12)
    assert found["next_bits"] == pytest.approx(-sum(share * math.log2(share) for share in shares))
    assert found["information_bits"] == pytest.approx(found["next_bits"], abs=0.1)
    assert found["repeated_share"] == 1.0
    rng = np.random.default_rng(0)
    noise = branching([tuple(rng.integers(0, 50, 20).tolist()) for _ in range(200)], items=50)
    assert noise["next_given_last_bits"] < noise["next_bits"] - 0.3  # sparse counts look decided
    assert abs(noise["information_bits"]) < 0.05  # and are not


@given(SEQUENCES, ROWS)
@settings(max_examples=60, deadline=None)
def test_reach_equals_the_slow_one(sequences: list[tuple[int, ...]], rows: list[History]):
    popularity = popularity_of(sequences)
    found = reach(sequences, rows, items=ITEMS, popularity=popularity)
    for name, (hops, last) in WAYS.items():
        sets = [slow.reached(sequences, row.items, hops, last) for row in rows]
        share = sum(row.target in own for row, own in zip(rows, sets, strict=True)) / len(rows)
        chance = sum(popularity[sorted(own)].sum() for own in sets) / popularity.sum() / len(rows)
        assert found[name]["share"] == pytest.approx(share)
        assert found[name]["chance"] == pytest.approx(chance)
        assert found[name]["lift"] == (pytest.approx(share / chance) if chance else None)
        assert found[name]["candidates"] == pytest.approx(sum(map(len, sets)) / len(rows))


@given(SEQUENCES, ROWS)
@settings(max_examples=60, deadline=None)
def test_places_equal_the_slow_ones(sequences: list[tuple[int, ...]], rows: list[History]):
    popularity = popularity_of(sequences)
    places = target_places(sequences, rows, items=ITEMS, popularity=popularity)
    assert places.tolist() == [slow.place_after(sequences, row.items, row.target, popularity) for row in rows]
    there = sorted(place for place in places.tolist() if place)
    middle = (there[(len(there) - 1) // 2] + there[len(there) // 2]) / 2 if there else None
    assert median_place(places) == middle


def test_rows_in_pieces_reach_the_same(monkeypatch):
    rng = np.random.default_rng(1)
    sequences = [tuple(rng.integers(0, ITEMS, 5).tolist()) for _ in range(20)]
    rows = [History(0, tuple(rng.integers(0, ITEMS, 3).tolist()), int(rng.integers(ITEMS))) for _ in range(11)]
    whole = reach(sequences, rows, items=ITEMS, popularity=popularity_of(sequences))
    monkeypatch.setattr("llmrec.evaluation.audit_transitions.MAX_REACHED", 2 * ITEMS)
    pieces = reach(sequences, rows, items=ITEMS, popularity=popularity_of(sequences))
    for name, values in whole.items():
        assert pieces[name] == pytest.approx(values)


@given(SEQUENCES, st.integers(1, 3), st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=60, deadline=None)
def test_rules_equal_the_slow_ones(sequences: list[tuple[int, ...]], support: int, confidence: float):
    found = sequential_rules(sequences, items=ITEMS, support=support, confidence=confidence, seeds=(0, 1))
    assert found["rules"] == slow.rules(sequences, support, confidence)


def test_shuffles_break_rules_and_keep_items():
    ordered = sequential_rules([tuple(range(ITEMS))] * 30, items=ITEMS)
    assert ordered["rules"] == ITEMS - 1
    assert ordered["change"] == (ordered["shuffled"] - 6) / 6
    rows = [History(4, (1, 2, 3, 4, 5), 0)] * 3
    mixed = shuffled(rows, seed=0)
    assert [sorted(row.items) for row in mixed] == [[1, 2, 3, 4, 5]] * 3
    assert mixed != rows
    assert mixed == shuffled(rows, seed=0)
    assert {(row.user, row.target) for row in mixed} == {(4, 0)}


def some_vectors(seed: int = 0, *, zero: int | None = 3) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(ITEMS, 4)).astype(np.float32)
    if zero is not None:
        vectors[zero] = 0
    return vectors


@given(st.integers(0, 50), st.lists(st.integers(0, 5), min_size=ITEMS, max_size=ITEMS))
@settings(max_examples=40, deadline=None)
def test_random_cosines_are_exact(seed: int, weights: list[int]):
    vectors = some_vectors(seed)
    if sum(weight > 0 for row, weight in enumerate(weights) if row != 3) < 2:
        with pytest.raises(InputError, match="fewer than two items of the training part"):
            pair_cosines(vectors, np.array(weights))
        return
    assert pair_cosines(vectors, np.array(weights)) == pytest.approx(slow.random_cosine(vectors, weights), abs=1e-5)


def test_smoothness_by_hand():
    # Two directions, items 0 to 2 along the first and 3 to 6 along the second; steps 0 1 2 3 and 4 5 6: of five
    # pairs, four are alike (1.0) and one is not (0.0).
    vectors = np.array([[1, 0]] * 3 + [[0, 2]] * 4, dtype=np.float32)
    sequences = [(0, 1, 2, 2, 3), (4, 5, 6)]
    popularity = popularity_of(sequences)
    found = smoothness(vectors, sequences, popularity=popularity)
    mean, deviation = slow.random_cosine(vectors, popularity)
    assert (found["pairs"], found["consecutive"]) == (5, pytest.approx(0.8))
    assert found["deviations"] == pytest.approx((0.8 - mean) / deviation)
    assert found["zero_embeddings"] == 0


@given(st.integers(0, 20), ROWS)
@settings(max_examples=40, deadline=None)
def test_near_targets_equal_the_slow_ones(seed: int, rows: list[History]):
    vectors = some_vectors(seed, zero=None)
    popularity = np.arange(ITEMS)
    found = near_targets(vectors, rows, popularity=popularity, neighbours=(1, 3, 100))
    assert [part["neighbours"] for part in found] == [1, 3, ITEMS - 1]
    for part in found:
        sets = [slow.nearest(vectors, row.items[-1], int(part["neighbours"] or 0)) for row in rows]
        hits = sum(row.target in own for row, own in zip(rows, sets, strict=True))
        assert part["share"] == pytest.approx(hits / len(rows))
        assert part["chance"] == pytest.approx(sum(popularity[own].sum() for own in sets) / 21 / len(rows))


def test_embeddings_of_another_catalogue_are_refused():
    with pytest.raises(InputError, match="5 embeddings for a catalogue of 7 items"):
        smoothness(np.ones((5, 2), dtype=np.float32), [(0, 1)], popularity=np.ones(ITEMS))
    with pytest.raises(InputError, match="no two different items with embeddings"):
        smoothness(some_vectors(), [(0, 0), (3, 1)], popularity=np.ones(ITEMS))
    with pytest.raises(InputError, match="no rows whose targets could be near"):
        near_targets(some_vectors(), [], popularity=np.ones(ITEMS))
    with pytest.raises(InputError, match="no rows whose targets could be reached"):
        reach([(0, 1)], [], items=ITEMS, popularity=np.ones(ITEMS))


@given(ROWS, ROWS, ROWS)
@settings(max_examples=60, deadline=None)
def test_overlap_equals_the_slow_one(train: list[History], valid: list[History], test: list[History]):
    found = split_overlap(Splits("provided", train, valid, test, []), items=ITEMS)
    plain = [[(row.user, row.items, row.target) for row in rows] for rows in (train, valid, test)]
    assert found == slow.overlap(*plain)


def test_repeats_by_hand():
    # 0 1 1 0: the second 1 and the second 0 again, the 1 at once; 2 3: none. Six interactions.
    splits = Splits("x", [], [History(0, (0, 1), 1), History(1, (2,), 3)], [History(0, (0, 1, 1), 0)], [])
    found = repeats([(0, 1, 1, 0), (2, 3)], splits, items=4)
    assert found == {
        "interactions": 6, "again": 2, "at_once": 1, "again_share": 2 / 6, "targets": {"valid": 0.5, "test": 1.0}
    }  # fmt: skip
    assert repeats([(0,)], replace(splits, test=[]), items=4)["targets"]["test"] is None


def test_duplicates_by_hand():
    catalog = Catalog(("a", "b", "c", "d", "e"), {"title": ("Red pen", "red  PEN", "Blue pen", "Ink", "ink")})
    found = duplicates(catalog, [(0, 1), (0, 1), (2,), (0, 1), (1, 0), (2,)])
    assert found == {
        "titles_shared": 2, "items_sharing": 4, "items_sharing_share": 4 / 5, "histories_shared": 2, "users_sharing": 5
    }  # fmt: skip


def test_skew_by_hand():
    popularity = np.array([60, 20, 10, 5, 3, 2, 0, 0, 0, 0])
    assert top_share(popularity, 0.1) == 0.6
    assert top_share(popularity, 0.2) == 0.8
    found = skew(popularity)
    assert found["top_1_percent"] == 0.6  # at least one item
    assert (found["never_taken"], found["median"], found["most"]) == (4, 2.5, 60)
    assert found["gini"] == pytest.approx(slow.gini([[item] * int(n) for item, n in enumerate(popularity)], 60, 10))
    parts = target_popularity([History(0, (1,), 0), History(0, (1,), 6), History(0, (1,), 0)], popularity)
    assert {part["slice"]: part["share"] for part in parts if part["rows"]} == {"head": 2 / 3, "unseen": 1 / 3}
