"""Log-probabilities of a reference on disk, so that no reference model is in memory while another one trains."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from llmrec.artifacts import text_sha256, whole_file
from llmrec.errors import InputError

logger = logging.getLogger(__name__)

FORMAT = 1
STEM = "reference-"

WHAT = {
    "weights": "from other weights (another bundle, another base, or the same one trained further)",
    "sid_hash": "with other SIDs", "rows": "for other rows", "softmax": "under another softmax",
    "temperature": "at another temperature", "dtype": "in another precision", "format": "by another version of llmrec",
}  # fmt: skip
"""Entries of a key, and what it means that one differs."""


def weights_hash(model: nn.Module) -> str:
    """Return the hexadecimal SHA-256 of what a model computes with: its tensors by name.

    LoRA matrices that change nothing yet (a fresh adapter, whatever its seed) are left out, and so are adapters other
    than the one that is used.

    Args:
        model: with its adapter or without.
    """
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    active = set(getattr(model, "active_adapters", None) or ["default"]) if hasattr(model, "peft_config") else set()
    others = set(getattr(model, "peft_config", {})) - active
    fresh = {name.replace("lora_B", "lora_A") for name, value in state.items() if "lora_B" in name and not value.any()}
    digest = hashlib.sha256()
    for name in sorted(state):
        if any(f".{other}." in f"{name}." for other in others) or {name, name.replace("lora_B", "lora_A")} & fresh:
            continue
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def rows_hash(rows: Dataset) -> str:
    """Return the hexadecimal SHA-256 of the prompts and completions of token rows, in their order."""
    columns = zip(rows["input_ids"], rows["completions"], strict=True)
    return text_sha256(*(json.dumps(row) for row in columns))


def reference_log_probs(
    rows: Dataset,
    key: Mapping[str, Any],
    compute: Callable[[Sequence[int]], Tensor],
    *,
    accelerator: Accelerator,
    folder: Path,
    file: Path | None = None,
    batch_size: int = 8,
    lengths: Sequence[int] | None = None,
) -> list[list[float]]:
    """Return the sum of log-probabilities of each completion of each row: from disk, or computed and written there.

    Processes share the rows. The file is written whole or not at all, in float32, so a run that is killed meanwhile
    leaves nothing behind.

    Args:
        rows: token rows of preferences, with ``input_ids`` and ``completions``.
        key: what the numbers depend on; with the rows' hash it names the file within ``folder``.
        compute: from the numbers of a few rows to ``(batch, beams)``, with anything behind a row's completions.
        accelerator: of the run.
        folder: where files lie by their key; a damaged one is made again.
        file: a file to use whatever its name, and to write where there is none.
        batch_size: rows at a time.
        lengths: tokens of each row, by which rows are put together; None takes them as they come.

    Raises:
        InputError: ``file`` cannot be read, or was made with another key.
    """
    key = {"format": FORMAT, **key, "rows": rows_hash(rows)}
    path = file or folder / f"{STEM}{text_sha256(json.dumps(key, sort_keys=True))[:16]}.safetensors"
    sizes = [len(completions) for completions in rows["completions"]]
    found: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            found = [_read(path, key, sizes, given=file is not None)]
        except InputError as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], InputError):
        raise found[0]
    if found[0] is not None:
        logger.info("reference: log-probabilities of %d rows from %s", len(rows), path)
        return found[0]
    values = _compute(rows, compute, sizes, accelerator=accelerator, batch_size=batch_size, lengths=lengths)
    if accelerator.is_main_process:
        flat = torch.tensor([value for row in values for value in row], dtype=torch.float32)
        with whole_file(path) as part:
            save_file({"log_probs": flat}, str(part), metadata={"key": json.dumps(key, sort_keys=True)})
        logger.info("reference: log-probabilities of %d rows to %s", len(rows), path)
    accelerator.wait_for_everyone()
    return values


def _compute(
    rows: Dataset,
    compute: Callable[[Sequence[int]], Tensor],
    sizes: Sequence[int],
    *,
    accelerator: Accelerator,
    batch_size: int,
    lengths: Sequence[int] | None,
) -> list[list[float]]:
    order = list(range(len(rows))) if lengths is None else sorted(range(len(rows)), key=lengths.__getitem__)
    own = order[accelerator.process_index :: accelerator.num_processes]
    batches = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
    parts: list[tuple[int, list[float]]] = []
    for batch in tqdm(batches, "reference", disable=not accelerator.is_main_process):
        for row, values in zip(batch, compute(batch).float().tolist(), strict=True):
            parts.append((row, values[: sizes[row]]))
    by_row = dict(gather_object(parts))
    return [by_row[row] for row in range(len(rows))]


def _read(path: Path, key: Mapping[str, Any], sizes: Sequence[int], *, given: bool) -> list[list[float]] | None:
    """Return the rows of a file; None where there is none, or one among many that is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), "pt") as opened:
            made = json.loads((opened.metadata() or {}).get("key", "{}"))
            flat = opened.get_tensor("log_probs")
        whole = len(flat) == sum(sizes)
    except (OSError, ValueError, SafetensorError) as error:
        if given:
            raise InputError(
                f"reference_log_probs: {path} cannot be read ({error}); delete it, and it is made again"
            ) from error
        made, flat, whole = {}, torch.empty(0), False
    differing = [name for name in key if made.get(name) != key[name]]
    if given and (differing or not whole):
        name = next((name for name in WHAT if name in differing), "rows")
        raise InputError(
            f"reference_log_probs: {path} was made {WHAT[name]} than this run's; delete it, or name another file: it "
            "is made again"
        )
    if differing or not whole:
        logger.warning("reference: %s is damaged, and is made again", path)
        return None
    values = flat.tolist()
    rows, start = [], 0
    for size in sizes:
        rows.append(values[start : start + size])
        start += size
    return rows
