"""Preference training: against stock TRL, against a row a completion, whatever batches and adapters."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import T5Config, T5ForConditionalGeneration
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from llmrec.errors import InputError
from llmrec.tasks.prompt import PromptForm
from llmrec.training.adapters import attach_adapter
from llmrec.training.dpo import PreferenceTrainer
from llmrec.training.group_softmax import GroupSoftmax
from llmrec.training.preference_losses import TRL_LOSSES
from llmrec.training.preference_rows import PreferenceCollator, encode_preferences
from tests.bundle_kit import spread_weights
from tests.reference.slow_rl import slow_preference_loss

FORM = PromptForm("plain", "pens")
COUNT = 11


def preferences(rejected: int = 3, *, count: int = COUNT, margins: bool = False) -> list[dict[str, Any]]:
    """Rows that differ; histories of 2 to 5 items."""
    rows = []
    for row in range(count):
        items = [(3 * row + 7 * place) % 30 for place in range(2 + row % 4)]
        made = {"chosen": (row + 1) % 30, "rejected": [(row + 2 + 5 * place) % 30 for place in range(rejected)]}
        if margins:
            made["margins"] = [0.1 * place for place in range(rejected)]
        rows.append({"items": items, **made})
    return rows


@pytest.fixture(scope="module")
def encoded(tokenizer, vocab):
    def make(rows: list[dict[str, Any]], form: PromptForm = FORM) -> Dataset:
        rows = [{"prompt": "".join(vocab.tokens(item) for item in row["items"]), **row} for row in rows]
        return encode_preferences(rows, tokenizer=tokenizer, form=form, vocab=vocab)

    return make


@pytest.fixture
def start(make_model, vocab):
    """A policy as a run starts with it: spread weights, an adapter that was trained."""

    def make(kind: str = "full") -> Any:
        if kind == "t5":
            with torch.random.fork_rng():
                torch.random.default_generator.manual_seed(0)
                config: Any = T5Config  # newer versions hide what it takes
                model = T5ForConditionalGeneration(config(
                    vocab_size=640, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
                    pad_token_id=0, eos_token_id=1,
                ))  # fmt: skip
            spread_weights(model, scale=0.3)
            return model.eval()
        model = make_model()
        if kind == "full":
            return model
        adapted = attach_adapter(model, vocab, method=kind, rank=4)
        spread_weights(adapted, scale=0.2)
        return adapted

    return make


def trainer_of(
    model: Any, rows: Dataset, tokenizer: Any, vocab: Any, path: Path, *, softmax: str = "full", held: Any = None,
    callbacks: Any = None, **settings: Any,
) -> PreferenceTrainer:  # fmt: skip
    given = {
        "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "beta": 0.5,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "bf16": False,
        "gradient_checkpointing": False, "lr_scheduler_type": "constant", "per_device_eval_batch_size": 3,
        "loss_type": ["s_dpo"], "logging_nan_inf_filter": False, "dataloader_pin_memory": False, **settings,
    }  # fmt: skip
    return PreferenceTrainer(
        model, DPOConfig(output_dir=str(path / "run"), **given), vocab=vocab, train_dataset=rows, callbacks=callbacks,
        eval_dataset=rows.select(range(min(7, len(rows)))) if held is None else held, processing_class=tokenizer,
        validation=None,
        softmax=GroupSoftmax(softmax, end_token_id=tokenizer.eos_token_id), reference_dir=path / "reference",
        save_sidecars=lambda folder: None,
    )  # fmt: skip


def unpatched(model: Any) -> Any:
    """A copy with the forward of its class; a patched one would go on calling the original."""
    copied = deepcopy(model)
    del copied.forward
    return copied


def losses_of(trainer: PreferenceTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(("kind", "softmax"), [
    ("full", "full"), ("lora", "full"), ("lora", "sids"), ("lora", "allowed"), ("new_rows", "full"), ("t5", "sids"),
])  # fmt: skip
def test_the_reference_is_the_start(start, encoded, tokenizer, vocab, tmp_path: Path, kind: str, softmax: str) -> None:
    """Nothing is learned yet: log(1 + 3) and log 2, so the reference has the adapter and the SID rows of the start."""
    rows = encoded(preferences())
    model = start(kind)
    before = weights_of(model)
    trainer = trainer_of(model, rows, tokenizer, vocab, tmp_path, softmax=softmax, loss_type=["s_dpo", "sigmoid"])
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(math.log(4) + math.log(2), abs=2e-6)
    assert found["eval_rewards/margins"] == pytest.approx(0.0, abs=2e-6)
    assert 0 < found["eval_entropy"] < math.log(640)
    assert (found["eval_outside_mass"] == pytest.approx(0.0, abs=1e-6)) == (softmax == "allowed")
    after = weights_of(trainer.model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert list(getattr(trainer.model, "peft_config", {"default": None})) == ["default"]


@pytest.mark.parametrize("kind", ["t5", "lora", "new_rows"])
def test_nothing_is_dropped_and_what_was_frozen_is(
    start, encoded, tokenizer, vocab, tmp_path: Path, kind: str
) -> None:
    model = start(kind)
    assert kind != "t5" or model.config.dropout_rate > 0
    before = weights_of(model).keys()
    trainer = trainer_of(model, encoded(preferences()), tokenizer, vocab, tmp_path, loss_type=["sigmoid"])
    assert weights_of(trainer.model).keys() == before
    batch = PreferenceCollator(tokenizer.pad_token_id)(list(trainer.train_dataset)[:6])
    model.train()
    with torch.no_grad():
        assert float(trainer.compute_loss(model, batch)) == pytest.approx(math.log(2), abs=2e-6)


def test_a_step_is_logged(start, encoded, tokenizer, vocab, tmp_path: Path) -> None:
    trainer = trainer_of(start("lora"), encoded(preferences()), tokenizer, vocab, tmp_path)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log[0]["loss"] == pytest.approx(math.log(4), abs=2e-6)
    assert log[-1]["rewards/margins"] > 0.1
    assert 0 <= log[0]["preference/first"] <= log[0]["preference/accuracy"] <= 1
    assert log[-1]["prompts_per_second"] > 0
    assert log[0]["logps/chosen"] < 0


@pytest.mark.parametrize("softmax", ["full", "sids", "allowed"])
def test_loss_and_gradients_are_those_of_a_row_a_completion(
    start, encoded, tokenizer, vocab, tmp_path: Path, softmax: str
) -> None:
    """Three steps behind the start, so that log-ratios are not 0; prompts and lists of unequal length."""
    rows = preferences()
    for number, row in enumerate(rows):
        row["rejected"] = row["rejected"][: 1 + number % 3]
    made, model = encoded(rows), start()
    trainer = trainer_of(model, made, tokenizer, vocab, tmp_path, softmax=softmax)
    reference = unpatched(model)
    trainer.train()
    batch = [trainer.train_dataset[row] for row in range(6)]
    model.zero_grad()
    loss = trainer.compute_loss(model, PreferenceCollator(tokenizer.pad_token_id)(batch))
    loss.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    expected = slow_preference_loss(
        model, reference, batch, vocab=vocab, softmax=softmax, beta=0.5, end=tokenizer.eos_token_id
    )
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert loss.item() < 0.9 * math.log(3)
    for name, value in model.named_parameters():
        torch.testing.assert_close(
            found[name], value.grad, atol=1e-5 * max(1.0, float(value.grad.abs().max())), rtol=0
        )


class StockTrainer(DPOTrainer):
    """TRL's own, on rows that are token ids already."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


