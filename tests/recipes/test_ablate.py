"""recipes/ablate.py: runs trained and scored once, gone on with, test opened when asked; its scripts in brief."""

import json
import runpy
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bundle_kit import make_table
from pens_dataset import write_pens
from safetensors.numpy import save_file

from llmrec.artifacts import read_yaml, write_json
from llmrec.data.folder import load_dataset
from llmrec.errors import InputError
from llmrec.evaluation.jobs import Cost, Scripts
from llmrec.hub.info import CARD_FILE
from llmrec.training.ablation import AblationConfig, Run, parse_run
from llmrec.training.config import RecipeArguments, SFTRecipeConfig
from llmrec.training.parser import parse_recipe

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "ablate.py"
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/grid_*_alignment.yaml"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    load_dataset(write_pens(tmp_path / "pens"))
    make_table().save(tmp_path / "sids")
    base = {
        "dataset": str(tmp_path / "pens"), "sids": str(tmp_path / "sids"), "model": "tiny-qwen3",
        "text_vocab_size": 300, "max_steps": 2, "per_device_train_batch_size": 8, "gradient_checkpointing": False,
        "use_cpu": True, "report_to": "none", "eval_strategy": "no", "save_strategy": "no", "output_dir": "elsewhere",
        "protocol": "leave_one_out",
    }  # fmt: skip
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(base))
    return write(tmp_path / "grid.yaml")


