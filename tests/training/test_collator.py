"""Batches by hand, bins, and which layout a model gets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    MistralConfig,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from llmrec.training.collator import IGNORED, LabelledCollator, layout_for, pack_rows, packed_mask

ROWS = [
    {"input_ids": [1, 2], "labels": [IGNORED, 2], "task": 0},
    {"input_ids": [3, 4, 5, 6, 7], "labels": [IGNORED, IGNORED, 5, 6, 7], "task": 1},
    # A label on the first token of a row: nothing stands before it, so it is not learned
    {"input_ids": [8, 9, 10], "labels": [8, IGNORED, 10], "task": 2},
]


def listed(batch: dict) -> dict:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def test_packed_by_hand() -> None:
    # Longest first: row 1 fills the first bin of 5; row 2 opens another, and row 0 fits behind it.
    assert listed(LabelledCollator(0)(ROWS)) == {
        "input_ids": [[3, 4, 5, 6, 7], [8, 9, 10, 1, 2]],
        "position_ids": [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]],
        "rows_of": [[1] * 5, [2, 2, 2, 0, 0]],
        # Token 5 stands at 2 and is predicted at 1; 10 at 5 + 2, so at 6; 2 at 5 + 4, so at 8
        "places": [1, 2, 3, 6, 8],
        "targets": [5, 6, 7, 10, 2],
        "tasks": [1, 1, 1, 2, 0],
    }


def test_padded_by_hand() -> None:
    assert listed(LabelledCollator(0, "padded")(ROWS)) == {
        "input_ids": [[1, 2, 0, 0, 0], [3, 4, 5, 6, 7], [8, 9, 10, 0, 0]],
        "attention_mask": [[1, 1, 0, 0, 0], [1] * 5, [1, 1, 1, 0, 0]],
        "places": [0, 6, 7, 8, 11],
        "targets": [2, 5, 6, 7, 10],
        "tasks": [0, 1, 1, 1, 2],
    }


def test_flat_by_hand_and_as_trl_has_it() -> None:
    batch = LabelledCollator(0, "flat")(ROWS)
    assert listed(batch) == {
        "input_ids": [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]],
        "position_ids": [[0, 1, 0, 1, 2, 3, 4, 0, 1, 2]],
        "cu_seq_lens_q": [0, 2, 7, 10],
        "cu_seq_lens_k": [0, 2, 7, 10],
        "max_length_q": 5,
        "max_length_k": 5,
        "places": [0, 3, 4, 5, 8],
        "targets": [2, 5, 6, 7, 10],
        "tasks": [0, 1, 1, 1, 2],
    }
    trl = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(ROWS)
    for name in ("input_ids", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"):
        assert torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(trl[name])), name
        assert getattr(batch[name], "dtype", int) == getattr(trl[name], "dtype", int), name


def test_bins_may_be_longer_and_are_rounded_up() -> None:
    assert LabelledCollator(0, pack_length=10)(ROWS)["input_ids"].tolist() == [[3, 4, 5, 6, 7, 8, 9, 10, 1, 2]]
    assert LabelledCollator(0, pack_length=3)(ROWS)["input_ids"].shape == (2, 5), "below the longest row it is nothing"
    batch = LabelledCollator(0, pad_to_multiple_of=4)(ROWS)
    assert batch["input_ids"].tolist() == [[3, 4, 5, 6, 7, 0, 0, 0], [8, 9, 10, 1, 2, 0, 0, 0]]
    assert batch["position_ids"].tolist()[1] == [0, 1, 2, 0, 1, 0, 1, 2]
    assert batch["rows_of"].tolist()[1] == [2, 2, 2, 0, 0, -1, -1, -1]
    flat = LabelledCollator(0, "flat", pad_to_multiple_of=4)(ROWS)
    assert flat["cu_seq_lens_q"].tolist() == [0, 2, 7, 10, 12], "padding is a sequence of its own"


def test_mask_by_hand() -> None:
    mask = packed_mask(torch.tensor([[2, 2, 0, -1]]), torch.float32)
    assert (mask[0, 0] == 0).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert mask.min() == torch.finfo(torch.float32).min


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40), capacity=st.integers(1, 30))
def test_bins_hold_each_row_once(lengths: list[int], capacity: int) -> None:
    bins = pack_rows(lengths, capacity)
    assert sorted(row for numbers in bins for row in numbers) == list(range(len(lengths)))
    used = [sum(lengths[row] for row in numbers) for numbers in bins]
    assert all(tokens <= capacity or len(numbers) == 1 for tokens, numbers in zip(used, bins, strict=True))
    # First fit leaves no two bins that would go into one
    assert all(one + other > capacity for place, one in enumerate(used) for other in used[:place])


@settings(max_examples=40)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=12),
    layout=st.sampled_from(["packed", "flat", "padded"]),
    pack_length=st.sampled_from([None, 20]),
)
def test_every_layout_holds_the_same_labels(rows: list[list[bool]], layout: str, pack_length: int | None) -> None:
    token, given_rows, wanted = 1, [], []
    for number, learned in enumerate(rows):
        ids = list(range(token, token + len(learned)))
        token += len(learned)
        labels = [value if learns else IGNORED for value, learns in zip(ids, learned, strict=True)]
        given_rows.append({"input_ids": ids, "labels": labels, "task": number})
        wanted += [(value - 1, value, number) for value in labels[1:] if value != IGNORED]
    batch = LabelledCollator(0, layout, pack_length=pack_length)(given_rows)
    before = batch["input_ids"].flatten()[batch["places"]].tolist()
    found = list(zip(before, batch["targets"].tolist(), batch["tasks"].tolist(), strict=True))
    assert sorted(found) == sorted(wanted)
    assert batch["places"].tolist() == sorted(set(batch["places"].tolist())), "ascending"


SIZES = {
    "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
    "intermediate_size": 8, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "attention", "layout", "reason"),
    [
        (Qwen3Config(**SIZES), "sdpa", "packed", None),
        (Qwen3Config(**SIZES), "eager", "packed", None),
        (Qwen3Config(**SIZES), "flash_attention_2", "flat", None),
        (Qwen3Config(**SIZES), "flex_attention", "padded", "attention 'flex_attention' takes no mask of its own"),
        (Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=2, max_window_layers=0), "sdpa", "padded",
         "attention layers of kind sliding_attention"),
        (MistralConfig(**SIZES, sliding_window=4), "sdpa", "padded", "attention layers of kind sliding_attention"),
        (MistralConfig(**SIZES, sliding_window=None), "sdpa", "packed", None),
        (Gemma2Config(**SIZES), "eager", "padded", "model type 'gemma2' is not among llama, mistral"),
    ],
)  # fmt: skip
def test_layout_of_a_model(config, attention: str, layout: str, reason: str | None) -> None:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.config._attn_implementation = attention
    found, why = layout_for(model)
    assert found == layout
    assert why is None if reason is None else str(why).startswith(reason)
    assert layout_for(model, packing=False) == ("padded", None)


def test_layout_of_an_encoder_decoder() -> None:
    config = T5Config(vocab_size=20, d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1, decoder_start_token_id=0)
    assert layout_for(T5ForConditionalGeneration(config))[0] == "padded"
