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
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from llmrec.data.items import Catalog
from llmrec.decoding.prompts import SHARED_ENCODER_MODELS
from llmrec.errors import InputError
from llmrec.hub.adapter_rows import auto_class
from llmrec.sids.table import SIDTable
from llmrec.tasks.mixture import held_out_rows
from llmrec.training.adapters import attach_adapter
from llmrec.training.config import RecipeArguments, parse_mapping
from llmrec.training.layers import TrainedParts
from llmrec.training.rows import add_residual_dropout, grow_rows, init_sid_rows, is_tied
from llmrec.training.stages import check_later_stages
from llmrec.training.start import begin_with, check_start, go_on_with
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
    "tiny-t5": {"d_model": 64, "num_layers": 2, "num_heads": 4, "d_kv": 16, "d_ff": 192},
    "tiger-t5": {"d_model": 128, "num_layers": 4, "num_heads": 6, "d_kv": 64, "d_ff": 1024},
}  # fmt: skip
"""Models made from a config; ``tiger-t5`` has TIGER's sizes, which counts its encoder and decoder layers alike."""

BUILT_KINDS: dict[str, tuple[type[PreTrainedModel], type[PreTrainedConfig], dict[str, Any]]] = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True, "max_position_embeddings": 2048}),
    "t5": (T5ForConditionalGeneration, T5Config, {"dropout_rate": 0.1, "feed_forward_proj": "relu"}),
}
"""By the last word of a built model's name: its class, its config's, and what all of the kind share."""


QUANTIZATION = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
"""How ``method: qlora`` loads its base; the manifest of the bundle repeats it."""

FIXED = ("vocab_size", "eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id", "is_encoder_decoder")
"""Config fields of a built model that follow from its tokenizer."""


