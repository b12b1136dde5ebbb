"""The output folder of a run: it belongs to one run, and a killed run goes on in it."""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmrec.artifacts import read_json, write_json
from llmrec.errors import InputError
from llmrec.hub.info import INFO_FILE
from llmrec.training.held_out import check_protocol

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
STATE_FILE = "trainer_state.json"

SAME_TO_RESUME = (
    (("sids", "sid_hash"), "SID table", "--sids"), (("base_model",), "base model", "--model"),
    (("base_revision",), "revision of the base model", "--model_revision"), (("method",), "method", "--method"),
    (("vocab_rows",), "number of token rows", "--text_vocab_size and --sids"),
)  # fmt: skip
"""What of a checkpoint's manifest must be the run's own, what it is called, and the flag that sets it."""


def check_run_folder(path: str | Path, run: Mapping[str, Any], *, overwrite: bool, finished: str) -> str | None:
    """Check that a run may write into a folder, and find where it goes on; nothing is written or deleted.

    Args:
        path: the output folder.
        run: what identifies the run: data, SIDs, model, method, seed. A killed run goes on only if all of it is equal.
        overwrite: whether another run there may be deleted.
        finished: name of the file that a finished run leaves.

    Returns:
        The last whole checkpoint of the same, unfinished run, or None to start anew.

    Raises:
        InputError: the folder holds another run, a finished one, or other files.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; choose another --output_dir")
    names = {child.name for child in path.iterdir()} if path.is_dir() else set()
    if names <= {RUN_FILE}:  # new, empty, or stopped before there was anything to keep
        return None
    if RUN_FILE not in names:
        raise InputError(
            f"{path}: holds files but no {RUN_FILE}, so it is no run of llmrec and is left alone; choose another "
            "--output_dir"
        )
    if overwrite:
        return None
    remedy = "choose another --output_dir, or pass --overwrite_output_dir true to delete it"
    before = read_json(path / RUN_FILE, "run description")
    changed = [key for key in run if before.get(key) != run[key]]
    if changed:
        key = changed[0]
        raise InputError(
            f"{path}: holds another run ({key} is {before.get(key)!r} there, {run[key]!r} here); {remedy}"
        )
    if finished in names:
        raise InputError(f"{path}: holds this very run, finished; {remedy}")
    return newest_checkpoint(path)


def newest_checkpoint(path: Path) -> str | None:
    """Return the newest checkpoint of a run's folder that was written to its end, or None.

    Args:
        path: the folder; it is left as it is.
    """
    found = [child for child in path.iterdir() if re.fullmatch(r"checkpoint-\d+", child.name) and child.is_dir()]
    for checkpoint in sorted(found, key=lambda child: int(child.name.partition("-")[2]), reverse=True):
        missing = missing_of(checkpoint)
        if missing is None:
            return str(checkpoint)
        logger.warning(
            "%s: holds no whole %s, so this run goes on from an older one or starts anew", checkpoint, missing
        )
    return None


def missing_of(checkpoint: Path) -> str | None:
    """Return the name of what a checkpoint lacks for a run to go on from it, or None.

    ``trainer_state.json`` is written last, so a checkpoint with it is whole. The states of optimiser and schedule may
    be files, FSDP's folders ``optimizer_0``, or DeepSpeed's ``global_step100``, which holds both.

    Args:
        checkpoint: its folder.
    """
    try:
        json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return STATE_FILE
    names = {child.name for child in checkpoint.iterdir()}
    if any(name.startswith("global_step") for name in names):
        return None
    if not any("optimizer" in name for name in names):
        return "optimizer.pt"
    return None if "scheduler.pt" in names else "scheduler.pt"


def check_resume(checkpoint: str | None, manifest: Mapping[str, Any]) -> None:
    """Check that weights of a checkpoint of any run (``resume_from_checkpoint``) mean the same in this one.

    Args:
        checkpoint: its folder, or None.
        manifest: what `describe_run` says of this run.

    Raises:
        InputError: no checkpoint of ours, one without an optimiser's state, or one with other SIDs, another base
            or another protocol.
    """
    if checkpoint is None:
        return
    path = Path(checkpoint)
    if not (path / "trainer_state.json").is_file():
        raise InputError(
            f"resume_from_checkpoint: {checkpoint!r} holds no trainer_state.json; give the folder of a checkpoint, "
            "such as runs/office/checkpoint-300 (a run that was killed goes on by the same command, without this)"
        )
    missing = missing_of(path)
    if missing is not None:
        raise InputError(
            f"resume_from_checkpoint: {checkpoint} holds no whole {missing}: it was cut off while it was written, or "
            "holds weights alone; give another checkpoint (start_from: takes the weights of a finished bundle)"
        )
    before = read_json(path / INFO_FILE, "manifest of the checkpoint")
    check_protocol(before, manifest.get("protocol"), source=f"resume_from_checkpoint: {checkpoint}")
    for keys, name, flag in SAME_TO_RESUME:
        there, here = _value(before, keys), _value(manifest, keys)
        if there != here:
            raise InputError(
                f"resume_from_checkpoint: {checkpoint} was trained with another {name} "
                f"({there!r} there, {here!r} here); give {flag} as it was, or start anew without it"
            )


def _value(manifest: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    value: Any = manifest
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def claim_run_folder(path: str | Path, run: Mapping[str, Any], *, checkpoint: str | None) -> None:
    """Make the folder the run's own, as `check_run_folder` allowed: delete what is there unless it goes on from it."""
    path = Path(path)
    if checkpoint:
        logger.info("going on from %s", checkpoint)
        return
    if path.is_dir():
        shutil.rmtree(path)
    write_json(path / RUN_FILE, run)