@pytest.mark.parametrize("losses", [
    ["sigmoid"], ["hinge"], ["ipo"], ["robust"], ["apo_zero"], ["aot"], ["sigmoid", "sft"],
])  # fmt: skip
def test_losses_of_trl_are_those_of_stock_trl(start, encoded, tokenizer, vocab, tmp_path: Path, losses: list) -> None:
    """A list of three is three of stock TRL's pairs; the policy has learned something meanwhile."""
    made, model = encoded(preferences(count=4)), start()
    settings = {"loss_type": losses, "label_smoothing": 0.1, "loss_weights": [0.7, 0.3][: len(losses)]}
    trainer = trainer_of(model, made, tokenizer, vocab, tmp_path, **settings)
    reference = unpatched(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.cos(torch.arange(parameter.numel())).view(parameter.shape)
    ours = trainer.compute_loss(model, PreferenceCollator(tokenizer.pad_token_id)(list(trainer.train_dataset)))
    pairs = [
        {"prompt_ids": row["input_ids"], "chosen_ids": row["completions"][0], "rejected_ids": other}
        for row in made for other in row["completions"][1:]
    ]  # fmt: skip
    policy = unpatched(model)
    stock = StockTrainer(
        policy, reference, DPOConfig(
            output_dir=str(tmp_path / "stock"), report_to="none", use_cpu=True, bf16=False, beta=0.5,
            gradient_checkpointing=False, **settings,
        ), train_dataset=Dataset.from_list(pairs), processing_class=tokenizer,
    )  # fmt: skip
    batch = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)(pairs)
    expected = stock._compute_loss(stock.model, batch, return_outputs=False)
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    ours.backward()
    expected.backward()
    for mine, its in zip(model.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, atol=1e-5 * max(1.0, float(its.grad.abs().max())), rtol=0)


