"""Two catalogues that order items differently, or do not hold the same ones."""

import logging

import pytest
import torch

from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.bridge import CatalogBridge
from llmrec.evaluation.evaluator import evaluate


class Echo:
    """Answers with the history, newest first, then the other own rows."""

    def __init__(self, items):
        self.items = items
        self.seen = []

    def recommend(self, histories, k, *, exclude_seen=False):
        self.seen.extend(tuple(history) for history in histories)
        lists = [[*history[::-1], *(row for row in range(self.items) if row not in history)] for history in histories]
        return torch.tensor([items[:k] for items in lists])


def test_items_are_matched_by_id():
    # Own rows: c 0, a 1, x 2, b 3. Dataset rows: a 0, b 1, c 2; x stands behind them as 3.
    echo = Echo(4)
    bridge = CatalogBridge(echo, ["c", "a", "x", "b"], ["a", "b", "c"])
    assert bridge.items == 4
    assert bridge.recommend([[0, 1], [2]], 4).tolist() == [[1, 0, 2, 3], [2, 0, 3, 1]]
    assert echo.seen == [(1, 3), (0,)]


def test_alone_matches_by_id_too():
    echo, other = Echo(2), Echo(2)
    bridge = CatalogBridge(echo, ["b", "a"], ["a", "b"])
    assert bridge.alone().recommender is echo
    echo.alone = lambda: other
    assert bridge.alone().recommend([[0]], 2).tolist() == [[0, 1]]
    assert (echo.seen, other.seen) == ([], [(1,)])


def test_unknown_items_are_named_or_skipped(caplog):
    echo = Echo(2)
    bridge = CatalogBridge(echo, ["a", "b"], ["a", "new", "b"])
    rows = [History(0, (0, 1), 2), History(1, (2, 0), 1)]
    with pytest.raises(InputError, match=r"does not know 1 items of the dataset: 'new'; .*--unknown_items skip"):
        bridge.check(rows, unknown="error")
    with caplog.at_level(logging.WARNING):
        bridge.check(rows, unknown="skip")
    assert "1 history items left out, 1 targets count as misses" in caplog.text
    found = evaluate(bridge, rows, items=bridge.items, ks=(2,), progress=False)
    assert echo.seen == [(0,), (1, 0)]
    assert found.ranks.tolist() == [1, -1]
    bridge.check([History(0, (0,), 2)], unknown="error")  # what no row shows does not matter
    with pytest.raises(InputError, match="unknown_items 'maybe'"):
        bridge.check(rows, unknown="maybe")


def test_lists_that_cannot_be_filled_are_refused():
    bridge = CatalogBridge(Echo(3), ["a", "b", "x"], ["a", "b", "new"])
    rows = [History(0, (0, 1, 0, 2), 1)]  # two of the bundle's three items, and one that it does not know
    bridge.check(rows, unknown="skip", k=3)
    with pytest.raises(InputError, match="--ks 4: the bundle has 3 items"):
        bridge.check(rows, unknown="skip", k=4)
    bridge.check(rows, unknown="skip", k=1, exclude_seen=True)
    with pytest.raises(InputError, match="--ks 2: the bundle has 3 items, and a history holds 2 of them, which"):
        bridge.check(rows, unknown="skip", k=2, exclude_seen=True)


def test_retired_items_fill_no_list():
    # Own rows a 0, b 1, x 2; b is retired: two can come out, one of them after a history of a and b.
    bridge = CatalogBridge(Echo(3), ["a", "b", "x"], ["a", "b"], retired=[1])
    rows = [History(0, (0, 1), 1)]
    bridge.check(rows, unknown="error", k=2)
    with pytest.raises(InputError, match="--ks 3: the bundle has 2 items that are not retired; choose at most 2"):
        bridge.check(rows, unknown="error", k=3)
    bridge.check(rows, unknown="error", k=1, exclude_seen=True)
    with pytest.raises(InputError, match="--ks 2: the bundle has 2 items that are not retired, and a history holds 1"):
        bridge.check(rows, unknown="error", k=2, exclude_seen=True)


def test_a_history_of_unknown_items_alone_becomes_empty():
    echo = Echo(2)
    CatalogBridge(echo, ["a", "b"], ["new", "a", "b"]).recommend([[0]], 1)
    assert echo.seen == [()]
