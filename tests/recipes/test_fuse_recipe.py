"""recipes/fuse.py: parts alone, and the fusion with weights chosen on validation."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from bundle_kit import ITEMS, write_bundle
from pens_dataset import write_pens

from llmrec.artifacts import read_json, write_json
from llmrec.baselines import ItemKNN
from llmrec.baselines.fusion import BeamFusion, RankFusion
from llmrec.data.folder import load_dataset, write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.decoding.recommender import LLMRecommender
from llmrec.embeddings.store import save_embeddings
from llmrec.errors import InputError
from llmrec.evaluation.bundle_row import trained_as
from llmrec.evaluation.evaluator import evaluate
from llmrec.evaluation.results import read_ranks
from llmrec.tasks.prompt import PromptForm

RECIPES = Path(__file__).parents[2] / "recipes"
main = runpy.run_path(str(RECIPES / "fuse.py"))["main"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "pens_model"
    write_bundle(path, PromptForm(domain="pens", max_history=4))
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_pens(tmp_path_factory.mktemp("data") / "pens")


def run(dataset, out, *flags):
    main(["--dataset", str(dataset), "--device", "cpu", "--depth", "20", "--output", str(out), *flags])
    return json.loads(out.read_text())["results"]


@pytest.mark.parametrize(("method", "excluded"), [("rrf", False), ("beam_fusion", True)])
def test_a_bundle_and_a_baseline(bundle, dataset, tmp_path, capsys, method, excluded):
    flags = ["--model", str(bundle), "--with", "item_knn", "--method", method, "--num_beams", "20"]
    rows = run(dataset, tmp_path / "x.json", *flags, "--exclude_seen", str(excluded).lower())
    name = f"pens_model + item_knn ({method})"
    assert [row["name"] for row in rows] == ["pens_model", "item_knn", name]
    assert all((row["split"], row["exclude_seen"], row["users"]) == ("test", excluded, 30) for row in rows)
    assert (rows[0]["num_beams"], rows[0]["model"], rows[2]["num_beams"]) == (20, str(bundle), None)

    splits = load_dataset(dataset).split("leave_one_out")
    model = LLMRecommender.from_pretrained(bundle, device="cpu", num_beams=20)
    parts = {"pens_model": model, "item_knn": ItemKNN().fit(splits.sequences, items=ITEMS)}
    fused = rows[2]["fused"]
    assert (fused["method"], fused["parts"], fused["depth"]) == (method, list(parts), 20)
    assert fused["chosen_on"] == "valid"
    kind, settings = (BeamFusion, {}) if method == "beam_fusion" else (RankFusion, {"constant": fused["constant"]})
    fusion = kind(parts, weights=fused["weights"], depth=20, **settings)
    shared = {"items": ITEMS, "ks": (5, 10), "exclude_seen": excluded, "progress": False}
    for row, system in zip(rows, (*parts.values(), fusion), strict=True):
        expected = evaluate(system, splits.test, **shared)
        assert row["metrics"] == expected.metrics
        assert read_ranks(f"{tmp_path / 'x.ranks.parquet'}:{row['name']}").tolist() == expected.ranks.tolist()
        assert row["beyond"]["validity@10"] == 1
    # What was chosen is the best that was tried, on validation rows and not on those that are scored.
    best = max(trial["metrics"]["ndcg@10"] for trial in rows[2]["tuned"]["trials"])
    chosen = evaluate(fusion, splits.valid, **{**shared, "ks": (10,)})
    assert chosen.metrics["ndcg@10"] == best
    assert rows[2]["tuned"]["chosen"]["weights"] == fused["weights"]
    printed = capsys.readouterr().out
    assert name in printed
    assert "chosen on validation" in printed


def test_baselines_with_one_another(dataset, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 4)).astype(np.float32)
    known = {"encoder": "drawn", "catalog_hash": load_dataset(dataset).catalog.hash}
    file = save_embeddings(tmp_path / "e.safetensors", vectors, known)
    flags = ["--with", "transitions", "dense_text", "popularity", "--cache", str(tmp_path / "cache")]
    flags += ["--embeddings", str(file), "--settings", '{"dense_text": {"last": 2}}']
    rows = run(dataset, tmp_path / "x.json", *flags)
    assert [row["name"] for row in rows][-1] == "transitions + dense_text + popularity (rrf)"
    assert rows[1]["settings"]["last"] == 2
    assert rows[1]["embeddings"]["encoder"] == "drawn"
    assert list(rows[3]["fused"]["weights"]) == ["transitions", "dense_text", "popularity"]
    again = run(dataset, tmp_path / "y.json", *flags)
    assert [row["metrics"] for row in again] == [row["metrics"] for row in rows]
    assert list((tmp_path / "cache" / "pens").iterdir())


def test_baselines_are_tuned_when_asked(dataset, tmp_path):
    rows = run(dataset, tmp_path / "x.json", "--with", "item_knn", "popularity", "--tune", "--limit_users", "5")
    assert rows[0]["tuned"]["split"] == "valid"
    assert {row["users"] for row in rows} == {5}


def test_seen_items_kept_and_left_out_in_one_file(dataset, tmp_path):
    flags = ["--with", "item_knn", "transitions"]
    both = run(dataset, tmp_path / "x.json", *flags, "--exclude_seen", "both")
    names = ["item_knn", "transitions", "item_knn + transitions (rrf)"]
    assert [row["name"] for row in both] == [*names, *(f"{name} (seen excluded)" for name in names)]
    for value, rows in (("false", both[:3]), ("true", both[3:])):
        alone = run(dataset, tmp_path / "y.json", *flags, "--exclude_seen", value)
        assert [row["metrics"] for row in alone] == [row["metrics"] for row in rows]
        assert alone[2]["fused"] == rows[2]["fused"]


def test_what_leaked_into_a_part_leaked_into_the_fusion(bundle, dataset, tmp_path):
    told = tmp_path / "told"
    shutil.copytree(bundle, told)
    info = read_json(told / "llmrec.json", "manifest")
    told_info = {**info, "training": {"learning_rate": 0.1}, "seed": 3, "protocol": "temporal"}
    write_json(told / "llmrec.json", told_info)
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 4)).astype(np.float32)
    made = {"encoder": "ppmi_svd", "protocol": "temporal", "catalog_hash": load_dataset(dataset).catalog.hash}
    file = save_embeddings(tmp_path / "e.safetensors", vectors, made)
    flags = ["--model", str(told), "--with", "dense_text", "popularity", "--embeddings", str(file)]
    flags += ["--protocol", "leave_one_out", "--limit_users", "4", "--num_beams", "20"]
    model, dense, popularity, fused = run(dataset, tmp_path / "x.json", *flags)
    assert model["leaks"] == ["the model was trained on the training part of 'temporal'"]
    assert len(dense["leaks"]) == 1
    assert "leaks" not in popularity
    assert fused["leaks"] == model["leaks"] + dense["leaks"]
    assert (model["seed"], model["trained_as"]) == (fused["seed"], fused["trained_as"]) == (3, trained_as(told_info))
    assert model["latency"]["requests"] == 4
    assert "latency" not in fused


def test_a_part_that_reads_times_gets_them(tmp_path):
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(20), 6)
    interactions = Interactions.sort(
        tuple(f"u{user}" for user in range(20)), users=users, items=rng.integers(0, 9, len(users)),
        timestamps=rng.permutation(len(users)) * 1000,
    )  # fmt: skip
    manifest = {"name": "x", "domain": "x", "source": "drawn", "licence": "none", "times": "seconds"}
    ids = tuple(f"i{item}" for item in range(9))
    write_dataset(tmp_path / "x", catalog=Catalog(ids, {"title": ids}), interactions=interactions, manifest=manifest)
    settings = {"hstu": {"times": True, "epochs": 1, "dim": 8}}
    flags = ["--with", "hstu", "item_knn", "--settings", json.dumps(settings), "--ks", "3", "--depth", "5"]
    rows = run(tmp_path / "x", tmp_path / "x.json", *flags, "--limit_users", "12")
    assert [row["users"] for row in rows] == [12] * 3
    assert rows[0]["settings"]["times"] is True
    beside = runpy.run_path(str(RECIPES / "baselines.py"))["main"]
    beside(["--dataset", str(tmp_path / "x"), "--device", "cpu", "--output", str(tmp_path / "y.json"),
            "--limit_users", "12", "--names", "hstu", "--settings", json.dumps(settings), "--ks", "3"])  # fmt: skip
    [alone] = json.loads((tmp_path / "y.json").read_text())["results"]
    assert alone["metrics"] == rows[0]["metrics"]


def test_items_that_the_bundle_does_not_know(bundle, tmp_path):
    dataset = write_pens(tmp_path / "pens", extra=("new1", "new2"))
    flags = ["--model", str(bundle), "--with", "transitions"]
    with pytest.raises(InputError, match="does not know 2 items of the dataset"):
        run(dataset, tmp_path / "x.json", *flags)
    for method in ("rrf", "beam_fusion"):
        rows = run(dataset, tmp_path / "x.json", *flags, "--unknown_items", "skip", "--method", method)
        assert rows[0]["unknown_items"] == "skip"
        assert rows[2]["beyond"]["illegal"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--with", "ease"], "--with ease: one part alone"),
        (["--with", "ease", "als", "--method", "beam_fusion"], "ranks by the scores of a model's beams; give --model"),
        (["--with", "ease", "transitions", "--ks", "25"], "--depth 20: lists of --ks 25 are made of it"),
        (
            ["--with", "ease", "transitions", "--depth", "41"],
            "depth 41: the catalogue has 40 items",
        ),
        (["--with", "ease", "dense_text"], "--embeddings: dense_text needs the items' embeddings"),
        (["--with", "ease", "nothing"], "unknown baseline 'nothing'"),
        (["--with", "ease", "ease"], "system name 'ease': taken"),
        (["--with", "ease", "als", "--settings", '{"popularity": {}}'], "'popularity' is not among --with ease als"),
        (["--with", "ease", "als", "--settings", "["], r"--settings \[: no JSON"),
        (
            ["--with", "ease", "transitions", "--depth", "36", "--exclude_seen", "true"],
            "holds 5 of them, .* at most 35",
        ),
        (["--with", "ease", "--model", "runs/none"], "runs/none"),
    ],
)
def test_bad_flags_are_refused_and_nothing_is_written(dataset, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run(dataset, tmp_path / "x.json", *flags)
    assert not list(tmp_path.iterdir())
