"""GRPO on TRL's trainer: groups stay whole, references are right, a run goes on bit by bit, and TRL's own loss."""

import math
import shutil
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, set_seed
from trl import GRPOConfig, GRPOTrainer

from llmrec.data.folder import DatasetFolder
from llmrec.decoding.trie import SIDTrie
from llmrec.errors import InputError
from llmrec.rewards.build import build_rewards
from llmrec.rewards.inputs import RewardInputs
from llmrec.training.group_order import PromptOrder, generation_period, shuffle_groups
from llmrec.training.group_softmax import GroupSoftmax
from llmrec.training.grpo import RecommenderGRPOTrainer
from llmrec.training.grpo_config import GRPOArguments, GRPORecipeConfig
from llmrec.training.hard_prompts import HardPromptSettings
from llmrec.training.model import QUANTIZATION
from llmrec.training.policy import load_policy, prompt_rows, read_start
from llmrec.training.policy_losses.base import PolicyLoss
from llmrec.training.policy_losses.methods import POLICY_LOSSES, resolve_policy_loss
from llmrec.training.reference_policy import load_reference
from llmrec.training.rollouts import Rollouts
from tests.rl_kit import make_t5, write_adapter, write_bundle

REWARDS = {"exact_match": 1.0, "prefix_match": 0.5}
G = 4


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, dataset, tokenizer, table, vocab) -> Callable[[str, Any], Path]:
    """``bundles("lora", make_model)`` writes a bundle once."""
    made: dict[str, Path] = {}

    def bundle(kind: str, make: Callable[..., PreTrainedModel]) -> Path:
        if kind not in made:
            given = {"dataset": dataset, "tokenizer": tokenizer, "table": table}
            path = tmp_path_factory.mktemp("bundles") / kind
            if kind in ("full", "wide"):
                write_bundle(path, make(hidden=64 if kind == "wide" else 32), **given)
            elif kind == "t5":
                write_bundle(path, make_t5(tokenizer), base_model="tiny-t5", **given)
            else:
                given["quantization"] = dict(QUANTIZATION) if kind == "qlora" else None
                wide = partial(make, hidden=64)
                write_adapter(path, path.with_name("base"), wide, vocab, method=kind, **given)
            made[kind] = path
        return made[kind]

    return bundle


@pytest.fixture
def make_trainer(bundles, make_model, dataset: DatasetFolder, tmp_path: Path):
    """Build a trainer as the recipe does: ``make_trainer("full", beta=0.1)``."""

    def make(
        kind: str = "full",
        *,
        recipe: dict[str, Any] | None = None,
        out: str = "out",
        loss: PolicyLoss | None = None,
        validation: Any = None,
        **settings: Any,
    ) -> RecommenderGRPOTrainer:
        arguments = GRPOArguments(dataset=str(dataset.path), model=str(bundles(kind, make_model)), **(recipe or {}))
        chosen = {} if validation else {
            "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
            "metric_for_best_model": None,
        }  # fmt: skip
        training = GRPORecipeConfig(
            **{
                "output_dir": str(tmp_path / out),
                "num_generations": G,
                "per_device_train_batch_size": 8,
                "max_steps": 2,
                "learning_rate": 1e-3,
                "use_cpu": True,
                "report_to": "none",
                "logging_steps": 1,
                "disable_tqdm": True,
                "bf16": False,
                **chosen,
                **settings,
            }
        )
        set_seed(training.seed)
        start = read_start(arguments)
        training.check(arguments, items=len(dataset.catalog))
        policy = load_policy(arguments, start)
        trie = SIDTrie.from_vocab(policy.vocab)
        end = policy.tokenizer.eos_token_id
        return RecommenderGRPOTrainer(
            policy,
            training,
            prompts=prompt_rows(start.inputs, arguments, policy.vocab, seed=training.seed),
            rollouts=Rollouts(arguments.rollouts, G, trie=trie, vocab=policy.vocab, end_token_id=end),
            rewards=build_rewards(REWARDS, policy.vocab, RewardInputs(G)),
            softmax=GroupSoftmax(arguments.softmax, training.temperature, trie, end),
            policy_loss=loss,
            reference=load_reference(arguments, start, policy) if training.beta else None,
            hard_prompts=HardPromptSettings.parse(arguments.hard_prompts),
            validation=validation,
            save_sidecars=lambda path: None,
        )

    return make


