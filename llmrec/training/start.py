"""The weights of an earlier training: what a stage, or a run with ``start_from``, begins with."""

from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.artifacts import read_json
from llmrec.errors import InputError
from llmrec.hub.info import ADAPTER_CONFIG_FILE, INFO_FILE
from llmrec.sids.table import SIDTable
from llmrec.training.adapters import table_names
from llmrec.training.config import RecipeArguments
from llmrec.training.held_out import check_protocol
from llmrec.training.rows import tables_of
from llmrec.training.stages import AFTER, cannot_follow
from llmrec.vocab import SIDVocab

_SAME_ADAPTER = ("r", "lora_alpha", "target_modules")


def check_start(
    arguments: RecipeArguments, table: SIDTable, *, vocab_rows: int | None = None, protocol: str | None = None
) -> str:
    """Check that the bundle of ``start_from`` is of the run's SIDs, base and protocol, and by a method to follow.

    Args:
        arguments: of the run.
        table: its SIDs.
        vocab_rows: rows of its token tables; None compares none.
        protocol: by which its rows are split; None compares none.

    Returns:
        The method by which the bundle was trained.

    Raises:
        InputError: no bundle, or one of other SIDs, of another base or protocol, or of a method that cannot be
            followed.
    """
    path = Path(str(arguments.start_from))
    info = read_json(path / INFO_FILE, "manifest of the bundle of start_from")
    found = {"base_model": info.get("base_model"), "sid_hash": info.get("sids", {}).get("sid_hash")}
    wanted: dict[str, Any] = {"base_model": arguments.model, "sid_hash": table.hash}
    if vocab_rows is not None:
        found["vocab_rows"], wanted["vocab_rows"] = info.get("vocab_rows"), vocab_rows
    for name, value in wanted.items():
        if found[name] != value:
            raise InputError(
                f"start_from: {path} has another {name} ({found[name]!r} there, {value!r} here); give model and sids "
                "as they were there"
            )
    check_protocol(info, protocol, source=f"start_from: {path}")
    method = info["method"]
    if arguments.method not in AFTER[method]:
        raise InputError(f"start_from: {path}: {cannot_follow(method, arguments.method)}")
    return method


def begin_with(model: PreTrainedModel, path: str | Path, vocab: SIDVocab, *, before: str, method: str) -> Any:
    """Return a base model with the weights of a bundle in it, ready for ``method``; an adapter goes on by itself.

    Args:
        model: the base with its SID rows, without an adapter.
        path: the bundle.
        vocab: its SIDs.
        before: the method of the bundle.
        method: the method to come.
    """
    if before == "full":
        attention = model.config._attn_implementation
        return type(model).from_pretrained(path, dtype=model.dtype, attn_implementation=attention)
    if before == "new_rows":
        _set_rows(model, path, vocab)
    elif method == "full":
        return PeftModel.from_pretrained(model, str(path)).merge_and_unload().requires_grad_(True)
    return model


def go_on_with(model: PeftModel, path: str | Path) -> None:
    """Give an adapter the weights of a bundle's adapter of the same shape.

    Raises:
        InputError: an adapter of another rank, scale or reach.
    """
    before = read_json(Path(path) / ADAPTER_CONFIG_FILE, "adapter config")
    now = model.active_peft_config
    for name in _SAME_ADAPTER:
        there, here = before.get(name), getattr(now, name)
        there, here = (set(value) if isinstance(value, list | set) else value for value in (there, here))
        if there != here:
            raise InputError(
                f"start_from: the adapter of {path} has another {name} ({there!r} there, {here!r} here); a stage goes "
                "on with the adapter it finds, so give lora_r, lora_alpha and lora_target_modules as they were"
            )
    set_peft_model_state_dict(model, load_peft_weights(str(path), device="cpu"))


def _set_rows(model: PreTrainedModel, path: str | Path, vocab: SIDVocab) -> None:
    """Write the SID rows of a rows-only bundle into the tables of its base."""
    weights = load_peft_weights(str(path), device="cpu")
    token_ids = torch.tensor(vocab.trainable_token_indices)
    for table, name in zip(tables_of(model), table_names(model), strict=True):
        end = f".{name}.token_adapter.trainable_tokens_delta"
        rows = next(cast(Tensor, value) for key, value in weights.items() if key.endswith(end))
        with torch.no_grad():
            table.weight[token_ids.to(table.weight.device)] = rows.to(table.weight)
