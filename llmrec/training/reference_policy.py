"""The reference of a policy: the bundle that it started from, or another one, frozen."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from llmrec.errors import InputError
from llmrec.hub.bundle import fetch_bundle, load_bundle
from llmrec.hub.info import INFO_FILE, read_info
from llmrec.training.policy import Policy, Start, disable_dropout
from llmrec.training.rl_config import RLArguments
from llmrec.training.sid_rows import multiply_few_rows

REFERENCE = "ref"
"""Name of the adapter that holds the reference, as TRL calls it."""


def load_reference(arguments: RLArguments, start: Start, policy: Policy) -> PreTrainedModel | PeftModel | None:
    """Return the model that a policy is compared with, in evaluation mode.

    Args:
        arguments: name another bundle, or none.
        start: what the policy started from.
        policy: it, before it has trained.

    Returns:
        None where the policy itself holds it: a frozen copy of its adapter, which `add_reference` makes.

    Raises:
        InputError: a bundle of other SIDs or tokens, or of another base model.
    """
    if arguments.reference is None and isinstance(policy.model, PeftModel):
        return None
    path = start.path
    if arguments.reference is not None:
        path = fetch_bundle(arguments.reference)
        check_same_base(path, start, policy)
    dtype = cast(torch.dtype, policy.model.dtype)
    model = load_bundle(path, dtype=dtype, quantize=False if policy.method == "full" else None).model
    return cast(PreTrainedModel, model.requires_grad_(False).eval())


def check_same_base(path: Path, start: Start, policy: Policy) -> None:
    """Check that a bundle's log-probabilities can be compared with a policy's.

    Args:
        path: the bundle.
        start: what the policy started from.
        policy: the policy.

    Raises:
        InputError: as `load_reference` says.
    """
    info = read_info(path)
    for name, there, here in (
        ("base model", _root(info), _root(start.info)),
        ("SIDs", info["sid_hash"], start.info["sid_hash"]),
        ("token rows", info["vocab_rows"], policy.vocab_rows),
    ):
        if there != here:
            raise InputError(
                f"reference: {path} was made from another {name} ({there!r} there, {here!r} in {start.path}), so its "
                "log-probabilities mean something else; give one of the same base and SIDs, or leave reference out"
            )
    if AutoTokenizer.from_pretrained(path).get_vocab() != policy.tokenizer.get_vocab():
        raise InputError(
            f"reference: {path} has another tokenizer than {start.path}; give a bundle of the same base and SIDs"
        )


def _root(info: Mapping[str, Any]) -> str:
    """Return the name of the model that is under a bundle, and under the bundle that it is an adapter on."""
    base, seen = str(info["base_model"]), set[str]()
    while (Path(base) / INFO_FILE).is_file() and base not in seen:
        seen.add(base)
        base = str(read_info(Path(base))["base_model"])
    return base


def add_reference(model: PeftModel) -> None:
    """Add a frozen copy of a policy's adapter to it, under the name ``ref``; its SID rows are copied with it.

    TRL makes such a copy too, by names that hold ``.default.``, which misses the SID rows: they end with it.

    Args:
        model: the policy, before it has trained.
    """
    active = cast(str, model.active_adapter)
    with same_parameters_train(model):
        model.add_adapter(REFERENCE, model.peft_config["default"])
        multiply_few_rows(model)
        model.set_adapter(active)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "default" in name.split("."):
                copy = parameters[".".join(REFERENCE if part == "default" else part for part in name.split("."))]
                copy.data = parameter.data.clone()  # with its dtype
    for name, module in model.named_modules():
        if REFERENCE in name.split("."):
            disable_dropout(module)  # TRL asks the reference while the policy is in training mode


@contextmanager
def same_parameters_train(model: nn.Module) -> Iterator[None]:
    """Let what trains in a model be the same afterwards, and nothing that is new; PEFT lets chosen adapters train."""
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    try:
        yield
    finally:
        for parameter in model.parameters():
            if parameter.requires_grad != (id(parameter) in trained):
                parameter.requires_grad_(id(parameter) in trained)
