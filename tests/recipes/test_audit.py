"""recipes/audit.py from a dataset folder to verdict, JSON and page."""

import html
import runpy
from pathlib import Path

import numpy as np
import pytest
from pens_dataset import write_pens

from llmrec.artifacts import read_json
from llmrec.data.folder import load_dataset
from llmrec.embeddings.store import save_embeddings
from llmrec.errors import InputError
from llmrec.evaluation.audit_table import audit_table
from llmrec.evaluation.audit_words import judge
from llmrec.evaluation.evaluator import evaluate

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "recipes" / "audit.py"))
main = SCRIPT["main"]


def test_verdict_json_and_page(tmp_path, capsys):
    dataset = write_pens(tmp_path / "pens")
    out = tmp_path / "audit.html"
    main(["--dataset", str(dataset), "--output", str(out)])
    audit = read_json(tmp_path / "audit.json", "audit")
    printed = capsys.readouterr().out
    assert printed.startswith(f"pens (leave_one_out): {audit['verdict']['words']}\n")
    assert "note incomplete training" in printed
    assert audit["verdict"] == judge(audit)
    assert (audit["counts"]["users"], audit["counts"]["interactions"]) == (30, 180)
    assert audit["features"]["encoder"] == "TF-IDF"
    assert audit["catalog"] == load_dataset(dataset).catalog.hash
    assert audit["made_by"]["commit"]
    page = html.unescape(out.read_text())
    titles = load_dataset(dataset).catalog.titles
    assert sum(title in page for title in titles) > 3
    kept = read_json(tmp_path / "audit.json", "audit")
    assert not any(title in repr(kept) for title in titles)


def test_scores_are_those_of_the_evaluator_on_validation(tmp_path):
    dataset = write_pens(tmp_path / "pens")
    folder = load_dataset(dataset)
    items = len(folder.catalog)
    vectors = np.random.default_rng(0).normal(size=(items, 5)).astype(np.float32)
    save_embeddings(tmp_path / "e.safetensors", vectors, {"encoder": "drawn", "catalog_hash": folder.catalog.hash})
    flags = ["--embeddings", str(tmp_path / "e.safetensors"), "--exclude_seen", "false"]
    main(["--dataset", str(dataset), "--output", str(tmp_path / "a.html"), *flags])
    audit = read_json(tmp_path / "a.json", "audit")
    assert audit["features"]["encoder"] == "drawn"
    assert audit["heuristics"]["exclude_seen"] is False
    splits = folder.split()
    knn = SCRIPT["ItemKNN"]().fit(splits.sequences, items=items)
    wanted = evaluate(knn, splits.valid, items=items, ks=(10,), progress=False).metrics
    assert audit["heuristics"]["systems"]["item_knn"]["ndcg@10"] == pytest.approx(wanted["ndcg@10"])
    seen = {row.user: row for row in splits.test}
    assert audit["overlap"]["test_rows"] == len(seen) == 30


def test_embeddings_of_another_catalogue_are_refused(tmp_path):
    dataset = write_pens(tmp_path / "pens")
    vectors = np.ones((4, 2), dtype=np.float32)
    save_embeddings(tmp_path / "e.safetensors", vectors, {"encoder": "x", "catalog_hash": "other"})
    with pytest.raises(InputError, match="embeddings of another catalogue"):
        main(["--dataset", str(dataset), "--embeddings", str(tmp_path / "e.safetensors")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "x.json"], r"--output x.json: the page is a \*.html file"),
        (["--embeddings", "none.safetensors"], "none.safetensors: no such file"),
        (["--protocol", "temporal"], "its source has no times"),
        (["--protocol", "provided"], "protocol 'provided' needs a published split"),
    ],
)
def test_bad_flags_are_refused_and_nothing_is_written(tmp_path, monkeypatch, flags, message):
    dataset = write_pens(tmp_path / "pens")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main(["--dataset", str(dataset), *flags])
    assert [path.name for path in tmp_path.iterdir()] == ["pens"]


KEPT = sorted((ROOT / "docs" / "audits").glob("*.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_audits_still_say_what_their_figures_say(path):
    audit = read_json(path, "audit")
    assert audit["verdict"] == judge(audit)
    assert not audit["made_by"]["commit"].endswith("-dirty")


def test_the_table_of_kept_audits_is_made_of_them():
    audits = {path.stem: read_json(path, "audit") for path in KEPT}
    readme = (ROOT / "docs" / "audits" / "README.md").read_text(encoding="utf-8")
    assert audit_table(audits) in readme, audit_table(audits)
