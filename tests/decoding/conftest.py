"""Tiny models with random weights, and a tokenizer that is made in place."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from llmrec.sids.table import SIDTable
from llmrec.vocab import SIDVocab, add_sid_tokens

MODELS = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "llama": (LlamaForCausalLM, LlamaConfig),
}


@pytest.fixture
def make_tokenizer() -> Callable[[], PreTrainedTokenizerFast]:
    """A tokenizer of a few words, with padding and end tokens."""

    def make() -> PreTrainedTokenizerFast:
        words = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", "red", "green", "blue"])}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
        )

    return make


@pytest.fixture
def make_vocab(make_tokenizer) -> Callable[..., tuple[PreTrainedTokenizerFast, SIDVocab]]:
    """A tokenizer and a vocabulary for given codes, ``(items, levels)`` with -1 behind shorter ones."""

    def make(codes, popularity=None) -> tuple[PreTrainedTokenizerFast, SIDVocab]:
        codes = np.asarray(codes, dtype=np.int64)
        sizes = tuple(int(size) for size in codes.max(axis=0) + 1)
        table = SIDTable(tuple(f"i{row}" for row in range(len(codes))), codes, sizes)
        tokenizer = make_tokenizer()
        add_sid_tokens(tokenizer, table)
        return tokenizer, SIDVocab(tokenizer, table, popularity=popularity)

    return make


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """A tiny model with spread-out random weights."""

    def make(kind: str, vocab_size: int, seed: int = 0) -> PreTrainedModel:
        set_seed(seed)
        if kind == "t5":
            config = T5Config(
                vocab_size=vocab_size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, initializer_factor=1.0,
            )  # fmt: skip
            return T5ForConditionalGeneration(config).eval()
        model_class, config_class = MODELS[kind]
        config = config_class(
            vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=64, initializer_range=0.3,
            pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )  # fmt: skip
        return model_class(config).eval()

    return make


@pytest.fixture
def random_codes() -> Callable[..., np.ndarray]:
    """Distinct random codes, ``(items, levels)``."""

    def make(items: int, sizes: tuple[int, ...], seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        flat = rng.choice(int(np.prod(sizes)), size=items, replace=False)
        return np.stack(np.unravel_index(flat, sizes), axis=1)

    return make


@pytest.fixture
def left_padded() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Random prompts of given lengths, padded on the left."""

    def make(lengths: list[int], vocab_size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        width = max(lengths)
        ids = torch.randint(2, vocab_size, (len(lengths), width), generator=generator)
        mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
        return ids * mask, mask.long()

    return make
