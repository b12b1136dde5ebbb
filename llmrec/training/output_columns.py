"""The columns of an output table in runs: the table itself, then the rows of an adapter that stand in for some."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which products with a tensor are summed: float32, or float64 of float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def place_among(ascending: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return where token ids stand among ascending ones, and whether they do."""
    place = torch.searchsorted(ascending, token_ids).clamp(max=len(ascending) - 1)
    return place, ascending[place] == token_ids


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right`` in float32 (float64 of float64); factors may be bfloat16, sums are not rounded to it."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def add_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to a tensor, in its dtype."""
    if into.dtype == left.dtype:
        into.addmm_(left, right)
    else:
        into += product(left, right)


@dataclass
class Piece:
    """A run of output columns: rows ``start .. stop`` of a table, and where targets fall into it."""

    table: Tensor
    bias: Tensor | None
    start: int
    stop: int
    hidden_columns: Tensor | None
    number: int

    def logits(self, hidden: Tensor, softcap: float | None) -> Tensor:
        """Return ``(labels, stop - start)`` logits, -inf where a row of an adapter takes the column's place."""
        logits = product(hidden, self.table.to(hidden.dtype).T)
        if self.bias is not None:
            logits += self.bias.to(logits.dtype)
        if softcap is not None:
            logits = logits.div_(softcap).tanh_().mul_(softcap)
        if self.hidden_columns is not None:
            logits.index_fill_(1, self.hidden_columns, -torch.inf)
        return logits

    def find(self, table: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """Return which targets, by their table and row, fall into this run, and their columns there, else 0."""
        inside = (table == self.number) & (row >= self.start) & (row < self.stop)
        return inside, torch.where(inside, row - self.start, 0)


@dataclass
class Columns:
    """All output columns: the base table with the replaced rows hidden, then the rows that replace them."""

    weight: Tensor
    bias: Tensor | None
    rows: Tensor | None
    token_ids: Tensor | None

    def __len__(self) -> int:
        return len(self.weight) + (0 if self.rows is None else len(self.rows))

    def pieces(self, width: int, *, base: bool = True) -> Iterator[Piece]:
        """Yield the columns in runs of at most ``width``."""
        for start in range(0, len(self.weight) if base else 0, width):
            stop = min(start + width, len(self.weight))
            hidden = None
            if self.token_ids is not None:
                first, last = (int(torch.searchsorted(self._ids_on_host, edge)) for edge in (start, stop))
                hidden = self.token_ids[first:last] - start if last > first else None
            bias = None if self.bias is None else self.bias[start:stop]
            yield Piece(self.weight[start:stop], bias, start, stop, hidden, 0)
        if self.rows is not None and self.token_ids is not None:
            for start in range(0, len(self.rows), width):
                stop = min(start + width, len(self.rows))
                bias = None if self.bias is None else self.bias[self.token_ids[start:stop]]
                yield Piece(self.rows[start:stop], bias, start, stop, None, 1)

    @property
    def _ids_on_host(self) -> Tensor:
        assert self.token_ids is not None
        if not hasattr(self, "_host"):
            self._host = self.token_ids.cpu()
        return self._host

    def find(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the table of each target (0 base, 1 rows) and its row there."""
        if self.token_ids is None:
            return torch.zeros_like(targets), targets
        place, replaced = place_among(self.token_ids, targets)
        return replaced.long(), torch.where(replaced, place, targets)

    def rows_of(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the ``(labels, dim)`` row of each target."""
        found = self.weight[targets].to(dtype)
        if self.rows is not None and self.token_ids is not None:
            place, replaced = place_among(self.token_ids, targets)
            found = torch.where(replaced[:, None], self.rows[place].to(dtype), found)
        return found


@dataclass(frozen=True)
class FewRows:
    """The rows of a few tokens, taken out of a table once.

    Args:
        table: ``(tokens, dim)`` float32, or float64 where the hidden states are.
        bias: ``(tokens,)`` or None.
        softcap: Gemma's ``final_logit_softcapping``, or None.
    """

    table: Tensor
    bias: Tensor | None
    softcap: float | None

    def logits(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return ``(labels, stop - start)`` logits of tokens ``start .. stop``, of states that a head scaled."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits = hidden.to(self.table.dtype) @ self.table[start:stop].T
            if self.bias is not None:
                logits = logits + self.bias[start:stop]
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
