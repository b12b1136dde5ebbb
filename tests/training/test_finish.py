"""What a run says of itself."""

import dataclasses
import json
from pathlib import Path

from llmrec.data.splits import training_popularity
from llmrec.tasks.prompt import PromptForm
from llmrec.training.config import RecipeArguments, SFTRecipeConfig
from llmrec.training.finish import describe_run, run_identity
from llmrec.training.model import prepare_model


def test_popularity_counts_each_training_interaction() -> None:
    assert training_popularity([(0, 1, 1), (2, 1)], items=5).tolist() == [1, 3, 1, 0, 0]
    assert training_popularity([], items=2).tolist() == [0, 0]


def make(dataset, tmp_path: Path, **settings) -> tuple[RecipeArguments, SFTRecipeConfig]:
    arguments = RecipeArguments(dataset=str(dataset.path), sids="sids", model="tiny-qwen3", text_vocab_size=320)
    return arguments, SFTRecipeConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_identity_changes_with_what_decides_the_weights(dataset, table, tmp_path: Path) -> None:
    def identity(protocol: str = "leave_one_out", **settings) -> dict:
        own = {name: settings.pop(name) for name in ("sid_init", "lora_dropout", "eval_beams") if name in settings}
        arguments, training = make(dataset, tmp_path, **settings)
        arguments = dataclasses.replace(arguments, **own)
        form = PromptForm("plain", "pens")
        return run_identity(arguments, training, dataset=dataset, table=table, form=form, protocol=protocol)

    assert identity() == identity()
    assert identity(seed=1) != identity()
    assert identity(learning_rate=0.5) != identity()
    assert identity(num_train_epochs=9) != identity()
    assert identity("temporal") != identity()
    assert identity(optim="adafactor") != identity()
    assert identity(sid_init="text") != identity()
    assert identity(lora_dropout=0.5) != identity()
    assert identity(eval_beams=30) != identity(), "it decides which checkpoint is the best"
    for name, value in {
        "lr_scheduler_kwargs": {"num_cycles": 2}, "optim_args": "a=1", "neftune_noise_alpha": 5.0,
        "dataloader_drop_last": True, "metric_for_best_model": "ndcg@10", "greater_is_better": False,
        "eval_strategy": "steps", "eval_steps": 7,
    }.items():  # fmt: skip
        assert identity(**{name: value}) != identity(), name
    evaluated = {"eval_strategy": "steps", "save_strategy": "steps"}
    assert identity(**evaluated, load_best_model_at_end=True) != identity(**evaluated)
    assert json.loads(json.dumps(identity(**evaluated, lr_scheduler_kwargs={"num_cycles": 2}))) == identity(
        **evaluated, lr_scheduler_kwargs={"num_cycles": 2}
    ), "run.json gives back what is compared"
    assert identity(logging_steps=3) == identity(), "what only watches does not make another run"
    assert identity(per_device_train_batch_size=4) != identity()
    halved = identity(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert halved == identity(), "8 rows a step by default, however they are cut"


def test_description_of_a_run(dataset, catalog, table, tmp_path: Path) -> None:
    arguments, training = make(dataset, tmp_path)
    prepared = prepare_model(arguments, table, catalog, seed=0)
    form = PromptForm("plain", "pens", max_history=7)
    info = describe_run(
        arguments, training, dataset=dataset, table=table, prepared=prepared, form=form, protocol="leave_one_out"
    )
    assert info["dataset"]["catalog_hash"] == catalog.hash
    assert info["prompt"]["max_history"] == 7
    assert info["vocab_rows"] == len(prepared.tokenizer)
    assert info["training"]["learning_rate"] == training.learning_rate
    assert info["training"]["processes"] == 1
    assert info["sids"]["sid_hash"] == table.hash
    assert (info["dtype"], info["quantization"]) == ("float32", None)
    assert info["settings"]["sid_init"] == "mean"
    assert not {"metric_for_best_model", "eval_steps"} & info["training"].keys(), "bundles stay one configuration"
