"""Curricula and scores of tasks through the recipe: what is logged, and a run that goes on."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from llmrec.evaluation.task_answers import TaskModel
from llmrec.evaluation.task_examples import TaskExamples
from llmrec.evaluation.task_scores import score_task
from llmrec.tasks.example import Example
from llmrec.tasks.item_text import sid_to_title, title_to_sid
from llmrec.tasks.prompt import PromptForm
from llmrec.training import task_validation
from llmrec.training.task_validation import TaskValidation

main = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "sft.py"))["main"]


def logs(path: Path) -> list[dict]:
    return json.loads((path / "trainer_state.json").read_text())["log_history"]


def test_a_curriculum_is_logged_scored_and_goes_on(dataset, sid_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {
        "dataset": dataset.path, "sids": sid_folder, "output_dir": out, "model": "tiny-qwen3", "text_vocab_size": 320,
        "max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "gradient_checkpointing": False,
        "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "eval_beams": 10, "eval_tasks": True, "eval_task_examples": 5,
        "hold_out_items": 0.2, "load_best_model_at_end": True, "metric_for_best_model": "title_to_sid_recall@10",
        "tasks": json.dumps({
            "title_to_sid": {"stop": 0.5}, "sid_to_title": {"stop": 0.5, "max_characters": 20},
            "next_item": {"start": 0.5},
        }),
    }  # fmt: skip
    argv = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    main(argv)
    found = logs(out / "checkpoint-4")
    steps = {entry["step"]: entry for entry in found if "loss" in entry}
    for step, entry in steps.items():
        told = {name for name in ("title_to_sid", "sid_to_title", "next_item") if f"loss/{name}" in entry}
        assert told == ({"title_to_sid", "sid_to_title"} if step <= 2 else {"next_item"}), step
    scored = {entry["step"]: entry for entry in found if "eval_title_to_sid_recall@10" in entry}
    assert list(scored) == [2, 4]
    assert {"eval_sid_to_title_chrf", "eval_sid_to_title_exact", "eval_next_item_prefix_accuracy@1"} <= set(scored[4])
    assert json.loads((out / "llmrec.json").read_text())["settings"]["hold_out_items"] == 0.2

    losses = [entry["loss"] for entry in steps.values()]
    shutil.rmtree(out / "checkpoint-4")
    (out / "README.md").unlink()
    main(argv)
    again = [entry["loss"] for entry in logs(out / "checkpoint-4") if "loss" in entry]
    assert again == pytest.approx(losses, abs=1e-6)


def test_processes_share_the_tasks(make_model, tokenizer, vocab, catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    model, form = make_model("qwen3", rows=640), PromptForm()
    tasks = {
        "title_to_sid": list(title_to_sid(catalog, vocab, [], np.random.default_rng(0), wordings=1))[:4],
        "sid_to_title": list(sid_to_title(catalog, vocab, [], np.random.default_rng(0), wordings=1))[:2],
        "pens:mine": [Example("Say:", " pen", None, "pens:mine")],
    }
    kinds = {"title_to_sid": "item"}
    asked = {name: TaskExamples(name, kinds.get(name, "text"), found) for name, found in tasks.items()}
    validation = TaskValidation(asked, tokenizer=tokenizer, vocab=vocab, form=form, num_beams=10)
    alone = validation.metrics(model, Accelerator(cpu=True), prefix="eval")
    expected = score_task(TaskModel(model, tokenizer, vocab, form, num_beams=10), asked["title_to_sid"])
    assert alone["eval_title_to_sid_ndcg@10"] == expected.metrics["ndcg@10"]
    assert "eval_mine_chrf" in alone

    class Process:
        num_processes = 2

        def __init__(self, index: int) -> None:
            self.process_index = index

    own: list = []
    monkeypatch.setattr(task_validation, "gather_object", lambda found: own.extend(found) or found)
    for index in range(2):
        validation.metrics(model, Process(index), prefix="eval")
    assert dict(own) == alone
