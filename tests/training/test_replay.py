"""Near misses: a bounded store whose state is JSON and whose draws leave no state behind."""

import json

import pytest

from llmrec.errors import InputError
from llmrec.training.replay import NearMisses


def row(number: int) -> dict:
    return {"prompt": f"<a_{number}>", "target": number, "history": [number, 1], "user_row": number}


def filled(size: int, *numbers: int) -> NearMisses:
    store = NearMisses(size)
    for number in numbers:
        store.add(row(number), number)
    return store


def numbers(rows: list[dict]) -> list[int]:
    return sorted(entry["target"] for entry in rows)


def test_the_oldest_leave_and_one_that_comes_again_is_the_newest():
    store = filled(3, 1, 2, 3)
    store.add(row(1), 9)
    store.add(row(4), 0)  # 2 is the oldest now
    assert numbers(store.draw(9, seed=0)) == [1, 3, 4]
    assert row(2) not in store
    assert [entry["place"] for entry in store.state_dict()] == [3, 9, 0]


def test_draws_are_distinct_and_follow_the_seed_alone():
    store = filled(50, *range(50))
    first = store.draw(5, seed="1 7")
    assert store.draw(5, seed="1 7") == first
    assert len(set(numbers(first))) == 5
    assert numbers(store.draw(5, seed="1 8")) != numbers(first)
    assert len(store) == 50
    assert numbers(store.draw(99, seed=0, without=[row(number) for number in range(48)])) == [48, 49]
    first[0]["target"] = 1000  # the store keeps its own
    assert max(numbers(store.draw(50, seed=0))) == 49


def test_what_was_found_is_forgotten():
    store = filled(5, 1, 2)
    store.forget(row(1))
    store.forget(row(7))
    assert numbers(store.draw(5, seed=0)) == [2]


def test_rows_are_told_apart_by_prompt_and_target():
    store = filled(5, 1)
    store.add({**row(1), "user_row": 8}, 0)
    store.add({**row(1), "target": 2}, 0)
    assert len(store) == 2


def test_a_store_goes_on_from_its_state():
    store = filled(4, 5, 6, 7)
    state = json.loads(json.dumps(store.state_dict()))
    again = NearMisses(4)
    again.load_state_dict(state)
    assert again.state_dict() == store.state_dict()
    assert again.draw(2, seed=3) == store.draw(2, seed=3)
    for other in (store, again):
        other.add(row(8), 1)
        other.add(row(9), 1)
    assert again.state_dict() == store.state_dict()
    smaller = NearMisses(2)
    smaller.load_state_dict(state)
    assert numbers(smaller.draw(9, seed=0)) == [6, 7]


def test_bad_sizes_and_states_are_refused():
    with pytest.raises(InputError, match="replay_size 0: at least 1"):
        NearMisses(0)
    with pytest.raises(InputError, match=r"near misses of the checkpoint: not what was saved .* another checkpoint"):
        NearMisses(2).load_state_dict([{"row": {"prompt": "a"}, "place": 1}])
