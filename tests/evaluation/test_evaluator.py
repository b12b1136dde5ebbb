"""The evaluator counts by item, hands over whole batches, and trusts no recommender."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate, exclusions, named_exclusions, time_requests
from llmrec.evaluation.latency import Latency

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


def test_lists_that_others_made_are_counted():
    lists = torch.tensor([[5, 5, 1, 5], [9, 0, -3, 9], [-1, 2, -1, 2]])
    found = evaluate(Fixed(lambda _: lists), ROWS, items=8, ks=(4,), invalid_lists="count", progress=False)
    # Two repeats of 5 and one of 2; 9 (twice) and -3 are no items, and no repeats either.
    assert (found.duplicates, found.illegal) == (3, 3)
    assert found.recommended.tolist() == [[5, -1, 1, -1], [-1, 0, -1, -1], [-1, 2, -1, -1]]
    assert found.ranks.tolist() == [0, 1, 1], "a hit keeps its place"
    with pytest.raises(InputError, match="invalid_lists 'skip': choose one of refuse, count"):
        evaluate(Fixed(), ROWS, items=8, ks=(4,), invalid_lists="skip")


def test_lists_are_kept_unless_told_otherwise():
    found = evaluate(Fixed(), ROWS, items=8, ks=(2, 3), batch_users=1, progress=False)
    assert found.recommended.dtype == np.int32
    assert found.recommended.tolist() == [[2, 3, 4], [3, 4, 5], [0, 1, 2]]
    assert (found.ks, found.items) == ((2, 3), 8)
    assert evaluate(Fixed(), ROWS, items=8, ks=(2,), keep_lists=False, progress=False).recommended is None


def test_latency_by_hand():
    # Calls of 1, 2 and 1 users in 0.7 s: what one user waits for a call of its own they do not say.
    found = Latency.of([0.1, 0.2, 0.4], [1, 2, 1])
    assert found == Latency(pytest.approx(4 / 0.7), 2, 3, None, None, 0)
    timed = found.with_requests([0.3, 0.1, 0.2, 0.4])
    assert (timed.p50, timed.p95, timed.requests) == (0.2, None, 4), "two of four take 0.2 s at most; too few for p95"
    assert (timed.users_per_second, timed.batch_users, timed.calls) == (found.users_per_second, 2, 3)
    assert found.with_requests([0.2] + [0.1] * 19).p95 == 0.1, "19 of 20 requests are 95 %"
    assert found.with_requests([0.1] * 19).p95 is None


def test_latency_times_the_calls_alone(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 10.0, 14.0, 20.0])  # begins; call of 2 s; call of 4 s; ends
    monkeypatch.setattr("llmrec.evaluation.evaluator.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = evaluate(Fixed(), ROWS, items=8, ks=(2,), batch_users=2, progress=False)
    assert found.seconds == 20.0
    assert found.latency == Latency(3 / 6, 2, 2)


def test_single_requests_are_timed_after_a_warm_up():
    recommender = Fixed()
    found = time_requests(recommender, ROWS, k=2, requests=2, warm_up=4, exclude_seen=True)
    assert recommender.calls == [(1, 2, True)] * 6
    assert found.shape == (2,)
    assert (found > 0).all()
    with pytest.raises(InputError, match="latency: 0 rows, requests 100, warm_up 5"):
        time_requests(recommender, [], k=2)


def test_slow_requests_are_few(monkeypatch):
    # Ten seconds are enough. A call of 3 s: one to warm up (2 s are all it may take), then until 10 s are over.
    clock = Clock()
    monkeypatch.setattr("llmrec.evaluation.evaluator.time", SimpleNamespace(perf_counter=lambda: clock.now))
    rows = [ROWS[0]] * 50
    assert time_requests(Slow(clock, 3.0), rows, k=2).tolist() == [3.0] * 3
    assert time_requests(Slow(clock, 30.0), rows, k=2).tolist() == [30.0], "one is timed whatever it takes"
    assert len(time_requests(Slow(clock, 0.01), rows, k=2)) == 50


def test_single_requests_are_asked_of_one_process_alone():
    inner = Fixed()
    seen = SimpleNamespace(recommend=None, alone=lambda: inner)
    assert len(time_requests(seen, ROWS, k=2, warm_up=0)) == len(ROWS)
    assert inner.calls == [(1, 2, False)] * len(ROWS)


class Clock:
    now = 0.0


class Slow:
    """Takes so many seconds of a clock a call."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def recommend(self, histories, k, *, exclude_seen=False):
        self.clock.now += self.seconds
        return torch.arange(k).repeat(len(histories), 1)


class Seen(Fixed):
    """Answers with the whole catalogue, without what was seen where that is asked."""

    def recommend(self, histories, k, *, exclude_seen=False):
        return torch.tensor(
            [[item for item in range(8) if not (exclude_seen and item in history)][:k] for history in histories]
        )


def test_seen_items_kept_and_left_out_have_names_of_their_own():
    assert named_exclusions("model", True) == [(True, "model")]
    named = named_exclusions("model", "both")
    assert named == [(False, "model"), (True, "model (seen excluded)")]
    found = [evaluate(Seen(), ROWS, exclude_seen=value, items=8, ks=(4,), progress=False) for value, _ in named]
    # Kept, lists are 0 1 2 3; left out, 0 3 4 5, then 0 1 2 4, then 1 2 3 5: targets 5, 0 and 2.
    assert [evaluation.ranks.tolist() for evaluation in found] == [[-1, 0, 2], [3, 0, 1]]


def test_both_is_for_datasets_that_never_repeat_an_item():
    repeating = [*ROWS, History(3, (4, 5), 4)]
    with pytest.raises(InputError, match="both: 1 of 4 targets stand in their own histories and cannot be hit"):
        exclusions("both", repeating)
    assert exclusions(True, repeating) == (True,)
    with pytest.raises(InputError, match="exclude_seen 'neither': choose true, false or both"):
        exclusions("neither", ROWS)
