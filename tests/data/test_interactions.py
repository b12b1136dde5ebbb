import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.slow_data import slow_k_core

from llmrec.data.interactions import Interactions, k_core
from llmrec.errors import InputError


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_sort_is_by_user_and_time_and_ties_keep_their_order():
    interactions = Interactions.sort(
        ("u", "v"),
        users=array(1, 0, 1, 0, 1),
        items=array(10, 11, 12, 13, 14),
        timestamps=array(5, 9, 5, 2, 1),
        ratings=np.array([1, 2, 3, 4, 5], dtype=np.float32),
    )
    assert interactions.items.tolist() == [13, 11, 14, 10, 12]
    assert interactions.ratings is not None
    assert interactions.ratings.tolist() == [4, 2, 5, 1, 3]
    assert interactions.sequences() == [(13, 11), (14, 10, 12)]
    assert interactions.user_starts().tolist() == [0, 2, 5]


def test_a_user_without_interactions_has_an_empty_sequence():
    interactions = Interactions(("u", "v", "w"), users=array(0, 2), items=array(1, 2), timestamps=array(0, 0))
    assert interactions.sequences() == [(1,), (), (2,)]


@pytest.mark.parametrize(
    ("users", "items", "timestamps", "message"),
    [
        (array(), array(), array(), "none are left"),
        (array(0, 0), array(1), array(1, 2), "items has 1 rows, users has 2"),
        (array(1, 0), array(1, 1), array(1, 2), "not sorted by user and time"),
        (array(0, 0), array(1, 1), array(2, 1), "not sorted by user and time"),
        (array(0, 2), array(1, 1), array(1, 1), "out of range"),
        (array(0, 1), array(1, -1), array(1, 1), "out of range"),
    ],
)
def test_illegal_interactions_do_not_construct(users, items, timestamps, message):
    with pytest.raises(InputError, match=message):
        Interactions(("u", "v"), users=users, items=items, timestamps=timestamps)


def test_k_core_falls_like_dominoes():
    # Item 2 has one interaction, so it goes; then user 1 has one left, so it goes; then items 0 and 1 have one each.
    users, items = array(0, 0, 1, 1), array(0, 1, 0, 2)
    assert k_core(users, items, 1).all()
    assert not k_core(users, items, 2).any()
    users, items = array(0, 0, 1, 1, 1), array(0, 1, 0, 1, 2)
    assert k_core(users, items, 2).tolist() == [True, True, True, True, False]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=30), st.integers(0, 4))
def test_k_core_is_the_slow_one(pairs, k):
    users = np.array([user for user, _ in pairs], dtype=np.int64)
    items = np.array([item for _, item in pairs], dtype=np.int64)
    assert set(np.flatnonzero(k_core(users, items, k)).tolist()) == slow_k_core(pairs, k)
