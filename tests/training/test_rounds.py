"""Rounds of preference alignment: settings, folders, what a killed run finds again, and the bundle that is kept."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.artifacts import read_json, write_json
from llmrec.data.folder import DatasetFolder
from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.hub import load_bundle, save_card
from llmrec.sids.table import SIDTable
from llmrec.training.dpo_config import DPOArguments, DPORecipeConfig
from llmrec.training.policy import read_start
from llmrec.training.preferences.config import PreferenceArguments
from llmrec.training.rounds import Round, rounds_of, run_rounds
from recipes.dpo import main
from tests.rl_kit import write_bundle

REWARD = {"kind": "sasrec", "dim": 8, "blocks": 1, "epochs": 2}
PAIRS = {"beams": 8, "rejected": 2}


@pytest.fixture
def bundle(
    tmp_path: Path,
    dataset: DatasetFolder,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    table: SIDTable,
) -> Path:
    path = tmp_path / "start"
    tasks = {"next_item": 1.0, "next_session": 1.0}
    return write_bundle(path, make_model(), dataset=dataset, tokenizer=tokenizer, table=table, tasks=tasks)


@pytest.fixture
def settings(bundle: Path, dataset: DatasetFolder, tmp_path: Path) -> Callable[..., tuple[DPOArguments, Any]]:
    """``settings(rounds=2, learning_rate=1e-4)`` returns the recipe's arguments and its training config."""

    def make(**given: Any) -> tuple[DPOArguments, Any]:
        own = {name for name in DPOArguments.__dataclass_fields__ if name in given}
        arguments = DPOArguments(
            **{"dataset": str(dataset.path), "model": str(bundle), "prompts": 40, "eval_users": 20,
               **{name: given[name] for name in own}}
        )  # fmt: skip
        training = DPORecipeConfig(
            **{"output_dir": str(tmp_path / "out"), "use_cpu": True, "bf16": False, "report_to": "none",
               "disable_tqdm": True, "max_steps": 2, "per_device_train_batch_size": 8, "eval_steps": 2,
               "save_steps": 2, "learning_rate": 1e-3,
               **{name: value for name, value in given.items() if name not in own}}
        )  # fmt: skip
        return arguments, training

    return make


def copy_with_noise(one: Round, *, score: float) -> list[dict]:
    """A training that nothing is learned in: the bundle before with other weights, and a score on validation."""
    arguments, training = one.settings()
    start = read_start(arguments)
    identity = {"round": one.number, "settings": str(arguments), "rate": training.learning_rate}
    if one.is_over(identity):
        return []
    rows = one.preferences(start.inputs, start.path)
    made = load_bundle(start.path)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.mul_(1.01)
    target = Path(training.output_dir)
    shutil.copytree(start.path, target, dirs_exist_ok=True)
    (target / "README.md").unlink()
    made.model.save_pretrained(str(target))
    info = read_json(target / "llmrec.json", "manifest")
    info["metrics"] = [
        {"dataset": "steps", "split": "valid", "protocol": "leave_one_out", "metrics": {"ndcg@10": score}}
    ]
    write_json(target / "llmrec.json", info)
    write_json(target / "run.json", identity)
    save_card(target)
    return [dict(row) for row in rows]


