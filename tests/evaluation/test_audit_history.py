"""What a heuristic does with part of a history, and with its items out of order."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from llmrec.baselines import ItemKNN, Transitions
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.audit_history import LastItems, history_dependence, order_dependence

ITEMS = 30


class Echo:
    """Lists the history from its end, then all other rows: what it is shown can be read off its lists."""

    def recommend(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> Tensor:
        lists = [[*dict.fromkeys(reversed(own)), *(item for item in range(ITEMS) if item not in own)][:k]
                 for own in histories]  # fmt: skip
        return torch.tensor(lists)


def test_the_end_of_a_history_is_shown_and_the_whole_is_left_out():
    histories = [(9, 8, 7), (1,), (2, 3, 2, 4, 5)]
    assert LastItems(Echo(), 2).recommend(histories, 3).tolist() == [[7, 8, 0], [1, 0, 2], [5, 4, 0]]
    assert LastItems(Echo(), None).recommend(histories, 3).tolist() == [[7, 8, 9], [1, 0, 2], [5, 4, 2]]
    # Shown 7 and 8, it lists 7 8 0 1 ..; 9 is left out although it was not shown.
    found = LastItems(Echo(), 2).recommend(histories, 9, exclude_seen=True).tolist()
    assert found[0] == [0, 1, 2, 3, 4, 5, 6, 10, 11]
    assert found[1] == [0, *range(2, 10)]
    assert found[2] == [0, 1, 6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("last", [1, 2, 5])
def test_exclusion_equals_that_of_a_longer_list(last: int):
    rng = np.random.default_rng(last)
    sequences = [tuple(rng.integers(0, ITEMS, 8).tolist()) for _ in range(40)]
    model = ItemKNN().fit(sequences, items=ITEMS)
    histories = sequences[:15]
    found = LastItems(model, last).recommend(histories, 10, exclude_seen=True).tolist()
    whole = model.recommend([history[-last:] for history in histories], ITEMS).tolist()
    assert found == [
        [item for item in ranked if item not in history][:10]
        for ranked, history in zip(whole, histories, strict=True)
    ]  # fmt: skip


def test_no_more_is_asked_than_the_catalogue_holds():
    # 30 items, 25 of them seen: 6 + 25 are more than there are, and five are left.
    sequences = [tuple(range(25)), (3, 4, 29), (29, 28, 27)]
    model = ItemKNN().fit(sequences, items=ITEMS)
    found = LastItems(model, 2, ITEMS).recommend(sequences[:2], 6, exclude_seen=True).tolist()
    ranked = model.recommend([history[-2:] for history in sequences[:2]], ITEMS).tolist()
    assert found[0] == [*(item for item in ranked[0] if item >= 25), -1]
    assert found[1] == [item for item in ranked[1] if item not in (3, 4, 29)][:6]
    rows = [History(0, tuple(range(20)), 25)]
    deep = history_dependence({"knn": model}, rows, items=ITEMS, exclude_seen=True, lasts=(1, 2), progress=False)
    assert [part["last"] for part in deep] == [1, 2]


def test_no_items_are_no_end_of_a_history():
    with pytest.raises(InputError, match="the last 0 items of a history; at least 1, or None for all"):
        LastItems(Echo(), 0)
    with pytest.raises(InputError, match="no recommender to measure the dependence on history"):
        history_dependence({}, [History(0, (1,), 2)], items=ITEMS)


def test_what_stands_further_back_is_found_only_when_shown():
    # The target stands four back in each history and nothing else is close to it: Echo lists it when it sees five.
    rows = [History(user, (20, 21, 22 + user % 3, 25, 26, 27, 28), 22 + user % 3) for user in range(6)]
    found = history_dependence({"echo": Echo()}, rows, items=ITEMS, lasts=(1, 2, 5, None), progress=False)
    assert [part["last"] for part in found] == [1, 2, 5, None]
    assert [part["recall@10"] for part in found] == [0, 0, 1, 1]
    # Fifth from the end, fifth in the list: 1 / log2(6).
    assert found[2]["ndcg@10"] == pytest.approx(1 / np.log2(6))
    low, high = found[2]["ndcg@10_interval"]
    assert low < found[2]["ndcg@10"] < high
    lengths = {part["slice"]: part["rows"] for part in found[0]["slices"]}
    assert lengths["6 to 10"] == 6
    assert found[0]["slices"][0]["metrics"]["recall@10"] is None  # no history is so short


def test_the_better_variant_is_taken_and_one_item_asks_only_the_first():
    class Backwards(Echo):
        def recommend(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> Tensor:
            return super().recommend([list(reversed(own)) for own in histories], k)

    rows = [History(0, (5, 6, 7, 8), 5)]
    found = history_dependence(
        {"forwards": Echo(), "backwards": Backwards()}, rows, items=ITEMS, lasts=(1, None), progress=False
    )
    assert [part["variant"] for part in found] == ["forwards", "backwards"]
    assert [part["ndcg@10"] for part in found] == [pytest.approx(1 / np.log2(8)), 1.0]  # 8 0 1 2 3 4 5; 5 first


def test_a_shuffle_costs_what_lives_on_the_last_item():
    cycle = [tuple((start + step) % ITEMS for step in range(8)) for start in range(ITEMS)]
    model = Transitions(fills_beside_seen=True).fit(cycle, items=ITEMS)
    rows = [History(user, items, (items[-1] + 1) % ITEMS) for user, items in enumerate(cycle)]
    found = order_dependence(model, rows, items=ITEMS, exclude_seen=True, progress=False)
    assert found["ndcg@10"] == 1.0
    # One of eight shuffles leaves the last item last; otherwise the next one is as good as drawn.
    assert found["shuffled"] < 0.5
    assert found["change"] == found["shuffled"] - 1
