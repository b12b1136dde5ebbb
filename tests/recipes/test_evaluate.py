"""recipes/evaluate.py: a bundle and a dataset folder in, rows and ranks out."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_kit import ITEMS, write_bundle
from pens_dataset import write_pens

from llmrec.artifacts import read_json, write_json
from llmrec.data.folder import load_dataset
from llmrec.decoding.recommender import LLMRecommender
from llmrec.embeddings.collaborative import sequences_hash
from llmrec.embeddings.store import save_embeddings
from llmrec.errors import InputError
from llmrec.evaluation.bundle_row import trained_as
from llmrec.evaluation.evaluator import evaluate
from llmrec.evaluation.lists import read_lists
from llmrec.evaluation.results import read_ranks
from llmrec.tasks.prompt import PromptForm

RECIPE = str(Path(__file__).parents[2] / "recipes" / "evaluate.py")
main = runpy.run_path(RECIPE)["main"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "pens_model"
    write_bundle(path, PromptForm(domain="pens", max_history=4))
    return path


def run(bundle, dataset, out, *flags):
    main(["--model", str(bundle), "--dataset", str(dataset), "--device", "cpu", "--output", str(out), *flags])
    return json.loads(out.read_text())["results"]


def test_the_model_and_the_baselines_beside_it(bundle, tmp_path, capsys):
    dataset = write_pens(tmp_path / "pens")
    flags = ["--num_beams", "20", "--score", "allowed", "--exclude_seen", "true"]
    rows = run(bundle, dataset, tmp_path / "x.json", *flags)
    assert [row["name"] for row in rows] == ["popularity", "item_knn", "transitions", "pens_model"]
    settings = {
        "dataset": "pens", "split": "test", "protocol": "leave_one_out", "exclude_seen": True, "score": "allowed",
        "num_beams": 20, "seed": 0, "train": "recovered", "max_history": 4, "users": 30,
    }  # fmt: skip
    assert {key: rows[-1][key] for key in settings} == settings
    assert rows[0]["exclude_seen"]
    model = LLMRecommender.from_pretrained(bundle, device="cpu", score="allowed")
    test = load_dataset(dataset).split("leave_one_out").test
    expected = evaluate(model, test, items=ITEMS, ks=(5, 10), exclude_seen=True, progress=False)
    assert rows[-1]["metrics"] == expected.metrics
    assert read_ranks(f"{tmp_path / 'x.ranks.parquet'}:pens_model").tolist() == expected.ranks.tolist()
    for row in rows:
        assert row["beyond"]["repeats@10"] == 0, "seen items are excluded"
        assert row["beyond"]["validity@10"] == 1
        assert {name: sum(part["rows"] for part in parts) for name, parts in row["slices"].items()} == dict.fromkeys(
            row["slices"], 30
        )
        assert row["latency"]["requests"] == 30, "each row once"
        assert 0 < row["latency"]["p50"] <= row["latency"]["p95"] < 10
    assert "trained_as" not in rows[-1], "this bundle does not say how it was trained"
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("transitions", "pens_model", "ndcg@10", "coverage@5"))


def test_the_order_of_the_dataset_s_items_does_not_matter(bundle, tmp_path):
    # Same walks over the same items, whose rows are turned round.
    one = write_pens(tmp_path / "one")
    other = write_pens(tmp_path / "other", order=list(range(ITEMS))[::-1])
    flags = ["--baselines", "--name", "model"]
    [a], [b] = run(bundle, one, tmp_path / "a.json", *flags), run(bundle, other, tmp_path / "b.json", *flags)
    assert a["metrics"] == b["metrics"]
    assert a["metrics"]["recall@10"] > 0


def test_unknown_items_are_named_and_skipped_only_when_asked(bundle, tmp_path):
    dataset = write_pens(tmp_path / "pens", extra=("new1", "new2"))
    with pytest.raises(
        InputError, match=r"does not know 2 items of the dataset: 'new1', 'new2'; .*--unknown_items skip"
    ):
        run(bundle, dataset, tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()
    rows = run(bundle, dataset, tmp_path / "x.json", "--unknown_items", "skip")
    assert rows[-1]["unknown_items"] == "skip"
    # Users 10 and 11 take an unknown item last.
    assert read_ranks(f"{tmp_path / 'x.ranks.parquet'}:pens_model")[10:12].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name", "popularity"], "system name 'popularity': taken"),
        (["--baselines", "magic"], "unknown baseline 'magic': choose one of als"),
        (["--baselines", "ease", "dense_text"], "--embeddings: dense_text needs the items' embeddings; name the file"),
        (["--settings", '{"ease": {}}'], "--settings: 'ease' is not among --baselines popularity item_knn trans"),
        (["--exclude_seen", "both", "--name", "popularity (seen excluded)"], r"system name 'popularity \(seen excl"),
        (["--ks", "41"], "--ks 41: give cuts from 1 to the 40 items"),
        (["--num_beams", "0"], "num_beams 0: at least 1"),
        (["--max_history", "0"], "max_history 0"),
        (["--protocol", "provided"], "no splits/ folder"),
    ],
)
def test_bad_flags_are_refused_and_nothing_is_written(bundle, tmp_path, flags, message):
    dataset = write_pens(tmp_path / "pens")
    with pytest.raises(InputError, match=message):
        run(bundle, dataset, tmp_path / "x.json", *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["pens"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ks", "41", "--unknown_items", "skip"], "--ks 41: the bundle has 40 items"),
        # A test row shows five items; 36 of 40 cannot come out beside them.
        (["--ks", "36", "--exclude_seen", "true", "--unknown_items", "skip"], "a history holds 5 of them"),
    ],
)
def test_lists_that_cannot_be_filled_are_refused_before_anything_is_scored(
    bundle, tmp_path, monkeypatch, flags, message
):
    dataset = write_pens(tmp_path / "pens", extra=("new1", "new2"))
    monkeypatch.setitem(main.__globals__, "Scoring", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(InputError, match=message):
        run(bundle, dataset, tmp_path / "x.json", *flags)


def test_tuned_baselines_and_both_ways_of_seen_items(bundle, tmp_path, capsys):
    dataset = write_pens(tmp_path / "pens")
    flags = ["--baselines", "popularity", "recent_popularity", "--tune", "--cache", str(tmp_path / "cache")]
    rows = run(bundle, dataset, tmp_path / "x.json", *flags, "--exclude_seen", "both", "--ks", "5")
    names = ["popularity", "recent_popularity", "pens_model"]
    assert [row["name"] for row in rows] == [name + end for name in names for end in ("", " (seen excluded)")]
    assert [row["exclude_seen"] for row in rows] == [False, True] * 3
    assert len(rows[2]["tuned"]["trials"]) == 5 * 4
    assert list((tmp_path / "cache" / "pens").glob("recent_popularity-*"))
    model = LLMRecommender.from_pretrained(bundle, device="cpu")
    test = load_dataset(dataset).split().test
    for row in rows[-2:]:
        expected = evaluate(model, test, items=ITEMS, ks=(5,), exclude_seen=row["exclude_seen"], progress=False)
        assert row["metrics"] == expected.metrics
        assert row["num_beams"] == 20
        assert read_lists(f"{tmp_path / 'x.lists.parquet'}:{row['name']}").tolist() == expected.recommended.tolist()
    assert "pens_model (seen excluded)" in capsys.readouterr().out


def test_embeddings_that_know_the_targets_are_named_beside_who_reads_them(bundle, tmp_path):
    dataset = write_pens(tmp_path / "pens")
    loaded = load_dataset(dataset)
    fitted_on = {"sequences_sha256": sequences_hash(loaded.interactions.sequences())}
    made = {"encoder": "ppmi_svd", "protocol": "leave_one_out", "fitted_on": fitted_on}
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 4))
    file = save_embeddings(tmp_path / "e.safetensors", vectors, {**made, "catalog_hash": loaded.catalog.hash})
    rows = run(
        bundle, dataset, tmp_path / "x.json", "--baselines", "popularity", "dense_text", "--embeddings", str(file)
    )
    said = {row["name"]: row.get("leaks") for row in rows}
    assert said == {
        "popularity": None,
        "dense_text": ["the embeddings were fitted on other interactions than the training part of 'leave_one_out'"],
        "pens_model": None,
    }
    assert rows[1]["embeddings"]["encoder"] == "ppmi_svd"
    assert all(row["beyond"]["diversity_encoder"] == "ppmi_svd" for row in rows)


def test_a_whole_training_file_is_not_marked(bundle, tmp_path):
    dataset = write_pens(tmp_path / "pens")
    manifest = read_json(dataset / "manifest.json", "manifest")
    write_json(dataset / "manifest.json", {**manifest, "train": "published"})
    rows = run(bundle, dataset, tmp_path / "x.json", "--limit_users", "2", "--baselines", "popularity")
    assert not [row for row in rows if "train" in row]


def test_what_is_no_bundle_is_refused(tmp_path):
    dataset = write_pens(tmp_path / "pens")
    with pytest.raises(InputError, match="not a bundle"):
        run(dataset, dataset, tmp_path / "x.json")


def test_a_row_says_what_the_bundle_was_trained_as(bundle, tmp_path):
    told = tmp_path / "told"
    shutil.copytree(bundle, told)
    info = read_json(told / "llmrec.json", "manifest")
    write_json(told / "llmrec.json", {**info, "training": {"learning_rate": 0.1, "seed": 3}, "seed": 3})
    dataset = write_pens(tmp_path / "pens")
    [row] = run(told, dataset, tmp_path / "x.json", "--baselines", "--limit_users", "2")
    assert row["seed"] == 3
    assert row["trained_as"] == trained_as({**info, "training": {"learning_rate": 0.1, "seed": 4}, "seed": 4})
    assert row["latency"]["p95"] is None, "two requests"


def test_processes_wait_for_long_tuning(bundle, tmp_path, monkeypatch):
    def group(**settings):
        asked.append(settings["timeout"])
        raise InputError("no further")

    asked: list[timedelta] = []
    monkeypatch.setitem(main.__globals__, "PartialState", group)
    with pytest.raises(InputError, match="no further"):
        run(bundle, write_pens(tmp_path / "pens"), tmp_path / "x.json", "--tune")
    assert asked[0] >= timedelta(days=1)


@pytest.mark.slow
def test_two_processes_write_what_one_does(bundle, tmp_path):
    dataset = write_pens(tmp_path / "pens", extra=("new1", "new2"))
    flags = ["--unknown_items", "skip", "--exclude_seen", "true", "--max_tokens_per_batch", "500"]
    run(bundle, dataset, tmp_path / "one.json", *flags)
    common = ["--model", str(bundle), "--dataset", str(dataset), "--device", "cpu", *flags]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", RECIPE, *common,
         "--output", str(tmp_path / "two.json")],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.count("written to") == 1  # one process alone prints
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["results"] for name in ("one", "two"))
    for row in (*one, *two):
        assert row.pop("seconds") >= 0
        latency = row.pop("latency")
        assert latency["users_per_second"] > 0
        assert latency["requests"] == 30
    assert two == one
    for kind in ("ranks", "lists"):
        assert (tmp_path / f"two.{kind}.parquet").read_bytes() == (tmp_path / f"one.{kind}.parquet").read_bytes()
