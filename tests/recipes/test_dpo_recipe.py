"""recipes/dpo.py: from a bundle to a bundle, whatever trains; configs that parse; what is refused."""

import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.hub import load_bundle, save_bundle
from llmrec.sids.table import SIDTable
from llmrec.tasks.prompt import PromptForm
from llmrec.training.adapters import attach_adapter
from llmrec.training.dpo_config import NOT_FOLLOWED, DPOArguments, DPORecipeConfig
from llmrec.training.model import QUANTIZATION
from llmrec.training.parser import parse_recipe
from llmrec.training.preference_rows import encode_preferences, hold_out
from tests.bundle_kit import spread_weights
from tests.training.conftest import (  # noqa: F401
    catalog,
    dataset,
    make_model,
    sid_folder,
    table,
    tokenizer,
    vocab,
)

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/dpo_*.yaml"))
FORM = PromptForm("plain", "pens", max_history=5)


@pytest.fixture(scope="module")
def recipe() -> Callable[[Sequence[str]], None]:
    return runpy.run_path(str(ROOT / "recipes" / "dpo.py"))["main"]


@pytest.fixture
def bundle(make_model, tokenizer, table, vocab, dataset, tmp_path: Path) -> Callable[..., Path]:  # noqa: F811
    """Write a bundle to start from; the base of an adapter is a folder beside it."""

    def write(method: str = "full", *, name: str = "start", seed: int = 0) -> Path:
        path, base = tmp_path / name, tmp_path / f"{name}-base"
        model = make_model(hidden=64 if method == "qlora" else 32)
        info: dict[str, Any] = {
            "name": name,
            "dataset": {
                "name": dataset.name, "catalog_hash": dataset.catalog.hash, "licence": "CC0-1.0", "source": "made up",
            },
            "protocol": "leave_one_out", "prompt": FORM.to_dict(), "base_model": "tiny-qwen3", "base_revision": None,
            "method": method, "vocab_rows": 640, "seed": 0, "sids": {"sid_hash": table.hash}, "metrics": [],
        }  # fmt: skip
        if method != "full":
            spread_weights(model, seed=3, scale=0.2)
            model.save_pretrained(base)
            tokenizer.save_pretrained(base)
            info |= {"base_model": str(base), "quantization": dict(QUANTIZATION) if method == "qlora" else None}
            model = attach_adapter(model, vocab, method=method, rank=4)
        spread_weights(model, seed=seed, scale=0.2)
        save_bundle(path, model=model, tokenizer=tokenizer, table=table, info=info, titles=dataset.catalog.titles)
        return path

    return write


@pytest.fixture
def flags(dataset, tmp_path: Path) -> Callable[..., list[str]]:  # noqa: F811
    def make(model: Path, **settings: Any) -> list[str]:
        given = {
            "dataset": dataset.path, "model": model, "output_dir": tmp_path / "run", "negatives": '{"popularity": 3}',
            "prompts": 60, "max_steps": 4, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "eval_users": 20,
            "eval_beams": 10, "learning_rate": 1e-3, "per_device_train_batch_size": 8, "report_to": "none",
            "use_cpu": True, "disable_tqdm": True, **settings,
        }  # fmt: skip
        return [text for key, value in given.items() for text in (f"--{key}", str(value))]

    return make


