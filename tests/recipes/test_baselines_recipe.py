"""recipes/baselines.py writes what the baselines give."""

import json
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from pens_dataset import write_pens

from llmrec.artifacts import read_json, write_json
from llmrec.baselines import ALL_BASELINES, EASE, DenseText, Transitions
from llmrec.baselines.flags import data_to_fit
from llmrec.baselines.neural_training import TimedItems
from llmrec.data.folder import load_dataset, write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.embeddings.store import save_embeddings
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate
from llmrec.evaluation.results import read_ranks, read_results
from llmrec.rewards.inputs import RewardInputs
from llmrec.rewards.saved_baseline import load_baseline

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


def test_tuned_rows_say_what_was_tried_and_a_second_run_works_less(tmp_path, monkeypatch):
    dataset = write_pens(tmp_path / "pens")
    loaded = load_dataset(dataset)
    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    file = save_embeddings(
        tmp_path / "v.safetensors", vectors, {"encoder": "drawn", "catalog_hash": loaded.catalog.hash}
    )
    names = ["recent_popularity", "dense_text", "ease"]
    flags = ["--dataset", str(dataset), "--names", *names, "--tune", "--embeddings", str(file), "--settings"]
    flags += ['{"ease": {"l2": 7.0}}', "--cache", str(tmp_path / "cache"), "--output"]
    main([*flags, str(tmp_path / "x.json")])
    rows = {row["name"]: row for row in json.loads((tmp_path / "x.json").read_text())["results"]}
    assert {name: len(row["tuned"]["trials"]) for name, row in rows.items()} == {
        "recent_popularity": 5 * 4, "dense_text": 4 * 4, "ease": 5,
    }  # fmt: skip
    for row in rows.values():
        tuned = row["tuned"]
        assert (tuned["split"], tuned["by"]) == ("valid", "ndcg@10")
        best = max(trial["metrics"]["ndcg@10"] for trial in tuned["trials"])
        chosen = [trial["metrics"] for trial in tuned["trials"] if trial["settings"] == tuned["chosen"]]
        assert [metrics["ndcg@10"] for metrics in chosen] == [best]
        assert row["settings"].items() >= tuned["chosen"].items()
    assert rows["ease"]["settings"]["l2"] == 7.0
    assert rows["dense_text"]["embeddings"]["encoder"] == "drawn"
    assert "embeddings" not in rows["ease"]
    splits = loaded.split("leave_one_out")
    model = EASE(**rows["ease"]["settings"]).fit(splits.sequences, items=40)
    expected = evaluate(model, splits.test, items=40, ks=(5, 10), progress=False)
    assert rows["ease"]["metrics"] == expected.metrics
    monkeypatch.setattr(EASE, "_fit", None)
    monkeypatch.setattr(DenseText, "_fit", None)
    main([*flags, str(tmp_path / "y.json")])
    again = json.loads((tmp_path / "y.json").read_text())["results"]
    for row, before in zip(again, rows.values(), strict=True):
        assert (row["metrics"], row["tuned"]) == (before["metrics"], before["tuned"])


def test_settings_by_hand(tmp_path):
    dataset = write_pens(tmp_path / "pens")
    flags = ["--names", "item_knn", "als", "--settings", '{"item_knn": {"recency": 1}, "als": {"factors": 3}}']
    main(["--dataset", str(dataset), *flags, "--output", str(tmp_path / "x.json")])
    rows = json.loads((tmp_path / "x.json").read_text())["results"]
    assert rows[0]["settings"] == {"recency": 1, "shrinkage": 0.0}
    assert "tuned" not in rows[0]
    assert (rows[1]["settings"]["factors"], rows[1]["seed"]) == (3, 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--names", "magic"], "unknown baseline 'magic': choose one of als, bert4rec, dense_text, ease, gru4rec"),
        (["--names", "dense_text"], "--embeddings: dense_text needs the items' embeddings; name the file"),
        (
            ["--names", "ease", "--settings", "l2=3"],
            r"--settings l2=3: no JSON \(.*\); write '{\"ease\": {\"l2\": 100}}'",
        ),
        (["--names", "ease", "--settings", "[1]"], r"--settings \[1\]: write an object of objects"),
        (["--names", "ease", "--settings", '{"als": {}}'], "--settings: 'als' is not among --names ease"),
        (["--names", "ease", "--settings", '{"ease": {"l2": 0}}'], "ease: l2 0; above 0"),
        (["--names", "ease", "--embeddings", "none.safetensors"], "none.safetensors: no such file; make embeddings"),
        (["--names", "ease", "--export_item_vectors", "v.safetensors"], "give --names one neural baseline"),
        (["--names", "ease", "als", "--save", "b"], "--save: one baseline is kept; give one of --names"),
        (["--names", "ease", "--save", "."], "--save .: it is there and is no baseline; choose another folder"),
        (
            ["--names", "ease", "--tune", "--exclude_seen", "both", "--save", "b"],
            "--save: one baseline is kept; .* with --tune one of --exclude_seen",
        ),
        (["--names", "my_baseline:Top", "--save", "b"], "my_baseline:Top has no save_pretrained"),
        (["--names", "popularity", "popularity"], "system name 'popularity': taken"),
        (["--ks", "5", "41"], "--ks 5 41: give cuts from 1 to the 40 items"),
        (["--limit_users", "0"], "--limit_users 0: at least 1"),
        (["--protocol", "temporal"], "its source has no times"),
        (["--dataset", "none"], "none: no such dataset folder"),
    ],
)
def test_bad_flags_are_refused_and_nothing_is_written(tmp_path, monkeypatch, flags, message):
    module = types.ModuleType("my_baseline")
    module.Top = type("Top", (), {"fit": None, "recommend": None})
    monkeypatch.setitem(sys.modules, "my_baseline", module)
    dataset = write_pens(tmp_path / "pens")
    with pytest.raises(InputError, match=message):
        main(["--dataset", str(dataset), "--output", str(tmp_path / "x.json"), *flags])
    assert [path.name for path in tmp_path.iterdir()] == ["pens"]


