"""T5: losses are those of transformers, and the recipe writes bundles as it does of causal models."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from llmrec.data.folder import DatasetFolder
from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate
from llmrec.hub import load_bundle
from llmrec.training.adapters import attach_adapter
from llmrec.training.config import RecipeArguments
from llmrec.training.model import check_seq2seq, prepare_model
from llmrec.training.objectives.cross_entropy import negative_log_likelihood
from llmrec.training.rows import grow_rows, init_sid_rows
from llmrec.training.seq2seq import Seq2SeqCollator, add_seq2seq_forward
from llmrec.training.tokenizer import train_tokenizer

RECIPE = str(Path(__file__).parents[2] / "recipes" / "sft.py")
main = runpy.run_path(RECIPE)["main"]

ROWS = [
    {"input_ids": [1, 5, 6, 7, 8, 9], "labels": [-100, -100, -100, 7, 8, 9], "task": 0},
    {"input_ids": [1, 5, 6, 10, 2, 30, 31], "labels": [-100] * 5 + [30, 31], "task": 1},
    {"input_ids": [1, 12, 40], "labels": [-100, -100, 40], "task": 0},
]


def tiny_t5(rows: int = 50, **settings: Any) -> T5ForConditionalGeneration:
    config = {
        "vocab_size": rows, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0, "relative_attention_num_buckets": 4, "relative_attention_max_distance": 6,
        **settings,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return T5ForConditionalGeneration(T5Config(**config)).eval()


def test_what_encoder_and_decoder_read() -> None:
    batch = Seq2SeqCollator(pad_token_id=0, start_token_id=3)(ROWS)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[1, 5, 6, 0, 0], [1, 5, 6, 10, 2], [1, 12, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]],
        "decoder_input_ids": [[3, 7, 8], [3, 30, 0], [3, 0, 0]],
        # Rows of three decoder places: 0 1 2, 3 4, 6.
        "places": [0, 1, 2, 3, 4, 6],
        "targets": [7, 8, 9, 30, 31, 40],
        "tasks": [0, 0, 0, 1, 1, 0],
    }


def test_rows_without_labels_fill_a_batch() -> None:
    idle = {"input_ids": [1, 5], "labels": [-100, -100], "task": 0}
    batch = Seq2SeqCollator(pad_token_id=0, start_token_id=3)([idle, ROWS[2]])
    assert batch["input_ids"].tolist() == [[1, 5], [1, 12]]
    assert batch["decoder_input_ids"].tolist() == [[3], [3]]
    assert batch["places"].tolist() == [1]


@pytest.mark.parametrize("labels", [[-100, 5, -100, 7], [1, 5, 6, 7]])
def test_labels_that_no_decoder_can_answer_are_refused(labels: list[int]) -> None:
    with pytest.raises(InputError, match=r"labels behind it to the row's end.*set supervise: row"):
        Seq2SeqCollator(0, 0)([{"input_ids": [1, 5, 6, 7], "labels": labels, "task": 0}])


@pytest.mark.parametrize("scaled", [True, False])
def test_losses_and_gradients_are_those_of_transformers(scaled: bool) -> None:
    """T5 scales what its head reads where its config says so: transformers keeps it as `tie_word_embeddings`."""
    model = tiny_t5(tie_word_embeddings=scaled).double()
    assert model.config.scale_decoder_outputs is scaled
    batch = Seq2SeqCollator(0, 0)(ROWS)
    padded = torch.tensor([[7, 8, 9], [30, 31, -100], [40, -100, -100]])
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=padded).loss
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    add_seq2seq_forward(model, negative_log_likelihood)
    losses = model(**batch).losses
    losses.mean().backward()
    torch.testing.assert_close(losses.mean(), expected, atol=1e-12, rtol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-12, rtol=0, msg=name)
    again = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=padded).loss
    torch.testing.assert_close(again, expected, atol=1e-12, rtol=0, msg="calls of another form are as before")


def test_a_batch_is_its_rows_one_by_one() -> None:
    model = tiny_t5().double()
    add_seq2seq_forward(model, negative_log_likelihood)
    collator = Seq2SeqCollator(0, 0)
    together = model(**collator(ROWS)).losses
    alone = torch.cat([model(**collator([row])).losses for row in ROWS])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", ["lora", "new_rows"])
def test_new_rows_move_and_survive(tokenizer, vocab, tmp_path: Path, method: str) -> None:
    base = tiny_t5(rows=len(tokenizer))
    grow_rows(base, tokenizer)
    init_sid_rows(base, tokenizer, vocab)
    base.save_pretrained(tmp_path / "base")
    start = base.shared.weight.detach().clone()
    model = attach_adapter(base, vocab, method=method, rank=4)
    add_seq2seq_forward(base, negative_log_likelihood, vocab=vocab)
    items = [vocab.token_ids(row) for row in range(30)]
    rows = [
        {"input_ids": [0, *items[row - 1], *items[row]], "labels": [-100] * 4 + items[row], "task": 0}
        for row in range(30)
    ]
    batch = Seq2SeqCollator(0, 0)(rows)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    first = None
    for _ in range(5):
        loss = model(**batch).losses.mean()
        first = loss.item() if first is None else first
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        trained = model(**batch).losses
    assert trained.mean() < first - 0.1

    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")
    ).eval()
    merged: Any = again.merge_and_unload()
    new = torch.tensor(vocab.trainable_token_indices)
    old = torch.tensor([row for row in range(len(tokenizer)) if row not in set(new.tolist())])
    assert merged.lm_head.weight is merged.shared.weight
    assert torch.equal(merged.shared.weight[old], start[old]), "text rows stay"
    moved = (merged.shared.weight[new] - start[new]).abs().amax(dim=1) > 0
    assert moved.float().mean() > 0.8, "SID rows that were seen have moved"
    add_seq2seq_forward(merged, negative_log_likelihood, vocab=vocab)
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).losses, trained, atol=1e-4, rtol=0)


def test_tiger_has_its_sizes(dataset: DatasetFolder, sid_folder: Path, table) -> None:
    arguments = RecipeArguments(
        dataset=str(dataset.path), sids=str(sid_folder), model="tiger-t5", supervise="row", text_vocab_size=320
    )
    model: Any = prepare_model(arguments, table, dataset.catalog, seed=0).model
    # Encoder layer: 4 x 128 x 384 attention, 2 x 128 x 1024, 2 norms. Decoder layer: attention twice, 3 norms.
    encoder = 4 * (4 * 128 * 384 + 2 * 128 * 1024 + 2 * 128)
    decoder = 4 * (8 * 128 * 384 + 2 * 128 * 1024 + 3 * 128)
    biases, norms = 2 * 32 * 6, 2 * 128
    assert sum(p.numel() for p in model.parameters()) - model.shared.weight.numel() == (
        encoder + decoder + biases + norms
    )
    assert model.config.dropout_rate == 0.1
    assert model.config.feed_forward_proj == "relu"


def test_refusals(dataset: DatasetFolder, sid_folder: Path, table, tmp_path: Path) -> None:
    given = {"dataset": str(dataset.path), "sids": str(sid_folder)}
    with pytest.raises(InputError, match=r"supervise: history .* encoder of tiny-t5 looks both ways.*supervise: row"):
        prepare_model(RecipeArguments(model="tiny-t5", **given), table, dataset.catalog, seed=0)
    with pytest.raises(InputError, match="T5Config has no field 'hidden_dropout'"):
        prepare_model(
            RecipeArguments(model="tiny-t5", supervise="row", model_config={"hidden_dropout": 0.1}, **given),
            table, dataset.catalog, seed=0,
        )  # fmt: skip
    with pytest.raises(InputError, match="residual_dropout: T5ForConditionalGeneration has no self_attn"):
        prepare_model(
            RecipeArguments(model="tiny-t5", supervise="row", residual_dropout=0.1, **given),
            table, dataset.catalog, seed=0,
        )  # fmt: skip
    bart = BartForConditionalGeneration(
        BartConfig(
            vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=16,
        )
    )  # fmt: skip
    with pytest.raises(InputError, match="bart-tiny is an encoder-decoder of kind 'bart'; those that train are t5"):
        check_seq2seq(bart, supervise="row", name="bart-tiny")


def test_a_head_of_its_own_is_refused(dataset: DatasetFolder, sid_folder: Path, table, tmp_path: Path) -> None:
    """A contract with transformers: it loads such a checkpoint untied, and ties it as soon as its tables grow."""
    path = tmp_path / "t5-1.1"
    model = tiny_t5(rows=400)
    model.config.save_pretrained(path)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights["lm_head.weight"] = torch.randn(weights["lm_head.weight"].shape)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    train_tokenizer(dataset.catalog.titles, vocab_size=320).save_pretrained(path)
    loaded: Any = AutoModelForSeq2SeqLM.from_pretrained(path)
    assert loaded.lm_head.weight is not loaded.shared.weight
    loaded.resize_token_embeddings(500, mean_resizing=False)
    assert loaded.lm_head.weight is loaded.shared.weight, "no reason to refuse any more"
    arguments = RecipeArguments(
        dataset=str(dataset.path), sids=str(sid_folder), model=str(path), supervise="row", method="lora"
    )
    with pytest.raises(InputError, match=r"has an output head of its own.*t5-small"):
        prepare_model(arguments, table, dataset.catalog, seed=0)


def flags(dataset: DatasetFolder, sid_folder: Path, out: Path, **settings: Any) -> list[str]:
    defaults = {
        "dataset": dataset.path, "sids": sid_folder, "output_dir": out, "model": "tiny-t5", "text_vocab_size": 320,
        "supervise": "row", "max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2,
        "lr_scheduler_type": "constant", "gradient_checkpointing": False, "logging_steps": 1, "eval_strategy": "steps",
        "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "ndcg@10",
        "eval_beams": 10, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return [text for key, value in {**defaults, **settings}.items() for text in (f"--{key}", str(value))]


def entries(path: Path) -> list[dict[str, float]]:
    return json.loads((path / "trainer_state.json").read_text())["log_history"]


def losses(path: Path) -> list[float]:
    return [entry["loss"] for entry in entries(path) if "loss" in entry]


def test_a_run_writes_a_bundle_that_learned(dataset: DatasetFolder, sid_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    tasks = '{"next_item": 1.0, "title_to_sid": 0.5}'
    main(
        flags(
            dataset, sid_folder, out, max_steps=100, eval_steps=100, save_steps=100, learning_rate=5e-3, tasks=tasks,
            train_sampling_strategy="group_by_length", per_device_train_batch_size=16,
        )
    )  # fmt: skip
    bundle = load_bundle(out)
    assert bundle.model.config.is_encoder_decoder
    assert bundle.info["base_model"] == "tiny-t5"
    assert "AutoModelForSeq2SeqLM" in (out / "README.md").read_text()
    # Items step by one or two; chance is 5 of 30.
    found = evaluate(
        LLMRecommender.from_pretrained(out), dataset.split("leave_one_out").test, items=30, ks=[5], progress=False
    )
    assert found.metrics["recall@5"] > 0.3
    logged = [entry for entry in entries(out / "checkpoint-100") if "loss" in entry]
    assert all({"loss/next_item", "loss/title_to_sid"} & set(entry) for entry in logged)
    assert any("eval_ndcg@10" in entry for entry in entries(out / "checkpoint-100"))
    assert not (out / "training_args.bin").exists()


def test_resumed_equals_uninterrupted(dataset: DatasetFolder, sid_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    argv = flags(dataset, sid_folder, out)  # dropout 0.1 is on
    main(argv)
    whole, weights = losses(out / "checkpoint-4"), load_file(out / "checkpoint-4" / "model.safetensors")
    assert len(whole) == 4
    shutil.rmtree(out / "checkpoint-4")  # as if it had been killed after step 2
    (out / "README.md").unlink()
    main(argv)
    assert losses(out / "checkpoint-4") == pytest.approx(whole, abs=1e-6)
    for name, tensor in load_file(out / "checkpoint-4" / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-6, rtol=0)


@pytest.fixture
def pretrained(catalog, tmp_path: Path) -> Path:
    path = tmp_path / "pretrained"
    tiny_t5(rows=400).save_pretrained(path)
    train_tokenizer(catalog.titles, vocab_size=320).save_pretrained(path)
    return path


def test_an_adapter_through_the_recipe(
    dataset: DatasetFolder, sid_folder: Path, vocab, pretrained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    main(flags(dataset, sid_folder, out, model=pretrained, method="lora", max_steps=2))
    adapter = load_file(out / "adapter_model.safetensors")
    delta = next(value for name, value in adapter.items() if "trainable_tokens_delta" in name)
    assert delta.shape[0] == len(vocab.trainable_token_indices)
    bundle = load_bundle(out)
    assert bundle.info["architecture"] == "seq2seq"
    assert "AutoModelForSeq2SeqLM" in (out / "README.md").read_text()
    found = evaluate(
        LLMRecommender.from_pretrained(out, num_beams=10),
        dataset.split("leave_one_out", max_history=20).valid, items=30, ks=[5, 10], progress=False,
    ).metrics  # fmt: skip
    said = bundle.info["metrics"][0]["metrics"]
    assert {name: found[name] for name in said} == pytest.approx(said, abs=1e-9)


@pytest.mark.slow
def test_two_processes_equal_one(dataset: DatasetFolder, sid_folder: Path, tmp_path: Path) -> None:
    """The same global batch of 8: once from one process, once 4 from each of two; dropout is off."""
    settings = {"max_steps": 4, "eval_steps": 4, "save_steps": 4, "model_config": '{"dropout_rate": 0.0}'}
    one, two = tmp_path / "one", tmp_path / "two"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, RECIPE, *flags(dataset, sid_folder, one, **settings)], check=True, env=environment)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    pair = [*launcher, RECIPE, *flags(dataset, sid_folder, two, per_device_train_batch_size=4, **settings)]
    subprocess.run(pair, check=True, env=environment)
    assert losses(two / "checkpoint-4") == pytest.approx(losses(one / "checkpoint-4"), abs=1e-4)
    for name, tensor in load_file(two / "model.safetensors").items():
        torch.testing.assert_close(tensor, load_file(one / "model.safetensors")[name], atol=2e-3, rtol=0)
