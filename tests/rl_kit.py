"""A tiny bundle of whole weights, or of an adapter, for the dataset of tests/training/conftest.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration

from llmrec.data.folder import DatasetFolder
from llmrec.hub import save_bundle
from llmrec.sids.table import SIDTable
from llmrec.tasks.prompt import PromptForm
from llmrec.training.adapters import attach_adapter
from llmrec.vocab import SIDVocab

FORM = PromptForm(domain="pens", max_history=6)
ROWS = 640


def make_t5(tokenizer: PreTrainedTokenizerBase, *, rows: int = ROWS) -> PreTrainedModel:
    config = T5Config(
        vocab_size=rows, d_model=32, d_ff=64, d_kv=16, num_layers=1, num_heads=2, dropout_rate=0.1,
        decoder_start_token_id=tokenizer.pad_token_id, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return T5ForConditionalGeneration(config).eval()


def write_bundle(
    path: Path,
    model: Any,
    *,
    dataset: DatasetFolder,
    tokenizer: PreTrainedTokenizerBase,
    table: SIDTable,
    method: str = "full",
    base_model: str = "tiny-qwen3",
    form: PromptForm = FORM,
    **more: Any,
) -> Path:
    info = {
        "dataset": {
            "name": dataset.name, "licence": "CC0-1.0", "source": "made up", "catalog_hash": dataset.catalog.hash,
        },
        "protocol": "leave_one_out", "prompt": form.to_dict(), "base_model": base_model, "method": method,
        "vocab_rows": ROWS, "seed": 0, "dtype": "float32", "quantization": None, "training": {"learning_rate": 0.1},
        **more,
    }  # fmt: skip
    return save_bundle(
        path, model=model, tokenizer=tokenizer, table=table, info=info, titles=dataset.catalog.titles,
        popularity=[1] * len(table),
    )  # fmt: skip


def write_adapter(
    path: Path,
    base: Path,
    make: Callable[..., PreTrainedModel],
    vocab: SIDVocab,
    *,
    method: str = "lora",
    **given: Any,
) -> Path:
    """Write an adapter with rows and matrices that are not at their start, on a base without SIDs of its own."""
    model = make(rows=ROWS)
    model.save_pretrained(base)
    given["tokenizer"].save_pretrained(base)
    adapted = attach_adapter(model, vocab, method=method, rank=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return write_bundle(path, adapted, method=method, base_model=str(base), **given)
