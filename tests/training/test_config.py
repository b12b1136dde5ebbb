"""Recipe arguments: from YAML and flags, refused when they do not fit; and every YAML in the repository parses."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTConfig

from llmrec.errors import InputError
from llmrec.training.config import NOT_FOLLOWED, RecipeArguments, SFTRecipeConfig, trains_on_gpu
from llmrec.training.parser import parse_recipe

CONFIGS = sorted((Path(__file__).parents[2] / "recipes" / "configs").glob("*/sft_*.yaml"))
BASE = {"dataset": "data/x", "sids": "data/x/sids"}


def parse(argv: list[str]) -> tuple[RecipeArguments, SFTRecipeConfig]:
    return parse_recipe(argv, RecipeArguments, SFTRecipeConfig)


@pytest.fixture
def config(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(f"dataset: data/x\nsids: data/x/sids\noutput_dir: {tmp_path}/out\n{text}")
        return str(path)

    return write


def test_there_are_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_config_parses(path: Path, tmp_path: Path) -> None:
    arguments, training = parse(["--config", str(path), "--output_dir", str(tmp_path)])
    assert arguments.dataset.startswith(("data/", "runs/"))
    assert training.load_best_model_at_end, "validation chooses the checkpoint"


def test_flag_wins_over_yaml_and_yaml_over_default(config) -> None:
    path = config("learning_rate: 1e-3\nmax_history: 7\ntasks:\n  next_item: 1.0\n  sid_to_title: 0.5\n")
    arguments, training = parse(["--config", path, "--max_history", "9", "--max_steps", "3"])
    assert (arguments.max_history, training.learning_rate, training.max_steps) == (9, 1e-3, 3)
    assert arguments.tasks == {"next_item": 1.0, "sid_to_title": 0.5}
    assert arguments.supervise == "history"
    assert parse(["--config", path, "--tasks", '{"title_to_sid": 2}'])[0].tasks == {"title_to_sid": 2.0}


def test_precision_follows_the_device(config) -> None:
    training = parse(["--config", config("")])[1]
    assert training.bf16 is torch.cuda.is_available()
    assert parse(["--config", config("bf16: true\nuse_cpu: true")])[1].bf16 is True
    assert parse(["--config", config("use_cpu: true")])[1].dataloader_pin_memory is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learn_rate: 3", "unknown key 'learn_rate'"),
        ("method: all", "method: 'all'; choose one of full, lora, qlora, new_rows"),
        ("supervise: user", "supervise: 'user'; choose one of history, row"),
        ("prompt: html", "prompt: 'html'; choose one of plain, chat"),
        ("protocol: random", "protocol: 'random'; choose one of leave_one_out, temporal, provided"),
        ("sid_init: zero", "sid_init: 'zero'; choose one of mean, text"),
        ("prompt: chat", "supervise: history with prompt: chat would train other conditionals"),
        ("residual_dropout: 1.0", r"residual_dropout: 1.0; it lies in \[0, 1\)"),
        ("max_history: 0", "max_history: 0; a whole number, at least 1"),
        ("max_history: 2.5", "max_history: 2.5; a whole number"),
        ("max_history: null", "max_history: None; a whole number"),
        ("eval_users: -1", "eval_users: -1; a whole number, at least 0"),
        ("eval_beams: null", "eval_beams: None; a whole number"),
        ("eval_ks: 10", r"eval_ks: 10; a list of cut-offs"),
        ("eval_ks: ['5']", r"eval_ks: '5'; a whole number"),
        ("eval_ks: [5, 50]", r"eval_ks: \[5, 50\]; none is above eval_beams \(20\)"),
        ("lora_r: 0", "lora_r: 0; a whole number, at least 1"),
        ("lora_target_modules: q_proj", "lora_target_modules: 'q_proj'; a list of module names"),
        ("tasks: {next_item: 0}", "tasks: next_item has weight 0; a weight is above 0"),
        ("tasks: {next_item: abc}", "tasks: next_item has weight abc; a weight is above 0"),
        ("tasks: {next_item: null}", "tasks: next_item has weight None; a weight is above 0"),
        ("per_device_train_batch_size: 0", "per_device_train_batch_size: 0; a whole number, at least 1"),
        ("learning_rate: -1", "learning_rate: -1(.0)?; it is not negative"),
        ("tasks: next_item", "--tasks 'next_item': not a JSON object"),
        ("model_config: [1]", r"model_config: expected a mapping, found \[1\]"),
        ("max_history: ten", "max_history"),
        ("resume_from_checkpoint: true", "resume_from_checkpoint: [Tt]rue; give a checkpoint's folder, or leave it"),
        ("resume_from_checkpoint: false", "resume_from_checkpoint: [Ff]alse; give a checkpoint's folder, or leave it"),
    ],
)
def test_refusals(config, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What argparse itself refuses (a number that is none) ends the program with its own line."""
    with pytest.raises((InputError, SystemExit)) as caught:
        parse(["--config", config(text)])
    found = str(caught.value) if isinstance(caught.value, InputError) else capsys.readouterr().err
    assert re.search(message, found)


