"""Configs of published models, each at its real shape without a weight and with its SID rows; sizes to start from."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llmrec.training.adapters import attach_adapter
from llmrec.training.config import RecipeArguments, SFTRecipeConfig
from llmrec.training.dry_run import count_parameters
from llmrec.training.model import BUILT_MODELS, parse_mapping
from llmrec.training.parser import parse_recipe
from llmrec.training.rows import grow_rows, is_tied

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "configs" / "office"
SIDS = 768

# The published config.json of each: model type, hidden size, layers, heads, key-value heads, size of a head, MLP, rows
# of the tables, tied; then tokens of the tokenizer and parameters as published.
SHAPES: dict[str, tuple[str, int, int, int, int, int, int, int, bool, int, int]] = {
    "Qwen/Qwen3-0.6B": ("qwen3", 1024, 28, 16, 8, 128, 3072, 151936, True, 151669, 596_049_920),
    "Qwen/Qwen3-1.7B": ("qwen3", 2048, 28, 16, 8, 128, 6144, 151936, True, 151669, 1_720_574_976),
    "Qwen/Qwen3-4B": ("qwen3", 2560, 36, 32, 8, 128, 9728, 151936, True, 151669, 4_022_468_096),
    "Qwen/Qwen2.5-0.5B": ("qwen2", 896, 24, 14, 2, 64, 4864, 151936, True, 151665, 494_032_768),
    "Qwen/Qwen2.5-1.5B": ("qwen2", 1536, 28, 12, 2, 128, 8960, 151936, True, 151665, 1_543_714_304),
    "Qwen/Qwen2.5-3B": ("qwen2", 2048, 36, 16, 2, 128, 11008, 151936, True, 151665, 3_085_938_688),
    "Qwen/Qwen2.5-7B": ("qwen2", 3584, 28, 28, 4, 128, 18944, 152064, False, 151665, 7_615_616_512),
    "meta-llama/Llama-3.2-1B": ("llama", 2048, 16, 32, 8, 64, 8192, 128256, True, 128256, 1_235_814_400),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", 576, 30, 9, 3, 64, 1536, 49152, True, 49152, 134_515_008),
}


class Tokens:
    """Stands for a tokenizer: all that growing the tables asks of it is its length."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


def on_meta(name: str, *, layers: int | None = None) -> PreTrainedModel:
    kind, hidden, depth, heads, key_values, size, mlp, rows, tied, _, _ = SHAPES[name]
    config = AutoConfig.for_model(
        kind, hidden_size=hidden, num_hidden_layers=layers or depth, num_attention_heads=heads,
        num_key_value_heads=key_values, head_dim=size, intermediate_size=mlp, vocab_size=rows,
        tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def config_of(name: str) -> tuple[Path, RecipeArguments, SFTRecipeConfig]:
    short = name.partition("/")[2].lower().removesuffix("-instruct")
    path = sorted(FOLDER.glob(f"sft_{short}_*.yaml"))[-1]  # lora, where there is full training too
    return path, *parse_recipe(["--config", str(path), "--output_dir", "unused"], RecipeArguments, SFTRecipeConfig)


@pytest.mark.parametrize("name", SHAPES)
def test_its_parameters_are_the_published_ones_and_its_tables_take_the_sids(name: str) -> None:
    hidden, rows, tied, tokens, published = SHAPES[name][1], *SHAPES[name][7:]
    model = on_meta(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == published
    tokenizer = cast(PreTrainedTokenizerBase, Tokens(tokens + SIDS))
    assert grow_rows(model, tokenizer) == tokens + SIDS
    assert is_tied(model) is tied
    # Rows that the published table keeps empty behind its tokenizer are used first.
    grown = (tokens + SIDS - rows) * hidden * (1 if tied else 2)
    assert sum(parameter.numel() for parameter in model.parameters()) == published + grown


@pytest.mark.parametrize("name", SHAPES)
def test_its_config_says_what_it_wants(name: str) -> None:
    path, arguments, training = config_of(name)
    text = path.read_text()
    published = SHAPES[name][-1]
    assert name in text
    assert arguments.model in (name, "weights/smollm2-135m")
    assert path.stem.endswith(f"_{arguments.method}")
    assert f"{published / 1e6:,.0f}M parameters" in text
    size = published * (16 if arguments.method == "full" else 2 if arguments.dtype == "bfloat16" else 4)
    assert f"{size / 1e9:.1f} GB" in text
    assert arguments.dtype == "float32" or arguments.method == "lora", "AdamW loses small updates of bfloat16 weights"
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 32
    assert "next_item" in cast(dict, arguments.tasks)
    assert len(cast(dict, arguments.tasks)) > 1
    assert "--dry_run" in text or name.startswith("HuggingFaceTB")


@pytest.mark.parametrize("name", ["Qwen/Qwen3-4B", "Qwen/Qwen2.5-7B"])
def test_lora_at_the_real_width_trains_what_the_arithmetic_says(
    name: str, make_model: Callable[..., Any], vocab: Any
) -> None:
    _, hidden, depth, heads, key_values, size, mlp, _, tied, _, published = SHAPES[name]
    _, arguments, _ = config_of(name)
    model = on_meta(name, layers=1)
    found = {group.name: group for group in count_parameters(attach_adapter(model, vocab, method="lora", rank=16))}
    # Rank times (in + out) of q, o, k, v, gate, up and down.
    query, key = heads * size, key_values * size
    one = 16 * (2 * (hidden + query) + 2 * (hidden + key) + 3 * (hidden + mlp))
    assert found["LoRA"].trained == found["LoRA"].all == one
    assert found["SID rows"].trained == len(vocab.trainable_token_indices) * hidden * (1 if tied else 2)
    assert found["layers"].trained == found["embeddings"].trained == 0
    # Weights, gradients and AdamW of all layers, 16 bytes a number: what the config says of it.
    assert 16 * (depth * one + SIDS * hidden * (1 if tied else 2)) < 1.1e9
    assert arguments.lora_r == 16
    assert published > 2e9


SIZES = re.findall(r"^\| `model_config: (\{.*?\})` \| ([\d,]+) \|", (ROOT / "docs" / "training.md").read_text(), re.M)


def test_sizes_to_start_from_are_four_of_rising_count() -> None:
    counts = [int(count.replace(",", "")) for _, count in SIZES]
    assert len(counts) == 4
    assert counts == sorted(counts)


@pytest.mark.parametrize(("settings", "count"), SIZES)
def test_sizes_to_start_from_have_the_parameters_that_the_guide_says(settings: str, count: str) -> None:
    """Of the layers alone: the tables depend on text_vocab_size and the codebooks."""
    overrides = parse_mapping(settings, "model_config")
    with torch.device("meta"):
        model = Qwen3ForCausalLM(
            Qwen3Config(**{**BUILT_MODELS["small-qwen3"], **overrides, "vocab_size": 100, "tie_word_embeddings": True})
        )
    found = {group.name: group.all for group in count_parameters(model)}
    assert f"{found['layers']:,}" == count
