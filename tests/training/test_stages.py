"""Stages: rows first, then LoRA or everything; each goes on after a kill, and begins where the last one ended."""

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

from llmrec.errors import InputError
from llmrec.hub import load_bundle
from llmrec.training.adapters import attach_adapter
from llmrec.training.config import RecipeArguments, SFTRecipeConfig
from llmrec.training.parser import parse_recipe
from llmrec.training.stages import stages_of
from llmrec.training.start import begin_with
from llmrec.training.tokenizer import train_tokenizer

main = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "sft.py"))["main"]
ROWS_THEN_LORA = [{"method": "new_rows", "max_steps": 2, "learning_rate": "5e-2"}, {"method": "lora"}]


def recipe(**settings: Any) -> RecipeArguments:
    return RecipeArguments(**{"dataset": "data", "sids": "sids", "model": "pretrained", **settings})


def optimised(**settings: Any) -> SFTRecipeConfig:
    return SFTRecipeConfig(**{"output_dir": "runs/pens", "use_cpu": True, "report_to": "none", **settings})


@pytest.fixture
def run(dataset, sid_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run the recipe into a folder and return it."""

    def start(model: str | Path, *, out: str = "run", **settings: Any) -> Path:
        defaults = {
            "dataset": dataset.path, "sids": sid_folder, "output_dir": tmp_path / out, "model": model,
            "text_vocab_size": 320, "max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2,
            "lr_scheduler_type": "linear", "gradient_checkpointing": False, "logging_steps": 1, "save_steps": 2,
            "eval_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        }  # fmt: skip
        given = {**defaults, **settings}
        if "stages" in given:
            given["stages"] = json.dumps(given["stages"])
        main([
            text for key, value in given.items()
            for text in (f"--{key}", *(value if isinstance(value, list) else [str(value)]))
        ])  # fmt: skip
        return tmp_path / out

    return start


@pytest.fixture
def pretrained(make_model, catalog, tmp_path: Path) -> Callable[..., Path]:
    def save(*, tied: bool = True) -> Path:
        path = tmp_path / f"pretrained_{tied}"
        make_model("qwen3", rows=640, hidden=64, tied=tied).save_pretrained(path)
        train_tokenizer(catalog.titles, vocab_size=320).save_pretrained(path)
        return path

    return save


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / ("adapter_model.safetensors" if (path / "adapter_config.json").is_file() else
                             "model.safetensors"))  # fmt: skip


def losses(path: Path) -> list[float]:
    history = json.loads((path / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def logits(path: Path) -> torch.Tensor:
    bundle = load_bundle(path)
    with torch.no_grad():
        return bundle.model.eval()(bundle.vocab.item_token_ids.reshape(1, -1)[:, :30]).logits


def kill(path: Path, *, after: int) -> None:
    """Leave of a finished run what it had when it was killed behind a checkpoint."""
    for checkpoint in path.glob("checkpoint-*"):
        if int(checkpoint.name.partition("-")[2]) > after:
            shutil.rmtree(checkpoint)
    (path / "README.md").unlink()


def test_a_run_without_stages_is_itself() -> None:
    arguments, training = recipe(), optimised()
    (stage,) = stages_of(arguments, training)
    assert stage.arguments is arguments
    assert stage.training is training


def test_stages_stand_over_the_run() -> None:
    stages = stages_of(
        recipe(stages=[*ROWS_THEN_LORA, {"method": "full", "sid_learning_rate": "1e-3", "num_train_epochs": 2}]),
        optimised(learning_rate=1e-4, max_steps=9, push_to_hub=True, hub_model_id="me/pens", run_name="pens"),
    )
    assert [stage.name for stage in stages] == [
        "stage 1 of 3 (new_rows)", "stage 2 of 3 (lora)", "stage 3 of 3 (full)",
    ]  # fmt: skip
    assert [stage.training.output_dir for stage in stages] == [
        "runs/pens-stage-1", "runs/pens-stage-2", "runs/pens",
    ]  # fmt: skip
    assert [stage.arguments.start_from for stage in stages] == [None, "runs/pens-stage-1", "runs/pens-stage-2"]
    assert [stage.training.learning_rate for stage in stages] == [5e-2, 1e-4, 1e-4]
    assert [stage.training.max_steps for stage in stages] == [2, 9, 9]
    assert [stage.training.push_to_hub for stage in stages] == [False, False, True]
    assert [stage.arguments.sid_learning_rate for stage in stages] == [None, None, 1e-3]
    assert [stage.training.run_name for stage in stages] == ["pens-stage-1", "pens-stage-2", "pens-stage-3"]


def test_stages_of_a_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "stages.yaml"
    path.write_text(
        f"dataset: data\nsids: sids\noutput_dir: {tmp_path / 'out'}\nreport_to: none\nuse_cpu: true\n"
        "freeze: [embed_tokens, layers.0-1]\nsid_learning_rate: 1e-3\nlayer_learning_rate_decay: 0.9\n"
        "stages:\n  - {method: new_rows, max_steps: 200, learning_rate: 5e-3, freeze: [lm_head]}\n  - {method: lora}\n"
    )
    arguments, training = parse_recipe(["--config", str(path)], RecipeArguments, SFTRecipeConfig)
    assert arguments.freeze == ["embed_tokens", "layers.0-1"]
    assert (arguments.sid_learning_rate, arguments.layer_learning_rate_decay) == (1e-3, 0.9)
    first, second = stages_of(arguments, training)
    assert (first.arguments.method, first.training.max_steps, first.training.learning_rate) == ("new_rows", 200, 5e-3)
    assert (first.arguments.freeze, second.arguments.freeze) == (["lm_head"], ["embed_tokens", "layers.0-1"])


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"tasks": {}}], "stages: stage 1 sets 'tasks', which is the whole run's; a stage may set method, lora_r"),
        (
            [{"method": "lora"}, {"method": "new_rows"}],
            "stage 2: method: new_rows cannot follow lora, .* comes lora",
        ),
        ([{"method": "qlora"}, {"method": "full"}], "stage 2: method: full cannot follow qlora"),
        ([{"method": "lora"}, {"method": "all"}], "stages: stage 2: method: 'all'; choose one of full, lora"),
        ([{"learning_rate": -1.0}], "stages: stage 1: learning_rate: -1.0; it is not negative"),
        ([{"learning_rate": "fast"}], "stages: stage 1: {'learning_rate': 'fast'} is refused"),
        ([{"sid_learning_rate": 0.0}], "stages: stage 1: sid_learning_rate: 0.0; above 0"),
        ([{}], r"stages: \[{}\]; a list of mappings"),
        ("[{]", r"--stages '\[{\]': not JSON"),
        ({"method": "lora"}, "stages: {'method': 'lora'}; a list of mappings"),
    ],
)
def test_stages_that_are_refused(stages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        stages_of(recipe(stages=stages), optimised())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": "embed_tokens"}, r"freeze: 'embed_tokens'; a list of names, such as \[embed_tokens"),
        ({"freeze": [3]}, r"freeze: \[3\]; a list of names"),
        ({"sid_learning_rate": -1.0}, r"sid_learning_rate: -1.0; above 0 \(freeze: \[sid_rows\] holds the rows\)"),
        ({"layer_learning_rate_decay": 1.5}, r"layer_learning_rate_decay: 1.5; in \(0, 1\], 1 is off"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe(**settings)


def test_a_run_with_stages_finds_its_checkpoints_itself() -> None:
    with pytest.raises(InputError, match="resume_from_checkpoint: with stages the same command goes on"):
        stages_of(recipe(stages=ROWS_THEN_LORA), optimised(resume_from_checkpoint="runs/x/checkpoint-3"))


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_rows_then_lora_and_a_kill_in_each(run, pretrained, vocab, tied: bool, caplog) -> None:
    caplog.set_level("INFO")
    model = pretrained(tied=tied)
    out = run(model, stages=ROWS_THEN_LORA)
    first = out.with_name("run-stage-1")
    assert load_bundle(first).info["method"] == "new_rows"
    assert load_bundle(out).info["method"] == "lora"
    tables = 1 if tied else 2
    started, ended = weights(first), weights(out)
    rows = [name for name in started if name.endswith("trainable_tokens_delta")]
    assert len(rows) == tables
    assert len(losses(first / "checkpoint-2")) == 2
    whole = losses(out / "checkpoint-4")
    # The second stage begins where the first one ended: its first loss is below that of LoRA from the start.
    alone = run(model, out="alone", method="lora")
    assert whole[0] < losses(alone / "checkpoint-4")[0] - 0.1

    kill(out, after=2)
    run(model, stages=ROWS_THEN_LORA)
    assert "stage 1 of 2 (new_rows): was finished before" in caplog.text
    assert f"stage 2 of 2 (lora): in {out}" in caplog.text
    assert losses(out / "checkpoint-4") == whole
    for name, value in weights(out).items():
        assert torch.equal(value, ended[name]), name

    shutil.rmtree(out)  # killed in the first stage, before its last checkpoint
    kill(first, after=0)
    run(model, stages=ROWS_THEN_LORA)
    assert losses(out / "checkpoint-4") == whole
    with pytest.raises(InputError, match="holds this very run, finished"):
        run(model, stages=ROWS_THEN_LORA)
    with pytest.raises(InputError, match=r"run: holds another run \(learning_rate is 0.01 there, 0.02 here\)"):
        run(model, stages=[ROWS_THEN_LORA[0], {"method": "lora", "learning_rate": 0.02}])
    with pytest.raises(InputError, match=r"run-stage-1: holds another run \(learning_rate is 0.05 there, 0.01 here\)"):
        run(model, stages=[{"method": "new_rows", "max_steps": 2}, {"method": "lora"}])


@pytest.mark.parametrize(
    "methods",
    [
        ("new_rows", "full"),
        pytest.param(("lora", "full"), marks=pytest.mark.slow),
        ("lora", "lora"),
        pytest.param(("new_rows", "qlora"), marks=pytest.mark.slow),
    ],
)
def test_a_stage_begins_where_the_last_one_ended(run, pretrained, methods: tuple[str, str]) -> None:
    """A second stage with a learning rate of zero gives the answers of the first."""
    stages = [{"method": methods[0], "max_steps": 2}, {"method": methods[1], "learning_rate": 0.0, "max_steps": 1}]
    out = run(pretrained(), stages=stages)
    found, expected = logits(out), logits(out.with_name("run-stage-1"))
    if methods[1] == "qlora":  # its base is quantised to 4 bits: rows are compared, not answers
        (rows,) = [value for name, value in weights(out).items() if "delta" in name]
        (before,) = [value for name, value in weights(out.with_name("run-stage-1")).items() if "delta" in name]
        torch.testing.assert_close(rows, before, atol=0, rtol=2**-8)  # TRL rounds what trains over 4 bits, once
    else:
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_built_model_trains_fully_twice(run, vocab) -> None:
    """First without its first layer and its words, then all of it."""
    stages = [{"freeze": ["layers.0", "embed_tokens"], "max_steps": 2}, {"sid_learning_rate": 2e-2, "max_steps": 4}]
    out = run("tiny-qwen3", stages=stages)
    first, ended = weights(out.with_name("run-stage-1")), weights(out)
    assert not torch.equal(first["model.layers.0.mlp.up_proj.weight"], ended["model.layers.0.mlp.up_proj.weight"])
    kill(out, after=2)
    run("tiny-qwen3", stages=stages)
    for name, value in weights(out).items():
        assert torch.equal(value, ended[name]), name


def test_frozen_parts_through_the_trainer(run, pretrained, vocab) -> None:
    model = pretrained()
    settings = {"method": "full", "freeze": ["embed_tokens", "layers.0"], "sid_learning_rate": 1e-1}
    settings["layer_learning_rate_decay"] = 0.5
    out = run(model, weight_decay=0.1, **settings)
    start, ended = weights(model), weights(out)
    new = vocab.trainable_token_indices
    old = [row for row in range(640) if row not in new]
    moved = (ended["model.embed_tokens.weight"] - start["model.embed_tokens.weight"]).abs()
    assert float(moved[old].max()) == 0.0
    assert torch.equal(ended["model.layers.0.mlp.up_proj.weight"], start["model.layers.0.mlp.up_proj.weight"])
    # Four steps of AdamW on a linear schedule move a weight by at most (1 + 3/4 + 1/2 + 1/4) rates, decay aside.
    upper = (ended["model.layers.1.mlp.up_proj.weight"] - start["model.layers.1.mlp.up_proj.weight"]).abs()
    assert 0.5 * 5e-3 < float(upper.max()) <= 1.1 * 2.5 * 5e-3
    kill(out, after=2)
    run(model, weight_decay=0.1, **settings)
    for name, value in weights(out).items():
        assert torch.equal(value, ended[name]), name


@pytest.mark.parametrize("method", ["new_rows", "lora"])
def test_an_encoder_decoder_begins_where_an_adapter_ended(vocab, tmp_path: Path, method: str) -> None:
    def build() -> T5ForConditionalGeneration:
        with torch.random.fork_rng():
            torch.random.default_generator.manual_seed(0)
            sizes: Any = {"vocab_size": 640, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2}
            config: Any = T5Config(**sizes)
            config.decoder_start_token_id = 0
            return T5ForConditionalGeneration(config).eval()

    ids = vocab.item_token_ids[:2]
    adapted = attach_adapter(build(), vocab, method=method, rank=2).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        expected = adapted(input_ids=ids, decoder_input_ids=ids).logits
        adapted.save_pretrained(str(tmp_path))
        whole = begin_with(build(), tmp_path, vocab, before=method, method="full").eval()
        torch.testing.assert_close(whole(input_ids=ids, decoder_input_ids=ids).logits, expected, atol=1e-5, rtol=0)
    assert all(parameter.requires_grad for parameter in whole.parameters())


def test_what_a_later_stage_would_refuse_is_refused_at_once(run, pretrained, tmp_path: Path) -> None:
    model = pretrained()
    with pytest.raises(InputError, match=r"stages: stage 2: freeze: 'layers.7' names nothing of Qwen3ForCausalLM"):
        run(model, stages=[{"method": "new_rows"}, {"method": "lora", "freeze": ["layers.7"]}])
    with pytest.raises(InputError, match=r"stages: stage 2: .*nowhere.* not found in the base model"):
        run(model, stages=[{"method": "new_rows"}, {"method": "lora", "lora_target_modules": ["nowhere"]}])
    assert not list(tmp_path.glob("run*"))


def test_a_start_that_does_not_fit_is_refused(run, pretrained, tmp_path: Path) -> None:
    model = pretrained()
    before = run(model, out="before", method="lora", max_steps=1)
    with pytest.raises(InputError, match=r"start_from: .*before has another base_model \('.*True' there, '.*False'"):
        run(pretrained(tied=False), method="lora", start_from=before)
    with pytest.raises(InputError, match=r"start_from: .*before: method: new_rows cannot follow lora"):
        run(model, method="new_rows", start_from=before)
    with pytest.raises(InputError, match=r"start_from: the adapter of .*before has another r .16 there, 8 here"):
        run(model, method="lora", lora_r=8, start_from=before)
    with pytest.raises(InputError, match=r"before was trained under protocol 'leave_one_out', and this run's is 'tem"):
        run(model, method="lora", protocol="temporal", start_from=before)
    with pytest.raises(InputError, match="manifest of the bundle of start_from"):
        run(model, method="lora", start_from=tmp_path / "nowhere")
