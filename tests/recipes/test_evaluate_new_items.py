"""recipes/evaluate.py --new_items: items that a bundle never saw, brought in without training."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_kit import make_info, make_model, make_tokenizer
from encoder_kit import script
from pens_dataset import write_pens

from llmrec.artifacts import read_json, write_json
from llmrec.baselines import BASELINES
from llmrec.data.folder import load_dataset
from llmrec.decoding.recommender import LLMRecommender
from llmrec.embeddings.store import load_embeddings, save_embeddings
from llmrec.embeddings.tfidf import TfidfEncoder
from llmrec.errors import InputError
from llmrec.evaluation.new_items import bring_new_items
from llmrec.evaluation.results import read_ranks
from llmrec.hub import load_bundle, save_bundle
from llmrec.sids.methods import load_sid_tokenizer
from llmrec.sids.table import SIDTable
from llmrec.tasks.prompt import PromptForm

main = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "evaluate.py"))["main"]
FORM = PromptForm(domain="pens", max_history=4)
BASELINES_AT = {name: place for place, name in enumerate(BASELINES)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The whole dataset, the part without a quarter of its items, and a bundle of that part."""
    folder = tmp_path_factory.mktemp("new_items")
    whole = load_dataset(write_pens(folder / "pens"))
    script("hold_out_items")(["--dataset", str(folder / "pens"), "--share", "0.25", "--out", str(folder / "part")])
    part = load_dataset(folder / "part")
    vectors = np.random.default_rng(1).normal(size=(len(whole.catalog), 6)).astype(np.float32)
    known = [whole.catalog.row_of[item_id] for item_id in part.catalog.item_ids]
    for name, catalog, rows in (("whole", whole.catalog, slice(None)), ("part", part.catalog, known)):
        save_embeddings(
            folder / f"{name}.safetensors", vectors[rows], {"encoder": "mine", "catalog_hash": catalog.hash}
        )
    script("learn_sids")(
        ["--dataset", str(folder / "part"), "--embeddings", str(folder / "part.safetensors"), "--levels", "2",
         "--codebook_size", "6", "--unique", "append_rank", "--out", str(folder / "sids")]
    )  # fmt: skip
    table = SIDTable.load(folder / "sids")
    tokenizer = make_tokenizer(table)
    save_bundle(
        folder / "bundle", model=make_model(len(tokenizer)), tokenizer=tokenizer, table=table,
        info=make_info(FORM, vocab_rows=len(tokenizer)), popularity=np.ones(30, np.int64), sids=folder / "sids",
    )  # fmt: skip
    return folder


def score(world, out, *flags):
    main(
        ["--model", str(world / "bundle"), "--dataset", str(world / "pens"), "--device", "cpu", "--output", str(out),
         "--new_items", str(world / "whole.safetensors"), *flags]
    )  # fmt: skip
    return json.loads(out.read_text())["results"]


def test_metrics_stand_apart_for_new_and_known_targets(world, tmp_path, capsys):
    results = score(world, tmp_path / "x.json", "--ks", "3", "10", "--unknown_items", "skip")
    dataset, part = load_dataset(world / "pens"), load_dataset(world / "part")
    new = {row for row, item_id in enumerate(dataset.catalog.item_ids) if item_id not in part.catalog.row_of}
    rows = dataset.split("leave_one_out").test
    is_new = np.array([row.target in new for row in rows])
    assert 0 < is_new.sum() < len(rows)
    for row in results:
        ranks = read_ranks(f"{tmp_path / 'x.ranks.parquet'}:{row['name']}")
        for name, chosen in (("new", is_new), ("known", ~is_new)):
            found = row["by_target"][name]
            assert found["users"] == chosen.sum()
            hits = [0 <= rank < 3 for rank in ranks[chosen].tolist()]
            assert found["metrics"]["recall@3"] == pytest.approx(sum(hits) / len(hits), abs=1e-12)
    # Random weights rank new items like all others; a baseline that never counted them cannot.
    assert results[-1]["by_target"]["new"]["metrics"]["recall@10"] > 0
    assert results[BASELINES_AT["transitions"]]["by_target"]["new"]["metrics"]["recall@10"] == 0
    printed = capsys.readouterr().out
    assert "10 new items" in printed
    assert "new targets among new items" in printed


def test_text_ranks_new_items_that_counts_do_not_know(world, tmp_path, capsys):
    flags = ["--ks", "3", "20", "--unknown_items", "skip", "--exclude_seen", "both"]
    results = score(world, tmp_path / "x.json", *flags)
    names = [*BASELINES, "dense_text", "bundle"]
    assert [row["name"] for row in results] == [name + end for name in names for end in ("", " (seen excluded)")]
    rows = {row["name"]: row for row in results}
    for end in ("", " (seen excluded)"):
        assert rows[f"dense_text{end}"]["by_target"]["new"]["metrics"]["recall@20"] > 0
        # Nothing was counted of new items, so that they stand behind all others.
        assert rows[f"popularity{end}"]["by_target"]["new"]["metrics"]["recall@20"] == 0
        assert rows[f"bundle{end}"]["new_items"]["among_new"]["users"] > 0
    printed = capsys.readouterr().out
    assert printed.count("new targets among new items") == 2


