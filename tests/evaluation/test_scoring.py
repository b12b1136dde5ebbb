"""One way from recommenders to a results file, and the flags that it takes."""

import argparse
import json
from dataclasses import replace

import pytest
from pens_dataset import write_pens

from llmrec.baselines import Popularity, Transitions
from llmrec.data.folder import load_dataset
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate
from llmrec.evaluation.flags import exclude_seen_value, system_names
from llmrec.evaluation.lists import read_lists
from llmrec.evaluation.results import read_origin, read_ranks
from llmrec.evaluation.runs import load_runs
from llmrec.evaluation.scoring import Scoring


@pytest.fixture(scope="module")
def pens(tmp_path_factory):
    return load_dataset(write_pens(tmp_path_factory.mktemp("scoring") / "pens"))


def begin(dataset, *, rows=slice(None), **flags):
    splits = dataset.split()
    return Scoring(dataset, splits, splits.test[rows], **{"split": "test", "ks": (3, 7), "progress": False, **flags})


def test_both_ways_stand_in_one_file_and_each_row_says_which_it_is(pens, tmp_path):
    splits = pens.split()
    scoring = begin(pens, rows=slice(20), exclude_seen="both")
    assert scoring.values == (False, True)
    models = {
        "popularity": Popularity().fit(splits.sequences, items=40),
        "transitions": Transitions().fit(splits.sequences, items=40),
    }
    first = scoring.add(models["popularity"], "popularity", seed=3)
    scoring.add(models["transitions"], "transitions", only=True, tuned={"by": "ndcg@10"})
    scoring.write(tmp_path / "x.json")
    rows = json.loads((tmp_path / "x.json").read_text())["results"]
    assert [(row["name"], row["exclude_seen"]) for row in rows] == [
        ("popularity", False), ("popularity (seen excluded)", True), ("transitions (seen excluded)", True)
    ]  # fmt: skip
    assert first == scoring.results[:2]
    for row in rows:
        assert (row["users"], row["rows"], row["catalog"]) == (20, 30, pens.catalog.hash)
        assert row["beyond"]["repeats@7"] == 0 or not row["exclude_seen"]
        assert "later_than_test" not in row, "no times"
        expected = evaluate(
            models[row["name"].split()[0]], splits.test[:20], items=40, ks=(3, 7), exclude_seen=row["exclude_seen"],
            progress=False,
        )  # fmt: skip
        assert row["metrics"] == expected.metrics
        ranks, lists = (f"{tmp_path / f'x.{kind}.parquet'}:{row['name']}" for kind in ("ranks", "lists"))
        assert read_ranks(ranks).tolist() == expected.ranks.tolist()
        assert read_lists(lists).tolist() == expected.recommended.tolist()
        origin = read_origin(ranks)
        assert origin == read_origin(lists)
        assert (origin["k"], origin["rows"]) == ("7", "30")
        assert origin["exclude_seen"] == str(row["exclude_seen"]).lower()
        assert row["latency"]["requests"] == 20, "each row of them once"
        assert 0 < row["latency"]["p50"] <= row["latency"]["p95"]
    assert rows[0]["seed"] == 3
    assert rows[2]["tuned"] == {"by": "ndcg@10"}
    assert scoring.notes() == []


def test_what_leaks_is_refused_before_anything_is_scored(pens):
    splits = pens.split()
    bad = replace(splits, train=[*splits.train, splits.test[4]])
    with pytest.raises(InputError, match=r"interactions\.parquet: test row 4: its target"):
        Scoring(pens, bad, splits.test, split="test", ks=(3,))
    repeating = [*splits.test, History(0, splits.test[0].items, splits.test[0].items[0])]
    with pytest.raises(InputError, match="both: 1 of 31 targets stand in their own histories"):
        Scoring(pens, splits, repeating, split="test", ks=(3,), exclude_seen="both")


def test_training_rows_after_the_test_targets_are_told_of(tmp_path):
    write_pens(tmp_path / "pens")
    pens = load_dataset(tmp_path / "pens")
    # User after user: a test target at 5, 15, ... 295, the median 150; training targets at 1 to 3, 11 to 13, ...
    found = pens.interactions
    times = found.users * 10 + found.timestamps
    timed = replace(
        pens, interactions=replace(found, timestamps=times), manifest={**pens.manifest, "times": "seconds"}
    )
    scoring = begin(timed)
    assert scoring.later_than_test == 0.5
    assert scoring.notes() == [
        "50.0% of the training rows are later in time than the median test target (leave_one_out)"
    ]
    [row] = scoring.add(Popularity().fit(pens.split().sequences, items=40), "popularity")
    assert row["later_than_test"] == 0.5


def test_what_need_not_be_timed_is_not(pens):
    model = Popularity().fit(pens.split().sequences, items=40)
    scoring = begin(pens, timing=False)
    [row] = scoring.add(model, "popularity")
    assert (row["latency"]["p50"], row["latency"]["requests"]) == (None, 0)
    assert row["latency"]["users_per_second"] > 0
    [row] = scoring.add(model, "joined", timed=False)
    assert "latency" not in row


def test_the_flag_has_three_values():
    assert [exclude_seen_value(text) for text in ("true", "False", "both")] == [True, False, "both"]
    with pytest.raises(argparse.ArgumentTypeError, match="'maybe': write true or false, or both"):
        exclude_seen_value("maybe")
    assert system_names(["a", "b"], False) == ["a", "b"]
    assert system_names(["a", "b"], "both") == ["a", "a (seen excluded)", "b", "b (seen excluded)"]


def test_one_evaluation_is_of_one_way(pens):
    with pytest.raises(InputError, match="exclude_seen 'both': one evaluation is of True or False"):
        evaluate(Popularity(), pens.split().test, items=40, exclude_seen="both")  # pyright: ignore[reportArgumentType]


def test_the_ranks_file_tells_whose_each_row_is(pens, tmp_path):
    splits = pens.split()
    rows = [splits.test[3], splits.test[1], splits.test[3]]
    scoring = Scoring(pens, splits, rows, split="test", ks=(3,), progress=False)
    scoring.add(Popularity().fit(splits.sequences, items=40), "popularity")
    scoring.write(tmp_path / "x.json")
    [run] = load_runs([str(tmp_path / "x.json")])
    assert run.users.tolist() == [0, 1, 0]
