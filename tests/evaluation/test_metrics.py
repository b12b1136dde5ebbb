"""Metrics by hand, and against ranx."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec.errors import InputError
from llmrec.evaluation.metrics import coverage_at, mrr_at, ndcg_at, per_user, ranks_of, recall_at, summarize

RECOMMENDED = torch.tensor([[4, 2, 7], [1, 0, 3], [5, 6, 4], [0, -1, -1]])
TARGETS = torch.tensor([4, 3, 9, -1])  # first place, third place, absent, an item outside the catalogue


def test_ranks():
    assert ranks_of(RECOMMENDED, TARGETS).tolist() == [0, 2, -1, -1]


def test_values_by_hand():
    ranks = np.array([0, 2, -1, -1])
    assert recall_at(ranks, 2).tolist() == [1, 0, 0, 0]
    assert recall_at(ranks, 3).tolist() == [1, 1, 0, 0]
    assert ndcg_at(ranks, 3).tolist() == [1.0, 1 / math.log2(4), 0, 0]  # third place: 1 / log2(2 + 2)
    assert mrr_at(ranks, 3).tolist() == [1.0, 1 / 3, 0, 0]
    assert coverage_at(RECOMMENDED, 1, 10) == 4 / 10  # 4, 1, 5 and 0; the empty places of the last list are no item
    assert coverage_at(RECOMMENDED, 3, 10) == 8 / 10  # 4 2 7 1 0 3 5 6
    assert summarize(ranks, RECOMMENDED, ks=(1, 3), items=10) == {
        "recall@1": 1 / 4, "ndcg@1": 1 / 4, "mrr@1": 1 / 4, "coverage@1": 4 / 10,
        "recall@3": 2 / 4, "ndcg@3": 1.5 / 4, "mrr@3": (1 + 1 / 3) / 4, "coverage@3": 8 / 10,
    }  # fmt: skip


@given(st.lists(st.integers(-1, 12), min_size=1), st.integers(1, 10))
def test_order_of_the_metrics(ranks, k):
    ranks = np.array(ranks)
    recall, ndcg, mrr = recall_at(ranks, k), ndcg_at(ranks, k), mrr_at(ranks, k)
    assert (mrr <= ndcg).all()
    assert (ndcg <= recall).all()
    assert (recall <= recall_at(ranks, k + 1)).all()


def test_per_user_by_name():
    assert per_user("mrr@3", np.array([1, 3])).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("metric", ["ndcg", "ndcg@0", "ndcg@x", "hit@10", "coverage@5", "@5"])
def test_an_unknown_metric_is_refused(metric):
    with pytest.raises(InputError, match=f"metric '{metric}': write one of recall, ndcg, mrr"):
        per_user(metric, np.array([0]))


@pytest.mark.slow
def test_agrees_with_ranx():
    import ranx  # noqa: PLC0415 - it takes seconds

    rng = np.random.default_rng(0)
    lists = np.stack([rng.permutation(50)[:20] for _ in range(200)])
    targets = rng.integers(0, 50, 200)
    qrels = ranx.Qrels({f"u{u}": {f"i{target}": 1} for u, target in enumerate(targets)})
    run = ranx.Run({f"u{u}": {f"i{item}": 20.0 - n for n, item in enumerate(row)} for u, row in enumerate(lists)})
    ours = summarize(ranks_of(torch.tensor(lists), torch.tensor(targets)), torch.tensor(lists), ks=(5, 10), items=50)
    for k in (5, 10):
        theirs = ranx.evaluate(qrels, run, [f"recall@{k}", f"ndcg@{k}", f"mrr@{k}"])
        for name in ("recall", "ndcg", "mrr"):
            assert ours[f"{name}@{k}"] == pytest.approx(theirs[f"{name}@{k}"], abs=1e-9)