def test_all_losses_of_trl_run(start, encoded, tokenizer, vocab, tmp_path: Path) -> None:
    """Every name that we let through is one that the installed TRL computes."""
    made, model = encoded(preferences(count=4)), start()
    trainer = trainer_of(model, made, tokenizer, vocab, tmp_path, loss_type=list(TRL_LOSSES), label_smoothing=0.1)
    loss = trainer.compute_loss(model, PreferenceCollator(tokenizer.pad_token_id)(list(trainer.train_dataset)))
    assert math.isfinite(loss.item())


@pytest.mark.parametrize("losses", [["s_dpo"], ["ddro", "hinge"]])
def test_batches_change_no_training(start, encoded, tokenizer, vocab, tmp_path: Path, losses: list[str]) -> None:
    """Lists of unequal length; the last step has three of its four rows."""
    rows = preferences()
    for number, row in enumerate(rows):
        row["rejected"] = row["rejected"][: 1 + number % 3]
    made = encoded(rows)
    one = trainer_of(start(), made, tokenizer, vocab, tmp_path / "1", loss_type=losses)
    two = trainer_of(
        start(), made, tokenizer, vocab, tmp_path / "2", loss_type=losses, per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
    )  # fmt: skip
    for trainer in (one, two):
        trainer.train()
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-5)
    first, second = (weights_of(trainer.model) for trainer in (one, two))
    for mine, its in zip(first.values(), second.values(), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-4, rtol=1e-3)


