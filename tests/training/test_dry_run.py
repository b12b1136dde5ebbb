"""A dry run counts what a run will cost, and leaves nothing behind."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from steady_kit import kit_rows, kit_trainer
from torch import nn
from transformers import PreTrainedModel

from llmrec.errors import InputError
from llmrec.training.dry_run import Parameters, TaskRows, count_parameters, count_rows, dry_run, held_for_backward

RECIPE = Path(__file__).parents[2] / "recipes" / "sft.py"


def test_parameters_are_counted_by_group(make_model: Callable[..., PreTrainedModel]) -> None:
    tied, untied = make_model(rows=64), make_model(rows=64, tied=False)
    # Hidden 32, 2 layers, 2 heads of 16: attention 4 x 32 x 32, MLP 3 x 32 x 64, norms 2 x 32 and 2 x 16; last 32.
    layers = 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32 + 2 * 16) + 32
    assert set(count_parameters(tied)) == {
        Parameters("embeddings", 64 * 32, 64 * 32), Parameters("layers", layers, layers),
    }  # fmt: skip
    assert Parameters("head", 64 * 32, 64 * 32) in count_parameters(untied)
    config = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [60, 61]})
    adapted = get_peft_model(tied, config)
    assert set(count_parameters(adapted)) == {
        Parameters("embeddings", 64 * 32, 0), Parameters("layers", layers, 0),
        Parameters("LoRA", 2 * 4 * (32 + 32), 2 * 4 * (32 + 32)), Parameters("SID rows", 2 * 32, 2 * 32),
    }  # fmt: skip


def test_rows_are_counted_by_task() -> None:
    rows = Dataset.from_list(
        [
            {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "task": 1},
            {"input_ids": [1, 2], "labels": [-100, 2], "task": 0},
            {"input_ids": [1, 2], "labels": [-100, -100], "task": 1},
        ]
    )
    found = count_rows(rows, [3, 2, 2], ["next_item", "sid_to_title", "unused"])
    assert found == (TaskRows("next_item", 1, 2, 1), TaskRows("sid_to_title", 2, 5, 2))


def test_what_the_backward_pass_keeps(make_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    class OneMatrix(nn.Module):
        """Keeps its input (rows x 3 float32) for the gradient of its matrix, and nothing of the sum."""

        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(3, 5))

        def forward(self, input_ids: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
            return {"loss": (input_ids[:, :3].float() @ self.matrix).sum()}

    trainer = kit_trainer(make_model(rows=64), tmp_path)
    trainer.model = OneMatrix()
    assert held_for_backward(trainer, [kit_rows()[row] for row in range(4)]) == 4 * 3 * 4


def test_the_estimate_rests_on_measured_steps(make_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    trainer = kit_trainer(make_model(rows=64), tmp_path / "dry", max_steps=-1, num_train_epochs=10, logging_steps=500)
    found = dry_run(trainer, task_names=KIT_TASKS, path=tmp_path / "cost.json")
    # 22 rows by 4 are 6 steps; row r has 4 + r % 7 tokens, all but two of them labels.
    assert (found.steps, found.steps_per_epoch, found.measured_steps) == (60, 6, 6)
    lengths = [4 + row % 7 for row in range(22)]
    assert [(task.rows, task.tokens, task.labels) for task in found.tasks] == [
        (11, sum(lengths[0::2]), sum(lengths[0::2]) - 22), (11, sum(lengths[1::2]), sum(lengths[1::2]) - 22),
    ]  # fmt: skip
    assert 0.5 < found.filled < 1.0, "padded"
    assert found.seconds == 60 * found.seconds_per_step > 0
    parameters = sum(group.all for group in found.parameters)
    assert found.memory["weights"] >= found.memory["gradients"] == 4 * parameters
    assert 2 * 4 * parameters <= found.memory["optimiser"] < 2 * 4 * parameters + 1000, "AdamW, and its step counts"
    assert found.memory["activations"] > 0
    assert json.loads((tmp_path / "cost.json").read_text())["steps"] == 60
    assert not (tmp_path / "dry").exists()
    table = found.table()
    assert f"{'all':<26}{parameters:>16,}{parameters:>16,}" in table.replace("  all", "all")
    assert "60, 6 an epoch, 10.0 epochs" in table


KIT_TASKS = ("next_item", "sid_to_title")


def test_the_recipe_leaves_the_output_folder_alone(
    dataset, sid_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(RECIPE))["main"]
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    argv = [
        "--dataset", str(dataset.path), "--sids", str(sid_folder), "--output_dir", str(out), "--model", "tiny-qwen3",
        "--text_vocab_size", "320", "--max_steps", "50", "--per_device_train_batch_size", "8", "--use_cpu", "true",
        "--gradient_checkpointing", "false", "--eval_strategy", "steps", "--eval_steps", "10", "--save_steps", "10",
        "--load_best_model_at_end", "true", "--metric_for_best_model", "ndcg@10", "--disable_tqdm", "true",
        "--tasks", '{"next_item": 1.0, "title_to_sid": 1.0}', "--find_batch_size", "true",
        "--dry_run", "true",
    ]  # fmt: skip
    main([*argv, "--dry_run_json", str(tmp_path / "cost.json")])
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    found = json.loads((tmp_path / "cost.json").read_text())
    assert found["steps"] == 50
    assert [task["name"] for task in found["tasks"]] == ["next_item", "title_to_sid"]
    assert found["filled"] > 0.7, "packed"
    text = capsys.readouterr().out
    assert "title_to_sid" in text
    assert "8 rows: 8 a device, 1 processes, accumulated 1 times" in text
    with pytest.raises(InputError, match=r"dry_run_json: 'x\.json' without dry_run; add --dry_run true"):
        main([*argv[:-2], "--dry_run_json", "x.json"])
