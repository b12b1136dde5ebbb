import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from llmrec.data.folder import load_dataset
from llmrec.data.synthetic import Process, generate

SCRIPT = Path(__file__).parents[2] / "data_prep" / "synthetic.py"
FLAGS = ["--items", "60", "--clusters", "6", "--users", "80", "--seed", "3"]


def run(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_folder_holds_the_data_and_its_ceiling(monkeypatch, tmp_path: Path, capsys):
    run(monkeypatch, "--out", str(tmp_path / "set"), *FLAGS)
    folder = load_dataset(tmp_path / "set")
    data = generate(Process(items=60, clusters=6, users=80, seed=3))
    assert folder.catalog == data.catalog
    np.testing.assert_array_equal(folder.interactions.items, data.interactions.items)
    np.testing.assert_array_equal(folder.interactions.timestamps, data.interactions.timestamps)
    assert folder.manifest["ceiling"]["recall@10"] == data.ceiling(10)
    assert folder.manifest["ceiling"]["ndcg@5"] == data.ceiling(5, metric="ndcg")
    assert folder.manifest["process"]["clusters"] == 6
    assert folder.manifest["times"] == "seconds"
    assert len(folder.split("temporal").test) > 0
    assert f"recall@10 {data.ceiling(10):.4f}" in capsys.readouterr().out


def test_a_bad_setting_is_one_line_and_no_folder(monkeypatch, tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "--out", str(tmp_path / "set"), "--clusters", "1")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: synthetic data: clusters 1 is out of range; choose 2 to 400\n"
    assert not (tmp_path / "set").exists()


def test_texts_are_added_when_asked_for(monkeypatch, tmp_path: Path, capsys):
    run(monkeypatch, "--out", str(tmp_path / "plain"), *FLAGS)
    run(monkeypatch, "--out", str(tmp_path / "set"), *FLAGS, "--texts")
    plain, folder = load_dataset(tmp_path / "plain"), load_dataset(tmp_path / "set")
    assert folder.catalog.titles == plain.catalog.titles
    np.testing.assert_array_equal(folder.interactions.timestamps, plain.interactions.timestamps)
    assert plain.interactions.ratings is None
    assert sorted(plain.catalog.columns) == ["brand", "categories", "title"]
    assert sorted(set(folder.catalog.columns) - set(plain.catalog.columns)) == ["description", "query"]
    assert sorted(folder.interactions.texts) == ["explanation", "review"]
    beside = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert [name for name in beside if name.endswith((".parquet", ".jsonl"))] == [
        "chat.jsonl", "chat_held_out.jsonl", "intentions.parquet", "interactions.parquet", "items.parquet",
        "preferences.parquet", "rationales.parquet",
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        run(monkeypatch, "--out", str(tmp_path / "set"), *FLAGS)
    assert "beside the dataset; what was built on the old import" in capsys.readouterr().err
