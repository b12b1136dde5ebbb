"""Weights of a fusion, chosen on validation rows."""

import logging

import numpy as np
import pytest
import torch

from llmrec.baselines import EASE, DenseText, Popularity, Transitions
from llmrec.baselines.context import FitContext
from llmrec.baselines.fusion import BeamFusion, RankFusion
from llmrec.baselines.fusion_weights import choices, spread, tune_fusion
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate

ITEMS = 15
USERS = 40


class Known:
    """Lists and scores given by hand; the history's first item names the user."""

    def __init__(self, lists, scores=None):
        self.lists = np.asarray(lists)
        self.scores = scores
        self.items = ITEMS
        self.calls = 0
        if scores is not None:
            self.rank = self._rank

    def recommend(self, histories, k, *, exclude_seen=False):
        self.calls += 1
        return torch.from_numpy(self.lists[[history[0] for history in histories], :k])

    def _rank(self, histories, k, *, exclude_seen=False):
        rows = self.recommend(histories, k)
        assert self.scores is not None
        return rows, torch.from_numpy(self.scores[[history[0] for history in histories], :k])


def drawn(seed, *, places):
    """Lists of ten drawn items; where ``places`` is a number, item 0 stands there."""
    rng = np.random.default_rng(seed)
    lists = np.array([rng.permutation(np.arange(1, ITEMS))[:10] for _ in range(USERS)])
    for user, place in enumerate(places):
        if place is not None:
            lists[user, place] = 0
    return lists


ROWS = [History(user, (user,), 0) for user in range(USERS)]


def test_the_best_of_the_grid_is_chosen_and_all_are_kept():
    # The good part has every target in front, the bad one none: the smaller the bad one's weight the better.
    good, bad = Known(drawn(0, places=[0] * USERS)), Known(drawn(1, places=[None] * USERS))
    tuned = tune_fusion(
        RankFusion({"bad": bad, "good": good}, depth=10),
        ROWS,
        weights=(0.5, 3.0, 1.0),
        constants=(60.0, 0.0),
        progress=False,
    )
    assert len(tuned.trials) == 6
    best = max(trial["metrics"]["ndcg@10"] for trial in tuned.trials)
    first = next(trial for trial in tuned.trials if trial["metrics"]["ndcg@10"] == best)
    assert tuned.settings == first["settings"] == tuned.fusion.settings
    assert tuned.settings["weights"] == {"bad": 1.0, "good": 3.0}
    assert (tuned.parts["good"]["ndcg@10"], tuned.parts["bad"]["ndcg@10"]) == (1.0, 0.0)
    assert (good.calls, bad.calls) == (1, 1), "one search for all trials"
    again = evaluate(tuned.fusion, ROWS, items=ITEMS, ks=(10,), progress=False)
    assert {name: again.metrics[name] for name in first["metrics"]} == first["metrics"]
    parts = {"bad": {"seed": 4, "trained_as": "ab", "leaks": ["a", "b"]}, "good": {"leaks": ["b", "c"]}}
    said = tuned.said(parts)
    assert (said["seed"], said["trained_as"], said["leaks"]) == (None, None, ["a", "b", "c"])
    assert tuned.said({})["leaks"] is None
    said = tuned.said(parts, model="bad")
    assert (said["seed"], said["trained_as"]) == (4, "ab")
    assert said["fused"] == {
        "method": "rrf", "parts": ["bad", "good"], **tuned.settings, "depth": 10, "chosen_on": "valid",
    }  # fmt: skip
    assert said["tuned"]["trials"] == tuned.trials


