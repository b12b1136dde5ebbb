from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.slow_data import slow_leave_one_out, slow_temporal

from llmrec.data.interactions import Interactions
from llmrec.data.splits import History, Splits, chain, leave_one_out, temporal
from llmrec.errors import InputError

# Sixteen events of at most six users: some user has three, and ten are targets.
EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 12)), min_size=16, max_size=50)


def build(events) -> Interactions:
    """Interactions of (user, item, time), users renumbered so that each has some."""
    names = sorted({user for user, _, _ in events})
    users = np.array([names.index(user) for user, _, _ in events], dtype=np.int64)
    items = np.array([item for _, item, _ in events], dtype=np.int64)
    times = np.array([time for _, _, time in events], dtype=np.int64)
    return Interactions.sort(tuple(map(str, names)), users=users, items=items, timestamps=times)


def plain(rows) -> list[tuple[int, tuple[int, ...], int]]:
    return [(row.user, row.items, row.target) for row in rows]


def test_leave_one_out_by_hand():
    events = [(0, 1, 1), (0, 2, 2), (0, 3, 3), (0, 4, 4), (1, 5, 1), (1, 6, 2), (2, 7, 1)]
    splits = leave_one_out(build(events))
    assert plain(splits.train) == [(0, (1,), 2), (1, (5,), 6)]
    assert plain(splits.valid) == [(0, (1, 2), 3)]
    assert plain(splits.test) == [(0, (1, 2, 3), 4)]  # The test history holds the validation item.
    assert list(splits.sequences) == [(1, 2), (5, 6), (7,)]
    assert plain(leave_one_out(build(events), max_history=1).test) == [(0, (3,), 4)]


@settings(deadline=None)
@given(EVENTS)
def test_leave_one_out_is_the_slow_one(events):
    interactions = build(events)
    splits = leave_one_out(interactions)
    train, valid, test = slow_leave_one_out(interactions.sequences())
    assert (plain(splits.train), plain(splits.valid), plain(splits.test)) == (train, valid, test)


@settings(deadline=None)
@given(EVENTS)
def test_temporal_is_the_slow_one(events):
    interactions = build(events)
    rows = zip(interactions.users.tolist(), interactions.items.tolist(), interactions.timestamps.tolist(), strict=True)
    train, valid, test = slow_temporal(list(rows))
    splits = temporal(interactions)
    assert (plain(splits.train), plain(splits.valid), plain(splits.test)) == (train, valid, test)
    cut = temporal(interactions, max_history=2)
    assert [row.items for row in cut.test] == [items[-2:] for _, items, _ in test]


@settings(deadline=None)
@given(EVENTS, st.sampled_from([leave_one_out, temporal]))
def test_sequences_hold_training_targets_alone(events, protocol):
    # Every interaction gets an item of its own, so that a leak could not hide behind a repeat.
    interactions = build([(user, number, time) for number, (user, _, time) in enumerate(events)])
    splits = protocol(interactions)
    known = {item for sequence in splits.sequences for item in sequence}
    held = {row.target for row in (*splits.valid, *splits.test)}
    assert not known & held
    assert {row.target for row in splits.train} == {item for sequence in splits.sequences for item in sequence[1:]}
    seen = Counter(item for sequence in splits.sequences for item in sequence)
    assert not seen or max(seen.values()) == 1


def test_temporal_cuts_eight_to_one_to_one_over_all_users():
    # Two users take turns; targets are all but each user's first: 20 of them, so 16, 2 and 2.
    events = [(number % 2, number, number) for number in range(22)]
    splits = temporal(build(events))
    assert [row.target for row in splits.train] == list(range(2, 18))
    assert [row.target for row in splits.valid] == [18, 19]
    assert [row.target for row in splits.test] == [20, 21]
    assert splits.test[0].items == tuple(range(0, 20, 2))
    assert list(splits.sequences) == [tuple(range(0, 18, 2)), tuple(range(1, 18, 2))]


def test_temporal_leaves_out_first_items_later_than_the_cut():
    events = [(0, number, number) for number in range(11)] + [(1, 50, 100), (1, 51, 101)]
    splits = temporal(build(events))
    assert len(splits.train) == 8  # 11 targets, cut at int(8.8) and int(9.9).
    assert not any(50 in sequence for sequence in splits.sequences)


def test_protocols_refuse_too_little():
    with pytest.raises(InputError, match="no user has 3 interactions"):
        leave_one_out(build([(0, 1, 1), (0, 2, 2)]))
    with pytest.raises(InputError, match="2 targets; the 8:1:1 cut needs 10"):
        temporal(build([(0, 1, 1), (0, 2, 2), (0, 3, 3)]))
    for protocol in (leave_one_out, temporal):
        with pytest.raises(InputError, match="max_history 0"):
            protocol(build([(0, 1, 1)]), max_history=0)


def test_rows_by_name():
    row = History(0, (1,), 2)
    splits = Splits("provided", [row], [], [row], [])
    assert splits.rows("train") == [row]
    with pytest.raises(InputError, match="split 'dev': choose one of train, valid, test"):
        splits.rows("dev")
    with pytest.raises(InputError, match="split 'valid' of protocol 'provided' has no rows"):
        splits.rows("valid")
    with pytest.raises(InputError, match="history of user 3: it is empty"):
        History(3, (), 1)


def test_chain_joins_rows_that_continue_each_other():
    rows = [
        History(0, (1,), 2),
        History(1, (7, 8), 9),
        History(0, (1, 2), 3),
        History(0, (2, 3), 4),  # Cut to two items.
        History(0, (5, 6), 1),  # Continues nothing.
    ]
    assert chain(rows) == [(1, 2, 3, 4), (7, 8, 9), (5, 6, 1)]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), max_size=4), st.integers(1, 5))
def test_chain_undoes_the_cut_into_rows(sequences, longest):
    rows = [
        History(user, tuple(items[max(0, stop - longest) : stop]), items[stop])
        for user, items in enumerate(sequences)
        for stop in range(1, len(items))
    ]
    assert chain(rows) == [tuple(items) for items in sequences if len(items) > 1]
