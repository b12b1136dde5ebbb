"""Fusing recommenders: against slow twins and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.slow_baselines import slow_beam_fusion, slow_rank_fusion

from llmrec.baselines import EASE, DenseText, Popularity, Transitions
from llmrec.baselines.context import FitContext
from llmrec.baselines.fuse_lists import beam_fusion, reciprocal_rank_fusion
from llmrec.baselines.fusion import BeamFusion, RankFusion, check_one_catalog
from llmrec.baselines.item_scores import best_unseen, score_items
from llmrec.baselines.remembered import Remembered
from llmrec.errors import InputError
from llmrec.evaluation.bridge import CatalogBridge

ITEMS = 12
SEQUENCES = [tuple(np.random.default_rng(user).permutation(ITEMS)[:6].tolist()) for user in range(20)]
HISTORIES = [sequence[:4] for sequence in SEQUENCES[:6]]


def fitted(kind, **settings):
    vectors = np.random.default_rng(3).normal(size=(ITEMS, 4)).astype(np.float32)
    return kind(**settings).fit(SEQUENCES, items=ITEMS, context=FitContext(embeddings=vectors, progress=False))


class Model:
    """Stands for a model: lists and scores made of a baseline's."""

    items = ITEMS

    def __init__(self):
        self.asked = 0

    def rank(self, histories, k, *, exclude_seen=False):
        self.asked += 1
        rows = fitted(EASE).recommend(histories, k, exclude_seen=exclude_seen)
        return rows, -torch.arange(k, dtype=torch.float32).expand(len(rows), k) / 2

    def recommend(self, histories, k, *, exclude_seen=False):
        return self.rank(histories, k, exclude_seen=exclude_seen)[0]


def test_places_by_hand():
    # constant 1: places 1, 2, 3 weigh 1/2, 1/3, 1/4. Item 7: 1/2 + 1/4 = .75; 5: 1/3 + 1/2 = .83; 9: 1/4; 2: 1/3.
    a, b = np.array([[7, 5, 9]]), np.array([[5, 2, 7]])
    assert reciprocal_rank_fusion([a, b], weights=[1, 1], constant=1, k=4).tolist() == [[5, 7, 2, 9]]
    # The second list weighing 3: 5 1/3 + 3/2, 7 1/2 + 3/4 = 1.25, 2 3/3 = 1, 9 1/4; weighing 1/10: 7, 5, 9, 2.
    assert reciprocal_rank_fusion([a, b], weights=[1, 3], constant=1, k=4).tolist() == [[5, 7, 2, 9]]
    assert reciprocal_rank_fusion([a, b], weights=[10, 1], constant=1, k=4).tolist() == [[7, 5, 9, 2]]


def test_ties_go_to_the_lower_row_and_nothing_hangs_on_the_order_of_the_lists():
    a, b, c = np.array([[8, 1, 4]]), np.array([[1, 4, 8]]), np.array([[4, 8, 1]])
    for lists in ([a, b, c], [c, b, a], [b, a, c]):
        assert reciprocal_rank_fusion(lists, weights=[0.3] * 3, constant=60, k=3).tolist() == [[1, 4, 8]]


def test_an_item_twice_counts_where_it_stands_first_and_empty_places_hold_nothing():
    # Item 3 at place 1 alone; item 4 at place 3 of the one and place 2 of the other: 1/1 and 1/3 + 1/2 = .83.
    a, b = np.array([[3, 3, 4, -1]]), np.array([[-1, 4]])
    assert reciprocal_rank_fusion([a, b], weights=[1, 1], constant=0, k=3).tolist() == [[3, 4, -1]]


