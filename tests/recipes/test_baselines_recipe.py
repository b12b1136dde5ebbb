"""recipes/baselines.py writes what the baselines give."""

import json
import runpy
from pathlib import Path

import pytest
from pens_dataset import write_pens

from llmrec.artifacts import read_json, write_json
from llmrec.baselines import Transitions
from llmrec.data.folder import load_dataset
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate
from llmrec.evaluation.results import read_ranks

main = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "baselines.py"))["main"]


def test_rows_ranks_and_table(tmp_path, capsys):
    dataset = write_pens(tmp_path / "pens")
    out = tmp_path / "results" / "x.json"
    names = ["popularity", "llmrec.baselines:Transitions"]
    main(
        [
            "--dataset",
            str(dataset),
            "--names",
            *names,
            "--ks",
            "3",
            "7",
            "--exclude_seen",
            "true",
            "--output",
            str(out),
        ]
    )
    rows = json.loads(out.read_text())["results"]
    assert [row["name"] for row in rows] == names
    settings = {"dataset": "pens", "split": "test", "protocol": "leave_one_out", "exclude_seen": True, "users": 30}
    assert all(row[key] == value for row in rows for key, value in settings.items())
    assert rows[0]["train"] == "recovered"
    splits = load_dataset(dataset).split("leave_one_out")
    fitted = Transitions().fit(splits.sequences, items=40)
    expected = evaluate(fitted, splits.test, items=40, ks=(3, 7), exclude_seen=True, progress=False)
    assert rows[1]["metrics"] == expected.metrics
    assert read_ranks(f"{out.with_suffix('.ranks.parquet')}:popularity").shape == (30,)
    printed = capsys.readouterr().out
    assert "recall@7" in printed
    assert f"written to {out}" in printed


def test_a_whole_training_file_is_not_marked(tmp_path):
    dataset = write_pens(tmp_path / "pens")
    manifest = read_json(dataset / "manifest.json", "manifest")
    write_json(dataset / "manifest.json", {**manifest, "train": "published"})
    main(["--dataset", str(dataset), "--names", "popularity", "--output", str(tmp_path / "x.json")])
    assert "train" not in json.loads((tmp_path / "x.json").read_text())["results"][0]


def test_the_split_and_the_limit_are_flags(tmp_path):
    dataset = write_pens(tmp_path / "pens")
    out = tmp_path / "x.json"
    main(["--dataset", str(dataset), "--split", "valid", "--limit_users", "4", "--output", str(out)])
    rows = json.loads(out.read_text())["results"]
    assert [row["name"] for row in rows] == ["popularity", "item_knn", "transitions"]
    assert {(row["split"], row["users"]) for row in rows} == {("valid", 4)}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--names", "sasrec"], "unknown baseline 'sasrec': choose one of item_knn, popularity, transitions"),
        (["--names", "popularity", "popularity"], "system name 'popularity': taken"),
        (["--ks", "5", "41"], "--ks 5 41: give cuts from 1 to the 40 items"),
        (["--limit_users", "0"], "--limit_users 0: at least 1"),
        (["--protocol", "temporal"], "its source has no times"),
        (["--dataset", "none"], "none: no such dataset folder"),
    ],
)
def test_bad_flags_are_refused_and_nothing_is_written(tmp_path, flags, message):
    dataset = write_pens(tmp_path / "pens")
    with pytest.raises(InputError, match=message):
        main(["--dataset", str(dataset), "--output", str(tmp_path / "x.json"), *flags])
    assert [path.name for path in tmp_path.iterdir()] == ["pens"]


def test_a_flag_that_is_neither_true_nor_false_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--dataset", "x", "--output", str(tmp_path / "x.json"), "--exclude_seen", "maybe"])
    assert "write true or false" in capsys.readouterr().err