# What a YAML says


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounds": 0}, "rounds: 0; a whole number"),
        ({"round_settings": {1: {}}}, "round_settings: there are no rounds"),
        ({"keep_round": "first", "rounds": 1}, "keep_round: 'first'; choose one of last, best"),
        ({"pairs": {"beams": 9}}, "pairs: they are made by a reward model"),
        ({"pairs": {"width": 9}, "reward_model": "sasrec"}, "pairs: no setting 'width'; it has beams"),
        ({"pairs": {"margin": -1}, "reward_model": "sasrec"}, "pairs: margin -1; 0"),
        ({"reward_model": "sasrec", "negatives": "popularity"}, "the worst of the policy's beams are rejected"),
        ({"lists": {"items": 1}}, "lists: items 1; a whole number, at least 2"),
        ({"lists": {"rejected": "bad"}}, "lists: rejected 'bad'; choose one of drawn, perturbed, own"),
        ({"lists": {}, "negatives": "popularity"}, "own takes the policy's lists, so negatives are not read"),
        (
            {"lists": {"rejected": "drawn"}, "reward_model": "sasrec"},
            "judges the policy's own lists",
        ),
        ({"negatives": "popular"}, "unknown source of negatives 'popular'"),
        ({"negatives": '{"popularity": 0}'}, "popularity: 0 items a row"),
    ],
)
def test_settings_that_cannot_be_are_told(given: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        PreferenceArguments(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reward_model": "sasrec"}, "reward_model: it works in rounds, one or more; write rounds: 1"),
        ({"rounds": 2, "round_settings": {3: {}}}, "round_settings: 3; the run has rounds 1 to 2"),
        ({"rounds": 2, "round_settings": {2: {"seed": 1}}}, "round 2 sets 'seed', which is the whole run's"),
        ({"rounds": 2, "round_settings": {2: {"negatives": {"popular": 1}}}}, "round 2: unknown source of negatives"),
        ({"rounds": 2, "round_settings": {2: 5}}, "round 2: 5; a mapping"),
        ({"rounds": 2, "keep_round": "best", "eval_strategy": "no", "save_strategy": "no",
          "load_best_model_at_end": False}, "keep_round: best compares the rounds on validation"),
        ({"rounds": 2, "resume_from_checkpoint": "x"}, "with rounds the same command goes on"),
    ],
)  # fmt: skip
def test_rounds_that_cannot_be_are_told(settings, given: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        rounds_of(*settings(**given))


def test_rounds_follow_one_another(settings, bundle: Path, tmp_path: Path):
    rounds = rounds_of(
        *settings(rounds=3, round_settings={"2": {"learning_rate": "5e-7", "prompts": 7, "negatives": {"uniform": 2}}})
    )
    out = tmp_path / "out"
    assert [one.training.output_dir for one in rounds] == [str(out / f"round-{n}" / "bundle") for n in (1, 2, 3)]
    assert [one.arguments.model for one in rounds] == [
        str(bundle), str(out / "round-1" / "bundle"), str(out / "round-2" / "bundle"),
    ]  # fmt: skip
    assert [one.drawn_before for one in rounds] == [0, 40, 47]
    assert [one.training.learning_rate for one in rounds] == [1e-3, 5e-7, 1e-3]
    assert [one.arguments.negatives for one in rounds] == [None, {"uniform": 2}, None]
    more = rounds_of(*settings(rounds=4))
    assert more[0].arguments == rounds[0].arguments  # so that a run of more rounds goes on with those that there are
    (alone,) = rounds_of(*settings())
    assert alone.training.output_dir == str(out)
    assert alone.run is None


# Folders


def test_a_killed_run_goes_on_in_its_round(settings, tmp_path: Path):
    made: list[int] = []

    def train(one: Round) -> None:
        if copy_with_noise(one, score=0.1 * one.number):
            made.append(one.number)
            if one.number == 2 and made.count(2) == 1:
                shutil.rmtree(one.training.output_dir)
                raise KeyboardInterrupt

    given = {"rounds": 2, "reward_model": REWARD, "pairs": PAIRS, "prompts": 20}
    with pytest.raises(KeyboardInterrupt):
        run_rounds(rounds_of(*settings(**given)), train)
    out = tmp_path / "out"
    pairs = (out / "round-2" / "pairs.parquet").stat().st_mtime_ns
    reward = (out / "reward-model" / "baseline.safetensors").stat().st_mtime_ns
    assert not (out / "README.md").exists()
    run_rounds(rounds_of(*settings(**given)), train)
    assert made == [1, 2, 2]
    assert (out / "round-2" / "pairs.parquet").stat().st_mtime_ns == pairs
    assert (out / "reward-model" / "baseline.safetensors").stat().st_mtime_ns == reward
    with pytest.raises(InputError, match="holds this very run, finished"):
        run_rounds(rounds_of(*settings(**given)), train)
    with pytest.raises(InputError, match="holds another run"):
        run_rounds(rounds_of(*settings(**given, seed=5)), train)
    run_rounds(rounds_of(*settings(**given, seed=5, overwrite_output_dir=True)), train)
    assert made == [1, 2, 2, 1, 2]


def test_rounds_take_other_rows_and_pairs_of_their_own_policy(settings, tmp_path: Path):
    found: dict[int, list[dict]] = {}

    def train(one: Round) -> None:
        found[one.number] = copy_with_noise(one, score=0.5)

    run_rounds(rounds_of(*settings(rounds=2, reward_model=REWARD, pairs={**PAIRS, "margin": 0.5})), train)
    # Of histories so long no two rows of the data have the same
    long = [{row["prompt"] for row in found[number] if len(row["history"]) >= 5} for number in (1, 2)]
    assert long[0]
    assert long[1]
    assert not long[0] & long[1]
    for row in found[1] + found[2]:
        assert len({row["chosen"], *row["rejected"]}) == 3
        assert len(row["margins"]) == 2
        assert min(row["margins"]) > 0
    manifest = json.loads((tmp_path / "out" / "round-2" / "pairs.json").read_text())
    assert manifest["rows"] == len(found[2])
    assert manifest["drawn_before"] == 40


def test_pairs_of_other_settings_are_refused_where_a_training_began(settings, tmp_path: Path):
    run_rounds(rounds_of(*settings(rounds=1, negatives={"uniform": 2})), lambda one: copy_with_noise(one, score=0.1))
    (tmp_path / "out" / "README.md").unlink()
    with pytest.raises(InputError, match=r"round-1: a training began with other pairs \(settings is"):
        run_rounds(rounds_of(*settings(rounds=1, negatives={"uniform": 3})), lambda one: copy_with_noise(one, score=0))


def test_the_best_round_is_the_run_s(settings, tmp_path: Path):
    scores = {1: 0.2, 2: 0.4, 3: 0.4}  # of equals the earlier one
    run_rounds(
        rounds_of(*settings(rounds=3, keep_round="best", prompts=10)),
        lambda one: copy_with_noise(one, score=scores[one.number]),
    )
    out = tmp_path / "out"
    weights = load_bundle(out).model.state_dict()
    expected = load_bundle(out / "round-2" / "bundle").model.state_dict()
    assert all((weights[name] == expected[name]).all() for name in expected)
    said = json.loads((out / "rounds.json").read_text())
    assert said["kept"] == 2
    assert [entry["metrics"]["ndcg@10"] for entry in said["rounds"]] == [0.2, 0.4, 0.4]
    assert json.loads((out / "llmrec.json").read_text())["rounds"] == said["rounds"]
    assert LLMRecommender.from_pretrained(out).recommend([[1, 2]], 5).shape == (1, 5)


# Lists


@pytest.mark.parametrize(
    "given",
    [
        {"lists": {"items": 3, "rejected": "perturbed", "count": 2}, "negatives": "uniform"},
        {"lists": {"items": 2, "rejected": "drawn"}, "negatives": {"popularity": {"exponent": 0.5}}},
        {"lists": {"items": 2, "rejected": "own", "count": 3}},
        {"lists": {"items": 2}, "reward_model": REWARD, "pairs": PAIRS, "rounds": 1},
        {"lists": {"items": 2}, "reward_model": REWARD, "pairs": {**PAIRS, "chosen": "target"}, "rounds": 1},
    ],
)
def test_lists_are_the_unit_of_preference(settings, given: dict[str, Any]):
    (one,) = rounds_of(*settings(**given, overwrite_output_dir=True))
    start = read_start(one.arguments)
    rows = one.preferences(start.inputs, start.path)
    count = given["lists"].get("count", 2 if "pairs" in given else 1)
    train = start.inputs.splits.train
    length = given["lists"]["items"]
    real = {
        (train[place].items, tuple(row.target for row in train[place : place + length]))
        for place in range(len(train) - length + 1)
        if len({row.user for row in train[place : place + length]}) == 1
    }
    came_next = []
    for row in rows.to_list():
        assert len(row["rejected"]) == count
        assert all(listed != row["chosen"] and len(set(listed)) == len(listed) for listed in row["rejected"])
        came_next.append((tuple(row["history"]), tuple(row["chosen"])) in real)
    best_is_chosen = "pairs" in given and "chosen" not in given["pairs"]
    assert all(came_next) != best_is_chosen


def test_a_bundle_that_learned_no_lists_is_refused(settings, bundle: Path):
    info = read_json(bundle / "llmrec.json", "manifest")
    write_json(bundle / "llmrec.json", {**info, "tasks": {"next_item": 1.0}})
    (one,) = rounds_of(*settings(lists={"items": 2}))
    start = read_start(one.arguments)
    with pytest.raises(InputError, match="did not learn next_session, but next_item"):
        one.preferences(start.inputs, start.path)


# The recipe


def test_two_rounds_of_the_recipe(bundle: Path, dataset: DatasetFolder, tmp_path: Path):
    """With a head on the model as reward; the run's bundle is the second round's, and its reference the first's."""
    given = {
        "dataset": dataset.path, "model": bundle, "output_dir": tmp_path / "out", "rounds": 2, "prompts": 32,
        "reward_model": json.dumps({"kind": "lm_head", "examples": 64, "negatives": 3}),
        "pairs": json.dumps({"beams": 8, "rejected": 3}), "round_settings": json.dumps({"2": {"max_steps": 3}}),
        "max_steps": 2, "per_device_train_batch_size": 8, "eval_users": 20, "eval_steps": 2, "save_steps": 2,
        "use_cpu": True, "report_to": "none", "learning_rate": 1e-3, "load_best_model_at_end": False,
        "logging_steps": 1, "disable_tqdm": True,
    }  # fmt: skip
    main([word for name, value in given.items() for word in (f"--{name}", str(value))])
    out = tmp_path / "out"
    steps = []
    for number in (1, 2):
        folder = out / f"round-{number}" / "bundle"
        states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
        log = json.loads(states[-1].read_text())["log_history"]
        losses = [entry["loss"] for entry in log if "loss" in entry]
        assert losses[0] == pytest.approx(np.log(4), abs=1e-4)  # s_dpo of three rejected where nothing has moved
        steps.append(max(entry["step"] for entry in log))
        assert json.loads((folder / "llmrec.json").read_text())["metrics"][0]["split"] == "valid"
    assert steps == [2, 3] or steps == [2, 2]  # the last step may have no checkpoint
    assert (out / "reward-model" / "reward.safetensors").is_file()
    last = load_bundle(out / "round-2" / "bundle").model.state_dict()
    whole = load_bundle(out).model.state_dict()
    assert all((whole[name] == last[name]).all() for name in last)
    first = load_bundle(out / "round-1" / "bundle").model.state_dict()
    assert any((first[name] != last[name]).any() for name in last)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"reward_model": json.dumps(REWARD), "pairs": json.dumps(PAIRS)},
        {"reward_model": json.dumps(REWARD), "pairs": json.dumps(PAIRS), "lists": '{"items": 2}'},
        {"negatives": '{"self_hard": 3, "popularity": 2}'},
    ],
)
def test_two_processes_make_the_pairs_of_one(
    bundle: Path, dataset: DatasetFolder, tmp_path: Path, given: dict[str, str]
):
    common = {
        "dataset": dataset.path, "model": bundle, "rounds": 1, "prompts": 33, "max_steps": 1, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "eval_strategy": "no", "save_strategy": "no",
        "load_best_model_at_end": False, "per_device_train_batch_size": 4, **given,
    }  # fmt: skip
    words = [word for name, value in common.items() for word in (f"--{name}", str(value))]
    one, two = tmp_path / "one", tmp_path / "two"
    main([*words, "--output_dir", str(one)])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    recipe = str(Path(__file__).parents[2] / "recipes" / "dpo.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, recipe, *words, "--output_dir", str(two)], check=True, env=environment)
    found = [pq.read_table(path / "round-1" / "pairs.parquet") for path in (one, two)]
    assert found[0].num_rows > 20
    assert found[0].equals(found[1])