def write(path: Path, **changes: Any) -> Path:
    values = {
        "title": "Pens", "config": str(path.with_name("sft.yaml")), "work": str(path.with_name("work")),
        "results": str(path.with_name("out") / "pens.json"), "seeds": [0, 1],
        "variants": [
            {"name": "alone"},
            {"name": "with words", "settings": {"max_steps": 3, "tasks": {"next_item": 1.0, "sid_to_title": 0.5}}},
        ],
        **changes,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The scripts that the table calls; of models and scores only the files that count are made."""
    calls: list[list[str]] = []

    def run(self: Scripts, script: Path, arguments: list[str], *, log: Path) -> Cost:
        assert script.is_file()
        calls.append([script.name, *arguments])
        given = dict(pairwise(arguments))
        if script.name == "sft.py":
            said = read_yaml(given["--config"], "config")
            path = Path(said["output_dir"])
            path.mkdir(parents=True)
            save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(said["seed"] + 1)}, path / "model.safetensors")
            save_file({"c": np.zeros((256, 8), np.float32)}, path / "quantizer.safetensors")
            (path / CARD_FILE).write_text("a model")
            return Cost(120.0, 60.0)
        words = "with words" in arguments
        metrics = {f"{name}@{k}": 0.01 * k + 0.1 * words for name in ("recall", "ndcg") for k in (5, 10)}
        row = {"name": "x", "dataset": "pens", "users": 30}
        halved = {key: value / 2 for key, value in metrics.items()}
        results = [
            {**row, "exclude_seen": False, "metrics": metrics},
            {**row, "exclude_seen": True, "metrics": halved},
        ]
        write_json(given["--output"], {"results": results})
        return Cost(6.0, 3.0)

    monkeypatch.setattr(Scripts, "run", run)
    return calls


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    # SIGTERM, as the recipe takes it, is not for the process of the tests.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    run = runpy.run_path(str(RECIPE))["main"]
    return lambda config, *flags: run(["--config", str(config), *flags])


def names(calls: list[list[str]]) -> list[str]:
    return [call[0].removesuffix(".py") + ("" if "test" not in call else " test") for call in calls]


def rows(config: Path) -> list[dict[str, Any]]:
    return json.loads((config.parent / "out" / "pens.json").read_text())["rows"]


def test_all_rows_and_none_twice(config: Path, called, main, capsys):
    main(config)
    assert names(called) == ["sft", "evaluate"] * 4
    found = rows(config)
    assert [(row["name"], row["seed"], row["steps"]) for row in found] == [
        ("alone", 0, 2), ("with words", 0, 3), ("alone", 1, 2), ("with words", 1, 3)
    ]  # fmt: skip
    assert [row["stored_parameters"] for row in found] == [13, 13, 14, 14], "3 x 4 and one, or two"
    assert set(found[1]["metrics"]) == {"valid"}
    kept = {"recall@5": 0.15, "recall@10": 0.2, "ndcg@5": 0.15, "ndcg@10": 0.2}
    assert found[1]["metrics"]["valid"]["kept"] == pytest.approx(kept)
    excluded = {"recall@5": 0.075, "recall@10": 0.1, "ndcg@5": 0.075, "ndcg@10": 0.1}
    assert found[1]["metrics"]["valid"]["excluded"] == pytest.approx(excluded)
    assert found[0]["cost"] == {
        "training": {"seconds": 120.0, "processor_seconds": 60.0}, "valid": {"seconds": 6.0, "processor_seconds": 3.0}
    }  # fmt: skip
    page = (config.parent / "out" / "pens.md").read_text()
    same = " | ".join(["0.0500 ± 0.0000"] * 2 + ["0.1000 ± 0.0000"] * 2)
    half = " | ".join(["0.0250 ± 0.0000"] * 2 + ["0.0500 ± 0.0000"] * 2)
    assert f"| alone | 2 | {same} | {half} |" in page
    assert "| with words | 14 | 3 | 2.0 | 1.0 |" in page, "parameters 13.5, rounded to even"
    assert "## Validation, 30 rows" in page
    assert "## Test" not in page
    assert page in capsys.readouterr().out

    called.clear()
    main(config)
    assert called == []
    assert rows(config) == found
    assert "4 runs, 4 of them finished" in capsys.readouterr().out


def test_what_the_scripts_are_told(config: Path, called, main):
    main(config, "--only", "with words", "--seeds", "5")
    sft, score = called
    arguments, training = parse_recipe(sft[1:], RecipeArguments, SFTRecipeConfig)
    assert arguments.tasks == {"next_item": 1.0, "sid_to_title": 0.5}
    assert (training.seed, training.max_steps) == (5, 3)
    given = dict(pairwise(score))
    assert given["--model"] == training.output_dir
    wanted = {
        "--split": "valid", "--num_beams": "20", "--score": "full", "--exclude_seen": "both", "--device": "cpu",
        "--protocol": "leave_one_out", "--name": "with words",
    }  # fmt: skip
    assert {key: given[key] for key in wanted} == wanted
    assert "--limit_users" not in score
    assert [row["seed"] for row in rows(config)] == [5]
    assert "Not trained yet: alone." in (config.parent / "out" / "pens.md").read_text()


def test_test_is_opened_when_all_rows_are_there(config: Path, called, main):
    main(config, "--seeds", "0")
    assert "test" not in rows(config)[0]["metrics"]
    called.clear()
    main(config, "--seeds", "0", "--test")
    assert names(called) == ["evaluate test"] * 2
    assert rows(config)[0]["metrics"]["test"]["kept"]["recall@10"] == 0.1
    assert "## Test, 30 rows" in (config.parent / "out" / "pens.md").read_text()


def test_a_row_that_fails_leaves_test_closed_and_the_others_go_on(config: Path, called, main, monkeypatch):
    run = Scripts.run

    def fail(self: Scripts, script: Path, arguments: list[str], *, log: Path) -> Cost:
        if script.name == "sft.py" and "alone" in arguments[1]:
            raise InputError("sft.py ended with status 2: no memory")
        return run(self, script, arguments, log=log)

    monkeypatch.setattr(Scripts, "run", fail)
    with pytest.raises(InputError, match=r"1 runs failed: alone, seed 0: sft\.py ended with status 2: no memory"):
        main(config, "--seeds", "0", "--test")
    assert names(called) == ["sft", "evaluate"]
    assert [row["name"] for row in rows(config)] == ["with words"]


@pytest.mark.parametrize("step", range(4))
def test_a_table_that_was_killed_goes_on(config: Path, called, main, monkeypatch, step: int):
    run, made = Scripts.run, [0]

    def kill(self: Scripts, script: Path, arguments: list[str], *, log: Path) -> Cost:
        made[0] += 1
        if made[0] > step:
            raise KeyboardInterrupt
        return run(self, script, arguments, log=log)

    with monkeypatch.context() as patch:
        patch.setattr(Scripts, "run", kill)
        with pytest.raises(KeyboardInterrupt):
            main(config, "--seeds", "0")
    main(config, "--seeds", "0")
    assert names(called) == ["sft", "evaluate"] * 2, "what was done before is not done again"
    assert len(rows(config)) == 2


def test_other_settings_are_other_runs(config: Path, called, main):
    main(config, "--seeds", "0")
    called.clear()
    write(config, settings={"max_steps": 4})
    main(config, "--seeds", "0")
    assert names(called) == ["sft", "evaluate"], "with words says its own steps, so that it is the same run"
    called.clear()
    write(config, settings={"max_steps": 4}, evaluate={"num_beams": 10})
    main(config, "--seeds", "0")
    assert names(called) == ["evaluate"] * 2


def test_a_dry_run_and_a_limit(config: Path, called, main, capsys):
    main(config, "--dry_run")
    assert "with words, seed 1: " in capsys.readouterr().out
    assert called == []
    assert not (config.parent / "out").exists()
    begun = time.monotonic()
    main(config, "--limit_minutes", "-1")
    assert called == [], f"no time is left before the first run ({time.monotonic() - begun:.1f} s)"
    assert "4 runs were not started for want of time" in capsys.readouterr().out
    assert "No row is finished yet." in (config.parent / "out" / "pens.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": []}, "no list 'variants'; each has a name and settings"),
        ({"variants": [{"settings": {}}]}, "variant 0: missing 1 required positional argument: 'name'"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "two variants are named 'a'"),
        ({"variants": [{"name": "a", "settings": {"output_dir": "x"}}]}, "a: 'output_dir' is set by the table"),
        ({"variants": [{"name": "a", "settings": {"dataset": "x"}}]}, "a: 'dataset' would change what is scored"),
        (
            {"variants": [{"name": "a", "settings": {"leraning_rate": 1}}]},
            "variant 'a': .*unknown key 'leraning_rate'",
        ),
        ({"recipe": "ppo"}, "recipe: 'ppo'; choose one of sft"),
        ({"metric": "ndcg@7"}, r"metric: 'ndcg@7' is not measured with ks \[5, 10\]"),
        ({"evaluate": {"score": "best"}}, "evaluate: score: 'best'; choose one of full, sids, allowed"),
        ({"evaluate": {"exclude_seen": "often"}}, "evaluate: exclude_seen: 'often'; true, false or both"),
        ({"evaluate": {"beams": 3}}, "evaluate: unknown key 'beams'"),
        ({"seed": 3}, "unknown key 'seed'; known are title"),
    ],
)
def test_a_table_that_cannot_be(config: Path, called, main, changes: dict[str, Any], message: str):
    write(config, **changes)
    with pytest.raises(InputError, match=message):
        main(config)
    assert called == []


def test_flags_that_do_not_fit(config: Path, called, main):
    with pytest.raises(InputError, match="--only 'words': no variant of that name; there are 'alone', 'with words'"):
        main(config, "--only", "words")
    with pytest.raises(InputError, match="--jobs 0: at least 1"):
        main(config, "--jobs", "0")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_tables_of_this_repository(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    table = AblationConfig.load(path)
    assert f"--config {path.relative_to(ROOT)}" in path.read_text()
    parsed = {}
    for variant in table.variants:
        parsed[variant.name] = parse_run(Run(variant, 0, table.config_of(variant, seed=0), {}, table))
    scratch, alone = parsed["from scratch"], parsed["next_item alone"]
    assert scratch[0].random_weights
    assert not alone[0].random_weights
    assert scratch[0].tasks == alone[0].tasks == {"next_item": 1.0}
    if "6l" not in path.stem:
        assert len(table.seeds) == 3
        assert {made[0].method for made in parsed.values()} == {"full", "lora", "new_rows"}
        texts = parsed["all tasks, LoRA"][0].tasks
        assert set(parsed["+ item text"][0].tasks) < set(texts)
        assert "sid_history_to_title" in texts


@pytest.mark.slow
def test_a_table_for_real(config: Path, main):
    evaluate = {"ks": [5, 10], "num_beams": 10, "limit_users": 4, "loss_users": 6}
    write(config, seeds=[0], evaluate=evaluate)
    main(config, "--test")
    found = rows(config)
    assert [row["steps"] for row in found] == [2, 3]
    for row in found:
        assert row["users"] == {"valid": 4, "test": 4}
        assert row["loss"]["users"] == 6
        assert 0 < row["loss"]["nats"] < 40
        assert set(row["metrics"]["test"]) == {"kept", "excluded"}
        assert row["stored_parameters"] > 1000
    assert "nats a SID |" in (config.parent / "out" / "pens.md").read_text()
