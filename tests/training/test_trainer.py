"""What the trainer learns by and logs: sums over labels, by task, whatever packing and accumulation."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from llmrec.errors import InputError
from llmrec.tasks.prompt import PromptForm
from llmrec.training.collator import LabelledCollator
from llmrec.training.config import SFTRecipeConfig
from llmrec.training.examples import training_rows
from llmrec.training.sft import RecommenderSFTTrainer
from llmrec.training.trainer import TaskMeter

TASKS = {"next_item": 1.0, "sid_to_title": 0.4}


@pytest.fixture(scope="module")
def rows(dataset, catalog, tokenizer, vocab):
    return training_rows(
        dataset.split("leave_one_out", max_history=20), tasks=TASKS, supervise="history", catalog=catalog,
        tokenizer=tokenizer, vocab=vocab, form=PromptForm("plain", "pens"), max_length=None, seed=0, progress=False,
    )  # fmt: skip


def held(rows: Any) -> list[int]:
    return [0, len(rows) // 2, len(rows) - 2, len(rows) - 1]


def train(model: Any, rows: Any, tokenizer: Any, vocab: Any, path: Path, **settings: Any) -> RecommenderSFTTrainer:
    settings = {
        "max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no",
        "gradient_checkpointing": False, "lr_scheduler_type": "constant", "per_device_eval_batch_size": 3, **settings,
    }  # fmt: skip
    trainer = RecommenderSFTTrainer(
        model=model, args=SFTRecipeConfig(output_dir=str(path), **settings), train_dataset=rows,
        eval_dataset=rows.select(held(rows)), processing_class=tokenizer, validation=None,
        save_sidecars=lambda folder: None, vocab=vocab, task_names=list(TASKS),
    )  # fmt: skip
    trainer.train()
    return trainer


def test_losses_by_task(make_model, rows, tokenizer, vocab, tmp_path: Path) -> None:
    """Nothing is learned, so that the logs are means over the labels of three steps of two micro-batches."""
    model = make_model()
    trainer = train(
        model, rows, tokenizer, vocab, tmp_path, learning_rate=0.0, logging_steps=3, gradient_accumulation_steps=2,
        per_device_train_batch_size=4, train_sampling_strategy="sequential", max_steps=14,
    )  # fmt: skip
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    # 112 rows (100 users, 12 titles) in 14 steps of 8; the fifth entry holds steps 12 to 14, so rows 96 to 111.
    assert [entry["step"] for entry in log] == [3, 6, 9, 12]
    found = log[3]
    batch = LabelledCollator(0, "padded")([rows[place] for place in range(72, 96)])
    wanted = model(**batch).losses
    assert found["loss/next_item"] == pytest.approx(float(wanted.mean()), abs=1e-5)
    assert "loss/sid_to_title" not in found, "none of its rows so far"
    assert found["num_tokens"] == sum(len(rows[place]["input_ids"]) for place in range(96))
    assert found["tokens_per_second"] > found["labels_per_second"] > 0


def test_a_mixed_log_is_the_mean_of_its_tasks(make_model, rows, tokenizer, vocab, tmp_path: Path) -> None:
    model = make_model()
    trainer = train(
        model, rows.select(range(90, 112)), tokenizer, vocab, tmp_path, learning_rate=0.0, max_steps=1,
        per_device_train_batch_size=11, gradient_accumulation_steps=2, train_sampling_strategy="sequential",
    )  # fmt: skip
    found = trainer.state.log_history[0]
    batch = LabelledCollator(0, "padded")([rows[place] for place in range(90, 112)])
    wanted = model(**batch)
    first = batch["tasks"] == 0
    assert found["loss"] == pytest.approx(float(wanted.losses.mean()), abs=1e-5)
    assert found["loss/next_item"] == pytest.approx(float(wanted.losses[first].mean()), abs=1e-5)
    assert found["loss/sid_to_title"] == pytest.approx(float(wanted.losses[~first].mean()), abs=1e-5)
    assert found["mean_token_accuracy"] == pytest.approx(float(wanted.hits.float().mean()), abs=1e-6)


def test_evaluation_is_the_mean_over_labels(make_model, rows, tokenizer, vocab, tmp_path: Path) -> None:
    """Batches of three rows and one: the mean of their means would be another number."""
    model = make_model()
    trainer = train(model, rows, tokenizer, vocab, tmp_path, max_steps=1)
    metrics = trainer.evaluate()
    losses = model(**LabelledCollator(0, "padded")([rows[place] for place in held(rows)])).losses
    assert metrics["eval_loss"] == pytest.approx(float(losses.mean()), abs=1e-6)
    assert not any(name.startswith("eval_loss/") for name in metrics)
    logged = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert logged["eval_loss"] == metrics["eval_loss"]


@pytest.mark.parametrize("packing", [{"packing": False}, {"pack_length": 200}])
def test_packing_changes_no_training(make_model, rows, tokenizer, vocab, tmp_path: Path, packing: dict) -> None:
    """Three steps of AdamW, rows of both tasks; accumulation does not change them either."""
    few = rows.select(range(88, 112))
    packed, other = make_model(), make_model()
    one = train(packed, few, tokenizer, vocab, tmp_path / "1")
    two = train(
        other,
        few,
        tokenizer,
        vocab,
        tmp_path / "2",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        **packing,
    )
    assert two.layout == ("padded" if "packing" in packing else "packed")
    for name in ("loss", "grad_norm", "num_tokens"):
        mine = [entry[name] for entry in one.state.log_history if name in entry]
        assert [entry[name] for entry in two.state.log_history if name in entry] == pytest.approx(mine, rel=1e-5)
    for mine, its in zip(packed.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-4, rtol=1e-3)


def test_sums_of_several_processes() -> None:
    one, two = TaskMeter(["a", "b"]), TaskMeter(["a", "b"])
    one.add(torch.tensor([1.0, 2.0]), torch.tensor([0, 1]), torch.tensor([True, False]), tokens=10)
    two.add(torch.tensor([4.0]), torch.tensor([1]), torch.tensor([True]), tokens=torch.tensor(5))
    two.add(torch.tensor([]), torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.bool), tokens=2)
    other = two._sums
    assert other is not None
    found = one.read(lambda sums: torch.cat([sums, other[None]]))
    assert found == {
        "labels": 3.0, "tokens": 17.0, "loss": 7 / 3, "mean_token_accuracy": 2 / 3, "loss/a": 1.0, "loss/b": 3.0,
    }  # fmt: skip
    assert one.read(lambda sums: sums) == {}, "read once"


def test_accuracy_is_left_out_where_nothing_is_said_of_it() -> None:
    meter = TaskMeter(["a"])
    meter.add(torch.tensor([1.0]), torch.tensor([0]), None)
    assert meter.read(lambda sums: sums) == {"labels": 1.0, "tokens": 0.0, "loss": 1.0}


def test_padding_where_a_model_takes_no_mask_is_said(
    make_model, rows, tokenizer, vocab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    model.config.model_type = "other"
    with caplog.at_level(logging.WARNING, logger="llmrec"):
        assert train(model, rows, tokenizer, vocab, tmp_path, max_steps=1).layout == "padded"
    assert "packing: model type 'other' is not among llama" in caplog.text


def test_a_router_with_a_loss_of_its_own_is_refused(rows, tokenizer, vocab, tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=640, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=16,
        intermediate_size=16, moe_intermediate_size=8, num_experts=2, num_experts_per_tok=1, router_aux_loss_coef=0.01,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    with pytest.raises(InputError, match=r"qwen3_moe adds a loss of its router, .* router_aux_loss_coef: 0"):
        train(model, rows, tokenizer, vocab, tmp_path)
    train(model, rows, tokenizer, vocab, tmp_path, router_aux_loss_coef=0.0, max_steps=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: 0.1; it is not applied here, use objective"),
        ({"loss_type": "dft"}, "loss_type: 'dft'; leave it at nll and choose an objective"),
        ({"pack_length": 0}, "pack_length: 0; a whole number, at least 1"),
    ],
)
def test_losses_of_trl_that_would_be_passed_over(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        SFTRecipeConfig(output_dir=str(tmp_path), use_cpu=True, **settings)
