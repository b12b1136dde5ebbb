"""LoRA, QLoRA and rows-only: the new rows move in the input and in the output, and survive save, load and merge."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from llmrec.errors import InputError
from llmrec.training.adapters import attach_adapter, table_names
from llmrec.training.rows import grow_rows, init_sid_rows

MakeModel = Callable[..., PreTrainedModel]
METHODS = ["lora", "new_rows"]


def train_a_little(model: torch.nn.Module, vocab, steps: int = 5) -> None:
    """Raise the likelihood of SID tokens after SID tokens, so that input and output rows both get gradients."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    ids = vocab.item_token_ids.reshape(1, -1)[:, :60]
    model.train()
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def logits(model: torch.nn.Module, vocab) -> torch.Tensor:
    with torch.no_grad():
        return model(vocab.item_token_ids.reshape(1, -1)[:, :30]).logits.float()


@pytest.fixture
def base(make_model: MakeModel, tokenizer, vocab, tmp_path: Path) -> Callable[..., Path]:
    def save(tied: bool, shape: str = "qwen2") -> Path:
        model = make_model(shape, tied=tied, hidden=64)  # bitsandbytes packs blocks of 64
        grow_rows(model, tokenizer)
        init_sid_rows(model, tokenizer, vocab)
        path = tmp_path / f"base_{tied}"
        model.save_pretrained(path)
        return path

    return save


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_move_and_survive(base, vocab, tmp_path: Path, method: str, tied: bool) -> None:
    path = base(tied)
    start = AutoModelForCausalLM.from_pretrained(path)
    model = attach_adapter(AutoModelForCausalLM.from_pretrained(path), vocab, method=method, rank=4)
    train_a_little(model, vocab)
    trained = logits(model, vocab)

    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again, vocab), trained, atol=1e-5, rtol=0)

    merged = again.merge_and_unload()
    torch.testing.assert_close(logits(merged, vocab), trained, atol=1e-4, rtol=0)
    new = torch.tensor(vocab.trainable_token_indices)
    old = torch.tensor([i for i in range(640) if i not in set(vocab.trainable_token_indices)])
    for get in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(start, get)().weight, getattr(merged, get)().weight
        assert torch.equal(before[old], after[old]), f"{get}: text rows stay"
        moved = (before[new] - after[new]).abs().amax(dim=1)
        assert (moved[: len(new) - 1] > 0).float().mean() > 0.8, f"{get}: SID rows that were seen have moved"
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) is tied

    merged.save_pretrained(tmp_path / "merged")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(reloaded, vocab), trained, atol=1e-4, rtol=0)


def test_a_redrawn_base_gives_the_same_adapter(base, make_model: MakeModel, tokenizer, vocab, tmp_path: Path) -> None:
    """The adapter holds whole rows, so the base's own draw of the new rows does not matter."""
    path = base(True)
    model = attach_adapter(AutoModelForCausalLM.from_pretrained(path), vocab, method="lora", rank=4)
    train_a_little(model, vocab)
    model.save_pretrained(tmp_path / "adapter")
    other = AutoModelForCausalLM.from_pretrained(path)
    init_sid_rows(other, tokenizer, vocab, seed=99)
    again = PeftModel.from_pretrained(other, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again, vocab), logits(model, vocab), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_qlora_moves_rows_and_keeps_them(base, vocab, tmp_path: Path, tied: bool) -> None:
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    path = base(tied, "qwen3")  # without biases: bitsandbytes 0.50.2 fails on Qwen2's in its CPU inference kernel

    def load() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(path, quantization_config=quantization, device_map="cpu")

    model = attach_adapter(load(), vocab, method="qlora", rank=4)
    before = logits(model, vocab)
    train_a_little(model, vocab)
    trained = logits(model, vocab)
    assert (trained - before).abs().max() > 0.01
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again, vocab), trained, atol=1e-3, rtol=1e-3)


def test_names_of_tables(make_model: MakeModel) -> None:
    assert table_names(make_model(tied=True)) == ["embed_tokens"]
    assert table_names(make_model(tied=False)) == ["embed_tokens", "lm_head"]


def test_full_needs_no_adapter(make_model: MakeModel, vocab) -> None:
    with pytest.raises(InputError, match="method: 'full' needs no adapter"):
        attach_adapter(make_model(), vocab, method="full")