class Falling:
    """A validation that likes each model less than the one before."""

    def __init__(self) -> None:
        self.value = 0.5

    def metrics(self, *args: Any, prefix: str) -> dict[str, float]:
        self.value -= 0.1
        return {f"{prefix}_ndcg@10": self.value}


def logged(trainer: RecommenderGRPOTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def one_batch(trainer: RecommenderGRPOTrainer) -> list[dict[str, Tensor]]:
    """The micro-batches of a first generation batch."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return trainer._buffered_inputs


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("full", {}),
        ("lora", {}),
        ("new_rows", {}),
        ("t5", {}),
        ("full", {"method": "lora"}),
        ("lora", {"method": "full"}),
        ("qlora", {}),
        ("wide", {"method": "qlora"}),  # 4 bits come in blocks of 64
    ],
)
def test_the_reference_is_the_start(make_trainer, kind: str, recipe: dict[str, Any]) -> None:
    trainer = make_trainer(kind, recipe=recipe, beta=0.1, num_iterations=2)
    trainer.train()
    first, second = logged(trainer)
    assert first["kl_penalty"] == pytest.approx(0.0, abs=1e-7)
    assert second["kl_penalty"] > 1e-6
    assert "completions/clipped_ratio" not in first


def test_a_reference_adapter_holds_the_sid_rows_and_is_not_saved(make_trainer, tmp_path: Path) -> None:
    trainer = make_trainer("lora", beta=0.1)
    parameters = dict(trainer.model.named_parameters())
    rows = [name for name in parameters if name.endswith("trainable_tokens_delta.ref")]
    assert rows
    for name in rows:
        assert torch.equal(parameters[name], parameters[name.removesuffix("ref") + "default"])
    assert not any(value.requires_grad for name, value in parameters.items() if "ref" in name.split("."))
    trainer.model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "ref").exists()


def test_a_reference_has_no_dropout(make_trainer) -> None:
    trainer = make_trainer("full", recipe={"method": "lora", "lora_dropout": 0.5}, beta=0.1, max_steps=1)
    rates = {module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates <= {0.0}
    trainer.train()
    assert logged(trainer)[0]["kl_penalty"] == pytest.approx(0.0, abs=1e-7)

    kept = make_trainer(
        "full", recipe={"method": "lora", "lora_dropout": 0.5}, beta=0.1, disable_dropout=False, out="kept"
    )
    rates = {
        "ref" if "ref" in name.split(".") else "policy": module.p
        for name, module in kept.model.named_modules()
        if isinstance(module, torch.nn.Dropout) and "lora_dropout" in name
    }
    assert rates == {"ref": 0.0, "policy": 0.5}


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_new_rows_alone_train_beside_a_reference(make_trainer, beta: float) -> None:
    trainer = make_trainer("new_rows", beta=beta, max_steps=3, learning_rate=1e-2)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(before[name], value)}
    trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert changed == trained
    assert {name.split(".")[-2] for name in changed} == {"trainable_tokens_delta"}


@pytest.mark.parametrize("steps", [1, 2])
def test_groups_stay_whole_in_micro_batches(make_trainer, steps: int) -> None:
    batches = one_batch(make_trainer(steps_per_generation=steps, per_device_train_batch_size=8 // steps))
    assert len(batches) == steps
    prompts = torch.cat([batch["prompt_ids"] for batch in batches]).view(-1, G, batches[0]["prompt_ids"].shape[1])
    assert (prompts == prompts[:, :1]).all()
    ranks = torch.cat([batch["ranks"] for batch in batches]).view(-1, G)
    assert (ranks == torch.arange(G)).all()


def test_shuffled_groups_are_other_groups() -> None:
    batch = {"x": torch.arange(24), "n": torch.tensor(24)}
    found = shuffle_groups(batch, group=G, generator=torch.Generator().manual_seed(0))
    assert found["x"].view(-1, G)[:, 0].tolist() != list(range(0, 24, G))
    assert sorted(found["x"].tolist()) == list(range(24))
    assert (found["x"].view(-1, G).diff(dim=1) == 1).all()
    assert found["n"] == 24


def test_an_order_is_that_of_its_epoch() -> None:
    order = PromptOrder(range(7), batch=3, repeats=2, seed=5)
    first = list(order)
    assert len(first) == len(order) == 12
    assert first[:3] == first[3:6]
    assert len({*first[:3], *first[6:9]}) == 6
    order.set_epoch(1)
    assert list(order) != first
    order.set_epoch(0)
    assert list(order) == first
    with pytest.raises(InputError, match="dataset: 7 prompts, and a generation batch has 8"):
        PromptOrder(range(7), batch=8, repeats=1, seed=0)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "bnpo", "dapo", "gspo", "cispo", "sapo"])
def test_losses_are_those_of_trl(make_trainer, name: str) -> None:
    trainer = make_trainer(recipe={"policy_loss": name}, beta=0.1, num_iterations=2)
    batch = one_batch(trainer)[0]
    with torch.no_grad():
        for parameter in trainer.model.parameters():  # so that ratios are not 1
            parameter.mul_(1.01)
    found = []
    for own in (True, False):
        if not own:
            trainer._get_per_token_logps_and_entropies = types.MethodType(
                GRPOTrainer._get_per_token_logps_and_entropies, trainer
            )
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        found.append((float(loss), [value.grad.clone() for value in trainer.model.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in found[1][1])
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-5 * max(largest, 1.0)


def test_a_step_is_that_of_the_stock_trainer(make_trainer, bundles, make_model, tmp_path: Path) -> None:
    """TRL as it stands, fed with the same candidates and rewards, ends with the same weights."""
    trainer = make_trainer(beta=0.1, max_steps=3, learning_rate=1e-2, shuffle_dataset=False, temperature=0.8)
    kept: list[dict[str, Any]] = []
    collect = trainer.hard_prompts.collect

    def keep(*args: Any, **kwargs: Any) -> Any:
        collected = collect(*args, **kwargs)
        kept.append({"prompts": trainer.encode(collected.rows), "ids": collected.group.completions()})
        kept[-1]["rewards"] = (collected.rewards @ torch.tensor([1.0, 0.5])).flatten().tolist()
        return collected

    trainer.hard_prompts.collect = keep
    rows = trainer.train_dataset
    trainer.train()
    given = iter(kept)
    now: list[dict[str, Any]] = []

    def rollout(prompts: list[str], _: Any) -> dict[str, Any]:
        now.append(next(given))
        ids = [one for one in now[-1]["prompts"] for _ in range(G)]
        return {"prompt_ids": ids, "completion_ids": now[-1]["ids"], "logprobs": None}

    path = bundles("full", make_model)
    stock = GRPOTrainer(
        model=str(path),
        reward_funcs=[lambda **kwargs: now[-1]["rewards"]],
        args=GRPOConfig(
            output_dir=str(tmp_path / "stock"), num_generations=G, per_device_train_batch_size=8, max_steps=3,
            learning_rate=1e-2, beta=0.1, shuffle_dataset=False, use_cpu=True, bf16=False, report_to="none",
            temperature=0.8, gradient_checkpointing=False, loss_type="grpo", save_strategy="no", logging_steps=1,
            disable_tqdm=True, max_completion_length=3,
        ),
        train_dataset=rows,
        processing_class=trainer.processing_class,
        rollout_func=rollout,
    )  # fmt: skip
    stock.train()
    theirs = [entry["loss"] for entry in stock.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logged(trainer)] == pytest.approx(theirs, abs=1e-5)
    for ours, other in zip(trainer.model.parameters(), stock.model.parameters(), strict=True):
        assert torch.allclose(ours, other, atol=1e-4)


def test_a_loss_of_ours_that_is_plain_grpo_equals_trl_s(make_trainer) -> None:
    found = []
    for loss in (None, PolicyLoss()):
        trainer = make_trainer(
            loss=loss, beta=0.1, num_iterations=2, max_steps=3, gradient_accumulation_steps=2, entropy_coef=0.01,
            recipe={"policy_loss": "grpo"},
        )  # fmt: skip
        trainer.train()
        found.append([(entry["loss"], entry["kl_penalty"], entry["entropy"]) for entry in logged(trainer)])
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("name", list(POLICY_LOSSES))
def test_losses_of_ours_train(make_trainer, name: str) -> None:
    arguments = {"k": 2} if name == "srpo" else {}
    loss = resolve_policy_loss(name, arguments)
    trainer = make_trainer(recipe={"policy_loss": name, "policy_loss_args": arguments}, loss=loss)
    before = [value.clone() for value in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        *((name, None) for name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "luspo")),
        ("grpo", PolicyLoss()),
    ],
)
def test_groups_left_out_count_for_nothing(make_trainer, name: str, loss: PolicyLoss | None) -> None:
    """The loss of two groups, one without spread, is that of the other alone, with a KL term and an entropy bonus."""
    recipe = {"hard_prompts": {"skip": True}, "policy_loss": name}
    trainer = make_trainer(recipe=recipe, beta=0.1, loss=loss, entropy_coef=0.5)
    batch = one_batch(trainer)[0]
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.01)
    keep = torch.tensor([False, True])
    trainer._leave_out(batch, keep)
    whole = float(trainer.compute_loss(trainer.model, batch))
    alone = {
        name: value[G:] if value.ndim else value
        for name, value in batch.items()
        if name not in ("tool_mask", "scale", "num_items_in_batch")
    }
    alone["num_items_in_batch"] = alone["completion_mask"].sum()
    assert whole == pytest.approx(float(trainer.compute_loss(trainer.model, alone)), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "recipe", "settings"),
    [
        ("full", {"rollouts": "sample", "hard_prompts": {"replace": "replay_next", "resample": 1}}, {}),
        ("lora", {"prompts": 9}, {"beta": 0.1, "per_device_train_batch_size": 4, "steps_per_generation": 3}),
    ],
)
def test_a_killed_run_goes_on_bit_by_bit(
    make_trainer, tmp_path: Path, kind: str, recipe: dict[str, Any], settings: dict[str, Any]
) -> None:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, **settings}
    straight = make_trainer(kind, recipe=recipe, out="straight", **settings)
    straight.train()
    resumed = make_trainer(kind, recipe=recipe, out="straight", **settings)
    shutil.rmtree(tmp_path / "straight" / "checkpoint-6")
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-3"))
    assert resumed.state.global_step == 6
    for ours, theirs in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert straight.generation == resumed.generation
    assert straight.hard_prompts.state_dict() == resumed.hard_prompts.state_dict()


def test_the_start_stays_where_nothing_is_better(make_trainer, tmp_path: Path, caplog) -> None:
    trainer = make_trainer(validation=Falling(), eval_steps=1, save_steps=1, save_total_limit=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    best = trainer.best()
    assert best is not None
    assert (best["step"], best["metric"]) == (0, "ndcg@10")
    assert best["value"] == best["start"]
    assert "no checkpoint was better than the start" in caplog.text
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    saved = load_file(tmp_path / "out" / "checkpoint-0" / "model.safetensors")
    assert all(torch.equal(before[name], value) for name, value in saved.items())
    evaluated = [entry for entry in trainer.state.log_history if "eval_ndcg@10" in entry]
    assert [entry["step"] for entry in evaluated] == [0, 1, 2]
    assert "reward" not in evaluated[1]


@pytest.mark.slow
def test_gradient_checkpointing_and_accumulation_change_nothing(make_trainer) -> None:
    found = []
    for settings in (
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 8, "gradient_checkpointing": True},
    ):
        trainer = make_trainer("lora", recipe={"policy_loss": "grpo"}, shuffle_dataset=False, **settings)
        trainer.train()
        found.append([entry["loss"] for entry in logged(trainer)])
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


def test_kl_on_draws_is_a_penalty_too_and_bfloat16_trains(make_trainer) -> None:
    trainer = make_trainer(recipe={"rollouts": "sample", "softmax": "allowed"}, beta=0.1, bf16=True)
    trainer.train()
    first = logged(trainer)[0]
    assert first["kl_penalty"] == pytest.approx(0.0, abs=1e-6)
    assert "kl" not in first
    assert first["outside_mass"] == 0.0
    assert {value.dtype for value in trainer.model.parameters()} == {torch.float32}


def test_old_log_probabilities_stay_those_of_the_draw(make_trainer) -> None:
    trainer = make_trainer(num_iterations=2, max_steps=4, learning_rate=1e-2)
    trainer.train()
    clipped = [entry["clip_ratio/region_mean"] for entry in logged(trainer)]
    assert clipped[0] == clipped[2] == 0.0
    assert clipped[1] > 0.0
    assert trainer.generation == 2


def test_the_last_checkpoint_of_epochs_is_on_a_boundary(make_trainer, tmp_path: Path) -> None:
    """A fourth of an epoch ends where the second of four micro-batches of a generation is learned from."""
    settings = {
        "max_steps": -1, "num_train_epochs": 0.25, "steps_per_generation": 4, "per_device_train_batch_size": 4,
        "recipe": {"prompts": 40},
    }  # fmt: skip
    saving = make_trainer(save_strategy="steps", save_steps=4, **settings)
    steps = math.ceil(0.25 * len(saving.get_train_dataloader()))
    assert steps % 4
    with pytest.raises(InputError, match=f"max_steps: {steps}; candidates are drawn every 4 steps"):
        saving.train()
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    unsaved = make_trainer(out="unsaved", **settings)
    unsaved.train()
    assert unsaved.state.global_step == steps


def test_ratios_of_cispo_are_cut_from_far_above(make_trainer) -> None:
    assert make_trainer(recipe={"policy_loss": "cispo"}).epsilon_high == 5.0
    assert make_trainer(recipe={"policy_loss": "cispo"}, epsilon_high=2.0).epsilon_high == 2.0
    assert make_trainer(recipe={"policy_loss": "grpo"}).epsilon_high == 0.2


def test_parts_that_hide_one_another_teach_where_each_is_scaled(make_trainer) -> None:
    """The weighted sums of the second group are all 1, and its parts are not."""
    parts = torch.zeros(2, G, 2)  # weights 1 and 1/2
    parts[1, 0, 0], parts[1, 1:, 1] = 1.0, 2.0
    found = []
    for aggregation in ("sum_then_normalize", "normalize_then_sum"):
        trainer = make_trainer(recipe={"policy_loss": "grpo"}, multi_objective_aggregation=aggregation)
        trainer.hard_prompts._score = lambda rows, group: parts[: len(rows)]
        advantages = torch.cat([batch["advantages"] for batch in one_batch(trainer)]).view(-1, G)
        found.append(sorted(bool(group.any()) for group in advantages))
    assert found == [[False, False], [False, True]]


@pytest.mark.parametrize(
    ("accumulation", "per_generation", "iterations", "period"),
    [(1, 1, 1, 1), (2, 4, 1, 2), (4, 2, 1, 1), (2, 2, 3, 3)],
)
def test_periods(accumulation: int, per_generation: int, iterations: int, period: int) -> None:
    found = generation_period(
        accumulation=accumulation, steps_per_generation=per_generation, iterations=iterations
    )  # fmt: skip
    assert found == period
