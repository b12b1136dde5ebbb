"""A bundle as a policy that trains on: its weights, its own SIDs and prompts, and the data that it was trained on."""

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from llmrec.data.folder import load_dataset
from llmrec.data.splits import History, training_popularity
from llmrec.data.user_share import take_users
from llmrec.errors import InputError
from llmrec.hub.adapter_rows import auto_class
from llmrec.hub.bundle import embedding_rows, fetch_bundle, load_bundle
from llmrec.hub.info import ADAPTER_CONFIG_FILE, read_info
from llmrec.sids.table import SIDTable
from llmrec.tasks.prompt import PromptForm, history_text
from llmrec.training.adapters import attach_adapter, let_trl_read_wrapped_heads
from llmrec.training.chosen_rows import choose_rows
from llmrec.training.held_out import check_protocol
from llmrec.training.inputs import RecipeInputs
from llmrec.training.model import QUANTIZATION
from llmrec.training.rl_config import RLArguments
from llmrec.training.sid_rows import multiply_few_rows
from llmrec.vocab import SIDVocab

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A bundle that was read but for its weights, and its data.

    Args:
        path: the bundle's folder.
        info: what its ``llmrec.json`` says.
        inputs: its dataset, split, SIDs, training counts and prompt form.
        method: what trains: ``full``, ``lora``, ``qlora`` or ``new_rows``.
        has_adapter: whether the bundle is an adapter.
        base_model: what the manifest of the new bundle says its base is.
        base_revision: and its revision.
    """

    path: Path
    info: dict[str, Any]
    inputs: RecipeInputs
    method: str
    has_adapter: bool
    base_model: str
    base_revision: str | None


@dataclass
class Policy:
    """A bundle in memory, ready to train.

    Args:
        model: in training mode; a `PeftModel` where an adapter trains.
        tokenizer: it holds the SID tokens.
        vocab: the SIDs.
        table: the SIDs.
        form: how prompts are written.
        info: what the ``llmrec.json`` of the bundle it comes from says.
        path: that bundle's folder.
        method: what trains: ``full``, ``lora``, ``qlora`` or ``new_rows``.
        vocab_rows: rows of the token tables.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    vocab: SIDVocab
    table: SIDTable
    form: PromptForm
    info: dict[str, Any] = field(repr=False)
    path: Path
    method: str
    vocab_rows: int


def read_start(arguments: RLArguments) -> Start:
    """Read a bundle's manifest and its data, and check that they belong together; no weights are read.

    Args:
        arguments: name bundle, dataset and method.

    Raises:
        InputError: no bundle, or one that cannot be fetched; another catalogue or protocol; or a method that cannot
            follow the bundle's.
    """
    path = fetch_bundle(arguments.model, revision=arguments.model_revision)
    info = read_info(path)
    has_adapter = (path / ADAPTER_CONFIG_FILE).is_file()
    before = str(info["method"]) if has_adapter else "full"
    method = arguments.method or before
    if has_adapter and method not in (before, "full"):
        raise InputError(
            f"method: {method} on {arguments.model}, an adapter that was trained by {before}; leave method out to go "
            "on with it, or merge it and train all weights with method: full"
        )
    dataset = load_dataset(arguments.dataset)
    table = SIDTable.load(path)
    table.check_catalog(dataset.catalog.hash, path=path)
    check_protocol(info, arguments.protocol, source=f"model: {arguments.model}")
    form = PromptForm(**info["prompt"])
    splits = dataset.split(info["protocol"], max_history=form.max_history)
    splits = take_users(splits, dataset.interactions, arguments.train_users)
    popularity = training_popularity(splits.sequences, items=len(dataset.catalog))
    on_bundle = not has_adapter and method != "full"  # a new adapter: the bundle is its base
    return Start(
        path,
        info,
        RecipeInputs(dataset, splits, table, popularity, form),
        method,
        has_adapter,
        arguments.model if on_bundle else str(info["base_model"]),
        arguments.model_revision if on_bundle else info.get("base_revision"),
    )


