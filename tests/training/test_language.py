"""The watch on language: perplexity against a by-hand sum, its place in a run, and what follows when it grows."""

import json
import logging
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_kit import spread_weights
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainerControl, TrainerState, TrainingArguments

from llmrec.errors import InputError
from llmrec.hub import load_bundle
from llmrec.tasks.prompt import PromptForm
from llmrec.training.adapters import attach_adapter
from llmrec.training.config import RecipeArguments
from llmrec.training.examples import IGNORED
from llmrec.training.language import LanguageGuard, guard_rows

RECIPE = str(Path(__file__).parents[2] / "recipes" / "sft.py")
FORM = PromptForm("plain", "pens", {}, 5)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.txt"
    path.write_text('red pen, "no. 1" café\nblue\n\n\n\nblack pen\n\n' + "white pen " * 30, encoding="utf-8")
    return path


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.jsonl"
    rows = [("red or blue?", "red, café"), ("a pen?", "no " * 200)]
    lines = [json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]})
             for asked, told in rows]  # fmt: skip
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def small_model(vocab: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    spread_weights(model, scale=0.2)
    return model


@torch.no_grad()
def by_hand(model: Any, rows: list[tuple[list[int], list[int]]]) -> float:
    """Row by row and label by label, from the model's own logits."""
    total, count = 0.0, 0
    for ids, labels in rows:
        log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
        for place, label in enumerate(labels):
            if label != IGNORED:
                total -= float(log_probs[place - 1, label])
                count += 1
    return math.exp(total / count)


def test_rows_of_a_text(text: Path, tokenizer):
    rows = guard_rows(text, tokenizer=tokenizer, form=FORM, max_length=40)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|endoftext|>"])
    assert len(rows) == 3
    ids, labels = rows[0]
    assert tokenizer.decode(ids[1:-1]) == 'red pen, "no. 1" café blue'
    assert (ids[-1], labels) == (end, [IGNORED, *ids[1:]])
    assert ids[0] in (start, end)
    assert len(rows[2][0]) == 40


def test_rows_of_conversations(chat: Path, tokenizer, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        rows = guard_rows(chat, tokenizer=tokenizer, form=FORM, max_length=60)
    assert "1 answers of held_out.jsonl are longer than max_length" in caplog.text
    assert len(rows) == 1
    ids, labels = rows[0]
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == "red, café<|endoftext|>"
    assert labels.index(ids[labels.count(IGNORED)]) == labels.count(IGNORED)


@pytest.mark.parametrize("adapter", [False, True])
def test_perplexity_is_the_one_of_the_logits(text: Path, tokenizer, vocab, adapter: bool):
    model: Any = small_model(len(tokenizer))
    if adapter:
        model = attach_adapter(model, vocab, method="lora", rank=2, alpha=4)
        spread_weights(model, seed=1, scale=0.2)
    rows = guard_rows(text, tokenizer=tokenizer, form=FORM, max_length=60)
    guard = LanguageGuard(rows, source=text, info={})
    model.train()
    found = guard.perplexity(model)
    assert model.training, "the mode is restored"
    assert found == pytest.approx(by_hand(model.eval(), rows), rel=1e-5)


def flags(dataset, sid_folder: Path, out: Path, **settings: Any) -> list[str]:
    defaults = {
        "dataset": dataset.path, "sids": sid_folder, "output_dir": out, "model": "tiny-qwen3", "text_vocab_size": 320,
        "max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "gradient_checkpointing": False, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2,
        "save_steps": 2, "eval_beams": 10, "eval_users": 4, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return [part for key, value in {**defaults, **settings}.items() for part in (f"--{key}", str(value))]


def evaluations(path: Path) -> list[dict[str, float]]:
    history = json.loads((path / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "eval_perplexity" in entry]


def test_a_run_reports_it_and_stops(dataset, sid_folder: Path, text: Path, tmp_path: Path, caplog):
    out = tmp_path / "run"
    # No run of two steps halves the perplexity of a new model.
    settings = {"language_guard": text, "max_perplexity_ratio": 0.5, "perplexity_action": "stop"}
    with caplog.at_level(logging.INFO):
        runpy.run_path(RECIPE)["main"](flags(dataset, sid_folder, out, **settings))
    said = load_bundle(out).info["language"]
    logged = evaluations(out / "checkpoint-2")
    assert [entry["step"] for entry in logged] == [2]
    assert not (out / "checkpoint-4").exists()
    assert said["perplexity"] == pytest.approx(logged[-1]["eval_perplexity"])
    assert said["ratio"] == pytest.approx(said["perplexity"] / said["perplexity_before"])
    assert logged[-1]["eval_perplexity_ratio"] == pytest.approx(said["ratio"])
    assert (said["file"], said["rows"], said["max_perplexity_ratio"]) == ("held_out.txt", 3, 0.5)
    assert "above max_perplexity_ratio 0.5; training stops" in caplog.text


def test_a_warning_alone_stops_nothing(text: Path, tokenizer, caplog: pytest.LogCaptureFixture):
    info: dict[str, Any] = {}
    rows = guard_rows(text, tokenizer=tokenizer, form=FORM, max_length=20)
    guard = LanguageGuard(rows, source=text, info=info, max_ratio=1.5)
    args, state, control = TrainingArguments("unused", use_cpu=True), TrainerState(), TrainerControl()
    model = small_model(len(tokenizer))
    with pytest.raises(RuntimeError, match="hand it to the trainer's callbacks"):
        guard(model, None)
    guard.on_init_end(args, state, control, model=model)
    assert guard(model, None, prefix="test") == {
        "test_perplexity": info["language"]["perplexity_before"], "test_perplexity_ratio": 1.0,
    }  # fmt: skip
    assert "max_perplexity_ratio" not in caplog.text
    spread_weights(model, seed=3, scale=2.0)
    assert guard(model, None)["eval_perplexity_ratio"] > 1.5
    assert "above max_perplexity_ratio 1.5; mix in more chat_data" in caplog.text
    guard.on_log(args, state, control)
    assert not control.should_training_stop


BAD = [
    ({"max_perplexity_ratio": 1.5}, "max_perplexity_ratio: 1.5 without a text to measure; give language_guard"),
    ({"language_guard": "x.txt", "max_perplexity_ratio": 0.0}, "max_perplexity_ratio: 0.0; above 0, such as 1.5"),
    ({"perplexity_action": "shout"}, "perplexity_action: 'shout'; choose one of warn, stop"),
    ({"language_guard": "x.txt", "perplexity_action": "stop"}, "perplexity_action: stop has no bound; give max_perp"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        RecipeArguments(dataset="d", sids="s", **settings)


def test_files_without_text(tmp_path: Path, tokenizer):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    with pytest.raises(InputError, match=r"language_guard: .*empty.txt has no text of at most 9 tokens"):
        guard_rows(empty, tokenizer=tokenizer, form=FORM, max_length=9)
    with pytest.raises(InputError, match=r"none.txt: no such file; give a .txt, .jsonl or .parquet file"):
        guard_rows(tmp_path / "none.txt", tokenizer=tokenizer, form=FORM, max_length=9)
    (tmp_path / "x.md").write_text("x")
    with pytest.raises(InputError, match=r"ends in '.md'"):
        guard_rows(tmp_path / "x.md", tokenizer=tokenizer, form=FORM, max_length=9)
