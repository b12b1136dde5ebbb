"""Tiny encoders and a small dataset folder for the tests of embeddings and SIDs."""

import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from llmrec.data.folder import write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog

ROOT = Path(__file__).parents[1]
WORDS = [
    "red",
    "green",
    "blue",
    "pen",
    "paper",
    "stapler",
    "desk",
    "lamp",
    "gel",
    "ink",
    "wood",
    "metal",
    "small",
    "set",
]
WORDS += ["large", "of", "the", "office", "acme"]


def script(name: str) -> Callable[[Sequence[str]], None]:
    """Return the ``main`` of a script of data_prep/."""
    return runpy.run_path(str(ROOT / "data_prep" / f"{name}.py"))["main"]


def write_encoder(path: Path, kind: str = "bert", *, seed: int = 0, max_positions: int = 256) -> Path:
    """Save a tiny random encoder (``bert``, with [CLS] and [SEP]) or causal model (``qwen3``, with neither)."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = {word: index for index, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    if kind == "bert":
        inner.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"unk_token": "[UNK]"} if kind == "qwen3" else {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(path)
    shape = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "max_position_embeddings": max_positions, "initializer_range": 0.5}
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        if kind == "bert":
            model = BertModel(BertConfig(**shape))
        else:
            model = Qwen3Model(Qwen3Config(**shape, num_key_value_heads=2, head_dim=8))
    model.save_pretrained(path)
    return path


def small_catalog(items: int = 40, *, seed: int = 0) -> Catalog:
    """Items with titles of 1 to 12 known words, a brand for some, and categories."""
    rng = np.random.default_rng(seed)
    titles = tuple(" ".join(rng.choice(WORDS, rng.integers(1, 13))) for _ in range(items))
    brands = tuple("acme" if row % 3 else "" for row in range(items))
    return Catalog(
        tuple(f"i{row}" for row in range(items)),
        {"title": titles, "brand": brands, "categories": ("office",) * items, "description": titles[::-1]},
    )


def write_small_dataset(path: Path, catalog: Catalog) -> Path:
    """Write a dataset folder in which three users take the first items."""
    interactions = Interactions.sort(
        ("u0", "u1", "u2"),
        users=np.repeat(np.arange(3), 3),
        items=np.tile(np.arange(3), 3),
        timestamps=np.tile(np.arange(3), 3),
    )
    manifest = {"name": "small", "domain": "items", "source": "made up", "licence": "CC0-1.0", "times": "seconds"}
    return write_dataset(path, catalog=catalog, interactions=interactions, manifest=manifest)
