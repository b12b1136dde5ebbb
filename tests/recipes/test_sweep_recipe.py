"""recipes/sweep.py: drawn, trained, chosen on validation, and test opened once."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from pens_dataset import write_pens

from llmrec.artifacts import read_json, read_yaml, write_json
from llmrec.data.folder import load_dataset
from llmrec.errors import InputError
from llmrec.evaluation.jobs import Cost, Scripts
from llmrec.hub.info import CARD_FILE, INFO_FILE
from llmrec.sids.table import SIDTable
from llmrec.training.sweep import SweepConfig
from llmrec.training.sweep_trials import check_sweep

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "sweep.py"
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/sweep_*.yaml"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    dataset = load_dataset(write_pens(tmp_path / "pens"))
    rows = np.arange(len(dataset.catalog))
    codes = np.stack([rows % 5, rows // 5 % 4, rows // 20], axis=1)
    SIDTable(dataset.catalog.item_ids, codes, (5, 4, 2), "by_hand", {"seed": 0}, {}).save(tmp_path / "sids")
    base = {
        "dataset": str(tmp_path / "pens"), "sids": str(tmp_path / "sids"), "model": "tiny-qwen3",
        "text_vocab_size": 300, "per_device_train_batch_size": 8, "gradient_checkpointing": False, "use_cpu": True,
        "report_to": "none", "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
        "load_best_model_at_end": True, "metric_for_best_model": "ndcg@10", "eval_beams": 10, "output_dir": "x",
    }  # fmt: skip
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    return write(tmp_path / "sweep.yaml")


def write(path: Path, **changes: Any) -> Path:
    values = {
        "config": str(path.with_name("base.yaml")), "output_dir": str(path.with_name("out")), "trials": 3,
        "max_steps": 4, "ranges": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}, **changes,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the sweep starts: folders of trials, and "test". A trial's score is its learning rate, up to one for 40."""
    calls: list[str] = []

    def run(self: Scripts, script: Path, arguments: list[str], *, log: Path) -> Cost:
        assert script.is_file()
        given = {arguments[place]: arguments[place + 1] for place in range(0, len(arguments) - 1)}
        if script.name == "evaluate.py":
            state = read_json(log.with_name("sweep.json"), "state")
            assert given["--model"] == state["winner"]["model"], "the choice was on file before"
            calls.append("test")
            rows = [
                {"name": name, "dataset": "pens", "metrics": {"ndcg@10": 0.25}} for name in ("popularity", "winner")
            ]
            write_json(given["--output"], {"results": rows})
            return Cost(3.0, 3.0)
        assert script.name == "sft.py"
        values = read_yaml(given["--config"], "YAML")
        folder = Path(values["output_dir"])
        assert folder.with_suffix(".log") == log
        calls.append(folder.name)
        metrics = {"recall@10": 0.5, "ndcg@10": values["learning_rate"]}
        row = {"split": "valid", "users": 30, "metrics": metrics}
        write_json(folder / INFO_FILE, {"metrics": [row]})
        (folder / CARD_FILE).write_text("a model")
        return Cost(6.0, 3.0)

    monkeypatch.setattr(Scripts, "run", run)
    return calls


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    # The signals, as the recipe takes them, are not for the process of the tests.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    run = runpy.run_path(str(RECIPE))["main"]
    return lambda config, *flags: run(["--config", str(config), *flags])


def state(config: Path) -> dict[str, Any]:
    return json.loads((config.parent / "out" / "sweep.json").read_text())


def best(config: Path) -> int:
    trials = state(config)["trials"]
    return max(range(len(trials)), key=lambda number: trials[number]["settings"]["learning_rate"])


def test_trials_then_one_look_at_test(config: Path, called, main, capsys):
    main(config)
    assert called == ["000", "001", "002", "test"]
    found = state(config)
    assert found["winner"]["trial"] == best(config)
    assert [row["cost"]["seconds"] for row in found["runs"]] == [6.0] * 3
    page = (config.parent / "out" / "sweep.md").read_text()
    assert f"## Winner: trial {best(config)}" in page
    assert "the winner's curse" in page
    assert "## Test, read once" in page
    assert page in capsys.readouterr().out
    assert len(found["test_read"]) == 1
    main(config)
    assert called == ["000", "001", "002", "test"], "a second start trains nothing and leaves test closed"
    assert state(config) == found
    assert (config.parent / "out" / "sweep.md").read_text() == page


