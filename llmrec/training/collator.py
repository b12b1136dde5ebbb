"""From token rows to a batch: packed into few bins without leaks, flattened for flash attention, or padded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.prompts import MASKED_ATTENTION, SHARED_PREFIX_MODELS

IGNORED = -100
"""What stands in ``labels`` where nothing is learned."""

LAYOUTS = ("packed", "flat", "padded")


def layout_for(model: PreTrainedModel, *, packing: bool = True) -> tuple[str, str | None]:
    """Return how a model's batches are laid out, and why they are padded where packing was asked for.

    Args:
        model: the model without its adapter.
        packing: whether rows may share a line.

    Returns:
        ``packed`` (sdpa and eager attention, under a mask of our own), ``flat`` (flash attention, padding-free) or
        ``padded``; and a reason or None.
    """
    if not packing:
        return "padded", None
    config: Any = model.config
    if config.is_encoder_decoder or config.model_type not in SHARED_PREFIX_MODELS:
        return "padded", f"model type {config.model_type!r} is not among {', '.join(SHARED_PREFIX_MODELS)}"
    if str(config._attn_implementation).startswith("flash_attention"):
        return "flat", None
    if config._attn_implementation not in MASKED_ATTENTION:
        return "padded", f"attention {config._attn_implementation!r} takes no mask of its own (sdpa and eager do)"
    others = {kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"}
    if others or (getattr(config, "sliding_window", None) and config.model_type == "mistral"):
        return "padded", f"attention layers of kind {', '.join(sorted(others)) or 'sliding_attention'}"
    return "packed", None


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put rows into as few bins as first fit finds, longest row first.

    Args:
        lengths: tokens of each row.
        capacity: most tokens of a bin; a longer row gets a bin of its own.

    Returns:
        The numbers of the rows in each bin.

    Paper: first-fit decreasing (Johnson, 1973), at most 11/9 of the fewest bins and one more. Packing under a mask by
    document is that of Krell et al., 2021; there over the whole dataset, here within a batch.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = next((place for place, left in enumerate(room) if left >= lengths[number]), None)
        if place is None:
            bins.append([number])
            room.append(capacity - lengths[number])
        else:
            bins[place].append(number)
            room[place] -= lengths[number]
    return bins


@dataclass(frozen=True)
class LabelledCollator:
    """Collates token rows (``input_ids``, ``labels``, ``task``) and says where the labels stand.

    The optimiser sees the same rows in a step whatever the layout. A batch holds ``input_ids`` ``(bins, length)`` and

    - ``packed``: ``position_ids``, which start anew with each row, and ``rows_of`` ``(bins, length)``, the number of
      the row that a token belongs to, from which the forward makes its mask;
    - ``flat``: one bin, with ``position_ids`` and the arguments of flash attention with variable lengths;
    - ``padded``: ``attention_mask``, padding behind each row;

    and ``places`` ``(labels,)``, positions in the flattened ``(bins * length)`` whose hidden state predicts,
    ascending, ``targets`` ``(labels,)``, the tokens to predict, and ``tasks`` ``(labels,)``.

    Args:
        pad_token_id: fills what no row fills.
        layout: ``packed``, ``flat`` or ``padded``.
        pack_length: tokens of a bin where it is larger than the batch's longest row; None takes the longest row.
        pad_to_multiple_of: length of a bin is rounded up to it; None rounds nothing.
    """

    pad_token_id: int
    layout: str = "packed"
    pack_length: int | None = None
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor | int]:
        """Return the batch of token rows."""
        ids = [np.asarray(row["input_ids"], dtype=np.int64) for row in rows]
        lengths = [len(row) for row in ids]
        bins = self._bins(lengths)
        used = [sum(lengths[number] for number in numbers) for numbers in bins]
        length = max(used)
        if self.pad_to_multiple_of:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        shape = (len(bins), length)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        rows_of = np.full(shape, -1, dtype=np.int64)
        places, targets, tasks = [], [], []
        for line, numbers in enumerate(bins):
            start = 0
            for number in numbers:
                stop = start + lengths[number]
                input_ids[line, start:stop] = ids[number]
                positions[line, start:stop] = np.arange(stop - start)
                rows_of[line, start:stop] = number
                # The first token of a row has nothing before it that could predict it.
                labels = np.asarray(rows[number]["labels"], dtype=np.int64)[1:]
                learned = np.flatnonzero(labels != IGNORED)
                places.append(line * length + start + learned)
                targets.append(labels[learned])
                tasks.append(np.full(len(learned), int(rows[number].get("task", 0)), dtype=np.int64))
                start = stop
            # Padding is a row of its own: a query that saw nothing would be NaN.
            positions[line, start:] = np.arange(length - start)
        batch: dict[str, Any] = {"input_ids": input_ids}
        if self.layout == "padded":
            batch["attention_mask"] = (rows_of >= 0).astype(np.int64)
        else:
            batch["position_ids"] = positions
        if self.layout == "packed":
            batch["rows_of"] = rows_of
        batch["places"], batch["targets"], batch["tasks"] = map(np.concatenate, (places, targets, tasks))
        found: dict[str, Tensor | int] = {name: torch.from_numpy(value) for name, value in batch.items()}
        if self.layout == "flat":
            starts = [*np.flatnonzero(positions[0] == 0).tolist(), length]
            edges = torch.tensor(starts, dtype=torch.int32)
            found["cu_seq_lens_q"] = found["cu_seq_lens_k"] = edges
            found["max_length_q"] = found["max_length_k"] = int(edges.diff().max())
        return found

    def _bins(self, lengths: Sequence[int]) -> list[list[int]]:
        if self.layout == "flat":
            return [list(range(len(lengths)))]
        if self.layout == "padded":
            return [[number] for number in range(len(lengths))]
        return pack_rows(lengths, max(max(lengths), self.pack_length or 0))


def packed_mask(rows_of: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``(bins, 1, length, length)``: 0 where a token sees itself and its row before it, else the lowest number.

    Args:
        rows_of: ``(bins, length)`` number of the row that a token belongs to, -1 for padding.
        dtype: of the mask: the attention's.
    """
    length = rows_of.shape[1]
    sees = rows_of[:, :, None] == rows_of[:, None, :]
    sees &= torch.ones(length, length, dtype=torch.bool, device=rows_of.device).tril_()
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)[
        :, None
    ]
