"""From a model's name to a model and tokenizer that hold the SIDs, ready to train."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from peft.utils.error import NoMatchingPeftModuleError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llmrec.data.items import Catalog
from llmrec.errors import InputError
from llmrec.sids.table import SIDTable
from llmrec.training.adapters import attach_adapter
from llmrec.training.config import RecipeArguments, parse_mapping
from llmrec.training.rows import add_residual_dropout, grow_rows, init_sid_rows
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

logger = logging.getLogger(__name__)

BUILT_MODELS: dict[str, dict[str, Any]] = {
    "tiny-qwen3": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 192,
    },
    "small-qwen3": {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
        "intermediate_size": 384,
    },
}  # fmt: skip


QUANTIZATION = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
"""How ``method: qlora`` loads its base; the manifest of the bundle repeats it."""

FIXED = ("vocab_size", "eos_token_id", "bos_token_id", "pad_token_id")
"""Config fields of a built model that follow from its tokenizer."""


@dataclass
class Prepared:
    """A model ready to train: with SID rows, and wrapped by an adapter where the method wants one."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    vocab: SIDVocab
    vocab_rows: int


def prepare_model(
    arguments: RecipeArguments,
    table: SIDTable,
    catalog: Catalog,
    *,
    seed: int,
    popularity: Sequence[int] | np.ndarray | None = None,
    trust_remote_code: bool = False,
) -> Prepared:
    """Load or build the model, add the SID tokens, start their rows, and attach the adapter.

    Args:
        arguments: names the model, the method and how rows start.
        table: the SIDs.
        catalog: trains the tokenizer of a built model, and gives the words for ``sid_init: text``.
        seed: of the new rows.
        popularity: ``(items,)`` training counts, by which items that share a SID are ordered.
        trust_remote_code: run model code from the hub repository; read it before you allow it.

    Raises:
        InputError: a built model with an adapter method or with settings of a pretrained one, or the other way
            round, a model that cannot be loaded, or a tokenizer that holds SID tokens already.
    """
    built = arguments.model in BUILT_MODELS
    if built and arguments.method != "full":
        raise InputError(
            f"method: {arguments.method} adapts pretrained weights, and {arguments.model} has none; use method: full"
        )
    if built and (arguments.attn_implementation or arguments.model_revision):
        raise InputError(
            f"attn_implementation and model_revision are for pretrained models; {arguments.model} is built"
        )
    if not built and arguments.model_config:
        raise InputError(
            f"model_config: it is for models that are built ({', '.join(BUILT_MODELS)}), not {arguments.model}"
        )
    tokenizer = _build_tokenizer(arguments, catalog) if built else _load_tokenizer(arguments, trust_remote_code)
    add_sid_tokens(tokenizer, table)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = _build_model(arguments, tokenizer) if built else _load_model(arguments, trust_remote_code)
    vocab = SIDVocab(tokenizer, table, popularity=popularity)
    rows = grow_rows(model, tokenizer)
    init_sid_rows(model, tokenizer, vocab, method=arguments.sid_init, catalog=catalog, seed=seed)
    prepared: PreTrainedModel | PeftModel = model
    if arguments.method != "full":
        try:
            prepared = attach_adapter(
                model,
                vocab,
                method=arguments.method,
                rank=arguments.lora_r,
                alpha=arguments.lora_alpha,
                dropout=arguments.lora_dropout,
                target_modules=arguments.lora_target_modules,
            )
        except (ValueError, NoMatchingPeftModuleError) as error:
            raise InputError(f"lora_*: PEFT refuses these settings ({error})") from error
    # After the adapter: PEFT wraps the embedding module, and a hook on what it wraps is never called.
    add_residual_dropout(prepared, arguments.residual_dropout)
    parameters = sum(parameter.numel() for parameter in prepared.parameters())
    trained = sum(parameter.numel() for parameter in prepared.parameters() if parameter.requires_grad)
    logger.info("%s: %d parameters, %d of them train (%s)", arguments.model, parameters, trained, arguments.method)
    return Prepared(prepared, tokenizer, vocab, rows)


def _build_tokenizer(arguments: RecipeArguments, catalog: Catalog) -> PreTrainedTokenizerBase:
    texts = (value for values in catalog.columns.values() for value in values)
    return train_tokenizer(texts, vocab_size=arguments.text_vocab_size)


def _build_model(arguments: RecipeArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    settings: dict[str, Any] = {
        "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
        **BUILT_MODELS[arguments.model],
        **_parse_model_config(arguments),
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        return Qwen3ForCausalLM(Qwen3Config(**settings))
    except (TypeError, ValueError, RuntimeError, StrictDataclassError) as error:
        raise InputError(f"model_config: no model can be built from {arguments.model_config} ({error})") from error


def _parse_model_config(arguments: RecipeArguments) -> dict[str, Any]:
    overrides = parse_mapping(arguments.model_config, "model_config")
    known = set(Qwen3Config().to_dict())
    for key in overrides:
        if key not in known:
            raise InputError(f"model_config: Qwen3Config has no field {key!r}; check its spelling")
        if key in FIXED:
            raise InputError(f"model_config: {key!r} follows from the tokenizer; use text_vocab_size for its size")
    return overrides


def _load_tokenizer(arguments: RecipeArguments, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(
            arguments.model, revision=arguments.model_revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"model: {arguments.model!r} has no tokenizer that can be loaded ({error}); give a hub id or the path of "
            f"a saved model, or one of {', '.join(BUILT_MODELS)}"
        ) from error


def _load_model(arguments: RecipeArguments, trust_remote_code: bool) -> PreTrainedModel:
    quantization = None
    if arguments.method == "qlora":
        quantization = BitsAndBytesConfig(
            **QUANTIZATION,
            bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        )
    try:
        return AutoModelForCausalLM.from_pretrained(
            arguments.model,
            revision=arguments.model_revision,
            dtype=getattr(torch, arguments.dtype),
            attn_implementation=arguments.attn_implementation,
            quantization_config=quantization,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"model: {arguments.model!r} cannot be loaded as a causal LM ({error})") from error