def history(out: Path, step: int = 4) -> list[dict[str, Any]]:
    return json.loads((out / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_config_parses(path: Path, tmp_path: Path) -> None:
    arguments, training = parse_recipe(
        ["--config", str(path), "--output_dir", str(tmp_path)], DPOArguments, DPORecipeConfig
    )
    assert arguments.dataset.startswith("data/")
    assert training.load_best_model_at_end or arguments.interpolate, "validation chooses the weights"
    assert training.eval_on_start or arguments.interpolate, "and the start is one of them"


def test_a_share_of_the_way_is_chosen_without_any_other_evaluation(recipe, bundle, flags, tmp_path: Path) -> None:
    given = flags(bundle(), interpolate=0.5, load_best_model_at_end=False, eval_strategy="no", save_strategy="no")
    recipe(given)
    info = json.loads((tmp_path / "run" / "llmrec.json").read_text())
    assert list(info["best"]["values"]) == ["0", "0.5"]
    assert info["metrics"][0]["metrics"]["ndcg@10"] == info["best"]["values"][f"{info['best']['share']:g}"]


def test_there_are_configs() -> None:
    assert {path.parent.name for path in CONFIGS} >= {"demo", "office"}


@pytest.mark.parametrize(("before", "method"), [
    ("full", None), ("lora", None), ("full", "lora"), pytest.param("qlora", None, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_bundle_comes_out(recipe, bundle, flags, tmp_path: Path, before: str, method: str | None) -> None:
    start = bundle(before)
    more = {} if method is None else {"method": method, "lora_r": 4}
    recipe(flags(start, metric_for_best_model="loss", **more))
    out = tmp_path / "run"
    logs = history(out)
    first = next(entry for entry in logs if "eval_loss" in entry)
    assert first["step"] == 0
    assert first["eval_loss"] == pytest.approx(math.log(4), abs=2e-6), "the reference is the start"
    assert {"eval_preference/accuracy", "eval_rewards/margins"} <= first.keys()
    assert any("eval_ndcg@10" in entry for entry in logs)
    info = json.loads((out / "llmrec.json").read_text())
    assert (info["stage"], info["start_from"], info["method"]) == ("dpo", str(start), method or before)
    assert info["best"]["step"] > 0, "on these rows it learns"
    assert info["best"]["start"] == pytest.approx(math.log(4), abs=2e-6)
    assert info["metrics"][0]["split"] == "valid"
    found = LLMRecommender.from_pretrained(out).recommend([[1, 2]], k=3)
    assert len(found[0]) == 3
    assert [path.name for path in (tmp_path / "reference-log-probs").iterdir()]
    with pytest.raises(InputError, match="holds this very run, finished"):
        recipe(flags(start, metric_for_best_model="loss", **more))


def test_a_run_that_learns_nothing_good_ends_with_its_start(recipe, bundle, flags, tmp_path: Path) -> None:
    start = bundle()
    recipe(flags(start, learning_rate=0.5, metric_for_best_model="loss"))
    out = tmp_path / "run"
    info = json.loads((out / "llmrec.json").read_text())
    assert info["best"]["step"] == 0
    before, after = load_bundle(start).model.state_dict(), load_bundle(out).model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.slow
def test_a_killed_run_goes_on(recipe, bundle, flags, tmp_path: Path, monkeypatch) -> None:
    start = bundle()
    settings = {"save_total_limit": 5, "metric_for_best_model": "loss"}
    recipe(flags(start, output_dir=tmp_path / "whole", **settings))
    recipe(flags(start, **settings))
    out = tmp_path / "run"
    (out / "README.md").unlink()  # as if it had been killed behind step 2
    for file in (out / "checkpoint-4").iterdir():
        file.unlink()
    (out / "checkpoint-4").rmdir()
    recipe(flags(start, **settings))
    one, two = load_bundle(out).model.state_dict(), load_bundle(tmp_path / "whole").model.state_dict()
    assert all(torch.equal(two[name], value) for name, value in one.items())
    assert [entry["loss"] for entry in history(out) if "loss" in entry] == [
        entry["loss"] for entry in history(tmp_path / "whole") if "loss" in entry
    ]


def test_another_bundle_as_the_reference(recipe, bundle, flags, tmp_path: Path) -> None:
    recipe(flags(bundle(), reference=bundle(name="other", seed=7), eval_on_start=True))
    first = next(entry for entry in history(tmp_path / "run") if "eval_loss" in entry)
    assert abs(first["eval_loss"] - math.log(4)) > 1e-3


def test_a_reference_of_another_base_is_refused(recipe, bundle, flags) -> None:
    with pytest.raises(InputError, match=r"reference: .* was made from another base model"):
        recipe(flags(bundle(), reference=bundle("lora", name="other")))


def test_log_probabilities_of_another_reference_are_refused(recipe, bundle, flags, tmp_path: Path) -> None:
    file = tmp_path / "reference.safetensors"
    start = bundle()
    recipe(flags(start, reference_log_probs=file))
    assert file.is_file()
    assert file.with_name("reference-eval.safetensors").is_file()
    recipe(flags(start, reference_log_probs=file, output_dir=tmp_path / "again", beta=0.5))
    for settings, message in (
        ({"model": bundle(name="other", seed=1)}, "was made from other weights"),
        ({"softmax": "sids"}, "was made under another softmax"),
        ({"prompts": 40}, "was made for other rows"),
    ):
        with pytest.raises(InputError, match=message):
            recipe(flags(**{"model": start, "reference_log_probs": file, "output_dir": tmp_path / "no", **settings}))
    assert not (tmp_path / "no" / "run.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "sdpo"}, "loss_type: 'sdpo' is not known; choose of s_dpo, ddro, margin, sigmoid"),
        ({"loss_type": "margin"}, "loss_type: margin, and the training rows have no margins"),
        ({"beta": 0}, "beta: 0.0; above 0"),
        ({"label_smoothing": 0.6}, r"label_smoothing: 0.6; a share of wrong labels, in \[0, 0.5\)"),
        ({"loss_type": "exo_pair"}, "label_smoothing: 0 with loss_type: exo_pair"),
        ({"f_divergence_type": "forward_kl"}, "f_divergence_type: forward_kl with loss_type: s_dpo"),
        ({"ld_alpha": 0.5}, "ld_alpha: 0.5; it is not followed here"),
        ({"eval_preferences": 0}, "eval_preferences: 0; a whole number, at least 1"),
        ({"metric_for_best_model": "ndcg@7"}, "metric_for_best_model: 'ndcg@7' is not measured"),
        ({"max_length": 4}, "preferences: row .* tokens, max_length is 4; raise it"),
        ({"prompts": 1}, "preferences: 1 row, and one is held out"),
        ({"softmax": "words"}, "softmax: 'words'; choose one of full, sids, allowed"),
    ],
)
def test_bad_settings_are_refused_before_the_folder_is_touched(
    recipe, bundle, flags, tmp_path: Path, settings: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        recipe(flags(bundle(), **settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [name for name, _ in NOT_FOLLOWED])
def test_what_is_not_followed_is_a_field_of_trl(name: str, tmp_path: Path) -> None:
    assert hasattr(DPORecipeConfig(output_dir=str(tmp_path), use_cpu=True), name)


ROW = {"prompt": "", "chosen": 3, "rejected": [4, 5]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"rejected": [4, 3]}, "row 1: 3 is chosen and also rejected; leave it out"),
        ({"rejected": []}, "row 1: rejects no item; give at least one"),
        ({"chosen": 30}, "row 1: item 30 is not in the catalogue of 30 items, rows 0 to 29"),
        ({"rejected": [-1]}, "row 1: item -1 is not in the catalogue"),
        ({"chosen": [1, 2]}, "row 1: compares items with lists"),
        ({"chosen": [1, 2], "rejected": [[1, 2]]}, r"row 1: \[1, 2\] is chosen and also rejected"),
        ({"chosen": [], "rejected": [[1, 2]]}, "row 1: holds an empty list"),
        ({"chosen": None}, "row 1: has no 'chosen'"),
        ({"margins": [0.1]}, r"row 1: margins \[0.1\]; give 2 finite numbers"),
        ({"margins": [0.1, math.nan]}, r"row 1: margins .* give 2 finite numbers"),
        ({"margins": [0.1, 0.2]}, "row 0: has no margins, and other rows have"),
    ],
)
def test_bad_rows_are_refused(tokenizer, vocab, row: dict, message: str) -> None:  # noqa: F811
    with pytest.raises(InputError, match=message):
        encode_preferences([ROW, {**ROW, **row}], tokenizer=tokenizer, form=FORM, vocab=vocab)


def test_items_that_share_a_sid_cannot_be_told_apart(tokenizer, table, vocab) -> None:  # noqa: F811
    codes = table.codes.copy()
    codes[4] = codes[3]
    shared = type(vocab)(tokenizer, SIDTable(table.item_ids, codes, table.codebook_sizes, "by_hand"))
    with pytest.raises(InputError, match="row 0: 4 is chosen and also rejected, which has the SID of 3"):
        encode_preferences([ROW], tokenizer=tokenizer, form=FORM, vocab=shared)


def test_held_out_rows_are_no_training_rows() -> None:
    rows = Dataset.from_dict({"number": list(range(50))})
    train, held = hold_out(rows, count=500, seed=0)
    assert len(held) == 5, "at most a tenth"
    assert sorted([*train["number"], *held["number"]]) == list(range(50))
    assert hold_out(rows, count=2, seed=0)[1]["number"] == hold_out(rows, count=2, seed=0)[1]["number"]
    with pytest.raises(InputError, match="0 row, and one is held out"):
        hold_out(rows.select([]), count=1, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_train_as_one(bundle, flags, tmp_path: Path, method: str) -> None:
    """54 rows by 8 are 7 steps, the last of 6 rows, so one of two processes has a batch that is half empty."""
    start, found = bundle(method), []
    for processes in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        given = flags(
            start, output_dir=tmp_path / str(processes) / "run", per_device_train_batch_size=8 // processes,
            max_steps=8, eval_steps=4, save_steps=8, loss_type="s_dpo sigmoid", metric_for_best_model="loss",
        )  # fmt: skip
        given = [word for text in given for word in (text.split() if text == "s_dpo sigmoid" else [text])]
        command = [sys.executable, *(launcher if processes > 1 else []), str(ROOT / "recipes" / "dpo.py"), *given]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        logs = history(tmp_path / str(processes) / "run", 8)
        found.append([entry["loss"] for entry in logs if "loss" in entry])
        found[-1] += [entry["rewards/margins"] for entry in logs if "loss" in entry]
        measured = [entry for entry in logs if "eval_loss" in entry]
        found[-1] += [entry[name] for entry in measured for name in ("eval_loss", "eval_rewards/margins")]
    assert len(found[0]) == 16 + 2 * len(measured) > 16
    assert len(set(found[0])) > 12
    assert found[1] == pytest.approx(found[0], abs=1e-4)
