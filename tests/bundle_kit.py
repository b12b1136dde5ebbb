"""Tiny bundles for tests: models from config with spread weights, a tokenizer trained in place, exact answers."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
)
from transformers import T5ForConditionalGeneration as T5

from llmrec.hub import Bundle, save_bundle
from llmrec.sids.table import SIDTable, pad_codes
from llmrec.tasks.prompt import PromptForm
from llmrec.training.adapters import attach_adapter
from llmrec.training.rows import grow_rows
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

ITEMS = 40
PLAIN = PromptForm(max_history=3)
TITLES = tuple(f'Item "{number}": a pen | <b>blue</b> & 70% off' for number in range(ITEMS))


def make_table(*, shared: bool = False) -> SIDTable:
    """40 items: three levels of four codes and a rank, all distinct; or SIDs of two depths, some of them shared."""
    first = [[row % 4, row // 4 % 4, row // 16] for row in range(ITEMS)]
    if shared:
        # Rows 38 and 39 take the SIDs of 2 and 3; codes 3 at the first level have SIDs of two tokens.
        codes = [row[:2] if row[0] == 3 else row for row in [*first[:38], first[2], first[3]]]
        return SIDTable(tuple(f"i{row}" for row in range(ITEMS)), pad_codes(codes, 3), (4, 4, 3), "by hand")
    seen: dict[tuple[int, ...], int] = {}
    codes = []
    for row in first:
        rank = seen[tuple(row[:2])] = seen.get(tuple(row[:2]), -1) + 1
        codes.append([row[0], row[1], (row[0] * row[2]) % 4, rank])
    return SIDTable(tuple(f'i"{row}' for row in range(ITEMS)), pad_codes(codes, 4), (4, 4, 4, 3), "by hand")


def make_tokenizer(table: SIDTable | None) -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer(["a customer took these pens, oldest first"] * 3, vocab_size=300)
    if table is not None:
        add_sid_tokens(tokenizer, table)
    return tokenizer


def spread_weights(module: torch.nn.Module, *, seed: int = 0, scale: float = 0.5) -> None:
    """Draw every trainable matrix anew, wide enough that no two scores come close."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:
                parameter.normal_(0.0, scale, generator=generator)


def make_model(rows: int, *, tied: bool = True, seed: int = 0, **sizes: int) -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "head_dim": 8, **sizes}
    config = Qwen3Config(
        vocab_size=rows, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=0, pad_token_id=0, initializer_range=0.5, **sizes,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    spread_weights(model, seed=seed)
    return model


def make_t5(rows: int) -> PreTrainedModel:
    config = T5Config(
        vocab_size=rows, d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    model = T5(config).eval()
    spread_weights(model, scale=0.3)
    return model


def make_info(form: PromptForm, *, base_model: str = "tiny", method: str = "full", **changes: Any) -> dict[str, Any]:
    return {
        "dataset": {
            "name": "Pens: \"new\" & 'old' #1", "licence": "made up", "source": "drawn", "counts": {"items": ITEMS},
        },
        "protocol": "leave_one_out",
        "prompt": form.to_dict(),
        "base_model": base_model,
        "method": method,
        "vocab_rows": 0,
        "seed": 0,
        "metrics": [
            {
                "dataset": "Pens", "split": "test", "protocol": "leave_one_out", "exclude_seen": False,
                "score": "full", "num_beams": 20, "users": 30, "metrics": {"recall@10": 0.25, "ndcg@10": 0.125},
            }
        ],
        **changes,
    }  # fmt: skip


def make_popularity() -> np.ndarray:
    return np.arange(ITEMS)[::-1].copy() // 2


def write_bundle(
    path: Path,
    form: PromptForm,
    *,
    shared: bool = False,
    tied: bool = True,
    t5: bool = False,
    method: str = "full",
    base: Path | None = None,
    base_name: str = "tiny",
    padding: int = 0,
    generation: GenerationConfig | None = None,
) -> Bundle:
    """Save a bundle and return what was saved. An adapter's base is written to ``base``, as it was before it had SIDs.

    ``padding``: rows of the base behind its tokenizer's, as published models have them.
    """
    table = make_table(shared=shared)
    tokenizer = make_tokenizer(table)
    vocab = SIDVocab(tokenizer, table, popularity=make_popularity())
    model: Any
    if method == "full":
        model = make_t5(len(tokenizer)) if t5 else make_model(len(tokenizer), tied=tied)
        if generation is not None:
            model.generation_config = generation
    else:
        assert base is not None
        make = make_t5 if t5 else make_model
        model = make(len(make_tokenizer(None)) + padding, **({} if t5 else {"tied": tied}))
        model.save_pretrained(base)
        base_name = str(base) if base_name == "tiny" else base_name
        grow_rows(model, tokenizer)
        model = attach_adapter(model, vocab, method=method, rank=2)
        spread_weights(model, seed=1)
        model.eval()
    rows = model.get_input_embeddings().weight.shape[0]
    saved = {"table": table, "tokenizer": tokenizer, "titles": TITLES, "info": make_info(form, vocab_rows=rows)}
    saved["info"].update(method=method, base_model=base_name)
    save_bundle(path, model=model, popularity=make_popularity(), **saved)
    return Bundle(model, tokenizer, vocab, table, saved["info"], TITLES)


def exact_scores(model: Any, prompt: list[int], vocab: SIDVocab) -> list[float]:
    """Sum of log-softmax over the whole vocabulary of each item's SID tokens, one item at a time."""
    scores = []
    for row in range(len(vocab)):
        sid = vocab.token_ids(row)
        with torch.inference_mode():
            if model.config.is_encoder_decoder:
                start = [model.config.decoder_start_token_id]
                decoded = torch.tensor([start + sid[:-1]])
                logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoded).logits[0]
            else:
                logits = model(input_ids=torch.tensor([prompt + sid[:-1]])).logits[0, len(prompt) - 1 :]
        logps = logits.double().log_softmax(-1)
        scores.append(sum(logps[step, token].item() for step, token in enumerate(sid)))
    return scores


def exact_top(model: Any, prompt: list[int], vocab: SIDVocab, k: int = 10) -> list[str]:
    """Item ids of the ``k`` best; items that share a SID by popularity, then row."""
    scores = exact_scores(model, prompt, vocab)
    by_sid = sorted(
        {tuple(vocab.token_ids(row)): scores[row] for row in range(len(vocab))}.items(), key=lambda pair: -pair[1]
    )
    best = [score for _, score in by_sid[: k + 1]]
    assert min(a - b for a, b in pairwise(best)) > 1e-3, "two scores are too close to tell the order"
    rows = [row for sid, _ in by_sid for row in vocab.rows(sid)]
    return [vocab.table.item_ids[row] for row in rows[:k]]


def folder_files(path: Path) -> dict[str, bytes]:
    return {child.name: child.read_bytes() for child in path.iterdir() if child.is_file()}