def test_a_part_of_weight_0_is_left_out():
    a, b = np.array([[3, 4]]), np.array([[5, 3]])
    assert reciprocal_rank_fusion([a, b], weights=[1, 0], k=4).tolist() == [[3, 4, -1, -1]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    parts=st.integers(2, 4),
    depth=st.integers(1, 6),
    constant=st.sampled_from([0, 1, 7.5, 60]),
    k=st.integers(1, 9),
)
def test_places_like_the_twin(seed, parts, depth, constant, k):
    rng = np.random.default_rng(seed)
    lists = [rng.integers(-1, 8, size=(3, depth)) for _ in range(parts)]
    weights = rng.choice([0.0, 0.5, 1.0, 2.0], size=parts)
    weights[0] = 1.0
    expected = [
        slow_rank_fusion([part[user].tolist() for part in lists], weights.tolist(), constant, k) for user in range(3)
    ]
    assert reciprocal_rank_fusion(lists, weights=weights.tolist(), constant=constant, k=k).tolist() == expected


def test_beams_by_hand():
    # Beam scores -1, -2, -3; the other's 0, 3, 1. Weights 1 and 1: -1, 1, -2; weights 2 and 1: -2, -1, -5.
    rows, beams, other = np.array([[6, 2, 4]]), np.array([[-1.0, -2.0, -3.0]]), np.array([[0.0, 3.0, 1.0]])
    assert beam_fusion(rows, beams, [other], weights=[1, 1], k=3).tolist() == [[2, 6, 4]]
    assert beam_fusion(rows, beams, [other], weights=[2, 0.1], k=2).tolist() == [[6, 2]]
    assert beam_fusion(rows, beams, [other], weights=[0, 1], k=3).tolist() == [[2, 4, 6]]
    # Equal in all: the lower row first.
    assert beam_fusion(rows, beams * 0, [other * 0], weights=[1, 1], k=3).tolist() == [[2, 4, 6]]


def test_what_the_other_has_no_score_for_gets_its_lowest():
    rows, beams = np.array([[6, 2, 4, -1]] * 2), np.array([[-1.0, -1.0, -1.0, -np.inf]] * 2)
    other = np.array([[-np.inf, 5.0, 3.0, -np.inf], [-np.inf] * 4])
    # 6 and 4 tie at 3, the lower row first; without any score all three tie.
    assert beam_fusion(rows, beams, [other], weights=[1, 1], k=4).tolist() == [[2, 4, 6, -1], [2, 4, 6, -1]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), others=st.integers(1, 3), depth=st.integers(1, 7), k=st.integers(1, 9))
def test_beams_like_the_twin(seed, others, depth, k):
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 9, size=(3, depth))
    beams = np.where(rows < 0, -np.inf, rng.choice([-0.5, -1.25, -2.0, -4.0], size=rows.shape))
    scores = [
        np.where(rng.random(rows.shape) < 0.2, -np.inf, rng.choice([0.0, 0.25, 1.0], rows.shape))
        for _ in range(others)
    ]
    weights = [1.0, *rng.choice([0.0, 0.5, 2.0], size=others).tolist()]
    expected = [
        slow_beam_fusion(rows[user].tolist(), beams[user], [part[user] for part in scores], weights, k)
        for user in range(3)
    ]
    assert beam_fusion(rows, beams, scores, weights=weights, k=k).tolist() == expected


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_recommenders_are_fused_as_their_lists_are(exclude_seen):
    parts = {"ease": fitted(EASE), "popularity": fitted(Popularity)}
    fusion = RankFusion(parts, weights={"popularity": 0.5, "ease": 2}, constant=5, depth=7)
    lists = [part.recommend(HISTORIES, 7, exclude_seen=exclude_seen).numpy() for part in parts.values()]
    expected = reciprocal_rank_fusion(lists, weights=[2, 0.5], constant=5, k=6)
    assert fusion.recommend(HISTORIES, 6, exclude_seen=exclude_seen).tolist() == expected.tolist()
    assert fusion.items == ITEMS
    again = fusion.with_settings({"constant": 1.0})
    assert (again.settings, again.depth) == ({"weights": {"ease": 2.0, "popularity": 0.5}, "constant": 1.0}, 7)