def test_items_land_where_the_quantizer_puts_them(world):
    dataset, part = load_dataset(world / "pens"), load_dataset(world / "part")
    bundle, new = bring_new_items(load_bundle(world / "bundle"), dataset, world / "whole.safetensors")
    vectors = load_embeddings(world / "whole.safetensors", catalog=dataset.catalog)
    codes = load_sid_tokenizer(world / "sids").encode(torch.from_numpy(np.ascontiguousarray(vectors))).numpy()
    old = [dataset.catalog.row_of[item_id] for item_id in part.catalog.item_ids]
    placed = [dataset.catalog.row_of[item_id] for item_id in bundle.table.item_ids[30:]]
    assert set(placed) <= set(new.rows.tolist())
    assert new.figures["placed"] == len(placed) == len(new.own_rows)
    same = []
    for row, sid in zip(placed, bundle.table.codes[30:].tolist(), strict=True):
        assert sid[0] == codes[row, 0]
        cosines = [
            float(vectors[row] @ vectors[other] / np.linalg.norm(vectors[row]) / np.linalg.norm(vectors[other]))
            for other in old
        ]
        same.append(bundle.table.codes[int(np.argmax(cosines)), 0] == sid[0])
    depth = new.figures["as_nearest"][0]
    assert depth["share"] == pytest.approx(np.mean(same))
    by_chance = [np.mean(bundle.table.codes[:30, 0] == sid[0]) for sid in bundle.table.codes[30:]]
    assert depth["chance"] == pytest.approx(np.mean(by_chance))
    assert len(bundle.vocab.popularity) == len(bundle.table) == len(bundle.vocab)


def test_among_new_items_only_they_come_out(world, tmp_path):
    results = score(world, tmp_path / "x.json", "--ks", "1", "5", "--unknown_items", "skip", "--baselines")
    among = results[-1]["new_items"]["among_new"]
    dataset = load_dataset(world / "pens")
    bundle, new = bring_new_items(load_bundle(world / "bundle"), dataset, world / "whole.safetensors")
    model = LLMRecommender.from_bundle(bundle)
    own = {item_id: row for row, item_id in enumerate(bundle.table.item_ids)}
    ids = dataset.catalog.item_ids
    rows = [row for row in dataset.split("leave_one_out").test if row.target in set(new.rows.tolist())]
    hits = []
    for row in rows:
        history = [own[ids[item]] for item in row.items if ids[item] in own]
        ranked = model.recommend([history], len(own))[0].tolist()
        first = [item for item in ranked if item in set(new.own_rows.tolist())][:5]
        hits.append(own.get(ids[row.target]) in first)
    assert among["users"] == len(rows)
    assert among["metrics"]["recall@5"] == pytest.approx(np.mean(hits))


def test_what_cannot_be_brought_in_is_refused_and_nothing_is_written(world, tmp_path):
    out = tmp_path / "x.json"
    with pytest.raises(InputError, match=r"--new_items: the bundle knows all items"):
        main(
            ["--model", str(world / "bundle"), "--dataset", str(world / "part"), "--device", "cpu", "--output",
             str(out), "--new_items", str(world / "part.safetensors")]
        )  # fmt: skip
    with pytest.raises(InputError, match="catalog"):
        main(
            ["--model", str(world / "bundle"), "--dataset", str(world / "pens"), "--device", "cpu", "--output",
             str(out), "--new_items", str(world / "part.safetensors")]
        )  # fmt: skip
    for file in (world / "whole.safetensors", world / "whole.safetensors.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = read_json(tmp_path / "whole.safetensors.json", "manifest")
    write_json(tmp_path / "whole.safetensors.json", {**manifest, "encoder": "another"})
    with pytest.raises(InputError, match="made in another way"):
        main(
            ["--model", str(world / "bundle"), "--dataset", str(world / "pens"), "--device", "cpu", "--output",
             str(out), "--new_items", str(tmp_path / "whole.safetensors")]
        )  # fmt: skip
    assert not out.exists()


def test_without_a_file_items_are_embedded_as_the_bundle_s_were(tmp_path):
    dataset = load_dataset(write_pens(tmp_path / "pens"))
    script("hold_out_items")(["--dataset", str(tmp_path / "pens"), "--share", "0.25", "--out", str(tmp_path / "part")])
    files = {name: str(tmp_path / name) for name in ("e.safetensors", "sids", "bundle")}
    of_part = ["--dataset", str(tmp_path / "part")]
    script("embed_items")([*of_part, "--encoder", "tfidf", "--dim", "6", "--out", files["e.safetensors"]])
    learn = ["--embeddings", files["e.safetensors"], "--levels", "2", "--codebook_size", "6", "--out", files["sids"]]
    script("learn_sids")([*of_part, *learn])
    table = SIDTable.load(files["sids"])
    tokenizer = make_tokenizer(table)
    save_bundle(
        files["bundle"], model=make_model(len(tokenizer)), tokenizer=tokenizer, table=table,
        info=make_info(FORM, vocab_rows=len(tokenizer)), sids=files["sids"],
    )  # fmt: skip
    bundle, new = bring_new_items(load_bundle(files["bundle"]), dataset)
    fit = TfidfEncoder.load(tmp_path / "sids" / "tfidf.safetensors")
    vectors = torch.from_numpy(fit.embed(dataset.catalog.texts(["title"])))
    codes = load_sid_tokenizer(files["sids"]).encode(vectors)
    placed = [dataset.catalog.row_of[item_id] for item_id in bundle.table.item_ids[30:]]
    assert new.figures["placed"] == len(placed) > 0
    assert bundle.table.codes[30:, 0].tolist() == codes[placed, 0].tolist()
