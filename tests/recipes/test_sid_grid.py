"""recipes/sid_grid.py: rows made, skipped, gone on with; its scripts in brief, and once for real."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from bundle_kit import ITEMS
from pens_dataset import write_pens

from llmrec.artifacts import write_json
from llmrec.data.folder import load_dataset
from llmrec.embeddings.store import save_embeddings
from llmrec.errors import InputError
from llmrec.evaluation.grid import GridConfig
from llmrec.evaluation.jobs import Cost, Scripts
from llmrec.hub.info import CARD_FILE
from llmrec.training.config import RecipeArguments, SFTRecipeConfig
from llmrec.training.parser import parse_recipe

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "sid_grid.py"
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/grid_*_sids.yaml"))
SFT = {
    "dataset": "elsewhere", "sids": "elsewhere", "model": "tiny-qwen3", "text_vocab_size": 300, "output_dir": "x",
    "per_device_train_batch_size": 8, "gradient_checkpointing": False, "report_to": "none", "eval_strategy": "no",
    "save_strategy": "no",
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    dataset = load_dataset(write_pens(tmp_path / "pens"))
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 8)).astype(np.float32)
    save_embeddings(tmp_path / "text.safetensors", vectors, {"encoder": "x", "catalog_hash": dataset.catalog.hash})
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(SFT))
    grid = {
        "dataset": str(tmp_path / "pens"), "embeddings": str(tmp_path / "text.safetensors"), "seeds": [0, 1],
        "results": str(tmp_path / "out" / "pens.json"), "work": str(tmp_path / "work"), "codebook_size": 8,
        "train": {"config": str(tmp_path / "sft.yaml"), "max_minutes": 1, "settings": {"max_steps": 2}},
        "entries": [
            {"name": "fsq", "method": "fsq", "train": False},
            {"name": "residual_kmeans, once", "method": "residual_kmeans", "method_args": {"n_init": 1}},
            {"name": "random", "method": "random"},
        ],
    }  # fmt: skip
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    return tmp_path / "grid.yaml"


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The scripts that the grid calls; SIDs are learned, of models and scores only the files that count are made."""
    calls: list[list[str]] = []
    learn = runpy.run_path(str(ROOT / "data_prep" / "learn_sids.py"))["main"]

    def run(self: Scripts, script: Path, arguments: list[str], *, log: Path) -> Cost:
        assert script.is_file()
        calls.append([script.name, *arguments])
        given = dict(pairwise(arguments))
        if script.name == "learn_sids.py":
            learn(arguments)
        elif script.name == "sft.py":
            path = Path(given["--output_dir"])
            assert given["--overwrite_output_dir"] == str((path / CARD_FILE).is_file())
            path.mkdir(parents=True)
            (path / CARD_FILE).write_text("a model")
        else:
            hit = int(given["--split"] == "test")
            metrics = {f"{name}@{k}": 0.1 * k + hit for name in ("recall", "ndcg") for k in (5, 10)}
            write_json(given["--output"], {"results": [{"metrics": metrics, "users": 30}]})
        return Cost(6.0, 3.0)

    monkeypatch.setattr(Scripts, "run", run)
    return calls


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    # SIGTERM, as the recipe takes it, is not for the process of the tests.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    run = runpy.run_path(str(RECIPE))["main"]
    return lambda config, *flags: run(["--config", str(config), *flags])


def rows(config: Path) -> list[dict[str, Any]]:
    return json.loads((config.parent / "out" / "pens.json").read_text())["rows"]


def names(calls: list[list[str]]) -> list[str]:
    return [call[0].removesuffix(".py") for call in calls]


ROW = ["learn_sids", "sft", "evaluate", "evaluate"]


def test_all_rows_in_order_and_none_twice(config: Path, called, main, capsys):
    main(config)
    assert names(called) == [*ROW, *ROW, "learn_sids"] * 2
    found = rows(config)
    assert [(row["name"], row["seed"]) for row in found] == [
        (name, seed) for seed in (0, 1) for name in ("residual_kmeans, once", "random", "fsq")
    ]
    assert found[0]["metrics"]["test"]["recall@10"] == 2.0
    assert found[0]["users"] == {"test": 30, "valid": 30}
    assert found[0]["cost"]["training"] == {"seconds": 6.0, "processor_seconds": 3.0}
    assert "metrics" not in found[2]
    assert not found[0]["quality"]["stability"]
    assert found[3]["quality"]["stability"]["other seed"][0]["adjusted_mutual_information"] <= 1
    page = (config.parent / "out" / "pens.md").read_text()
    # Two scripts of six seconds a run.
    assert "| random | 2 | 2.0000 ± 0.0000 | 2.0000 ± 0.0000 | 1.0000 ± 0.0000 | 1.0000 ± 0.0000 | 4 | 0.2 |" in page
    assert page in capsys.readouterr().out

    called.clear()
    main(config)
    assert called == []
    assert rows(config) == found
    assert "6 rows, 6 of them on file" in capsys.readouterr().out


def test_what_the_scripts_are_told(config: Path, called, main):
    main(config, "--only", "residual_kmeans", "--seeds", "1")
    learn, sft, test, valid = called
    learned = dict(pairwise(learn))
    assert learned["--method_args"] == '{"n_init": 1}'
    assert (learned["--seed"], learned["--levels"], learned["--codebook_size"]) == ("1", "3", "8")
    assert "--collaborative" not in learned
    # The recipe's parser reads what it is told, and the grid's word goes before the file's.
    arguments, training = parse_recipe(sft[1:], RecipeArguments, SFTRecipeConfig)
    assert (arguments.dataset, arguments.sids) == (str(config.parent / "pens"), learned["--out"])
    assert (training.max_steps, training.seed, training.output_dir) == (2, 1, test[test.index("--model") + 1])
    assert training.use_cpu
    assert [call[call.index("--split") + 1] for call in (test, valid)] == ["test", "valid"]
    assert all(call[call.index("--ks") + 1 :][:4] == ["5", "10", "--num_beams", "20"] for call in (test, valid))
    assert "--exclude_seen" not in test