def test_a_model_s_items_are_ranked_by_both():
    model, other = Model(), fitted(DenseText)
    fusion = BeamFusion({"model": model, "text": other}, weights={"model": 1, "text": 3}, depth=8)
    rows, beams = model.rank(HISTORIES, 8)
    scores = score_items(other, HISTORIES, rows.numpy()).astype(np.float32)
    for user, found in enumerate(fusion.recommend(HISTORIES, 5).tolist()):
        total = {
            row: float(beams[user, place]) + 3 * scores[user, place] for place, row in enumerate(rows[user].tolist())
        }
        assert found == sorted(total, key=lambda row: -total[row])[:5]


@pytest.mark.parametrize("kind", [EASE, Transitions, Popularity, DenseText])
def test_scores_of_given_items_order_them_as_its_lists_do(kind):
    model = fitted(kind)
    lists = model.recommend(HISTORIES, ITEMS).numpy()
    scores = score_items(model, HISTORIES, lists)
    scored = np.where(lists >= 0, scores, -1e9)
    assert (np.diff(scored, axis=1) <= 1e-9).all()
    assert np.isneginf(score_items(model, HISTORIES, np.full((6, 2), -1))).all()


def test_counts_score_by_hand():
    # After 1 came 2 twice and 3 once; nothing came after 0.
    model = Transitions().fit([(1, 2), (1, 2), (1, 3), (0,)], items=5)
    items = np.array([[3, 2, 4, -1]] * 2)
    assert score_items(model, [(0, 1), (0,)], items).tolist() == [[1, 2, 0, -np.inf], [0, 0, 0, -np.inf]]


def test_what_is_remembered_is_asked_once_and_said_again():
    model = Model()
    kept = Remembered(model, depth=8)
    rows, scores = kept.rank(HISTORIES, 8)
    assert kept.recommend(HISTORIES[2:4], 3).equal(rows[2:4, :3])
    assert kept.rank(HISTORIES, 5)[1].equal(scores[:, :5])
    assert model.asked == 1
    assert kept.recommend(HISTORIES, 3, exclude_seen=True).equal(Model().recommend(HISTORIES, 3, exclude_seen=True))
    assert kept.recommend(HISTORIES, 9).equal(Model().recommend(HISTORIES, 9))
    assert model.asked == 3
    assert kept.seconds > 0
    assert not hasattr(Remembered(fitted(EASE)), "rank")
    # Who times it asks the part itself, and what that is alone where it says so.
    assert kept.alone() is model
    model.alone = lambda: "alone"
    assert kept.alone() == "alone"


def test_a_bundle_s_own_items_are_unknown_to_the_other():
    # The bundle knows item "x" besides; the bridge numbers it 12, behind the dataset's items.
    ids = [f"i{row}" for row in range(ITEMS)]

    class Wider(Model):
        items = ITEMS + 1

        def rank(self, histories, k, *, exclude_seen=False):
            rows = torch.tensor([[12, 3, 5]] * len(histories))
            return rows, torch.tensor([[-1.0, -2.0, -2.5]] * len(histories))

    bridge = CatalogBridge(Wider(), [*ids, "x"], ids)
    other = fitted(DenseText)
    fusion = BeamFusion({"model": bridge, "text": other}, weights={"model": 1, "text": 0}, depth=3)
    assert fusion.items == ITEMS + 1
    assert fusion.recommend(HISTORIES, 3).tolist() == [[12, 3, 5]] * 6
    gathered = fusion.gather(HISTORIES)
    assert np.isneginf(gathered.scores[1][:, 0]).all()
    assert np.isfinite(gathered.scores[1][:, 1:]).all()