def test_halving_trains_the_best_again_and_longer(config: Path, called, main):
    write(config, method="halving", trials=4, eta=2, max_steps=8)
    main(config, "--jobs", "2")
    order = sorted(range(4), key=lambda number: -state(config)["trials"][number]["settings"]["learning_rate"])
    assert sorted(called[:4]) == ["000-2", "001-2", "002-2", "003-2"]
    assert sorted(called[4:6]) == sorted(f"{number:03d}-4" for number in order[:2])
    assert called[6:] == [f"{order[0]:03d}-8", "test"]
    assert [row["max_steps"] for row in state(config)["runs"]] == [2, 2, 2, 2, 4, 4, 8]


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("saved", [False, True])
def test_a_killed_sweep_goes_on(config: Path, called, main, monkeypatch, step: int, saved: bool):
    run, steps = Scripts.run, iter(range(10))

    def killed(self: Scripts, *args: Any, **more: Any) -> Cost:
        at = next(steps)
        if at < step or (at == step and saved):
            cost = run(self, *args, **more)
            if at < step:
                return cost
        raise KeyboardInterrupt  # before the script, or after it and before it is on file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scripts, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            main(config)
    assert len(state(config)["runs"]) == min(step, 3)
    main(config)
    assert called == ["000", "001", "002", "test"], "every script once"
    assert "## Test, read once" in (config.parent / "out" / "sweep.md").read_text()
    assert [row["valid"]["recall@10"] for row in state(config)["runs"]] == [0.5] * 3
    assert state(config)["winner"]["trial"] == best(config)


def test_a_failed_trial_and_its_second_chance(config: Path, called, main, monkeypatch, capsys):
    run, broken = Scripts.run, ["001"]

    def fails(self: Scripts, script: Path, arguments: list[str], *, log: Path) -> Cost:
        if log.stem in broken:
            raise InputError("sft.py ended with status 1: no memory")
        return run(self, script, arguments, log=log)

    monkeypatch.setattr(Scripts, "run", fails)
    main(config, "--no_test")
    assert called == ["000", "002"]
    assert state(config)["runs"][1]["failed"] == "sft.py ended with status 1: no memory"
    assert "- trial 1 failed: sft.py ended with status 1: no memory" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--retry_failed: the winner of .* is chosen"):
        main(config, "--retry_failed")
    # Nobody has chosen when all fail.
    broken.extend(["000", "002"])
    with pytest.raises(InputError, match=r"all 3 trials failed; trial 0: sft\.py ended with status 1: no memory"):
        main(config, "--output_dir", str(config.parent / "other"))
    broken.clear()
    called.clear()
    main(config, "--output_dir", str(config.parent / "other"), "--retry_failed")
    assert called == ["000", "001", "002", "test"]


def test_an_evaluation_that_fails_has_read_nothing(config: Path, called, main, monkeypatch):
    run = Scripts.run

    def fails(self: Scripts, script: Path, arguments: list[str], *, log: Path) -> Cost:
        if script.name == "evaluate.py":
            raise InputError("evaluate.py ended with status 1: no memory")
        return run(self, script, arguments, log=log)

    with monkeypatch.context() as patch:
        patch.setattr(Scripts, "run", fails)
        with pytest.raises(InputError, match="status 1: no memory"):
            main(config)
    chosen = state(config)["winner"]
    assert chosen is not None
    assert state(config)["test_read"] == []
    main(config)
    assert called == ["000", "001", "002", "test"]
    assert state(config)["winner"] == chosen
    assert len(state(config)["test_read"]) == 1


def test_test_stays_closed_until_asked_for(config: Path, called, main, capsys):
    main(config, "--no_test")
    assert called == ["000", "001", "002"]
    assert "Test was not opened." in capsys.readouterr().out
    main(config)
    assert called == ["000", "001", "002", "test"]


