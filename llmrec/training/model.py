"""From a model's name to a model and tokenizer that hold the SIDs, ready to train."""

import logging
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
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


@dataclass
class Prepared:
    """A model ready to train: with SID rows, and wrapped by an adapter where the method wants one."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    vocab: SIDVocab
    base_model: str
    vocab_rows: int


def prepare_model(
    arguments: RecipeArguments, table: SIDTable, catalog: Catalog, *, seed: int, trust_remote_code: bool = False
) -> Prepared:
    """Load or build the model, add the SID tokens, start their rows, and attach the adapter.

    Args:
        arguments: names the model, the method and how rows start.
        table: the SIDs.
        catalog: trains the tokenizer of a built model, and gives the words for ``sid_init: text``.
        seed: of the new rows.
        trust_remote_code: run model code from the hub repository; read it before you allow it.

    Raises:
        InputError: a built model with an adapter method, a model that cannot be loaded, an encoder-decoder, or a
            tokenizer that holds SID tokens already.
    """
    built = arguments.model in BUILT_MODELS
    if built and arguments.method != "full":
        raise InputError(
            f"method: {arguments.method} adapts pretrained weights, and {arguments.model} has none; use method: full"
        )
    tokenizer = _build_tokenizer(arguments, catalog) if built else _load_tokenizer(arguments, trust_remote_code)
    add_sid_tokens(tokenizer, table)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = _build_model(arguments, tokenizer) if built else _load_model(arguments, trust_remote_code)
    vocab = SIDVocab(tokenizer, table)
    rows = grow_rows(model, tokenizer)
    init_sid_rows(model, tokenizer, vocab, method=arguments.sid_init, catalog=catalog, seed=seed)
    add_residual_dropout(model, arguments.residual_dropout)
    prepared: PreTrainedModel | PeftModel = model
    if arguments.method != "full":
        prepared = attach_adapter(
            model,
            vocab,
            method=arguments.method,
            rank=arguments.lora_r,
            alpha=arguments.lora_alpha,
            dropout=arguments.lora_dropout,
            target_modules=arguments.lora_target_modules,
        )
    parameters = sum(parameter.numel() for parameter in prepared.parameters())
    trained = sum(parameter.numel() for parameter in prepared.parameters() if parameter.requires_grad)
    logger.info("%s: %d parameters, %d of them train (%s)", arguments.model, parameters, trained, arguments.method)
    return Prepared(prepared, tokenizer, vocab, arguments.model, rows)


def _build_tokenizer(arguments: RecipeArguments, catalog: Catalog) -> PreTrainedTokenizerBase:
    texts = (value for values in catalog.columns.values() for value in values)
    return train_tokenizer(texts, vocab_size=arguments.text_vocab_size)


def _build_model(arguments: RecipeArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    settings = {**BUILT_MODELS[arguments.model], **parse_model_config(arguments)}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
        **settings,
    )
    return Qwen3ForCausalLM(config)


def parse_model_config(arguments: RecipeArguments) -> dict[str, Any]:
    """Return the config overrides of a built model.

    Raises:
        InputError: a key that Qwen3's config does not have.
    """
    overrides = parse_mapping(arguments.model_config, "model_config")
    known = set(Qwen3Config().to_dict())
    for key in overrides:
        if key not in known:
            raise InputError(f"model_config: Qwen3Config has no field {key!r}; check its spelling")
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
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
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