LISTS = [np.array([[1, 2]]), np.array([[2, 3]])]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RankFusion({"ease": fitted(EASE)}), "fusion of ease: it takes two recommenders or more"),
        (lambda: RankFusion({"a": PARTS["a"], "b": FIVE}), "'a' knows 12 items and 'b' 5"),
        (lambda: RankFusion(PARTS, weights={"a": -1, "b": 1}), "weight -1 of a; 0 or more"),
        (lambda: RankFusion(PARTS, weights={"a": float("nan"), "b": 1}), "weight nan of a"),
        (lambda: RankFusion(PARTS, weights={"a": 0, "b": 0}), "all weights are 0"),
        (lambda: RankFusion(PARTS, weights={"a": 1}), "weights of a; give one for each of a, b"),
        (lambda: RankFusion(PARTS, constant=-1), "constant -1; 0 or more"),
        (lambda: RankFusion(PARTS, depth=0), "depth 0; ask at least 1"),
        (lambda: RankFusion(PARTS, depth=4).recommend(HISTORIES, 5), "k 5: depth 4 items .* raise depth to 5"),
        (lambda: RankFusion(PARTS, depth=13).recommend(HISTORIES, 5), "depth 13: part 'a': k 13: lists hold 1 to 12"),
        (lambda: RankFusion(PARTS).recommend(HISTORIES, 0), "k 0: lists hold at least 1"),
        (lambda: BeamFusion(PARTS), "beam_fusion: 'a' gives no scores of beams; put a model first, or use rrf"),
        (lambda: BeamFusion({"a": Model(), "b": Model()}), "'b' is no Baseline"),
        (lambda: reciprocal_rank_fusion(LISTS[:1], weights=[1], k=1), "give those of two systems or more"),
        (lambda: reciprocal_rank_fusion([LISTS[0], np.ones((2, 2))], weights=[1, 1], k=1), r"lists of \[1, 2\] users"),
        (lambda: reciprocal_rank_fusion(LISTS, weights=[1, 1, 1], k=1), "weights of 0, 1, 2; give one for each"),
        (lambda: beam_fusion(LISTS[0], LISTS[0], [], weights=[1], k=1), "beam scores alone"),
        (lambda: beam_fusion(LISTS[0], LISTS[0], [np.ones((1, 3))], weights=[1, 1], k=1), r"scores of shape \(1, 3\)"),
        (lambda: score_items(PARTS["a"], HISTORIES, np.array([[1]])), "items of 1 users for 6 histories"),
        (lambda: score_items(PARTS["a"], [(1,)], np.array([[12]])), "item row 12; the catalogue has 12"),
        (lambda: check_one_catalog({"a": object(), "b": object()}), "none of them says how many items it knows"),
        (
            lambda: check_one_catalog({name: CatalogBridge(Model(), ["x"], [name]) for name in ("a", "b")}),
            "'a' and 'b' answer in rows of other catalogues",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


PARTS = {"a": fitted(EASE), "b": fitted(Popularity)}
FIVE = Popularity().fit([(0, 1)], items=5)


@pytest.mark.parametrize("kind", [Transitions, EASE], ids=["counts", "all items"])
def test_best_unseen_are_the_best_of_all_scores(kind):
    rng = np.random.default_rng(0)
    sequences = [tuple(rng.integers(0, 12, size=6).tolist()) for _ in range(40)]
    model = kind().fit(sequences, items=12)
    histories = [(0, 1, 2), (5,), (3, 3, 7)]
    rows, scores = best_unseen(model, histories, 4)
    every = score_items(model, histories, np.tile(np.arange(12), (3, 1)))
    for line, history in enumerate(histories):
        every[line, list(history)] = -np.inf
        assert scores[line] == pytest.approx(every[line, rows[line]])
        assert sorted(scores[line]) == pytest.approx(sorted(every[line])[-4:])


def test_best_unseen_without_counts_are_popular_items():
    model = Transitions().fit([(0, 1), (2, 1), (3, 1), (2, 4)], items=6)
    rows, scores = best_unseen(model, [(5,), (0,)], 2)
    assert sorted(rows[0].tolist()) == [1, 2]
    assert scores[0].tolist() == [0.0, 0.0]
    assert dict(zip(rows[1].tolist(), scores[1].tolist(), strict=True))[1] == 1.0
    assert np.isneginf(scores[1]).sum() == 1, "what never followed is not drawn"