def test_two_halves_that_know_different_users_are_better_together():
    half = [0 if user < USERS // 2 else None for user in range(USERS)]
    other = [None if place == 0 else 0 for place in half]
    parts = {"a": Known(drawn(2, places=half)), "b": Known(drawn(3, places=other))}
    tuned = tune_fusion(RankFusion(parts, depth=10), ROWS, progress=False)
    alone = max(metrics["ndcg@10"] for metrics in tuned.parts.values())
    assert alone == 0.5
    assert max(trial["metrics"]["ndcg@10"] for trial in tuned.trials) > 0.7


def test_rows_in_batches_are_tried_as_all_at_once():
    parts = {"a": Known(drawn(4, places=[3] * USERS)), "b": Known(drawn(5, places=[7] * USERS))}
    fusion = RankFusion(parts, depth=10)
    whole, bits = (tune_fusion(fusion, ROWS, batch_users=users, progress=False) for users in (1000, 7))
    assert whole.trials == bits.trials


def test_a_warning_when_fusing_does_not_help(caplog):
    parts = {"a": Known(drawn(0, places=[0] * USERS)), "b": Known(drawn(1, places=[None] * USERS))}
    with caplog.at_level(logging.WARNING):
        tune_fusion(RankFusion(parts, depth=10), ROWS, weights=(0.5,), constants=(0.0,), progress=False)
    assert "a alone has 1.0000: fusing does not help" in caplog.text


def test_weights_of_scores_are_in_units_of_the_beams():
    # Beam scores 0, -2: 1 away from their mean. The other's 10, 30: 10 away. So weight 1 means 1 / 10.
    rows = np.array([[4, 5], [6, 7]])
    assert spread(np.array([[0.0, -2.0], [0.0, -2.0]]), rows) == 1.0
    assert spread(np.array([[10.0, 30.0], [-np.inf, 3.0]]), rows) == pytest.approx((200 / 3) ** 0.5)
    assert spread(np.array([[1.0, 9.0]]), np.array([[4, -1]])) == 0.0
    model = Known(rows, np.array([[0.0, -2.0], [0.0, -2.0]], dtype=np.float32))
    sequences = [tuple(np.random.default_rng(user).permutation(ITEMS)[:5].tolist()) for user in range(9)]
    other = EASE().fit(sequences, items=ITEMS)
    fusion = BeamFusion({"model": model, "other": other}, depth=2)
    gathered = fusion.gather([(0,), (1,)])
    unit = 1 / spread(gathered.scores[1], rows)
    found = [given["weights"]["other"] for given in choices(fusion, gathered, weights=(1.0, 3.0), constants=(60.0,))]
    assert found == pytest.approx([unit, 3 * unit], rel=1e-5)


def test_a_beam_fusion_is_tuned_with_one_search():
    scores = np.tile(-np.arange(10, dtype=np.float32), (USERS, 1))
    model = Known(drawn(6, places=[4] * USERS), scores)
    vectors = np.random.default_rng(3).normal(size=(ITEMS, 4)).astype(np.float32)
    other = DenseText().fit([(1, 2, 3)], items=ITEMS, context=FitContext(embeddings=vectors, progress=False))
    rows = [History(row.user, (row.user % ITEMS,), 0) for row in ROWS]
    tuned = tune_fusion(BeamFusion({"model": model, "text": other}, depth=10), rows, progress=False)
    assert model.calls == 1
    assert list(tuned.parts) == ["model"]
    assert list(tuned.settings) == ["weights"]
    again = evaluate(tuned.fusion, rows, items=ITEMS, ks=(10,), progress=False)
    assert again.metrics["ndcg@10"] == max(trial["metrics"]["ndcg@10"] for trial in tuned.trials)


def test_parts_that_remember_are_asked_once_for_all():
    a, b = Known(drawn(4, places=[3] * USERS)), Known(drawn(5, places=[7] * USERS))
    plain = RankFusion({"a": a, "b": b}, weights={"a": 1, "b": 2}, constant=3, depth=10)
    fusion = plain.remembering()
    assert (fusion.settings, fusion.depth, fusion.items) == (plain.settings, 10, ITEMS)
    for system in (*fusion.parts.values(), fusion, tune_fusion(fusion, ROWS, progress=False).fusion):
        evaluate(system, ROWS, items=ITEMS, ks=(2, 5), progress=False)
    assert (a.calls, b.calls) == (1, 1)
    for ours, theirs in ((fusion, plain), (fusion.parts["a"], a)):
        found, expected = (evaluate(each, ROWS, items=ITEMS, ks=(5,), progress=False) for each in (ours, theirs))
        assert found.metrics == expected.metrics


def test_counting_baselines_fused(caplog):
    sequences = [tuple(np.random.default_rng(user).permutation(ITEMS)[:5].tolist()) for user in range(30)]
    parts = {"popularity": Popularity().fit(sequences, items=ITEMS), "next": Transitions().fit(sequences, items=ITEMS)}
    rows = [History(user, sequence[:4], sequence[4]) for user, sequence in enumerate(sequences)]
    for excluded in (False, True):
        tuned = tune_fusion(RankFusion(parts, depth=10), rows, exclude_seen=excluded, progress=False)
        lists = tuned.fusion.recommend([row.items for row in rows], 10, exclude_seen=excluded).tolist()
        assert excluded <= all(not set(row.items) & set(found) for row, found in zip(rows, lists, strict=True))


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "no validation rows to choose weights on"),
        (ROWS, {"weights": ()}, "0 settings of 2 parts to try"),
        (ROWS, {"weights": [1.0] * 500}, "2500 settings of 2 parts to try, and 2000 are most"),
        (ROWS, {"weights": (-1.0,)}, "weight -1.0 of b; 0 or more"),
    ],
)
def test_bad_grids_are_refused(rows, settings, message):
    parts = {"a": Known(drawn(0, places=[0] * USERS)), "b": Known(drawn(1, places=[0] * USERS))}
    with pytest.raises(InputError, match=message):
        tune_fusion(RankFusion(parts, depth=10), rows, progress=False, **settings)