@dataclass
class Prepared:
    """A model ready to train: with SID rows, and wrapped by an adapter where the method wants one."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    vocab: SIDVocab
    vocab_rows: int
    parts: TrainedParts | None = None


def prepare_model(
    arguments: RecipeArguments,
    table: SIDTable,
    catalog: Catalog,
    *,
    seed: int,
    popularity: Sequence[int] | np.ndarray | None = None,
    trust_remote_code: bool = False,
    protocol: str | None = None,
) -> Prepared:
    """Load or build the model, add the SID tokens, start their rows, and attach the adapter.

    Args:
        arguments: names the model, the method and how rows start.
        table: the SIDs.
        catalog: trains the tokenizer of a built model, and gives the words for ``sid_init: text``.
        seed: of the new rows.
        popularity: ``(items,)`` training counts, by which items that share a SID are ordered.
        trust_remote_code: run model code from the hub repository; read it before you allow it.
        protocol: by which the training rows are split; that of ``start_from`` must be the same. None compares none.

    Raises:
        InputError: a built model with an adapter method or with settings of a pretrained one, or the other way
            round, a model that cannot be loaded, a tokenizer that holds SID tokens already, an encoder-decoder that
            cannot train (see `check_seq2seq`), parts to freeze that it has not, or weights to start from that do not
            fit.
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
    if built and arguments.random_weights:
        raise InputError(f"random_weights: {arguments.model} is built with random weights anyway; leave it out")
    if not built and arguments.model_config:
        raise InputError(
            f"model_config: it is for models that are built ({', '.join(BUILT_MODELS)}), not {arguments.model}"
        )
    if arguments.start_from:
        check_start(arguments, table, protocol=protocol)
        # Its tokens are those of its weights, though a built model's tokenizer would be trained on other titles today
        tokenizer = AutoTokenizer.from_pretrained(arguments.start_from)
    else:
        tokenizer = _build_tokenizer(arguments, catalog) if built else _load_tokenizer(arguments, trust_remote_code)
        add_sid_tokens(tokenizer, table)
    if arguments.prompt == "chat" and tokenizer.chat_template is None:
        raise InputError(
            f"prompt: chat, and the tokenizer of {arguments.model} has no chat template; use prompt: plain, or the "
            "instruct model of the family"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = _build_model(arguments, tokenizer) if built else _load_model(arguments, trust_remote_code)
    if model.config.is_encoder_decoder:
        check_seq2seq(model, supervise=arguments.supervise, name=arguments.model)
    vocab = SIDVocab(tokenizer, table, popularity=popularity)
    rows = grow_rows(model, tokenizer)
    hidden = held_out_rows(len(catalog), arguments.hold_out_items, seed)
    init_sid_rows(
        model, tokenizer, vocab, method=arguments.sid_init, catalog=catalog, seed=seed, without=hidden
    )  # fmt: skip
    before = None
    if arguments.start_from:
        before = check_start(arguments, table, vocab_rows=rows)
        model = begin_with(model, arguments.start_from, vocab, before=before, method=arguments.method)
    if arguments.stages:
        check_later_stages(arguments, model, vocab)
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
        if arguments.start_from and before == arguments.method != "new_rows":
            go_on_with(prepared, arguments.start_from)
    parts = TrainedParts(
        prepared,
        vocab.trainable_token_indices,
        freeze=arguments.freeze or (),
        sid_learning_rate=arguments.sid_learning_rate,
        layer_decay=arguments.layer_learning_rate_decay,
    )
    # After the adapter: PEFT wraps the embedding module, and a hook on what it wraps is never called.
    add_residual_dropout(prepared, arguments.residual_dropout)
    parameters = sum(parameter.numel() for parameter in prepared.parameters())
    trained = sum(parameter.numel() for parameter in prepared.parameters() if parameter.requires_grad)
    logger.info("%s: %d parameters, %d of them train (%s)", arguments.model, parameters, trained, arguments.method)
    return Prepared(prepared, tokenizer, vocab, rows, parts)


def _build_tokenizer(arguments: RecipeArguments, catalog: Catalog) -> PreTrainedTokenizerBase:
    texts = (value for values in catalog.columns.values() for value in values)
    return train_tokenizer(texts, vocab_size=arguments.text_vocab_size)


def _build_model(arguments: RecipeArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    kind, config, shared = _built_kind(arguments)
    settings: dict[str, Any] = {
        **shared,
        **BUILT_MODELS[arguments.model],
        **_parse_model_config(arguments),
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if config is T5Config:
        settings["decoder_start_token_id"] = tokenizer.pad_token_id
    try:
        return kind(config(**settings))
    except (TypeError, ValueError, RuntimeError, StrictDataclassError) as error:
        raise InputError(f"model_config: no model can be built from {arguments.model_config} ({error})") from error


def _built_kind(
    arguments: RecipeArguments,
) -> tuple[type[PreTrainedModel], type[PreTrainedConfig], dict[str, Any]]:
    return BUILT_KINDS[arguments.model.rpartition("-")[2]]


def _parse_model_config(arguments: RecipeArguments) -> dict[str, Any]:
    overrides = parse_mapping(arguments.model_config, "model_config")
    config = _built_kind(arguments)[1]
    known = set(config().to_dict())
    for key in overrides:
        if key not in known:
            raise InputError(f"model_config: {config.__name__} has no field {key!r}; check its spelling")
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
        config = AutoConfig.from_pretrained(
            arguments.model, revision=arguments.model_revision, trust_remote_code=trust_remote_code
        )
        if arguments.random_weights:  # of the recipe's seed, as a built model's
            return auto_class(config).from_config(
                config,
                dtype=getattr(torch, arguments.dtype),
                attn_implementation=arguments.attn_implementation,
                trust_remote_code=trust_remote_code,
            )
        return auto_class(config).from_pretrained(
            arguments.model,
            revision=arguments.model_revision,
            dtype=getattr(torch, arguments.dtype),
            attn_implementation=arguments.attn_implementation,
            quantization_config=quantization,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"model: {arguments.model!r} cannot be loaded as a language model ({error})") from error


def check_seq2seq(model: PreTrainedModel, *, supervise: str, name: str) -> None:
    """Check that an encoder-decoder can be trained here, before its tables grow.

    Args:
        model: the base model.
        supervise: how ``next_item`` rows are made.
        name: what the errors call the model.

    Raises:
        InputError: ``supervise: history``, another architecture than T5's, or tables that are not tied.
    """
    kind = model.config.model_type
    if kind not in SHARED_ENCODER_MODELS:
        raise InputError(
            f"model: {name} is an encoder-decoder of kind {kind!r}; those that train are "
            f"{', '.join(SHARED_ENCODER_MODELS)}, and all causal models"
        )
    if supervise == "history":
        raise InputError(
            f"supervise: history trains every position of one causal pass, and the encoder of {name} looks both ways: "
            "it would have read the targets; set supervise: row"
        )
    if not is_tied(model):
        raise InputError(
            f"model: {name} has an output head of its own (T5 1.1, Flan-T5, mT5). transformers 5 ties it to the input "
            "embeddings as soon as the tables grow, and one of them is lost; start from a tied checkpoint such as "
            "google-t5/t5-small, or from a causal model"
        )
