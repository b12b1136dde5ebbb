"""recipes/suite.py: a bundle on many tasks, beside a control."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from bundle_kit import ITEMS, make_info, make_model, make_popularity, make_table, make_tokenizer, write_bundle
from pens_dataset import write_pens

from llmrec.data.folder import load_dataset
from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate
from llmrec.evaluation.slices import by_popularity
from llmrec.evaluation.task_suite import open_bundle
from llmrec.hub import save_bundle
from llmrec.sids.table import SIDTable
from llmrec.tasks.mixture import held_out_rows
from llmrec.tasks.prompt import PromptForm

main = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "suite.py"))["main"]
FORM = PromptForm(domain="pens", max_history=4)


@pytest.fixture(scope="module")
def pens(tmp_path_factory) -> Path:
    """The items in another order than the bundle has them."""
    return write_pens(tmp_path_factory.mktemp("pens") / "data", order=[*range(1, ITEMS), 0])


def bundle_of(path: Path, *, seed: int = 0, shuffled: bool = False, **info) -> Path:
    table = make_table()
    if shuffled:
        codes = np.random.default_rng(1).permutation(table.codes)
        table = SIDTable(table.item_ids, codes, table.codebook_sizes, "random")
    tokenizer = make_tokenizer(table)
    model = make_model(len(tokenizer), seed=seed)
    said = make_info(FORM, vocab_rows=len(tokenizer), **info) | {"sids": {"method": table.method}}
    save_bundle(path, model=model, tokenizer=tokenizer, table=table, info=said, popularity=make_popularity())
    return path


def run(out: Path, *flags: object) -> dict:
    main([str(flag) for flag in ("--output", out, "--num_beams", 10, "--device", "cpu", *flags)])
    return json.loads(out.read_text())


def test_the_suite_beside_a_control(pens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"settings": {"hold_out_items": 0.2}, "tasks": {"next_item": 1.0, "title_to_sid": {"weight": 2.0}}}
    bundle, control = bundle_of(tmp_path / "a", **settings), bundle_of(tmp_path / "b", shuffled=True, **settings)
    found = run(
        tmp_path / "suite.json", "--model", bundle, "--control", control, "--dataset", pens, "--tasks", "all", "--ks",
        1, 5,
    )  # fmt: skip
    rows = {row["task"]: row for row in found["tasks"]}
    names = ["next_item", "cold_start", "query_to_sid", "denoise", "sid_to_title", "title_to_sid"]
    assert list(rows) == names
    assert [rows[name]["learned"] for name in names] == [True, True, False, False, False, True]
    assert found["control_sids"] == "random"
    assert found["made_by"]["command"]

    # Next item is what evaluate finds, in the order of the dataset's rows.
    dataset = load_dataset(pens)
    test = dataset.split("leave_one_out", max_history=4).test
    opened = open_bundle(bundle, dataset, device="cpu")
    assert opened.held_out == {
        dataset.catalog.row_of[make_table().item_ids[row]] for row in held_out_rows(ITEMS, 0.2, 0)
    }
    model = LLMRecommender(opened.model.model, opened.model.tokenizer, opened.model.vocab, FORM, num_beams=10)
    scored = evaluate(model, test, items=ITEMS, ks=[1, 5], progress=False)
    assert rows["next_item"]["metrics"]["recall@5"] == pytest.approx(scored.metrics["recall@5"])
    assert rows["next_item"]["examples"] == 30
    slicing = by_popularity(np.array([row.target for row in test]), opened.model.vocab.popularity)
    assert rows["cold_start"]["examples"] == int((slicing.member >= 2).sum())
    assert rows["title_to_sid"]["examples"] == len(opened.held_out) == 8

    for name in names:
        row, main_metric = rows[name], rows[name]["main"]
        difference = row["differences"][main_metric]
        assert difference["difference"] == pytest.approx(row["metrics"][main_metric] - row["control"][main_metric])
        assert difference["low"] <= difference["difference"] <= difference["high"]
    said = capsys.readouterr().out
    assert "query_to_sid (not trained on)" in said


def test_a_bundle_is_no_better_than_itself(pens: Path, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "a")
    found = run(
        tmp_path / "suite.json", "--model", bundle, "--control", bundle, "--dataset", pens, "--limit", 5,
        "--split", "valid",
    )  # fmt: skip
    for row in found["tasks"]:
        assert row["examples"] <= 5
        assert row["metrics"] == row["control"]
        assert {value["difference"] for value in row["differences"].values()} == {0.0}


def test_an_encoder_decoder_leaves_lists_out(pens: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_bundle(tmp_path / "t5", PromptForm(domain="pens", max_history=3), t5=True)
    found = run(
        tmp_path / "suite.json", "--model", tmp_path / "t5", "--dataset", pens, "--limit", 4,
        "--tasks", "next_session", "next_item", "sid_to_title",
    )  # fmt: skip
    assert [row["task"] for row in found["tasks"]] == ["next_item", "cold_start", "sid_to_title"]
    assert "next_session: an encoder-decoder model writes no list" in caplog.text


def test_refusals(pens: Path, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "a")
    other = bundle_of(tmp_path / "b", settings={"hold_out_items": 0.2})
    out = ("--output", str(tmp_path / "x.json"), "--device", "cpu")
    with pytest.raises(InputError, match=r"--control .*left other items out than .*; train both with the same"):
        main(["--model", str(bundle), "--control", str(other), "--dataset", str(pens), *out])
    more = write_pens(tmp_path / "more", extra=("new",))
    with pytest.raises(InputError, match=r"it has no SID for 1 items of the dataset, 'new' the first; .*--new_items"):
        main(["--model", str(bundle), "--dataset", str(more), *out])
    with pytest.raises(InputError, match="unknown task 'titles': choose one of"):
        main(["--model", str(bundle), "--dataset", str(pens), "--tasks", "titles", *out])
    with pytest.raises(InputError, match="sid_to_category needs a column 'categories'"):
        main(["--model", str(bundle), "--dataset", str(pens), "--tasks", "sid_to_category", *out])
    with pytest.raises(InputError, match="--limit -1"):
        main(["--model", str(bundle), "--dataset", str(pens), "--limit", "-1", *out])
    assert not (tmp_path / "x.json").exists()
