"""A loss, gradient or weight that is no number: nothing bad is stepped or saved, and the message says where."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from steady_kit import KitTrainer, kit_rows, kit_trainer
from transformers import PreTrainedModel, TrainerCallback

from llmrec.training.guard import NotFinite, describe_rows
from llmrec.training.order import EpochOrder


class Breaks(KitTrainer):
    """The loss of step 4 is multiplied by ``factor``."""

    factor = float("nan")

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return loss * self.factor if self.state.global_step == 3 else loss


class Infinite(Breaks):
    factor = float("inf")


@pytest.mark.parametrize("kind", [Breaks, Infinite])
def test_the_last_good_checkpoint_stays(
    make_model: Callable[..., PreTrainedModel], tmp_path: Path, kind: type[Breaks]
) -> None:
    trainer = kit_trainer(
        make_model(rows=64), tmp_path, kind=kind, save_strategy="steps", save_steps=1, save_total_limit=1
    )
    with pytest.raises(NotFinite) as caught:
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    weights = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    # Rows 12 to 15 of the epoch's order, 4 rows a step; row r has 4 + r % 7 tokens and task r % 2.
    rows = list(EpochOrder([1] * 22, strategy="random", batch=4, seed=0))[12:16]
    longest = max(rows, key=lambda row: row % 7)
    message = str(caught.value)
    assert message.startswith(f"step 4: the loss is {kind.factor}, so training stopped before it was saved.")
    assert f"4 rows of the training set (numbers {', '.join(map(str, rows))}; tasks: " in message
    assert f"the longest is row {longest} with {4 + longest % 7} tokens)" in message
    assert f"The last good checkpoint is {tmp_path}/checkpoint-3. Lower learning_rate (now 0.01)" in message
    assert (
        f"--resume_from_checkpoint {tmp_path}/checkpoint-3 --output_dir {tmp_path}-2 --learning_rate 0.005" in message
    )


def test_a_gradient_that_is_not_finite_is_no_step(make_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    model = make_model(rows=64)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * math.inf)
    trainer = kit_trainer(model, tmp_path)
    with pytest.raises(
        NotFinite, match=r"step 1: the loss is \d.*, the largest gradient nan.*There is no checkpoint yet"
    ):
        trainer.train()
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_weights_that_are_not_finite_are_not_saved(make_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    class Spoils(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                kwargs["model"].get_input_embeddings().weight.data[3, 1] = math.nan

    trainer = kit_trainer(
        make_model(rows=64), tmp_path, callbacks=[Spoils()], save_strategy="steps", save_steps=1, eval_strategy="no"
    )
    with pytest.raises(NotFinite, match="step 2: a weight is not finite after the step"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_training_goes_on_from_there_with_another_learning_rate(
    make_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    """The checkpoint's optimiser and schedule hold the old rate, and would bring it back."""
    first = kit_trainer(make_model(rows=64), tmp_path / "a", save_strategy="steps", save_steps=3, max_steps=6)
    first.train()
    checkpoint = tmp_path / "a" / "checkpoint-3"
    (checkpoint / "llmrec.json").write_text('{"training": {"learning_rate": 0.01}}')
    second = kit_trainer(make_model(rows=64), tmp_path / "b", learning_rate=0.0025)
    second.train(resume_from_checkpoint=str(checkpoint))
    rates = {entry["step"]: entry["learning_rate"] for entry in second.state.log_history if "learning_rate" in entry}
    assert rates == pytest.approx({1: 0.01, 2: 0.01, 3: 0.01, 4: 0.0025, 5: 0.0025, 6: 0.0025})


def test_a_phrase_for_a_batch() -> None:
    told = describe_rows([5, 9, 2], tasks=["a", "b", "a"], lengths=[3, 8, 4])
    assert told == (
        "3 rows of the training set (numbers 5, 9, 2; tasks: a 2, b 1; the longest is row 9 with 8 tokens)"
    )
    many = describe_rows(list(range(20)), tasks=["a"] * 20, lengths=[1] * 20)
    assert re.search(r"numbers 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.; tasks", many)


def test_huge_numbers_are_numbers(make_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    """Squared they would be infinite in float32."""
    trainer = kit_trainer(make_model(rows=64), tmp_path)
    assert trainer.model is not None
    trainer.model.get_input_embeddings().weight.data[3, 1] = 1e30
    guard = trainer._guard
    guard.check_weights(trainer.model, trainer.args, trainer.state)
    trainer.model.get_input_embeddings().weight.data[3, 1] = -math.inf
    with pytest.raises(NotFinite, match="a weight is not finite"):
        guard.check_weights(trainer.model, trainer.args, trainer.state)


def test_kit_rows_are_what_the_arithmetic_above_says() -> None:
    rows = kit_rows()
    assert [len(ids) for ids in rows["input_ids"]] == [4 + row % 7 for row in range(22)]