def load_policy(arguments: RLArguments, start: Start | None = None) -> Policy:
    """Load a bundle's weights ready to train: whole weights, its own adapter, or a new adapter on whole weights.

    Args:
        arguments: name the bundle, the method and a new adapter's shape; seed first, since it starts at random.
        start: as `read_start` read it; None reads it.

    Raises:
        InputError: as `read_start` and `load_bundle`; or settings that PEFT refuses.
    """
    start = start or read_start(arguments)
    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    merge = start.has_adapter and start.method == "full"
    bundle = load_bundle(start.path, dtype=dtype, is_trainable=True, quantize=False if merge else None)
    model = bundle.model
    if merge:
        model = cast(PreTrainedModel, cast(PeftModel, model).merge_and_unload()).requires_grad_(True)
    elif isinstance(model, PeftModel):
        let_trl_read_wrapped_heads()
        multiply_few_rows(model)
        if start.method == "new_rows":
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("trainable_tokens_delta" in name)
    elif start.method != "full":
        if start.method == "qlora":
            model = _quantized(start.path, dtype=model.dtype)
        model = _with_adapter(cast(PreTrainedModel, model), bundle.vocab, arguments, start)
    if isinstance(model, PeftModel):
        # Another adapter, such as the reference's, and whole tables are no part of the bundle.
        save = partial(type(model).save_pretrained, model, selected_adapters=["default"], save_embedding_layers=False)
        model.save_pretrained = save  # type: ignore[method-assign,assignment]
    model.train()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("%s: %d parameters train (%s)", arguments.model, trained, start.method)
    return Policy(
        model, bundle.tokenizer, bundle.vocab, bundle.table, start.inputs.form, bundle.info, start.path, start.method,
        embedding_rows(model),
    )  # fmt: skip


def disable_dropout(model: nn.Module) -> None:
    """Switch dropout off for good, also where a model does it in a function by a rate of its own (T5's attention)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _quantized(path: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Return a bundle of whole weights with its linear layers in 4 bits."""
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    kind: Any = auto_class(AutoConfig.from_pretrained(path))
    quantization = BitsAndBytesConfig(**QUANTIZATION, bnb_4bit_compute_dtype=compute)
    device = {"": "cuda" if torch.cuda.is_available() else "cpu"}
    try:
        return kind.from_pretrained(
            path, dtype=dtype, quantization_config=quantization, device_map=device, use_safetensors=True
        )
    except (ImportError, ValueError) as error:
        raise InputError(f"method: qlora: {path} cannot be loaded in 4 bits ({error}); use method: lora") from error


def _with_adapter(model: PreTrainedModel, vocab: SIDVocab, arguments: RLArguments, start: Start) -> PeftModel:
    try:
        found = attach_adapter(
            model,
            vocab,
            method=start.method,
            rank=arguments.lora_r,
            alpha=arguments.lora_alpha,
            dropout=arguments.lora_dropout,
            target_modules=arguments.lora_target_modules,
        )
    except (ValueError, NoMatchingPeftModuleError) as error:
        raise InputError(f"lora_*: PEFT refuses these settings ({error})") from error
    found.peft_config["default"].base_model_name_or_path = start.base_model
    found.peft_config["default"].revision = start.base_revision
    return found


def prompt_rows(inputs: RecipeInputs, arguments: RLArguments, vocab: SIDVocab, *, seed: int) -> Dataset:
    """Return the prompts to train on: training targets alone, never those of validation or test.

    Args:
        inputs: the data.
        arguments: which targets, and how many of them.
        vocab: the SIDs.
        seed: of the sample.

    Returns:
        A row a training target that is not retired: ``prompt`` (text), ``target`` (item row), ``history`` (item rows,
        oldest first) and ``user_row``.

    Raises:
        InputError: no training row, none whose target is not retired, or a target outside the SID table.
    """
    rows = inputs.splits.train
    if not rows:
        raise InputError(f"dataset: {arguments.dataset} has no training target; users need 2 training items or more")
    kept, _ = choose_rows(
        rows, prompts=arguments.prompts or 0, seed=seed, targets=arguments.targets, retired=vocab.retired
    )
    if not len(kept):
        raise InputError(f"dataset: all training targets of {arguments.dataset} are retired items of the SID table")
    return rows_to_prompts([rows[place] for place in kept.tolist()], vocab, max_history=inputs.form.max_history)


def rows_to_prompts(rows: list[History], vocab: SIDVocab, *, max_history: int) -> Dataset:
    """Return rows as prompts, see `prompt_rows`.

    Args:
        rows: of one split.
        vocab: the SIDs.
        max_history: most recent items that a prompt keeps.

    Raises:
        InputError: a row with an item outside the SID table.
    """
    for number, row in enumerate(rows):
        for item in (*row.items, row.target):
            if not 0 <= item < len(vocab):
                raise InputError(
                    f"prompt {number}: item {item} is not in the SID table of {len(vocab)} items; train on the "
                    "dataset folder that the SIDs were made for"
                )
    numbers: dict[int, int] = {}
    histories = [list(row.items[-max_history:]) for row in rows]
    return Dataset.from_dict(
        {
            "prompt": [history_text(vocab, history) for history in histories],
            "target": [row.target for row in rows],
            "history": histories,
            "user_row": [numbers.setdefault(row.user, len(numbers)) for row in rows],
        }
    )
