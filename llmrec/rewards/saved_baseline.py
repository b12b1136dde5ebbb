"""A saved baseline as a judge: loaded, and refused where it has seen more than the training part."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.artifacts import read_json
from llmrec.baselines import ALL_BASELINES
from llmrec.baselines.base import CONFIG_NAME, Baseline, class_name
from llmrec.embeddings.collaborative import sequences_hash
from llmrec.errors import InputError
from llmrec.registry import resolve
from llmrec.rewards.inputs import RewardInputs

logger = logging.getLogger(__name__)


def load_baseline(path: Any, *, reward: str, inputs: RewardInputs, items: int, kind: str | None = None) -> Baseline:
    """Return a baseline that was fitted on no more than the training part.

    It is known by what it says it was fitted on where it says it (networks do), else by its counts: none may be above
    that of the training sequences.

    Args:
        path: what `save_pretrained` wrote; a relative path may also start at the dataset folder.
        reward: which asks, for the error message.
        inputs: ``sequences``, or ``popularity`` where there are none.
        items: size of the catalogue.
        kind: name of the class, of `ALL_BASELINES` or ``package.module:Class``; None reads it from the folder.

    Raises:
        InputError: no baseline there, one of another catalogue, one that knows more than the training part or whose
            histories need times, or what `Baseline.from_pretrained` refuses.
    """
    folder = find_path(path, reward=reward, option="baseline", inputs=inputs)
    if not (folder / CONFIG_NAME).is_file():
        raise InputError(
            f"reward {reward}: baseline {folder} holds no {CONFIG_NAME}; save a fitted baseline there with "
            "save_pretrained"
        )
    baseline = _class_of(folder, kind, reward).from_pretrained(folder)
    if baseline.items != items:
        raise InputError(
            f"reward {reward}: baseline {folder} knows {baseline.items} items and the SID table {items}; fit it on "
            "this dataset"
        )
    if getattr(baseline, "reads_times", False):
        raise InputError(
            f"reward {reward}: baseline {folder} reads the times of a history, which prompts do not have; fit it with "
            "times: false"
        )
    _check_fitted_on(baseline, folder, reward=reward, inputs=inputs)
    return baseline


def find_path(path: Any, *, reward: str, option: str, inputs: RewardInputs) -> Path:
    """Return a path as it stands, or else under the dataset folder.

    Raises:
        InputError: neither is there.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise InputError(f"reward {reward}: {option} {path!r}; give a path")
    places = [Path(path)] if inputs.folder is None else [Path(path), inputs.folder / path]
    for place in places:
        if place.exists():
            return place
    raise InputError(f"reward {reward}: {option} {' and '.join(map(str, places))}: no such file or folder")


def _class_of(folder: Path, kind: str | None, reward: str) -> type[Baseline]:
    if kind is not None:
        return resolve(kind, ALL_BASELINES, "baseline")
    said = read_json(folder / CONFIG_NAME, "settings of a baseline")
    name = said.get("baseline") if isinstance(said, dict) else None
    # A folder that was downloaded names no code to run: only classes of ours are taken by its word.
    known = {class_name(value): value for value in ALL_BASELINES.values()}
    if name not in known:
        raise InputError(
            f"reward {reward}: baseline {folder} is a {name!r}, which is not llmrec's; name its class as kind: "
            "package.module:Class"
        )
    return known[name]


def _check_fitted_on(baseline: Baseline, folder: Path, *, reward: str, inputs: RewardInputs) -> None:
    counts = inputs.popularity
    if inputs.sequences is not None:
        said = getattr(baseline, "fitted_on", {}).get("sequences_sha256")
        if said is not None and said == sequences_hash(inputs.sequences):
            return
        flat = np.array([item for sequence in inputs.sequences for item in sequence], dtype=np.int64)
        counts = np.bincount(flat, minlength=baseline.items)
    if counts is None:
        logger.warning("reward %s: no training sequences to hold baseline %s against", reward, folder)
        return
    over = np.flatnonzero(baseline.popularity > np.asarray(counts))
    if len(over):
        row = int(over[0])
        raise InputError(
            f"reward {reward}: baseline {folder} was fitted on more than the training part: it counts item row {row} "
            f"{int(baseline.popularity[row])} times, training {int(counts[row])} ({len(over)} such items); fit it on "
            "the training sequences of this split, or it rewards what it read from validation and test"
        )