def test_gradient_checkpointing_changes_nothing(start, encoded, tokenizer, vocab, tmp_path: Path) -> None:
    made = encoded(preferences())
    found = []
    for number, checkpointing in enumerate((False, True)):
        trainer = trainer_of(
            start("lora"), made, tokenizer, vocab, tmp_path / str(number), gradient_checkpointing=checkpointing
        )
        trainer.train()
        found.append(losses_of(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0][2] != pytest.approx(found[0][0], rel=1e-2)


def test_sessions_are_lists_of_items(start, encoded, tokenizer, vocab, tmp_path: Path) -> None:
    """Completions of one, two and three SIDs in one batch: the SIDs of a session one after another."""
    rows = [
        {"items": [1, 2], "chosen": [3, 4, 5], "rejected": [[3, 6], [7]]},
        {"items": [2, 9], "chosen": [8], "rejected": [[8, 1, 2]]},
    ]
    made, model = encoded(rows), start()
    assert made[0]["completions"][0] == [*vocab.token_ids(3), *vocab.token_ids(4), *vocab.token_ids(5)]
    trainer = trainer_of(model, made, tokenizer, vocab, tmp_path, held=made, softmax="allowed")
    assert trainer.evaluate()["eval_loss"] == pytest.approx((math.log(3) + math.log(2)) / 2, abs=2e-6)
    trainer.train()
    losses = losses_of(trainer)
    assert losses[-1] < losses[0]


def test_margins_and_all_three_losses_of_lists(start, encoded, tokenizer, vocab, tmp_path: Path) -> None:
    made = encoded(preferences(margins=True))
    trainer = trainer_of(
        start(), made, tokenizer, vocab, tmp_path, loss_type=["margin", "ddro", "s_dpo"], loss_weights=[1.0, 2.0, 3.0]
    )
    # Where policy and reference agree: the mean of log(1 + e^margin) for 0, 0.1 and 0.2, then log 2 and log 4.
    margin = sum(math.log1p(math.exp(0.1 * place)) for place in range(3)) / 3
    assert trainer.evaluate()["eval_loss"] == pytest.approx(margin + 2 * math.log(2) + 3 * math.log(4), abs=5e-6)


def test_a_second_run_reads_the_reference(start, encoded, tokenizer, vocab, tmp_path: Path, caplog) -> None:
    made = encoded(preferences())
    caplog.set_level("INFO")
    first = trainer_of(start("lora"), made, tokenizer, vocab, tmp_path)
    files = sorted(path.name for path in (tmp_path / "reference").iterdir())
    assert len(files) == 2, "training and held-out rows"
    caplog.clear()
    second = trainer_of(start("lora"), made, tokenizer, vocab, tmp_path, beta=0.9, seed=3)
    assert sorted(path.name for path in (tmp_path / "reference").iterdir()) == files
    assert [record.message.split(" rows ")[1][:4] for record in caplog.records if "reference" in record.message] == [
        "from", "from",
    ]  # fmt: skip
    assert second.train_dataset["reference"] == first.train_dataset["reference"]
    trainer_of(start("full"), made, tokenizer, vocab, tmp_path)
    trainer_of(start("lora"), made, tokenizer, vocab, tmp_path, softmax="sids")
    assert len(list((tmp_path / "reference").iterdir())) == 6, "other weights and another softmax have their own"


def test_another_model_can_be_the_reference(start, encoded, tokenizer, vocab, tmp_path: Path, make_model) -> None:
    made, model, other = encoded(preferences()), start("lora"), make_model()
    settings = DPOConfig(
        output_dir=str(tmp_path / "run"), report_to="none", use_cpu=True, bf16=False, loss_type=["s_dpo"], beta=0.5
    )
    trainer = PreferenceTrainer(
        model, settings, vocab=vocab, train_dataset=made, eval_dataset=made, processing_class=tokenizer,
        validation=None, softmax=GroupSoftmax(), reference_dir=tmp_path, reference=other,
        save_sidecars=lambda folder: None,
    )  # fmt: skip
    expected = slow_preference_loss(model, other, list(trainer.train_dataset), vocab=vocab, softmax="full", beta=0.5)
    found = trainer.evaluate()["eval_loss"]
    assert found == pytest.approx(expected.item(), abs=1e-5)
    assert abs(found - math.log(4)) > 0.01


def test_a_killed_run_goes_on_to_the_same_weights(start, encoded, tokenizer, vocab, tmp_path: Path) -> None:
    made = encoded(preferences())
    whole = trainer_of(start("lora"), made, tokenizer, vocab, tmp_path / "1", max_steps=4)
    whole.train()
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer_of(start("lora"), made, tokenizer, vocab, tmp_path / "2", **settings).train()
    again = trainer_of(start("lora"), made, tokenizer, vocab, tmp_path / "2", **settings)
    # The reference is the start, whatever weights the checkpoint has
    assert again.evaluate()["eval_loss"] == pytest.approx(math.log(4), abs=2e-6)
    again.train(resume_from_checkpoint=str(tmp_path / "2" / "run" / "checkpoint-2"))
    for name, value in weights_of(whole.model).items():
        assert torch.equal(weights_of(again.model)[name], value), name


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("learns", [True, False])
def test_a_run_ends_with_its_start_where_nothing_is_better(
    start, encoded, tokenizer, vocab, tmp_path: Path, kind: str, learns: bool
) -> None:
    """Held-out rows are those of training, chosen and rejected swapped or not: what is learned hurts, or helps."""
    rows = preferences(1)
    held = rows if learns else [{**row, "chosen": row["rejected"][0], "rejected": [row["chosen"]]} for row in rows]
    model = start(kind)
    before = weights_of(model)
    trainer = trainer_of(
        model, encoded(rows), tokenizer, vocab, tmp_path, held=encoded(held), eval_on_start=True, max_steps=4,
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=False, learning_rate=1e-3,
    )  # fmt: skip
    trainer.train()
    same = [torch.equal(weights_of(trainer.model)[name], value) for name, value in before.items()]
    assert all(same) if not learns else not any(same)
    best = trainer.best()
    assert best is not None
    assert (best["step"] == 0) == (not learns)
    assert best["start"] == pytest.approx(math.log(2), abs=2e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": ["sdpo"]}, "loss_type: 'sdpo' is not known; choose of s_dpo"),
        ({"loss_type": ["margin"]}, "margin, and the training rows have no margins"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    start, encoded, tokenizer, vocab, tmp_path: Path, settings: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        trainer_of(start(), encoded(preferences()), tokenizer, vocab, tmp_path, **settings)


def test_the_forward_is_the_policys_own_again(start, encoded, tokenizer, vocab, tmp_path: Path) -> None:
    """What decodes and saves calls the model as ever."""
    model = start()
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    trainer = trainer_of(model, encoded(preferences()), tokenizer, vocab, tmp_path)
    assert trainer.model is model
    assert torch.equal(model.eval()(input_ids=ids).logits, before)