def test_what_would_fail_only_after_training_is_found_before(config) -> None:
    arguments, training = parse(["--config", config("eval_ks: [5, 10]")])
    training.check(arguments, items=10)
    with pytest.raises(InputError, match=r"eval_ks: \[5, 10\]; the catalogue has 9 items"):
        training.check(arguments, items=9)
    for metric in ("loss", "eval_loss", "ndcg@10", "eval_recall@5"):
        parse(["--config", config(f"metric_for_best_model: {metric}")])[1].check(arguments, items=10)
    with pytest.raises(InputError, match="metric_for_best_model: 'ndcg@7' is not measured"):
        parse(["--config", config("metric_for_best_model: ndcg@7")])[1].check(arguments, items=10)
    with pytest.raises(InputError, match="save_only_model: true; a killed run could not go on; leave it out or set"):
        parse(["--config", config("save_only_model: true")])[1].check(arguments, items=10)
    parse(["--config", config("save_only_model: true\nsave_strategy: 'no'")])[1].check(arguments, items=10)
    with pytest.raises(InputError, match="push_to_hub: it needs a name; give hub_model_id"):
        parse(["--config", config("push_to_hub: true")])[1].check(arguments, items=10)


def test_accelerates_cpu_switch_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert trains_on_gpu(use_cpu=False)
    assert not trains_on_gpu(use_cpu=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert not trains_on_gpu(use_cpu=False)


def test_bfloat16_on_a_cpu_needs_no_further_word(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training = SFTRecipeConfig(output_dir=str(tmp_path), bf16=True)
    assert training.use_cpu
    assert not SFTRecipeConfig(output_dir=str(tmp_path)).bf16


def test_several_gpus_of_one_process_are_refused(config, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, training = parse(["--config", config("eval_ks: [5, 10]\nuse_cpu: true")])
    training.check(arguments, items=10)
    monkeypatch.setattr(SFTRecipeConfig, "n_gpu", 4)
    with pytest.raises(InputError, match=r"4 GPUs .* accelerate launch --num_processes 4 .* CUDA_VISIBLE_DEVICES=0$"):
        training.check(arguments, items=10)


GUARDED = "language_guard: words.txt\n"
TASKED = "eval_tasks: true\ntasks: {next_item: 1.0, title_to_sid: 1.0, rating: 1.0}\n"


@pytest.mark.parametrize(
    ("text", "metric", "more"),
    [
        ("", "loss", False),
        ("", "eval_loss", False),
        ("", "ndcg@10", True),
        ("", "eval_recall@5", True),
        ("", "mean_token_accuracy", True),
        (GUARDED, "perplexity", False),
        (GUARDED, "eval_perplexity_ratio", False),
        (TASKED, "rating_rmse", False),
        (TASKED, "rating_accuracy", True),
        (TASKED, "eval_title_to_sid_recall@10", True),
        (TASKED, "title_to_sid_chrf_mean", True),
    ],
)
def test_the_better_way_of_a_metric_is_known(config, text: str, metric: str, more: bool) -> None:
    text += f"eval_ks: [5, 10]\nmetric_for_best_model: {metric}\n"
    arguments, training = parse(["--config", config(text)])
    training.check(arguments, items=10)
    assert training.greater_is_better is more
    assert parse(["--config", config(f"{text}greater_is_better: {more}")])[1].greater_is_better is more
    with pytest.raises(InputError, match=f"greater_is_better: {not more} with metric_for_best_model: {metric}"):
        parse(["--config", config(f"{text}greater_is_better: {not more}")])


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("", "accuracy"),
        ("", "perplexity"),
        ("", "mrr"),
        ("", "title_to_sid_recall@10"),
        (GUARDED, "rating_rmse"),
        (TASKED, "sid_to_title_exact"),
        (TASKED, "rating_mae"),
        (TASKED, "perplexity"),
    ],
)
def test_a_metric_that_is_not_measured_is_refused(config, text: str, metric: str) -> None:
    arguments, training = parse(["--config", config(f"{text}eval_ks: [5, 10]\nmetric_for_best_model: {metric}")])
    with pytest.raises(InputError, match=f"metric_for_best_model: '{metric}' is not measured; choose loss, recall@k"):
        training.check(arguments, items=10)


def test_without_a_metric_the_loss_chooses(config) -> None:
    best = "load_best_model_at_end: true\nsave_strategy: steps\neval_strategy: steps\n"
    assert parse(["--config", config(best)])[1].greater_is_better is False
    with pytest.raises(InputError, match="greater_is_better: True with metric_for_best_model: loss"):
        parse(["--config", config(f"{best}greater_is_better: true")])


@pytest.mark.parametrize("name", [name for name, _ in NOT_FOLLOWED])
def test_settings_of_trl_that_rows_do_not_follow_are_refused(name: str, tmp_path: Path) -> None:
    """Each exists, is let through at its default, and is refused at another value."""
    default: Any = {entry.name: entry.default for entry in fields(SFTConfig)}[name]
    settings: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True}
    assert getattr(SFTRecipeConfig(**{**settings, name: default}), name) == default
    other: Any = not default if isinstance(default, bool) else "wrapped" if isinstance(default, str) else 2
    with pytest.raises(InputError, match=rf"^{name}: {other!r}; it is not followed here, since .+; leave it out$"):
        SFTRecipeConfig(**{**settings, name: other})


def test_labels_of_every_token_are_not_promised(config) -> None:
    with pytest.raises(InputError, match="completion_only_loss: False; it is not followed here"):
        parse(["--config", config("completion_only_loss: false")])