def test_a_score_that_is_no_number(config: Path, called, main, monkeypatch):
    run = Scripts.run

    def lost(self: Scripts, script: Path, arguments: list[str], *, log: Path) -> Cost:
        cost = run(self, script, arguments, log=log)
        if log.stem == "000":
            row = {"split": "valid", "users": 30, "metrics": {"recall@10": 0.0}}
            write_json(log.with_suffix("") / INFO_FILE, {"metrics": [row]})
        return cost

    monkeypatch.setattr(Scripts, "run", lost)
    main(config)
    assert "ndcg@10 on validation is None, no number to choose by" in state(config)["runs"][0]["failed"]


def test_dry_run(config: Path, called, main, capsys):
    main(config, "--dry_run")
    assert called == []
    assert not (config.parent / "out").exists()
    said = capsys.readouterr().out
    assert "3 trials, 4 steps each:" in said
    assert said.count("learning_rate") == 3


def test_another_sweep_in_the_folder(config: Path, called, main):
    main(config)
    write(config, ranges={"learning_rate": {"low": 1e-4, "high": 2e-2, "log": True}})
    with pytest.raises(InputError, match=r"\(ranges\.learning_rate\.high is 0\.01 there, 0\.02 here\)"):
        main(config)
    write(config)
    base = config.with_name("base.yaml")
    base.write_text(base.read_text() + "weight_decay: 0.5\n")
    with pytest.raises(InputError, match=r"\(base\.weight_decay is None there, 0\.5 here\)"):
        main(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_sweeps_of_this_repository(path: Path, monkeypatch: pytest.MonkeyPatch, config: Path):
    monkeypatch.chdir(ROOT)
    sweep = SweepConfig.load(path)
    assert f"--config {path.relative_to(ROOT)}" in path.read_text()
    # The data is not here: the trials are checked on other data.
    elsewhere = {"dataset": str(config.parent / "pens"), "sids": str(config.parent / "sids")}
    sweep = SweepConfig.load(path, settings={**sweep.settings, **elsewhere})
    identity = check_sweep(sweep, sweep.draw()[:2], progress=False)
    assert identity["settings"]["eval_users"] == 0, "all validation rows choose"


def test_the_guide_shows_a_file_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    guide = (ROOT / "docs" / "sweep.md").read_text()
    (tmp_path / "sweep.yaml").write_text(guide.split("```yaml\n")[1].split("```")[0])
    sweep = SweepConfig.load(tmp_path / "sweep.yaml")
    assert [(rung.trials, rung.max_steps) for rung in sweep.rounds()] == [(9, 70), (3, 210), (1, 632)]
    assert "9 trials of 70 steps, 3 of 210, 1 of 632" in guide


@pytest.mark.slow
def test_for_real(config: Path):
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    write(config, trials=2, max_steps=12)
    command = [sys.executable, str(RECIPE), "--config", str(config)]
    # Killed while it trains: nothing is left running, and the next call goes on from the checkpoint.
    process = subprocess.Popen(command, env=environ)
    trial = config.parent / "out" / "trials" / "000"
    while not list(trial.glob("checkpoint-2/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert children
    assert not any(child.is_running() for child in children)
    assert state(config)["runs"] == [], "what was stopped has not failed"
    assert not (config.parent / "out" / "test.json").exists()
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "going on from" in trial.with_suffix(".log").read_text()
    runs = state(config)["runs"]
    assert [row["trial"] for row in runs] == [0, 1]
    scores = [row["valid"]["ndcg@10"] for row in runs]
    assert state(config)["winner"]["trial"] == int(scores[1] > scores[0])
    rows = read_json(config.parent / "out" / "test.json", "results")["results"]
    assert [row["name"] for row in rows] == ["popularity", "item_knn", "transitions", "winner"]
    assert rows[-1]["split"] == "test"
    assert "## Test, read once" in done.stdout
    before = (config.parent / "out" / "test.json").stat().st_mtime_ns
    again = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert (config.parent / "out" / "test.json").stat().st_mtime_ns == before