def test_a_baseline_is_kept_for_rewards(tmp_path):
    dataset = write_pens(tmp_path / "pens")
    flags = ["--dataset", str(dataset), "--names", "sasrec", "--settings", '{"sasrec": {"dim": 8, "epochs": 1}}']
    kept = tmp_path / "judges" / "sasrec"
    main([*flags, "--save", str(kept), "--output", str(tmp_path / "x.json")])
    splits = load_dataset(dataset).split("leave_one_out")
    inputs = RewardInputs(num_generations=2, sequences=splits.sequences)
    judge = load_baseline(kept, reward="collaborative", inputs=inputs, items=40)
    (row,) = read_results(tmp_path / "x.json")
    again = evaluate(judge, splits.rows(row["split"]), items=40, ks=(5, 10), progress=False)
    assert again.metrics == row["metrics"]


def test_a_flag_that_is_neither_true_nor_false_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--dataset", "x", "--output", str(tmp_path / "x.json"), "--exclude_seen", "maybe"])
    assert "write true or false" in capsys.readouterr().err


def test_both_ways_with_seen_items_are_tuned_apart_and_stand_in_one_file(tmp_path):
    dataset = write_pens(tmp_path / "pens")
    flags = ["--dataset", str(dataset), "--names", "item_knn", "--tune", "--split", "test", "--ks", "2"]
    main([*flags, "--exclude_seen", "both", "--output", str(tmp_path / "both.json")])
    rows = {row["exclude_seen"]: row for row in read_results(tmp_path / "both.json")}
    assert set(rows) == {False, True}
    for value, row in rows.items():
        alone = tmp_path / f"{value}.json"
        main([*flags, "--exclude_seen", str(value).lower(), "--output", str(alone)])
        (expected,) = read_results(alone)
        assert (row["metrics"], row["tuned"]) == (expected["metrics"], expected["tuned"])


def test_a_baseline_that_reads_times_gets_them(tmp_path):
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(20), 6)
    times = rng.permutation(len(users)) * 1000
    interactions = Interactions.sort(
        tuple(f"u{user}" for user in range(20)), users=users, items=rng.integers(0, 9, len(users)), timestamps=times
    )
    manifest = {"name": "x", "domain": "x", "source": "drawn", "licence": "none", "times": "seconds"}
    ids = tuple(f"i{item}" for item in range(9))
    write_dataset(tmp_path / "x", catalog=Catalog(ids, {"title": ids}), interactions=interactions, manifest=manifest)
    settings = {"hstu": {"times": True, "epochs": 1, "dim": 8, "dropout": 0.3}}
    out = tmp_path / "out.json"
    flags = ["--dataset", str(tmp_path / "x"), "--names", "hstu", "--settings", json.dumps(settings), "--ks", "3"]
    main([*flags, "--tune", "--limit_users", "12", "--device", "cpu", "--output", str(out)])
    (row,) = read_results(out)
    assert row["users"] == 12
    assert row["settings"]["times"] is True
    dataset = load_dataset(tmp_path / "x")
    gathered = {
        name: data_to_fit(dataset, dataset.split(), kinds={name: ALL_BASELINES[name]}, embeddings=None, device="cpu")
        for name in ("hstu", "recent_popularity", "popularity")
    }
    assert {name: data.context.timestamps is not None for name, data in gathered.items()} == {
        "hstu": True, "recent_popularity": True, "popularity": False
    }  # fmt: skip
    timed = {name: isinstance(data.context.valid[0].items, TimedItems) for name, data in gathered.items()}
    assert timed == {"hstu": True, "recent_popularity": False, "popularity": False}
