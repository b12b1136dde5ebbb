"""A run goes on with another number of processes: the same batches, the same losses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RECIPE = str(Path(__file__).parents[2] / "recipes" / "sft.py")
STEPS, KEPT = 18, 15
"""100 rows by 8 are 13 steps, the last of 4 rows: the checkpoint lies in the second epoch."""


def train(dataset: Any, sid_folder: Path, out: Path, *, processes: int, accumulation: int = 1) -> None:
    settings = {
        "dataset": dataset.path, "sids": sid_folder, "output_dir": out, "model": "tiny-qwen3", "text_vocab_size": 320,
        "max_steps": STEPS, "save_steps": KEPT, "logging_steps": 1, "eval_strategy": "no", "learning_rate": 5e-3,
        "per_device_train_batch_size": 8 // processes // accumulation, "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "group_by_length", "gradient_checkpointing": False, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    flags = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), RECIPE, *flags]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def losses(out: Path) -> list[float]:
    history = json.loads((out / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "accumulation"), [(1, 2, 2), (2, 1, 1)])
def test_losses_equal_those_of_the_uninterrupted_run(
    dataset, sid_folder: Path, tmp_path: Path, before: int, after: int, accumulation: int
) -> None:
    alone, out = tmp_path / "alone", tmp_path / "run"
    train(dataset, sid_folder, alone, processes=1)
    whole = losses(alone)
    assert len(whole) == STEPS
    assert len(set(whole)) == STEPS
    train(dataset, sid_folder, out, processes=before)
    assert losses(out) == pytest.approx(whole, abs=1e-4), "the short last batch of an epoch among them"
    shutil.rmtree(out / f"checkpoint-{STEPS}")  # as if it had been killed
    (out / "README.md").unlink()
    train(dataset, sid_folder, out, processes=after, accumulation=accumulation)
    assert losses(out) == pytest.approx(whole, abs=1e-4)
    kept = json.loads((out / "llmrec.json").read_text())["training"]
    assert (kept["processes"], kept["gradient_accumulation_steps"]) == (after, accumulation)
