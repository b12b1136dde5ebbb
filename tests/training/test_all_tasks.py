"""Tasks are learned: on data with planted answers they beat a control that was trained on SIDs of random codes."""

import json
import runpy
from pathlib import Path

import pytest
from encoder_kit import script

RECIPES = Path(__file__).parents[2] / "recipes"
TASKS = {
    "next_item": 2.0, "title_to_sid": 12.0, "sid_to_title": 12.0, "sid_to_category": 12.0, "attributes_to_sid": 6.0,
}  # fmt: skip


@pytest.mark.slow
def test_tasks_beat_a_control_of_random_sids(tmp_path: Path) -> None:
    data = tmp_path / "planted"
    script("synthetic")(["--texts", "--out", str(data), "--items", "240", "--clusters", "24", "--users", "200"])
    vectors = str(data / "embeddings.safetensors")
    script("embed_items")(["--dataset", str(data), "--encoder", "tfidf", "--out", vectors])
    sids = ["--dataset", str(data), "--embeddings", vectors, "--levels", "3", "--codebook_size", "24", "--unique",
            "append_rank"]  # fmt: skip
    runs = {}
    for name, method in (("own", "residual_kmeans"), ("random", "random")):
        script("learn_sids")([*sids, "--method", method, "--out", str(data / name)])
        runs[name] = tmp_path / name
        settings = {
            "dataset": data, "sids": data / name, "output_dir": runs[name], "model": "tiny-qwen3", "seed": 0,
            "text_vocab_size": 400, "tasks": json.dumps(TASKS), "hold_out_items": 0.2, "num_train_epochs": 1,
            "per_device_train_batch_size": 32, "learning_rate": 3e-3, "eval_strategy": "no", "save_strategy": "no",
            "gradient_checkpointing": False, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        }  # fmt: skip
        recipe = runpy.run_path(str(RECIPES / "sft.py"))["main"]
        recipe([text for key, value in settings.items() for text in (f"--{key}", str(value))])
    runpy.run_path(str(RECIPES / "suite.py"))["main"](
        ["--model", str(runs["own"]), "--control", str(runs["random"]), "--dataset", str(data), "--tasks", *TASKS,
         "--output", str(tmp_path / "suite.json"), "--device", "cpu"]
    )  # fmt: skip
    rows = {row["task"]: row for row in json.loads((tmp_path / "suite.json").read_text())["tasks"]}
    above = {
        "title_to_sid": "prefix_accuracy@1", "attributes_to_sid": "prefix_accuracy@1", "sid_to_category": "exact",
        "sid_to_title": "chrf_mean",
    }  # fmt: skip
    for task, metric in above.items():
        assert rows[task]["differences"][metric]["low"] > 0, (task, rows[task])
