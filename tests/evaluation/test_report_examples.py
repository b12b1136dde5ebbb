"""Worked examples: rows chosen by seed and said so, lists that fit their ranks, titles as text."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llmrec.data.folder import load_dataset, write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate
from llmrec.evaluation.report_examples import (
    AT_RANDOM,
    DIFFERING,
    Example,
    choose_rows,
    examples_of,
    examples_section,
)
from llmrec.evaluation.results import result_row, write_results
from llmrec.evaluation.runs import load_runs

USERS, ITEMS = 12, 20
HOSTILE = "a </li><script>alert('x')</script> & \"pen\" \ud800".encode("utf-8", "replace").decode()


class Fixed:
    """Recommends one list to all: items from ``first`` on."""

    def __init__(self, first: int) -> None:
        self.first = first

    def recommend(self, histories, k, *, exclude_seen=False):
        return torch.arange(self.first, self.first + k).repeat(len(histories), 1)


@pytest.fixture
def pens(tmp_path: Path) -> Path:
    """A dataset folder of 12 users with 5 items each; the test target of user ``u`` is item ``u``."""
    titles = (HOSTILE, *(f"pen {row}" for row in range(1, ITEMS)))
    users = np.repeat(np.arange(USERS), 5)
    items = np.array([[19, 18, 17, 16, user] for user in range(USERS)]).ravel()
    write_dataset(
        tmp_path / "pens",
        catalog=Catalog(tuple(f"i{row}" for row in range(ITEMS)), {"title": titles}),
        interactions=Interactions(
            tuple(f"u{user}" for user in range(USERS)), users, items, np.tile(np.arange(5), USERS)
        ),
        manifest={"name": "pens", "domain": "pens", "source": "x", "licence": "x", "times": "position"},
    )
    return tmp_path / "pens"


def scored(folder: Path, file: Path, **systems: int) -> list[str]:
    dataset = load_dataset(folder)
    rows = dataset.split("leave_one_out").rows("test")
    settings = {"items": ITEMS, "ks": (5,), "progress": False}
    found = [evaluate(Fixed(first), rows, name=name, **settings) for name, first in systems.items()]
    origin = {"dataset": "pens", "split": "test", "protocol": "leave_one_out", "catalog": dataset.catalog.hash}
    write_results(file, [result_row(one, **origin, exclude_seen=False) for one in found], found)
    return [str(file)]


def test_rows_are_chosen_by_seed_and_not_by_success():
    ranks = np.full((2, 100), -1)
    ranks[0, 7] = 0  # the systems differ most here,
    ranks[0, 8] = 4  # less here,
    ranks[:, 9] = 0  # and not at all here
    chosen = choose_rows(ranks, metric="ndcg@10", examples=10, seed=0)
    assert [reason for _, reason in chosen] == [AT_RANDOM] * 5 + [DIFFERING] * 2
    assert [row for row, reason in chosen if reason == DIFFERING] == [7, 8]
    assert len({row for row, _ in chosen}) == 7
    assert chosen == choose_rows(ranks, metric="ndcg@10", examples=10, seed=0)
    assert chosen[:5] != choose_rows(ranks, metric="ndcg@10", examples=10, seed=1)[:5]
    # What a seed chooses at random does not depend on the ranks.
    assert chosen[:5] == choose_rows(np.zeros((2, 100), dtype=int), metric="ndcg@10", examples=10, seed=0)
    assert len(choose_rows(ranks[:, :3], metric="ndcg@10")) == 3


def test_examples_by_hand(pens: Path, tmp_path: Path):
    runs = load_runs(scored(pens, tmp_path / "x.json", low=0, high=3))
    examples, without = examples_of(runs, load_dataset(pens), metric="ndcg@5", examples=USERS, seed=0)
    assert without == []
    by_row = {example.row: example for example in examples}
    one = by_row[4]
    # User 4 took 19, 18, 17, 16 and then 4, which stands in place 4 of 0..4 and in place 1 of 3..7.
    assert (one.history, one.target, one.ranks) == ((19, 18, 17, 16), 4, {"low": 4, "high": 1})
    assert one.lists["high"].tolist() == [3, 4, 5, 6, 7]
    drawn = examples_section(examples, load_dataset(pens).catalog.titles, seed=0, metric="ndcg@5", without=["gone"])
    assert drawn is not None
    assert drawn.count("<article") == len(examples)
    assert drawn.count('<li class="hit">') == sum(rank >= 0 for one in examples for rank in one.ranks.values())
    assert "by seed 0 and not by success" in drawn
    assert "so not shown: gone" in drawn
    assert "<script" not in drawn
    assert "&lt;script&gt;alert(&#x27;x&#x27;)" in drawn
    assert "place 2" in drawn
    assert "not in the list" in drawn


def test_many_systems_stay_side_by_side():
    lists = {f"s{number}": np.arange(3) for number in range(5)}
    few = {name: lists[name] for name in ("s0", "s1")}
    titles = ["a", "b", "c"]
    for shown, columns in ((few, None), (lists, 6)):
        example = Example(0, "at random", (0, 1), 2, shown, dict.fromkeys(shown, 2))
        drawn = examples_section([example], titles, seed=0, metric="ndcg@5")
        assert drawn is not None
        assert ('class="scroll"' in drawn) == (columns is not None)
        if columns:
            assert drawn.count(f"grid-template-columns: repeat({columns}, ") == 1


def test_what_does_not_fit_is_refused(pens: Path, tmp_path: Path):
    sources = scored(pens, tmp_path / "x.json", low=0)
    dataset = load_dataset(pens)
    (run,) = load_runs(sources)
    # Lists of another evaluation beside these ranks.
    scored(pens, tmp_path / "y.json", low=3)
    lists = tmp_path / "x.lists.parquet"
    kept = lists.read_bytes()
    lists.write_bytes((tmp_path / "y.lists.parquet").read_bytes())
    with pytest.raises(InputError, match=r"lists of 'low' do not hold the targets of .*pens"):
        examples_of([run], dataset, metric="ndcg@5")
    # No lists at all.
    lists.unlink()
    assert examples_of([run], dataset, metric="ndcg@5") == ([], ["low"])
    assert examples_section([], (), seed=0, metric="ndcg@5") is None
    lists.write_bytes(kept)
    # Another dataset.
    other = Catalog(tuple(f"j{row}" for row in range(ITEMS)), {"title": ("t",) * ITEMS})
    write_dataset(
        tmp_path / "other",
        catalog=other,
        interactions=dataset.interactions,
        manifest={**dataset.manifest, "name": "pens"},
    )
    with pytest.raises(InputError, match=r"--dataset .*other: its catalog is .* was scored on"):
        examples_of([run], load_dataset(tmp_path / "other"), metric="ndcg@5")
