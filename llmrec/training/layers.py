"""Which parts of a model train, and at which learning rate: frozen layers, slower lower layers, rates of SID rows."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from llmrec.errors import InputError
from llmrec.training.rows import tables_of

SID_ROWS = "sid_rows"
"""The name by which ``freeze`` reaches the SID rows themselves."""

_DELTA = "trainable_tokens_delta"
_RANGE = re.compile(r"(.*\.)?(\d+)-(\d+)(\..*)?")
_NUMBERED = re.compile(r"(?:^|\.)(\w+)\.(\d+)(?:\.|$)")


def named_parts(model: nn.Module, patterns: Iterable[str]) -> list[nn.Module]:
    """Return the modules that patterns name.

    Args:
        model: with its adapter, if it has one.
        patterns: ends of module names (``embed_tokens``, ``layers.3.mlp``, ``mlp``), with ranges of layers
            (``layers.0-5``, both ends included).

    Raises:
        InputError: a pattern that names nothing; the message lists what there is.
    """
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if _plain(name) and next(module.parameters(), None) is not None:
            modules.setdefault(_plain(name), module)
    found = []
    for pattern in patterns:
        for one in _expand(pattern):
            hit = [module for name, module in modules.items() if name == one or name.endswith(f".{one}")]
            if not hit:
                raise InputError(
                    f"freeze: {pattern!r} names nothing of {_class_name(model)}"
                    f"{'' if one == pattern else f' (there is no {one})'}; there is {', '.join(_overview(modules))} "
                    f"and {SID_ROWS}"
                )
            found += hit
    return found


def _plain(name: str) -> str:
    """Return a module's name as it was before PEFT wrapped the model."""
    name = "" if name in ("base_model", "base_model.model") else name.removeprefix("base_model.model.")
    return name.removesuffix(".base_layer").removesuffix(".token_adapter")


def _expand(pattern: str) -> Iterator[str]:
    match = _RANGE.fullmatch(pattern)
    if match is None:
        yield pattern
        return
    before, first, last, behind = match.groups()
    if int(first) > int(last):
        raise InputError(f"freeze: {pattern!r} counts down; write {last}-{first}")
    for number in range(int(first), int(last) + 1):
        yield from _expand(f"{before or ''}{number}{behind or ''}")


def _class_name(model: nn.Module) -> str:
    return type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__


