"""Slices: their bounds by hand, their means against the slow twin, and what is empty is shown as empty."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import slow_evaluation as slow

from llmrec.data.interactions import Interactions
from llmrec.data.splits import History, leave_one_out, temporal
from llmrec.errors import InputError
from llmrec.evaluation import histories as histories_module
from llmrec.evaluation.categories import Categories
from llmrec.evaluation.histories import Histories, target_times
from llmrec.evaluation.slices import (
    Slicing,
    by_category,
    by_history_length,
    by_popularity,
    by_repetition,
    by_time,
    format_slices,
    slice_metrics,
)


def named(slicing):
    return [slicing.labels[member] if member >= 0 else None for member in slicing.member]


def test_history_length():
    found = by_history_length(np.array([1, 2, 3, 4, 9]), bounds=(2, 4))
    assert found.labels == ("up to 2", "3 to 4", "over 4")
    assert named(found) == ["up to 2", "up to 2", "3 to 4", "3 to 4", "over 4"]


def test_popularity():
    # 12 interactions, thirds at 4 and 8: 5 is reached with the first item, 9 with the third, taken twice.
    popularity = np.array([1, 2, 5, 2, 1, 0, 1])
    found = by_popularity(np.array([2, 1, 3, 0, 5, -1, 7]), popularity)
    assert named(found) == ["head", "middle", "middle", "tail", "unseen", "unseen", "unseen"]
    assert found.meanings == (
        "taken 5 times or more in training", "taken 2 to 4 times in training", "taken 1 to 1 times in training",
        "never taken in training",
    )  # fmt: skip


def test_items_taken_equally_often_are_all_head():
    found = by_popularity(np.array([0, 1]), np.array([3, 3, 3]))
    assert named(found) == ["head", "head"]
    assert found.meanings[1] == "no item is taken as often"
    rows = slice_metrics(np.array([0, -1]), found, metrics=["recall@1"])
    assert [row["rows"] for row in rows] == [2, 0, 0, 0]
    assert [row["metrics"]["recall@1"] for row in rows] == [0.5, None, None, None], "an empty slice is not zero"


def test_categories():
    categories = Categories.of(["a, x", "a", "b", "c", "a", ""])
    found = by_category(np.array([0, 2, 3, 5, -1, 9]), categories, most=2)
    assert found.labels == ("a", "b", "other categories", "no category")
    assert named(found) == ["a", "b", "other categories", "no category", "no category", "no category"]


def test_quarters_of_time():
    day = 86_400
    # Eight known times of which the fourth and fifth are equal: ties stand in the earlier quarter.
    times = np.array([0, 1, 2, 3, 3, 5, 6, 7]) * day
    found = by_time(np.append(times, -1))
    assert found.member.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, -1]
    assert found.meanings[0] == f"targets taken from {slow.day(0)} to {slow.day(day)}"
    assert found.meanings[3] == "targets taken from 1970-01-07 to 1970-01-08"
    assert by_time(np.array([5, 5])).meanings[1:] == ("no target was taken in between",) * 3
    with pytest.raises(InputError, match="no row's target has a time"):
        by_time(np.array([-1]))


@pytest.mark.parametrize("most", [1, 2**22])
def test_repetition(monkeypatch, most):
    monkeypatch.setattr(histories_module, "MAX_FLAGS", most)
    monkeypatch.setattr(histories_module, "LEAST_USERS", 1)
    rows = [History(0, (1, 2), 1), History(1, (3,), 1), History(2, (4,), -1), History(3, (0, 4), 4)]
    found = by_repetition(Histories.of(rows), items=5)
    assert named(found) == ["repeat", "explore", "explore", "repeat"]


@pytest.mark.parametrize("split", [leave_one_out, temporal])
def test_times_of_targets(split):
    rng = np.random.default_rng(0)
    users = np.sort(rng.integers(0, 6, 60))
    interactions = Interactions.sort(
        tuple("abcdef"), users=users, items=rng.integers(0, 7, 60), timestamps=rng.permutation(60)
    )
    times = interactions.timestamps.tolist()
    for rows in (split(interactions).valid, split(interactions).test):
        expected = []
        for row in rows:
            own = np.flatnonzero(interactions.users == row.user)
            expected.append(times[own[len(row.items)]])
        assert target_times(rows, interactions).tolist() == expected


def test_times_of_rows_that_are_cut_or_strange():
    interactions = Interactions.sort(
        ("u", "v"), users=np.array([0, 0, 0, 0, 1]), items=np.array([3, 1, 3, 2, 0]),
        timestamps=np.array([10, 20, 30, 40, 50]),
    )  # fmt: skip
    rows = [
        History(0, (3, 1), 3),  # whole: the third interaction
        History(0, (3,), 2),  # cut to the last item: item 2 stands once
        History(0, (1,), 3),  # cut, and item 3 stands twice
        History(0, (1,), 0),  # never taken by this user
        History(7, (1,), 0),  # no such user
    ]
    assert target_times(rows, interactions).tolist() == [30, 40, -1, -1, -1]


@given(st.lists(st.tuples(st.integers(-1, 12), st.integers(-1, 3)), min_size=1, max_size=30))
def test_means_equal_the_slow_twin(pairs):
    ranks, member = (np.array(column) for column in zip(*pairs, strict=True))
    labels = ("w", "x", "y", "z")
    slicing = Slicing("made", labels, labels, member)
    found = slice_metrics(ranks, slicing, metrics=["recall@5", "ndcg@10"])
    assert [row["slice"] for row in found] == list(labels)
    gains = [1 / np.log2(rank + 2) if 0 <= rank < 10 else 0.0 for rank in ranks]
    hits = [float(0 <= rank < 5) for rank in ranks]
    for metric, values in (("recall@5", hits), ("ndcg@10", gains)):
        expected = slow.slice_means(values, named(slicing))
        for row in found:
            rows, mean, error = expected.get(row["slice"], (0, None, None))
            assert row["rows"] == rows
            got = row["metrics"][metric], row["standard_errors"][metric]
            assert got == tuple(value if value is None else pytest.approx(value, abs=1e-12) for value in (mean, error))


@given(st.lists(st.tuples(st.integers(-1, 12), st.integers(-1, 1), st.integers(0, 3)), min_size=2, max_size=20))
def test_errors_of_slices_go_by_users(rows):
    ranks, member, users = (np.array(column) for column in zip(*rows, strict=True))
    found = slice_metrics(ranks, Slicing("made", ("x", "y"), ("", ""), member), metrics=["recall@5"], users=users)
    for number, row in enumerate(found):
        hits = [float(0 <= rank < 5) for rank in ranks[member == number]]
        own = users[member == number].tolist()
        expected = slow.user_jackknife(hits, own) ** 0.5 if len(set(own)) > 1 else None
        assert row["standard_errors"]["recall@5"] == (
            expected if expected is None else pytest.approx(expected, abs=1e-9)
        )
        assert row["metrics"]["recall@5"] == (pytest.approx(np.mean(hits)) if hits else None)


def test_table_shows_what_is_empty():
    slicing = Slicing("made", ("some", "one", "same", "none"), ("",) * 4, np.array([0, 0, 0, 0, 1, 2, 2]))
    slices = {"made": slice_metrics(np.array([0, -1, -1, -1, 0, -1, -1]), slicing, metrics=["recall@1"])}
    # 1 of 4: the variance is (.75^2 + 3 * .25^2) / 3 = .25, the error sqrt(.25 / 4) = .25, 1.96 times that .49.
    assert format_slices(slices, metrics=["recall@1"]).splitlines() == [
        "      slice  rows        recall@1",
        "made  some      4  0.2500 ±0.4900",
        "      one       1          1.0000",
        "      same      2          0.0000",
        "      none      0               -",
    ]


def test_what_does_not_fit_is_refused():
    slicing = Slicing("made", ("a",), ("",), np.array([0, 0]))
    with pytest.raises(InputError, match="slices by made: they divide 2 rows and there are 3 ranks"):
        slice_metrics(np.array([0, 1, 2]), slicing, metrics=["recall@1"])
    with pytest.raises(InputError, match="slices by made: 1 labels, 1 meanings and a member of slice 1"):
        Slicing("made", ("a",), ("",), np.array([0, 1]))
