"""Out of memory: rows halved, accumulation doubled, the same losses; and a clear line where that cannot help."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from steady_kit import KitTrainer, kit_trainer, losses_of
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.errors import InputError
from llmrec.training.memory import BatchSizes, heaviest_batch, out_of_memory


class SmallMemory(KitTrainer):
    """Runs out of memory above so many rows, from some optimiser step on."""

    most_rows = 2
    from_step = 0
    tried: list[int]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        rows = len(inputs["input_ids"])
        if rows > self.most_rows and self.state.global_step >= self.from_step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().compute_loss(model, inputs, *args, **kwargs)


class LateMemory(SmallMemory):
    from_step = 3


def test_halving_keeps_the_effective_batch() -> None:
    assert BatchSizes(8, 2).smaller() == BatchSizes(4, 4)
    assert BatchSizes(6, 1).smaller().smaller() == BatchSizes(1, 6)
    assert BatchSizes(5, 3).smaller() == BatchSizes(1, 15)
    with pytest.raises(InputError, match="per_device_train_batch_size: 1, and a single row does not fit into memory"):
        BatchSizes(1, 8).smaller()


def test_the_heaviest_batch_is_the_widest_then_the_fullest() -> None:
    lengths = [3, 9, 2, 8, 9, 1, 1]
    # Padded: [0, 1] is 2 x 9, [2, 3] is 2 x 8, [4, 5] is 2 x 9, [6] is 1; tokens of the two: 12 and 10.
    assert heaviest_batch(range(7), lengths, rows=2) == [0, 1]


def test_what_counts_as_out_of_memory() -> None:
    assert out_of_memory(torch.OutOfMemoryError("any text"))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"))
    assert not out_of_memory(RuntimeError("shapes do not fit"))
    assert not out_of_memory(InputError("x"))


@pytest.mark.parametrize(("kind", "step", "rows"), [(SmallMemory, 0, 8), (LateMemory, 3, 4)])
def test_losses_equal_those_of_a_run_that_started_with_the_final_sizes(
    make_model: Callable[..., PreTrainedModel], tmp_path: Path, kind: type[SmallMemory], step: int, rows: int
) -> None:
    expected = kit_trainer(
        make_model(rows=64), tmp_path / "small", per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    expected.train()
    manifest: dict[str, Any] = {"training": {"learning_rate": 1e-2}}
    found = kit_trainer(
        make_model(rows=64), tmp_path / "found", kind=kind, find_batch_size=True, manifest=manifest,
        per_device_train_batch_size=rows, gradient_accumulation_steps=8 // rows,
    )  # fmt: skip
    found.train()
    assert losses_of(found) == pytest.approx(losses_of(expected), abs=1e-5)
    for mine, theirs in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    assert [halving.step for halving in found.halvings] == [step] * (2 if rows == 8 else 1), "8 to 4 to 2, or 4 to 2"
    assert manifest["training"] == {
        "learning_rate": 1e-2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4,
    }  # fmt: skip
    assert manifest["halvings"][-1] == {
        "step": step, "before": {"rows": 4, "accumulation": 2}, "after": {"rows": 2, "accumulation": 4},
    }  # fmt: skip


def test_off_it_says_what_would_help(make_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    trainer = kit_trainer(make_model(rows=64), tmp_path, kind=LateMemory, gradient_accumulation_steps=2)
    message = (
        "step 4: out of memory with per_device_train_batch_size 4, gradient_accumulation_steps 2; set "
        "find_batch_size: true, or per_device_train_batch_size 2, gradient_accumulation_steps 4"
    )
    with pytest.raises(InputError, match=message):
        trainer.train()


def test_one_row_that_does_not_fit_is_said(make_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    class None_(SmallMemory):
        most_rows = 0

    trainer = kit_trainer(
        make_model(rows=64), tmp_path, kind=None_, find_batch_size=True, per_device_train_batch_size=1
    )
    with pytest.raises(InputError, match="a single row does not fit into memory; lower max_history"):
        trainer.train()


def test_evaluation_and_the_optimiser_are_not_helped_by_a_smaller_batch(
    make_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    class Evaluates(KitTrainer):
        def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer = kit_trainer(
        make_model(rows=64), tmp_path, kind=Evaluates, find_batch_size=True, eval_strategy="steps", eval_steps=2
    )
    message = "after step 2: out of memory outside a training step; in an evaluation, lower per_device_eval_batch_size"
    with pytest.raises(InputError, match=message):
        trainer.train()

    class Steps(torch.optim.SGD):
        def step(self, closure: Any = None) -> Tensor | None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer = kit_trainer(make_model(rows=64), tmp_path, find_batch_size=True)
    trainer.optimizer = Steps(trainer.model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="step 1: out of memory while the optimiser made its state"):
        trainer.train()


def test_the_rehearsal_leaves_no_trace(make_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    plain, rehearsed = (kit_trainer(make_model(rows=64), tmp_path, find_batch_size=find) for find in (False, True))
    plain.train()
    rehearsed.train()
    assert losses_of(rehearsed) == losses_of(plain)
    assert rehearsed.halvings == []


TWO = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from steady_kit import KitTrainer, kit_trainer, losses_of
from transformers import Qwen3Config, Qwen3ForCausalLM

class SmallerThere(KitTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        if len(inputs["input_ids"]) > {most} and self.args.process_index == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().compute_loss(model, inputs, *args, **kwargs)

torch.manual_seed(0)
model = Qwen3ForCausalLM(Qwen3Config(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, head_dim=16, intermediate_size=64, tie_word_embeddings=True))
trainer = kit_trainer(model, Path({out!r}), kind=SmallerThere, find_batch_size=True,
    per_device_train_batch_size={rows}, gradient_accumulation_steps={accumulation})
trainer.train()
found = [losses_of(trainer), trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps]
(Path({out!r}) / f"{{trainer.args.process_index}}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_processes_agree_on_what_the_smallest_can_hold(tmp_path: Path) -> None:
    """Process 1 alone holds no more than 2 rows; both go on with 2, and lose nothing by it."""

    def run(name: str, **settings: int) -> list[Any]:
        out = tmp_path / name
        out.mkdir()
        script = tmp_path / f"{name}.py"
        script.write_text(TWO.format(tests=str(Path(__file__).parents[1]), out=str(out), **settings))
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            str(script),
        ]
        subprocess.run(launcher, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]

    found, expected = run("found", most=2, rows=8, accumulation=1), run("small", most=9, rows=2, accumulation=4)
    assert found[0][1:] == found[1][1:] == expected[0][1:] == [2, 4]
    assert found[0][0] == pytest.approx(expected[0][0], abs=1e-5)