def _overview(modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names worth freezing: tables and norms by name, stacks of layers by range, the parts of one layer."""
    stacks: dict[str, int] = {}
    parts: dict[str, None] = {}
    for name in modules:
        match = re.match(r"(?:.*?\.)?(\w+)\.(\d+)(?:\.(\w+))?$", name)
        if match:
            stack = name[: match.end(1)].removeprefix("model.")
            stacks[stack] = max(stacks.get(stack, 0), int(match.group(2)))
            if match.group(3):
                parts[match.group(3)] = None
        elif not re.search(r"\.\d+\.|token_adapter", name) and not any(
            other.startswith(f"{name}.") and "token_adapter" not in other for other in modules
        ):
            parts[name.removeprefix("model.")] = None
    return [f"{stack}.0-{last}" for stack, last in stacks.items()] + list(parts)


@dataclass(frozen=True, eq=False)
class _RowGroup:
    """SID rows of a table as a parameter of their own for the optimiser: it has their rate and their moments.

    Scaling their gradient would change nothing, because AdamW divides by its size.
    """

    table: nn.Parameter
    token_ids: Tensor
    rows: nn.Parameter

    def before_step(self, *_: Any) -> None:
        """Hand the rows and their gradient to the optimiser."""
        if self.table.grad is None:
            self.rows.grad = None
            return
        with torch.no_grad():
            self.rows.copy_(self.table[self.token_ids])
            self.rows.grad = self.table.grad[self.token_ids]

    def after_step(self, *_: Any) -> None:
        """Take the rows back; what the table's own update did to them is overwritten."""
        if self.rows.grad is not None:
            with torch.no_grad():
                self.table[self.token_ids] = self.rows
            self.rows.grad = None


class TrainedParts:
    """What trains of a model, and how fast.

    Frozen parts lose ``requires_grad`` at once. Rates are set on the optimiser by `set_rates`. Where a whole table
    trains (``method: full``) and its SID rows have another rate, or the table is frozen and its SID rows are not, the
    rows become a group of their own in the optimiser; the gradient of the whole table is still computed then, which
    ``method: lora`` and ``new_rows`` save.

    Paper: Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, ACL 2018 (arXiv:1801.06146):
    discriminative fine-tuning, each layer slower than the one above by a factor (theirs 1 / 2.6). Here SID rows, which
    are new, keep a rate of their own, and there is no gradual unfreezing but by stages.

    Args:
        model: with its adapter, if it has one.
        token_ids: every SID token id.
        freeze: as `named_parts` reads them, and ``sid_rows`` for the SID rows, which otherwise always train.
        sid_learning_rate: of the SID rows; None is the common learning rate.
        layer_decay: factor in (0, 1] between a layer's learning rate and that of the layer above it; the embeddings
            stand below the first layer, an untied head and the last norm above the last.

    Raises:
        InputError: a name that the model has not, a value out of its range, or nothing left to train.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        token_ids: Sequence[int],
        *,
        freeze: Sequence[str] = (),
        sid_learning_rate: float | None = None,
        layer_decay: float = 1.0,
    ) -> None:
        self.sid_learning_rate, self.layer_decay = sid_learning_rate, layer_decay
        self._token_ids = torch.tensor(list(token_ids))
        self._rows_freeze = SID_ROWS in freeze
        self._half_frozen: set[str] = set()
        self._layers = _layer_numbers(name for name, _ in model.named_parameters())
        adapted = isinstance(model, PeftModel)
        tables = [] if adapted else [table.weight for table in tables_of(model)]
        self._tables = {name for name, one in model.named_parameters() if any(one is table for table in tables)}
        parts = named_parts(model, (pattern for pattern in freeze if pattern != SID_ROWS))
        frozen = {parameter for part in parts for parameter in part.parameters()}
        for name, parameter in model.named_parameters():
            if _DELTA in name:
                if self._rows_freeze:
                    parameter.requires_grad_(False)
            elif parameter in frozen:
                if name in self._tables and not self._rows_freeze:
                    self._half_frozen.add(name)
                    parameter.register_post_accumulate_grad_hook(self._keep_sid_gradients)
                else:
                    parameter.requires_grad_(False)
            elif self._rows_freeze and name in self._tables:
                parameter.register_post_accumulate_grad_hook(self._drop_sid_gradients)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError(f"freeze: {', '.join(freeze) or None} leaves nothing to train; take one out")

    def _keep_sid_gradients(self, table: Tensor) -> None:
        if table.grad is not None:
            token_ids = self._token_ids.to(table.device)
            kept = table.grad[token_ids]
            table.grad.zero_()
            table.grad[token_ids] = kept

    def _drop_sid_gradients(self, table: Tensor) -> None:
        if table.grad is not None:
            table.grad[self._token_ids.to(table.device)] = 0.0

    def set_rates(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Divide an optimiser's groups by learning rate, before its first step and before its schedule is made.

        Args:
            optimizer: new, with groups of the model's parameters.
            model: whose parameters they are.

        Raises:
            InputError: SID rows of whole tables that are cut over processes (FSDP, ZeRO-3).
        """
        if not (self._half_frozen or any(self._rows_apart(name) for name in ("", *self._tables))):
            return
        names = {parameter: name for name, parameter in model.named_parameters()}
        common = optimizer.param_groups[0]["lr"]
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            by_rate: dict[float, list[nn.Parameter]] = {}
            own: dict[float, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                name, rate = names[parameter], group["lr"]
                if name in self._tables and self._rows_apart(name):
                    of_rows = 0.0 if self._rows_freeze else self._sid_rate(rate)
                    own.setdefault(of_rows, []).append(self._own_rows(optimizer, parameter))
                if name in self._half_frozen:
                    continue
                by_rate.setdefault(self._rate(name, rate), []).append(parameter)
            groups += [{**group, "lr": rate, "params": params} for rate, params in (*by_rate.items(), *own.items())]
        # The log says the rate of the first group.
        optimizer.param_groups[:] = sorted(groups, key=lambda group: group["lr"] != common)

    def _rows_apart(self, name: str) -> bool:
        apart = self.sid_learning_rate is not None or self.layer_decay != 1.0
        return apart or self._rows_freeze or name in self._half_frozen

    def _own_rows(self, optimizer: Optimizer, table: nn.Parameter) -> nn.Parameter:
        if type(table.data) is not Tensor or table.ndim != 2:
            raise InputError(
                "sid_learning_rate, layer_learning_rate_decay and freeze of a table set its SID rows apart, which "
                "method: full cannot do with a table that FSDP or ZeRO-3 cuts; use method: lora, or leave them out"
            )
        token_ids = self._token_ids.to(table.device)
        made = _RowGroup(table, token_ids, nn.Parameter(table.detach()[token_ids].clone()))
        optimizer.register_step_pre_hook(made.before_step)
        optimizer.register_step_post_hook(made.after_step)
        return made.rows

    def _sid_rate(self, rate: float) -> float:
        return rate if self.sid_learning_rate is None else self.sid_learning_rate

    def _rate(self, name: str, rate: float) -> float:
        if _DELTA in name:
            return self._sid_rate(rate)
        return rate * self.layer_decay ** self._layers.get(name, 0)


def _layer_numbers(names: Iterable[str]) -> dict[str, int]:
    """Return how many steps below the top each parameter stands: 0 above the last layer, 1 in it, and so on."""
    names = list(names)
    place: dict[str, tuple[str, int]] = {}
    depth: dict[str, int] = {}
    for name in names:
        match = _NUMBERED.search(name)
        if match:
            stack = name[: match.end(1)]
            place[name] = stack, int(match.group(2))
            depth[stack] = max(depth.get(stack, 0), int(match.group(2)) + 1)
    deepest = max(depth.values(), default=0)
    found = {name: depth[stack] - number for name, (stack, number) in place.items()}
    below = re.compile(r"(embed|wte|wpe|shared)")
    return found | {name: deepest + 1 for name in names if name not in found and below.search(name)}
