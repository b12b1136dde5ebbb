"""Does an adapter hold the rows of the SID tokens? A LoRA without them loads without a word, and is wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig

from llmrec.artifacts import read_json
from llmrec.errors import InputError
from llmrec.hub.info import ADAPTER_CONFIG_FILE, ADAPTER_FILE

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class _Table:
    """The module of an embedding table: its own name, and all names its weight goes by where it is tied."""

    name: str
    aliases: tuple[str, ...]
    rows: int


def auto_class(config: PreTrainedConfig) -> type:
    """Return the auto class that loads a config's model with its output head."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def check_adapter_rows(
    path: Path, config: PreTrainedConfig, token_ids: Sequence[int], *, vocab_rows: int, in_base: Callable[[], bool]
) -> None:
    """Check that base and adapter together hold every row of the input embeddings and of the output head.

    Args:
        path: the folder of the adapter.
        config: the base model's.
        token_ids: every SID token id.
        vocab_rows: rows of the tables that the adapter was trained with.
        in_base: asked where the adapter lacks rows: was the base itself trained with these SIDs?

    Raises:
        InputError: a row that neither holds, or an adapter that is no safetensors file.
    """
    settings = read_json(path / ADAPTER_CONFIG_FILE, "adapter config")
    shapes = _shapes(path / ADAPTER_FILE)
    for where, table in _tables(config).items():
        held = _held_rows(settings, shapes, table, encoder_decoder=bool(config.is_encoder_decoder))
        missing = sorted(set(token_ids) - held)
        if missing and not in_base():
            raise InputError(
                f"{path}: the adapter holds no trained rows of {len(missing)} of {len(token_ids)} SID tokens in the "
                f"{where} ({table.name}, first token id {missing[0]}), so loading it would give other answers than "
                "training saw; train with trainable_token_indices for the input embeddings and an untied head, as "
                "llmrec.training.adapters.attach_adapter does"
            )
        missing = sorted(set(range(table.rows, vocab_rows)) - held)
        if missing:
            raise InputError(
                f"{path}: row {missing[0]} of the {where} ({table.name}) is neither in the base model, which has "
                f"{table.rows} rows, nor in the adapter ({len(missing)} such rows of {vocab_rows}); train with tables "
                "no longer than base and tokenizer need"
            )


def _shapes(file: Path) -> dict[str, list[int]]:
    if not file.is_file():
        raise InputError(f"{file}: no such file; an adapter's weights are read from safetensors only, save it again")
    try:
        with safe_open(file, "pt") as tensors:
            return {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise InputError(f"{file}: not a readable safetensors file ({error}); save the adapter again") from error


def _tables(config: PreTrainedConfig) -> dict[str, _Table]:
    """Name the two tables by building the model without memory."""
    with torch.device("meta"):
        model = auto_class(config).from_config(config)
    tables = {}
    for where, module in (
        ("input embeddings", model.get_input_embeddings()),
        ("output head", model.get_output_embeddings()),
    ):
        names = [name for name, value in model.named_modules() if value is module]
        parameters = model.named_parameters(remove_duplicate=False)
        aliases = [name.removesuffix(".weight") for name, value in parameters if value is module.weight]
        tables[where] = _Table(names[0], tuple(aliases), module.weight.shape[0])
    return tables


def _held_rows(
    settings: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], table: _Table, *, encoder_decoder: bool
) -> set[int]:
    copied = settings.get("modules_to_save")
    for name in table.aliases:
        whole = next((shapes[key] for key in _keys(name, "weight", "base_layer.weight") if key in shapes), None)
        # `modules_to_save` unties: a copy of one table is not seen through the other, and an encoder-decoder's shared
        # table trains in no copy at all.
        if whole is not None and (not copied or (name == table.name and not encoder_decoder)):
            return set(range(whole[0]))
        delta = _keys(name, "token_adapter.trainable_tokens_delta", "trainable_tokens_delta")
        held = next((shapes[key] for key in delta if key in shapes), None)
        if held is not None:
            rows = _indices(settings, name)
            return set(rows) if len(rows) == held[0] else set()
    return set()


def _keys(name: str, *ends: str) -> list[str]:
    return [f"{_PREFIX}{name}.{end}" for end in ends]


def _indices(settings: Mapping[str, Any], name: str) -> list[int]:
    """Return the rows of a table's delta as the adapter's config lists them, for all tables or by module name."""
    indices = settings.get("trainable_token_indices") or settings.get("token_indices") or []
    if not isinstance(indices, Mapping):
        return list(indices)
    matching = [rows for key, rows in indices.items() if name == key or name.endswith(f".{key}")]
    return list(matching[0]) if matching else []