@pytest.mark.parametrize("step", range(4))
def test_a_grid_that_was_killed_goes_on(config: Path, called, main, step: int):
    run, steps = Scripts.run, iter(range(10))

    def killed(self: Scripts, *args: Any, **more: Any) -> Cost:
        if next(steps) == step:
            raise KeyboardInterrupt
        return run(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scripts, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            main(config, "--only", "random", "--seeds", "0")
    assert names(called) == ROW[:step]
    assert not (config.parent / "out").exists()
    main(config, "--only", "random", "--seeds", "0")
    assert names(called) == ROW, "every step once"
    assert rows(config)[0]["cost"]["training"] == {"seconds": 6.0, "processor_seconds": 3.0}


def test_a_row_that_fails_is_named_at_the_end(config: Path, called, main, monkeypatch):
    run = Scripts.run

    def fails(self: Scripts, script: Path, arguments: list[str], *, log: Path) -> Cost:
        if script.name == "sft.py" and "random" in str(log):
            raise InputError("sft.py ended with status 1: no memory")
        return run(self, script, arguments, log=log)

    monkeypatch.setattr(Scripts, "run", fails)
    with pytest.raises(InputError, match=r"1 rows failed: random, seed 0: sft\.py ended with status 1: no memory"):
        main(config, "--seeds", "0", "--jobs", "2")
    assert sorted(row["name"] for row in rows(config)) == ["fsq", "residual_kmeans, once"]
    assert "| fsq |" in (config.parent / "out" / "pens.md").read_text()


def test_sids_first_and_models_later(config: Path, called, main):
    main(config, "--quality_only", "--seeds", "0")
    assert names(called) == ["learn_sids"] * 3
    assert all("metrics" not in row for row in rows(config))
    called.clear()
    main(config, "--only", "random", "--seeds", "0")
    assert names(called) == ROW[1:]
    called.clear()
    main(config, "--quality_only", "--seeds", "0")
    assert called == []
    assert sum("metrics" in row for row in rows(config)) == 1, "a model on file is not forgotten"


def test_again_makes_the_chosen_rows_anew(config: Path, called, main):
    main(config, "--seeds", "0")
    called.clear()
    main(config, "--seeds", "0", "--only", "random", "--again")
    assert names(called) == ROW
    assert [row["name"] for row in rows(config)] == ["residual_kmeans, once", "fsq", "random"]


def test_in_time(config: Path, called, main, capsys):
    main(config, "--max_minutes", "0")
    # The first is started at time zero or a moment later, all others are not.
    assert len(called) <= 4
    assert "rows were not started for want of time; the same command makes them" in capsys.readouterr().out


def test_jobs_below_one(config: Path, main):
    with pytest.raises(InputError, match="--jobs 0: at least 1"):
        main(config, "--jobs", "0")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_grids_of_this_repository(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    grid = GridConfig.load(path)
    assert f"--config {path.relative_to(ROOT)}" in path.read_text()
    assert (grid.levels, grid.codebook_size) == (3, 256)
    assert {entry.method for entry in grid.entries} == {
        "random", "sequential", "collaborative", "residual_kmeans", "residual_kmeans_plus", "rq_vae", "r_vq",
        "product", "fsq", "hierarchical_kmeans", "gaoq", "letter", "gumbel",
    }  # fmt: skip
    best = {"residual_kmeans, balanced, fused", "letter", "product", "residual_kmeans, balanced"}
    trained = {
        "office": {
            *best, "random", "sequential", "collaborative", "residual_kmeans", "rq_vae", "gaoq",
            "residual_kmeans, fused", "gaoq, full branching", "collaborative, full branching",
        },
        "beauty": {*best, "random"},
    }  # fmt: skip
    assert {entry.name for entry in grid.entries if entry.train} == trained[path.parent.name]
    assert grid.training is not None
    said = [word for key, value in grid.training.settings.items() for word in (f"--{key}", str(value))]
    arguments, training = parse_recipe(
        ["--config", grid.training.config, *said, "--use_cpu", "True"], RecipeArguments, SFTRecipeConfig
    )
    assert arguments.dataset == grid.dataset
    assert training.max_steps > 0
    assert training.eval_strategy == training.save_strategy == "no"


@pytest.mark.slow
def test_for_real(config: Path):
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(RECIPE), "--config", str(config), "--only", "random", "--seeds", "0"]
    # Killed while it trains: nothing is left running, and the next call goes on.
    process = subprocess.Popen(command, env=environ)
    logs = config.parent / "work"
    while not (started := list(logs.glob("*/train.log"))):
        assert process.poll() is None
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert children
    assert not any(child.is_running() for child in children)
    assert len(started) == 1
    assert not (config.parent / "out").exists()
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [row] = rows(config)
    assert 0 <= row["metrics"]["test"]["ndcg@10"] <= row["metrics"]["test"]["recall@10"] <= 1
    assert row["quality"]["fit"]["peak_memory_mib"] > 0
    assert row["cost"]["training"]["processor_seconds"] > 0
    assert row["quality"]["codes"]["after"]["collision_rate"] == 0
