"""The GRPO recipe: YAML and flags to a bundle that answers, settings that are refused, a killed run, two processes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmrec.data.folder import DatasetFolder
from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.training.grpo_config import NOT_FOLLOWED, GRPOArguments, GRPORecipeConfig
from llmrec.training.parser import parse_recipe
from recipes import grpo
from tests.rl_kit import write_bundle
from tests.training.conftest import *  # noqa: F403 - the dataset, its SIDs and a model

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/grpo_*.yaml"))


@pytest.fixture
def bundle(tmp_path: Path, make_model, dataset: DatasetFolder, tokenizer, table) -> Path:
    return write_bundle(tmp_path / "start", make_model(), dataset=dataset, tokenizer=tokenizer, table=table)


@pytest.fixture
def flags(bundle: Path, dataset: DatasetFolder, tmp_path: Path):
    """The flags of a run of two steps: ``flags(max_steps=4)``."""

    def made(**values: Any) -> list[str]:
        settings = {
            "dataset": dataset.path, "model": bundle, "output_dir": tmp_path / "out", "num_generations": 4,
            "per_device_train_batch_size": 8, "max_steps": 2, "eval_steps": 1, "save_steps": 1, "eval_users": 10,
            "eval_beams": 10, "logging_steps": 1, "learning_rate": 1e-2, "sample_steps": 1, "report_to": "none",
            "use_cpu": True, "disable_tqdm": True, **values,
        }  # fmt: skip
        return [text for name, value in settings.items() for text in (f"--{name}", str(value))]

    return made


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_config_parses(path: Path, tmp_path: Path) -> None:
    arguments, training = parse_recipe(
        ["--config", str(path), "--output_dir", str(tmp_path)], GRPOArguments, GRPORecipeConfig
    )
    assert arguments.dataset.startswith("data/")
    assert arguments.model.startswith("runs/")
    assert training.load_best_model_at_end or arguments.interpolate, "validation chooses the weights"
    assert training.eval_on_start or arguments.interpolate, "the start is one of them"


def test_a_run_writes_a_bundle(flags, tmp_path: Path) -> None:
    grpo.main(flags(rewards='{"exact_match": 1.0, "prefix_match": {"weight": 0.5}}', policy_loss="gspo", beta=0.05))
    info = json.loads((tmp_path / "out" / "llmrec.json").read_text())
    assert (info["stage"], info["method"], info["start"]["method"]) == ("grpo", "full", "full")
    assert info["softmax"] == {"kind": "full", "temperature": 1.0}
    assert info["rollouts"]["kind"] == "beam"
    assert info["settings"]["rewards"] == {"exact_match": 1.0, "prefix_match": {"weight": 0.5}}
    assert info["training"]["beta"] == 0.05
    assert info["best"]["metric"] == "ndcg@10"
    assert info["best"]["value"] >= info["best"]["start"]
    recommender = LLMRecommender.from_pretrained(str(tmp_path / "out"))
    assert len(set(recommender.recommend([[1, 2, 3]], k=5)[0])) == 5
    assert {path.name for path in (tmp_path / "out" / "samples").iterdir()} >= {
        "step-000000.md",
        "step-000001.parquet",
    }
    assert (tmp_path / "out" / "quantizer.json").exists() is False
    with pytest.raises(InputError, match="holds this very run, finished"):
        grpo.main(
            flags(rewards='{"exact_match": 1.0, "prefix_match": {"weight": 0.5}}', policy_loss="gspo", beta=0.05)
        )


def test_a_new_adapter_is_a_bundle_on_the_start(flags, bundle: Path, tmp_path: Path) -> None:
    grpo.main(flags(method="lora", lora_r=4, max_steps=1))
    info = json.loads((tmp_path / "out" / "llmrec.json").read_text())
    assert (info["method"], info["base_model"]) == ("lora", str(bundle))
    recommender = LLMRecommender.from_pretrained(str(tmp_path / "out"))
    assert len(recommender.recommend([[1, 2, 3]], k=5)[0]) == 5
    grpo.main(flags(model=tmp_path / "out", output_dir=tmp_path / "again", max_steps=1, beta=0.1))
    assert json.loads((tmp_path / "again" / "llmrec.json").read_text())["start"]["stage"] == "grpo"


def test_a_killed_run_goes_on_by_the_same_command(flags, tmp_path: Path) -> None:
    wanted = flags(max_steps=4, save_steps=2, eval_steps=2, save_total_limit=5, load_best_model_at_end=False)
    grpo.main(wanted)
    out = tmp_path / "out"
    whole = load_file(out / "model.safetensors")
    for path in (out / "README.md", out / "checkpoint-4", out / "model.safetensors"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=r"holds another run \(learning_rate is 0.01 there, 0.02 here\)"):
        grpo.main([*wanted, "--learning_rate", "0.02"])
    grpo.main(wanted)
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_weights_on_the_way_from_the_start(flags, bundle: Path, tmp_path: Path) -> None:
    """Of a run that trains and of one that does not choose, the weights differ by the share that was chosen."""
    still = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "learning_rate": 1e-3}
    grpo.main(flags(**still, output_dir=tmp_path / "end"))
    grpo.main([*flags(**still), "--interpolate", "0.5", "0.75"])
    best = json.loads((tmp_path / "out" / "llmrec.json").read_text())["best"]
    assert (best["metric"], list(best["values"])) == ("ndcg@10", ["0", "0.5", "0.75"])
    assert best["values"][f"{best['share']:g}"] == max(best["values"].values())
    start, end, kept = (load_file(path / "model.safetensors") for path in (bundle, tmp_path / "end", tmp_path / "out"))
    assert not torch.equal(start["model.embed_tokens.weight"], end["model.embed_tokens.weight"])
    for name, value in kept.items():
        expected = start[name] * (1 - best["share"]) + end[name] * best["share"]
        assert torch.allclose(value, expected, atol=1e-6), name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interpolate": 0.5}, "interpolate with load_best_model_at_end: true, which ends with the best checkpoint"),
        ({"interpolate": 2, "load_best_model_at_end": False}, "above 0 and at most 1"),
        (
            {"interpolate": 0.5, "load_best_model_at_end": False, "method": "lora"},
            "method: lora; between two adapters lies no mean of what they do",
        ),
        (
            {"per_device_train_batch_size": 10},
            "per_device_train_batch_size: 10 completions would split groups of num_generations: 4 over micro-batches "
            "or processes; set it to 8 or 12",
        ),
        ({"num_generations": 1}, "num_generations: 1; at least 2"),
        ({"num_generations": 32, "per_device_train_batch_size": 32}, "num_generations 32: 30 items with 30 SIDs"),
        (
            {"steps_per_generation": 4, "save_steps": 6},
            r"save_steps: 6; candidates are drawn every 4 steps .*: set save_steps to 4 or 8",
        ),
        ({"save_steps": 0.5}, "save_steps: 0.5; give a whole number of steps, a multiple of 1"),
        (
            {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
            "steps_per_generation: 3 x num_iterations: 1 = 3 micro-batches, .* such as 2 or 4 micro-batches",
        ),
        ({"top_k": 5}, "top_k: 5; it is not followed here, since candidates come from the constrained search"),
        ({"loss_type": "grpo"}, "loss_type: 'grpo'; it is not followed here, since policy_loss names the loss"),
        ({"policy_loss": "ppo"}, "policy_loss: unknown loss 'ppo'"),
        (
            {"policy_loss": "ecpo", "use_adaptive_entropy": True},
            "use_adaptive_entropy: True with policy_loss: ecpo, which does not read it; leave it out, and set what",
        ),
        ({"policy_loss": "ecpo", "epsilon": 0.1}, "epsilon: 0.1 with policy_loss: ecpo, which does not read it"),
        ({"policy_loss": "srpo", "delta": 1.5}, "delta: 1.5 with policy_loss: srpo, which does not read it"),
        ({"policy_loss": "rank_grpo", "scale_rewards": "none"}, "scale_rewards: 'none' with policy_loss: rank_grpo"),
        (
            {"policy_loss": "bnpo", "hard_prompts": '{"skip": true}'},
            "policy_loss: bnpo divides by the tokens of a micro-batch, .* take dapo",
        ),
        (
            {"steps_per_generation": 4, "save_steps": 4, "max_steps": 6},
            r"max_steps: 6; candidates are drawn every 4 steps .*: set max_steps to 4 or 8",
        ),
        ({"policy_loss": "srpo"}, "policy_loss srpo: k 4 draws of a group of 4; k is below num_generations"),
        ({"rollouts": "greedy"}, "rollouts: 'greedy'; choose one of beam, sample, mixed"),
        ({"temperature": 0}, "temperature: 0.0; above 0"),
        ({"rewards": '{"accuracy": 1}'}, "accuracy"),
        ({"hard_prompts": '{"again": 1}'}, "hard_prompts: unknown key 'again'"),
        ({"metric_for_best_model": "loss"}, "metric_for_best_model: 'loss' is not measured; choose recall@k"),
        ({"greater_is_better": False}, "greater_is_better: False with metric_for_best_model: ndcg@10"),
        ({"prompts": 1}, "dataset: 1 prompts, and a generation batch has 2"),
        ({"eval_ks": 50}, r"eval_ks: \[50\]; none is above eval_beams"),
    ],
)
def test_settings_that_do_not_fit_are_refused(flags, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        grpo.main(flags(**values))
    assert not list((tmp_path / "out").glob("*")), "nothing was begun"


def test_settings_of_trl_that_would_be_passed_over_are_there() -> None:
    names = {name for name, _ in NOT_FOLLOWED}
    assert names <= set(GRPORecipeConfig.__dataclass_fields__)
    assert set(GRPORecipeConfig.decides) <= set(GRPORecipeConfig.__dataclass_fields__)


def test_the_file_s_docstring_names_configs() -> None:
    assert grpo.__doc__ is not None
    for path in re.findall(r"recipes/configs/\S+\.yaml", grpo.__doc__):
        assert (ROOT / path).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "file"),
    [
        ({"method": "lora", "beta": 0.1}, "adapter_model.safetensors"),
        ({"policy_loss": "dapo", "hard_prompts": '{"skip": true}'}, "model.safetensors"),
        ({"policy_loss": "ecpo", "hard_prompts": '{"skip": true}'}, "model.safetensors"),
    ],
)
def test_two_processes_learn_as_one(flags, tmp_path: Path, own: dict[str, Any], file: str) -> None:
    settings = {
        "max_steps": 3, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
        "metric_for_best_model": "ndcg@10", "steps_per_generation": 1, **own,
    }  # fmt: skip
    for processes in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        given = flags(
            **settings, per_device_train_batch_size=8 // processes, output_dir=tmp_path / f"of-{processes}"
        )  # fmt: skip
        command = [sys.executable, *(launcher if processes > 1 else []), str(ROOT / "recipes" / "grpo.py"), *given]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    one, two = (load_file(tmp_path / f"of-{count}" / file) for count in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-5), name
