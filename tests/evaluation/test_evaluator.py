"""The evaluator counts by item, hands over whole batches, and trusts no recommender."""

import numpy as np
import pytest
import torch

from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate

ROWS = [History(0, (1, 2), 5), History(1, (3,), 0), History(2, (4, 0), 2)]


class Fixed:
    """Answers every history with its last item and those after it."""

    def __init__(self, change=lambda found: found):
        self.change = change
        self.calls = []

    def recommend(self, histories, k, *, exclude_seen=False):
        self.calls.append((len(histories), k, exclude_seen))
        return self.change(torch.tensor([[(history[-1] + place) % 8 for place in range(k)] for history in histories]))


def test_by_hand():
    # Lists of 4: 2 3 4 5 (target 5, rank 3), 3 4 5 6 (target 0, absent), 0 1 2 3 (target 2, rank 2).
    found = evaluate(Fixed(), ROWS, items=8, ks=(3, 4), name="fixed", progress=False)
    assert (found.name, found.users, found.ranks.tolist()) == ("fixed", 3, [3, -1, 2])
    assert found.metrics["recall@3"] == 1 / 3
    assert found.metrics["recall@4"] == 2 / 3
    assert found.metrics["mrr@4"] == pytest.approx((1 / 4 + 1 / 3) / 3)
    assert found.metrics["ndcg@4"] == pytest.approx((1 / np.log2(5) + 1 / np.log2(4)) / 3)
    assert found.metrics["coverage@4"] == 7 / 8


def test_batches_and_flags_reach_the_recommender():
    recommender = Fixed()
    found = evaluate(recommender, ROWS, items=8, ks=(2, 4), exclude_seen=True, batch_users=2, progress=False)
    assert recommender.calls == [(2, 4, True), (1, 4, True)]
    assert found.ranks.tolist() == [3, -1, 2]


def test_places_left_empty_are_misses():
    def empty(found):
        return torch.where(torch.arange(4) < 2, found, -1)

    assert evaluate(Fixed(empty), ROWS, items=8, ks=(4,), progress=False).ranks.tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[:, :2], r"its lists are \(3, 2\), expected \(3, 4\)"),
        (lambda found: found.float(), "must be int64 rows from 0 to 7"),
        (lambda found: found + 4, "must be int64 rows from 0 to 7"),
        (lambda found: torch.tensor([[1, 2, 3, 4], [4, 5, 6, 4], [1, 2, 3, 4]]), "item 4 stands twice in list 1"),
    ],
)
def test_wrong_lists_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        evaluate(Fixed(change), ROWS, items=8, ks=(4,), progress=False)


@pytest.mark.parametrize("ks", [(), (0, 5), (5, 9)])
def test_cuts_out_of_range_are_refused(ks):
    with pytest.raises(InputError, match="give cuts from 1 to the 8 items"):
        evaluate(Fixed(), ROWS, items=8, ks=ks)


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="no rows to score"):
        evaluate(Fixed(), [], items=8)
