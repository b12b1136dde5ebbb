"""Sweeps: what is drawn, how long it trains, who goes on, and what is refused."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmrec.errors import InputError
from llmrec.sids.table import SIDTable
from llmrec.training.sweep import Rung, SweepConfig, Trial
from llmrec.training.sweep_folder import SweepFolder, first_difference
from llmrec.training.sweep_ranges import Range, read_ranges, settings_text
from llmrec.training.sweep_report import luck, plan_text, sweep_markdown
from llmrec.training.sweep_trials import check_sweep, score_command, trial_config, trial_folder

ROOT = Path(__file__).parents[2]
RATE = Range(low=1e-4, high=1e-2, log=True)
DROPOUT = Range(values=(0.0, 0.1, 0.2))


def sweep(**changes: Any) -> SweepConfig:
    ranges = {"learning_rate": RATE, "residual_dropout": DROPOUT}
    return SweepConfig(**{"config": "base.yaml", "ranges": ranges, "output_dir": "out", **changes})


# Ranges


@given(
    low=st.floats(1e-6, 1e3), width=st.floats(1.01, 100), log=st.booleans(), integer=st.booleans(),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_draws_lie_in_their_range(low: float, width: float, log: bool, integer: bool, seed: int):
    low, high = (math.ceil(low), math.ceil(low * width) + 1) if integer else (low, low * width)
    drawn = [Range(low=low, high=high, log=log, integer=integer).draw(np.random.default_rng(seed)) for _ in range(5)]
    assert all(low <= value <= high for value in drawn)
    assert all(type(value) is (int if integer else float) for value in drawn)


def test_what_is_drawn_evenly():
    rng = np.random.default_rng(0)
    spans = {
        # name: (range, share of draws below .001): (.001 - .0001) / (.01 - .0001) = 1 / 11, and half of two decades
        "linear": (Range(low=1e-4, high=1e-2), 1 / 11),
        "log": (RATE, 1 / 2),
    }
    for spread, share in spans.values():
        found = np.mean([spread.draw(rng) < 1e-3 for _ in range(4000)])
        assert found == pytest.approx(share, abs=0.03)  # three standard errors of .5: 3 * sqrt(.25 / 4000) = .024
    counts = np.bincount([Range(low=1, high=4, integer=True).draw(rng) for _ in range(4000)], minlength=5)
    assert counts[0] == 0
    assert counts[1:] == pytest.approx(1000, abs=110)  # four times sqrt(4000 * .25 * .75) = 27
    # Logarithms of whole numbers: 1 has log(2 / 1) of log(5 / 1).
    ones = np.mean([Range(low=1, high=4, integer=True, log=True).draw(rng) == 1 for _ in range(4000)])
    assert ones == pytest.approx(math.log(2) / math.log(5), abs=0.03)
    chosen = {DROPOUT.draw(rng) for _ in range(100)}
    assert chosen == {0.0, 0.1, 0.2}


def test_numbers_that_yaml_takes_for_text():
    assert yaml.safe_load("low: 1e-3") == {"low": "1e-3"}
    assert read_ranges({"learning_rate": {"low": "1e-3", "high": "1e-2"}})["learning_rate"].low == 0.001


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"low": 2, "high": 1}, "ranges: learning_rate: low: 2 is not below high: 1"),
        ({"low": 1, "high": 1}, "low: 1 is not below high: 1"),
        ({"low": 0, "high": 1, "log": True}, "low: 0 with log: true; the logarithm needs low above 0"),
        ({"low": -1, "high": 1, "log": True}, "low: -1 with log: true"),
        ({"low": 1.5, "high": 3, "integer": True}, "low: 1.5; a whole number"),
        ({"low": "few", "high": 3}, "low: 'few'; a number"),
        ({"low": 1, "high": math.inf}, "high: inf; a number"),
        ({"low": 1}, r"give values: \[\.\.\.\], or low and high"),
        ({"low": 1, "high": 2, "log": "yes"}, "log: 'yes'; true or false"),
        ({"values": [1], "low": 0}, "values stand beside low"),
        ({"values": []}, r"values: \[\]; a list of at least one value"),
        ({"values": [1, None]}, "none of them null"),
        ({"values": [0.1, 0.1]}, "values: 0.1 stands there twice"),
        ({"values": 3}, "values: 3; a list"),
        ({"min": 3}, "unknown key 'min'; known are values, low, high, log, integer"),
        (3, "ranges: learning_rate: 3; write {values"),
    ],
)
def test_ranges_that_are_none(said: Any, message: str):
    with pytest.raises(InputError, match=message):
        read_ranges({"learning_rate": said})
    with pytest.raises(InputError, match="ranges: 3; a mapping of keys"):
        read_ranges(3)


# Draws


def test_draws_follow_from_the_seed_alone():
    trials = sweep(trials=6).draw()
    assert trials == sweep(trials=6, jobs=4, output_dir="elsewhere", metric="recall@5").draw()
    turned = {"residual_dropout": DROPOUT, "learning_rate": RATE}
    assert trials == sweep(trials=6, ranges=turned).draw(), "the order of the file's keys decides nothing"
    assert trials == sweep(trials=9).draw()[:6], "more trials keep the first"
    assert trials != sweep(trials=6, seed=1).draw()
    assert [trial.number for trial in trials] == list(range(6))


def test_no_settings_twice():
    ranges = {"residual_dropout": DROPOUT, "lora_r": Range(low=1, high=2, integer=True)}
    drawn = sweep(trials=6, ranges=ranges).draw()
    grid = {(dropout, rank) for dropout in (0.0, 0.1, 0.2) for rank in (1, 2)}
    assert {(trial.settings["residual_dropout"], trial.settings["lora_r"]) for trial in drawn} == grid
    with pytest.raises(InputError, match="trials: 7; the ranges hold 6 different settings, ask for fewer"):
        sweep(trials=7, ranges=ranges)
    narrow = {"learning_rate": Range(low=0.1, high=0.1001)}
    with pytest.raises(InputError, match="trials: 3; only 2 different settings came out of the ranges"):
        sweep(trials=3, ranges=narrow).draw()


# Rounds


def test_rounds_by_hand():
    assert sweep(trials=5, max_steps=40).rounds() == [Rung(0, 40, 5)]
    assert sweep(trials=5).rounds() == [Rung(0, None, 5)]
    # 9 / 3 = 3, 3 / 3 = 1; 632 / 3 = 210.67, 632 / 9 = 70.2
    nine = sweep(method="halving", trials=9, max_steps=632)
    assert nine.rounds() == [Rung(0, 70, 9), Rung(1, 210, 3), Rung(2, 632, 1)]
    # 7 / 2 = 3.5, 7 / 4 = 1.75
    assert sweep(method="halving", trials=7, eta=2, max_steps=40).rounds() == [
        Rung(0, 10, 7), Rung(1, 20, 3), Rung(2, 40, 1),
    ]  # fmt: skip
    assert sweep(method="halving", trials=9, max_steps=30, rungs=2).rounds() == [Rung(0, 10, 9), Rung(1, 30, 3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials: 0; a whole number, at least 1"),
        ({"trials": 2.5}, "trials: 2.5; a whole number"),
        ({"trials": True}, "trials: True; a whole number"),
        ({"seed": -1}, "seed: -1"),
        ({"jobs": 0}, "jobs: 0; a whole number, at least 1"),
        ({"max_steps": 0}, "max_steps: 0; a whole number, at least 1"),
        ({"method": "grid"}, "method: 'grid'; choose one of random, halving"),
        ({"recipe": "ppo"}, "recipe: 'ppo'; choose one of sft, grpo, dpo"),
        ({"method": "halving", "max_steps": 9, "eta": 1}, "eta: 1; a whole number, at least 2"),
        ({"eta": 2}, "eta: 2; it is for method: halving"),
        ({"rungs": 2}, "rungs: 2; it is for method: halving"),
        ({"method": "halving"}, "max_steps: none; halving divides them"),
        (
            {"method": "halving", "max_steps": 90, "trials": 8, "rungs": 3},
            "8 trials divided by eta 3 leave one after 2",
        ),
        ({"method": "halving", "max_steps": 8, "trials": 9}, "the first of 3 rounds would have .* give at least 9"),
        ({"ranges": {}}, "ranges: none"),
        ({"ranges": {"learning_rte": RATE}}, r"ranges: 'learning_rte' is no key of recipes/sft\.py; check its"),
        ({"ranges": {"max_steps": DROPOUT}}, "ranges: 'max_steps' is set by the sweep: it is the budget"),
        ({"ranges": {"output_dir": DROPOUT}}, "ranges: 'output_dir' is set by the sweep"),
        ({"ranges": {"seed": DROPOUT}}, "ranges: 'seed' decides what validation measures"),
        ({"ranges": {"eval_users": DROPOUT}}, "ranges: 'eval_users' decides what validation measures"),
        ({"ranges": {"num_train_epochs": RATE}, "max_steps": 5}, "'num_train_epochs' does nothing beside max_steps"),
        ({"settings": {"learning_rate": 0.1}}, "ranges: 'learning_rate' stands under settings too"),
        ({"settings": {"resume_from_checkpoint": "x"}}, "settings: 'resume_from_checkpoint' is set by the sweep"),
        ({"settings": {"lr": 1}}, "settings: 'lr' is no key"),
        ({"settings": 3}, "settings: 3; a mapping"),
        ({"output_dir": 3}, "output_dir: 3; give a name"),
    ],
)
def test_sweeps_that_are_none(changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        sweep(**changes)


def test_the_file(tmp_path: Path):
    base, path = tmp_path / "base.yaml", tmp_path / "sweep.yaml"
    base.write_text("max_steps: 12\n")
    values = {"config": str(base), "ranges": {"learning_rate": {"low": 1, "high": 2}}, "output_dir": "x"}

    def load(changes: dict[str, Any], **flags: Any) -> SweepConfig:
        path.write_text(yaml.safe_dump({**values, **changes}))
        return SweepConfig.load(path, **flags)

    assert load({}).rounds() == [Rung(0, 12, 16)], "the recipe's own steps"
    assert load({"max_steps": 5}).max_steps == 5
    assert load({"jobs": 2}, jobs=3, output_dir=None).jobs == 3
    with pytest.raises(InputError, match=r"sweep\.yaml: unknown key 'trial'; known are config, ranges"):
        load({"trial": 3})
    with pytest.raises(InputError, match=r"base\.yml: no such file"):
        load({"config": "base.yml"})
    with pytest.raises(InputError, match=r"sweep\.yaml: trials: 0"):
        load({"trials": 0})
    path.write_text("config: [")
    with pytest.raises(InputError, match="not readable as YAML"):
        SweepConfig.load(path)
    path.write_text("config: x")
    with pytest.raises(InputError, match="no 'ranges'; add it"):
        SweepConfig.load(path)


# Trials


@pytest.fixture
def files(dataset, sid_folder: Path, tmp_path: Path) -> dict[str, Any]:
    base = {
        "dataset": str(dataset.path), "sids": str(sid_folder), "model": "tiny-qwen3", "text_vocab_size": 320,
        "output_dir": "runs/x", "use_cpu": True, "report_to": "none", "eval_strategy": "steps", "eval_steps": 2,
        "eval_beams": 10, "warmup_steps": 2, "gradient_checkpointing": False,
    }  # fmt: skip
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    return {"config": str(tmp_path / "base.yaml"), "output_dir": str(tmp_path / "out"), "max_steps": 4, "trials": 1}


def check(files: dict[str, Any], **changes: Any) -> dict[str, Any]:
    tried = sweep(**{**files, **changes})
    return check_sweep(tried, tried.draw(), progress=False)


def test_a_trial_is_the_whole_yaml(files, table: SIDTable, dataset):
    tried = sweep(**files, settings={"tasks": {"next_item": 1.0}})
    [trial], [rung] = tried.draw(), tried.rounds()
    config = trial_config(tried, trial, rung)
    assert config["learning_rate"] == trial.settings["learning_rate"]
    assert (config["max_steps"], config["eval_beams"], config["tasks"]) == (4, 10, {"next_item": 1.0})
    assert config["output_dir"] == str(Path(files["output_dir"]) / "trials" / "000")
    said = score_command(tried, trial, rung, output=Path("test.json"))
    assert said == [
        "--model", config["output_dir"], "--dataset", str(dataset.path), "--split", "test", "--ks", "5", "10",
        "--num_beams", "10", "--name", "winner", "--device", "cpu", "--output", "test.json",
    ]  # fmt: skip
    identity = check_sweep(tried, [trial], progress=False)
    assert identity["sid_hashes"] == {config["sids"]: table.hash}
    assert identity["files"] == dataset.manifest["files"]
    assert "output_dir" not in identity["base"]
    assert not {"output_dir", "jobs", "config"} & set(identity)
    halving = sweep(**{**files, "method": "halving", "trials": 4, "eta": 2})
    assert trial_folder(halving, trial, halving.rounds()[0]).name == "000-1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "ndcg@7"}, r"metric: 'ndcg@7' is not what validation gives; choose one of recall@5, .*ndcg@10"),
        ({"metric": "loss"}, "metric: 'loss' is not what validation gives"),
        ({"settings": {"eval_strategy": "no"}}, "eval_strategy: no in .*; validation chooses the winner"),
        (
            {"ranges": {"residual_dropout": Range(values=(1.5,))}},
            r"trial 0 \(residual_dropout 1.5\): .*lies in \[0, 1\)",
        ),
        ({"max_steps": 2}, "trial 0: warmup_steps is 2 and the first round ends after 2 steps"),
        ({"settings": {"eval_ks": [40], "eval_beams": 40}, "metric": "ndcg@40"}, "the catalogue has 30 items"),
        ({"settings": {"dataset": "missing"}}, "missing"),
    ],
)
def test_trials_are_checked_before_the_first_starts(files, changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        check(files, **changes)
    assert not Path(files["output_dir"]).exists()


def test_a_config_that_would_push(files):
    path = Path(files["config"])
    path.write_text(path.read_text() + "push_to_hub: true\nhub_model_id: a/b\n")
    with pytest.raises(InputError, match=r"push_to_hub: true in .*; every trial would be pushed"):
        check(files)


# The folder: no trial is trained here


def folder(path: Path, **changes: Any) -> SweepFolder:
    tried = sweep(output_dir=str(path), **{"method": "halving", "trials": 4, "eta": 2, "max_steps": 40, **changes})
    return SweepFolder(tried, tried.draw(), {"trials": tried.trials, "ranges": {"learning_rate": {"high": 0.01}}})


def finished(scores: dict[str, float], **more: Any) -> dict[str, Any]:
    return {"valid": scores, "users": 100, "cost": {"seconds": 60.0, "processor_seconds": 60.0}, **more}


def fill(state: SweepFolder, rung: Rung, scores: list[float | None]) -> None:
    for trial, score in zip(state.entrants(rung), scores, strict=True):
        row = {"failed": "no memory"} if score is None else finished({"recall@10": 0.5, "ndcg@10": score})
        state.record(trial, rung, row)


def numbers(trials: list[Trial]) -> list[int]:
    return [trial.number for trial in trials]


def test_who_goes_on(tmp_path: Path):
    state = folder(tmp_path / "out")
    first, second, last = state.sweep.rounds()
    assert (first.max_steps, second.max_steps, last.max_steps) == (10, 20, 40)
    fill(state, first, [0.1, 0.3, 0.2, 0.3])
    assert numbers(state.entrants(second)) == [1, 3], "equal scores go to the lower number"
    fill(state, second, [0.2, 0.4])
    assert numbers(state.entrants(last)) == [3]
    fill(state, last, [0.05])
    assert state.choose().number == 3, "the last round decides, whatever shorter ones scored"
    # What is on file is all there is.
    again = folder(tmp_path / "out")
    assert again.state == state.state
    assert again.state["winner"]["ndcg@10"] == 0.05
    assert [(row["rung"], row["trial"]) for row in again.state["runs"]] == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 3), (2, 3),
    ]  # fmt: skip


def test_a_failed_trial_does_not_go_on(tmp_path: Path):
    state = folder(tmp_path / "out")
    first, second, last = state.sweep.rounds()
    fill(state, first, [None, 0.3, None, None])
    assert numbers(state.entrants(second)) == [1], "a smaller round"
    left = trial_folder(state.sweep, state.trials[0], first)
    left.mkdir(parents=True)
    assert state.forget_failures() == 3
    assert not left.exists()
    assert state.find(state.trials[0], first) is None
    assert state.find(state.trials[1], first) is not None
    for number in (0, 2, 3):
        state.record(state.trials[number], first, {"failed": "no memory"})
    fill(state, second, [0.3])
    fill(state, last, [0.3])
    state.choose()
    with pytest.raises(InputError, match=r"--retry_failed: the winner of .* is chosen"):
        state.forget_failures()


def test_all_failed(tmp_path: Path):
    state = folder(tmp_path / "out")
    first, second, _ = state.sweep.rounds()
    fill(state, first, [None] * 4)
    with pytest.raises(InputError, match="all 4 trials failed; trial 0: no memory"):
        state.entrants(second)


def test_a_folder_of_others(tmp_path: Path):
    path = tmp_path / "out"
    folder(path).write()
    with pytest.raises(
        InputError, match=r"out: holds another sweep \(trials is 4 there, 8 here\); choose another output"
    ):
        folder(path, trials=8)
    shutil.rmtree(path)
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"out: holds files but no sweep\.json, so it is left alone"):
        folder(path)
    shutil.rmtree(path)
    path.write_text("a file")
    with pytest.raises(InputError, match="out: is a file"):
        folder(path)


def test_two_starts_at_once(tmp_path: Path):
    state = folder(tmp_path / "out")
    with (
        state.alone(),
        pytest.raises(InputError, match="the same sweep is running there"),
        folder(tmp_path / "out").alone(),
    ):
        pass
    with state.alone():
        pass


def test_first_difference():
    before = {"ranges": {"learning_rate": {"high": 0.1, "low": 1}}, "seed": 0}
    assert first_difference(before, json.loads(json.dumps(before))) is None
    now = {"ranges": {"learning_rate": {"high": 0.2, "low": 1}}, "seed": 1}
    assert first_difference(before, now) == "ranges.learning_rate.high is 0.1 there, 0.2 here"
    assert first_difference(before, {**before, "new": 3}) == "new is None there, 3 here"
    assert first_difference({**before, "old": 3}, before) == "old is 3 there, None here"
    assert first_difference(None, before) == f"sweep is None there, {before!r} here"


# The report


def test_luck_by_hand():
    # 1.96 * sqrt(.2 * .8 / 100) = 1.96 * .04
    assert luck(0.2, 100) == pytest.approx(0.0784)
    # No set of values in [0, 1] with that mean is spread wider than zeros and ones.
    values = np.repeat([0.0, 1.0], [80, 20])
    assert luck(0.2, 100) == pytest.approx(1.96 * values.std() / 10)


def test_the_report(tmp_path: Path):
    state = folder(tmp_path / "out")
    for rung, scores in zip(state.sweep.rounds(), ([0.1, 0.3, None, 0.2], [0.4, 0.2], [0.2]), strict=True):
        fill(state, rung, scores)
    state.choose()
    settings = state.trials[1].settings
    page = sweep_markdown(state, command="the command", test=None)
    assert "Round 1 of 3: 4 trials, 10 steps each:" in page
    dropout, rate = settings["residual_dropout"], settings["learning_rate"]
    assert f"| 1 | {rate:g} | {dropout:g} | 0.5000 | 0.3000 | 1.0 |" in page
    assert "- trial 2 failed: no memory" in page
    assert f"## Winner: trial 1\n\nlearning_rate {rate:g}, residual_dropout {dropout:g};" in page
    assert "ndcg@10 on validation 0.2000. It is the best of 4 tries on the same rows" in page
    assert "up to 0.0784 either way" in page
    assert "Test was not opened." in page
    assert "6.0 minutes of training" in page, "six finished runs of a minute"
    state.note_test()
    rows = [{"name": name, "metrics": {"ndcg@10": 0.15}, "exclude_seen": False} for name in ("popularity", "winner")]
    page = sweep_markdown(state, command="the command", test=rows)
    assert "## Test, read once" in page
    assert page.index("popularity") < page.index("winner  ")
    state.note_test()
    assert "## Test, read 2 times, for one and the same winner" in sweep_markdown(state, command="x", test=rows)


def test_the_plan():
    tried = sweep(method="halving", trials=4, eta=2, max_steps=40)
    trials = tried.draw()
    lines = plan_text(tried, trials).splitlines()
    assert lines[0] == "Round 1 of 3: 4 trials, 10 steps each:"
    assert lines[3] == f"    0: {settings_text(trials[0].settings)}"
    assert len(lines) == 7
    assert plan_text(sweep(trials=2), sweep(trials=2).draw()).startswith("2 trials, as long as the config says:")
    assert settings_text({"b": {"next_item": 1.0}, "a": True, "c": 0.0001}) == 'a true, b {"next_item": 1.0}, c 0.0001'
