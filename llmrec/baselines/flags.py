"""The flags of commands that fit baselines, and what they ask for."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrec.baselines.context import FitContext, training_times
from llmrec.baselines.hstu import timed_rows
from llmrec.baselines.tuning import LEARNED_FROM, METRIC, FitData, fit_or_load, tune
from llmrec.data.folder import DatasetFolder
from llmrec.data.splits import History, Splits
from llmrec.embeddings.store import load_embeddings, load_manifest
from llmrec.errors import InputError


def add_baseline_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--settings --tune --cache --embeddings --device`` to a parser."""
    parser.add_argument("--settings", default="{}", help="JSON by name; with --tune they are not tuned")
    parser.add_argument("--tune", action="store_true", help="choose settings on validation by ndcg@10")
    parser.add_argument("--cache", type=Path, help="folder of fitted and tuned baselines (default: none)")
    parser.add_argument(
        "--embeddings", help="of the items: for baselines that read them, and for the diversity of lists"
    )
    parser.add_argument("--device", help="of models and neural baselines (default: cuda where there is one, else cpu)")


def check_needs(kinds: Mapping[str, type], *, embeddings: str | None) -> None:
    """Raise `InputError` when baselines read embeddings and ``--embeddings`` names none, before any work."""
    lacking = [name for name, kind in kinds.items() if "embeddings" in getattr(kind, "needs", ())]
    if lacking and embeddings is None:
        raise InputError(
            f"--embeddings: {', '.join(lacking)} needs the items' embeddings; name the file "
            "(data_prep/embed_items.py makes one)"
        )


def read_settings(text: str, names: Sequence[str], *, flag: str = "--names") -> dict[str, dict[str, Any]]:
    """Return the settings of each baseline that ``--settings`` names.

    Args:
        text: JSON, an object of objects.
        names: of the baselines that are asked for.
        flag: where they are asked for.

    Raises:
        InputError: no such JSON, or a baseline that is not asked for.
    """
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f'--settings {text}: no JSON ({error}); write \'{{"ease": {{"l2": 100}}}}\'') from error
    if not isinstance(given, dict) or not all(isinstance(value, dict) for value in given.values()):
        raise InputError(f'--settings {text}: write an object of objects, \'{{"ease": {{"l2": 100}}}}\'')
    for name in given:
        if name not in names:
            raise InputError(f"--settings: {name!r} is not among {flag} {' '.join(names)}; name it there too")
    return given


def said_of_embeddings(path: str | None, kind: type) -> dict[str, Any] | None:
    """Return what a row says of the embeddings that its baseline was fitted with."""
    if path is None or "embeddings" not in getattr(kind, "needs", ()):
        return None
    manifest = load_manifest(path)
    return {key: manifest[key] for key in ("encoder", "revision", "sha256", "protocol") if key in manifest}


def data_to_fit(
    dataset: DatasetFolder, splits: Splits, *, kinds: Mapping[str, type], embeddings: str | None, device: str
) -> FitData:
    """Return what baselines are fitted on, by the flags; times are gathered only where one of them reads times.

    Args:
        dataset: the dataset folder.
        splits: its splits.
        kinds: classes of the baselines.
        embeddings: file of the items' embeddings; None for none.
        device: where neural baselines run.

    Raises:
        InputError: embeddings that are no such file, or of another catalogue.
    """
    protocol, reads = splits.protocol, [getattr(kind, "reads", LEARNED_FROM) for kind in kinds.values()]
    times = training_times(dataset, protocol) if any("timestamps" in names for names in reads) else None
    timed = times is not None and any({"timestamps", "valid"} <= set(names) for names in reads)
    context = FitContext(
        embeddings=None if embeddings is None else load_embeddings(embeddings, catalog=dataset.catalog),
        timestamps=times,
        valid=timed_rows(dataset.interactions, protocol=protocol, split="valid") if timed else splits.valid,
        device=device,
    )
    return FitData(splits.sequences, len(dataset.catalog), context)


@dataclass(frozen=True)
class FittedBaseline:
    """A baseline that a command asked for.

    Args:
        model: fitted.
        said: what a results row says of it: ``seed``, ``settings``, ``tuned``, ``embeddings``, where there are some.
    """

    model: Any = field(repr=False)
    said: Mapping[str, Any]


def fit_asked(
    name: str,
    kind: type,
    data: FitData,
    args: argparse.Namespace,
    *,
    settings: Mapping[str, Any],
    valid: Sequence[History],
    dataset: str,
    exclude_seen: bool,
) -> FittedBaseline:
    """Fit a baseline with given settings, or tuned, or take it from the cache.

    Args:
        name: of the baseline.
        kind: its class.
        data: what it is fitted on.
        args: holds ``tune``, ``cache`` and ``embeddings``, as the flags give them.
        settings: given by hand; they are not tuned.
        valid: rows that settings are chosen on.
        dataset: name of the dataset; its baselines have a folder in the cache.
        exclude_seen: keep seen items out while tuning.

    Raises:
        InputError: as `fit_or_load` and `tune`.
    """
    cache, tuned = None if args.cache is None else args.cache / dataset, None
    if args.tune:
        found = tune(kind, data, valid, name=name, fixed=settings, exclude_seen=exclude_seen, cache=cache)
        model = found.model
        tuned = {"split": "valid", "by": METRIC, "chosen": found.settings, "trials": found.trials}
    else:
        model = fit_or_load(kind, settings, data, name=name, cache=cache)
    settings = getattr(model, "settings", settings)
    said = {
        "seed": settings.get("seed"),
        "settings": settings or None,
        "tuned": tuned,
        "embeddings": said_of_embeddings(args.embeddings, kind),
    }
    return FittedBaseline(model, {key: value for key, value in said.items() if value is not None})
