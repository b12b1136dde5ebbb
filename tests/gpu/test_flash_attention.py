"""On a GPU: rows flattened for flash attention give the losses of rows packed under a mask, and nothing leaks."""

from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import is_flash_attn_2_available

from llmrec.training.collator import LabelledCollator, layout_for
from llmrec.training.forward import add_labelled_forward
from llmrec.training.objectives.cross_entropy import negative_log_likelihood

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def row(length: int, seed: int) -> dict[str, Any]:
    ids = torch.randint(1, 500, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return {"input_ids": ids, "labels": ids, "task": 0}


@pytest.fixture
def model() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=500, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=128, head_dim=64, initializer_range=0.1,
    )  # fmt: skip
    made = Qwen3ForCausalLM(config).to("cuda", torch.bfloat16)
    add_labelled_forward(made, negative_log_likelihood)
    return made


def losses(model: Qwen3ForCausalLM, rows: list[dict[str, Any]], layout: str) -> dict[tuple[int, ...], float]:
    batch = LabelledCollator(0, layout, pack_length=64)(rows)
    moved = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    found = model(**moved).losses.tolist()
    ids, positions = batch["input_ids"].flatten().tolist(), batch["position_ids"].flatten().tolist()
    places = batch["places"].tolist()
    keys = [tuple(ids[place - positions[place] : place + 1]) for place in places]
    return dict(zip(keys, found, strict=True))


@pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash-attn is not installed")
def test_flat_equals_packed(model: Qwen3ForCausalLM) -> None:
    rows = [row(length, length) for length in (31, 7, 20, 2, 13)]
    packed = losses(model, rows, "packed")
    model.set_attn_implementation("flash_attention_2")
    assert layout_for(model)[0] == "flat"
    flat = losses(model, rows, "flat")
    assert flat.keys() == packed.keys()
    for key, loss in flat.items():
        assert loss == pytest.approx(packed[key], abs=0.05)
    changed = [{**rows[0], "input_ids": [1, *rows[0]["input_ids"][1:]]}, *rows[1:]]
    after = losses(model, changed, "flat")
    others = [key for key in flat if key[0] != rows[0]["input_ids"][0]]
    assert {key: after[key] for key in others} == {key: flat[key] for key in others}


def test_chunks_on_a_gpu_are_exact(model: Qwen3ForCausalLM) -> None:
    """The head's bfloat16 products are summed in float32, whatever the chunk."""
    rows = [row(length, length) for length in (31, 7, 20)]
    packed = losses(model, rows, "packed")
    whole = losses(model.float(), rows, "packed")
    for key, loss in packed.items():
        assert loss == pytest.approx(whole[key], rel=0.05, abs=0.05)
