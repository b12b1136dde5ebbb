"""Settings of baselines: made from names and numbers, chosen on validation, and kept so that no work is done twice."""

import ast
import dataclasses
import hashlib
import inspect
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llmrec.artifacts import file_sha256, read_json, text_sha256, write_json
from llmrec.baselines.base import CONFIG_NAME, Baseline
from llmrec.baselines.context import FitContext
from llmrec.data.splits import History
from llmrec.embeddings.collaborative import sequences_hash
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate

logger = logging.getLogger(__name__)

METRIC = "ndcg@10"
CUT = 10
LEARNED_FROM = ("embeddings", "timestamps", "valid")


@dataclass(frozen=True)
class FitData:
    """What baselines are fitted on.

    Args:
        sequences: training interactions alone, item rows, oldest first.
        items: size of the catalogue.
        context: what a fit may use besides.
    """

    sequences: Sequence[Sequence[int]] = field(repr=False)
    items: int
    context: FitContext

    @cached_property
    def _hashes(self) -> dict[str, str]:
        context = self.context
        vectors, times = context.embeddings, context.timestamps
        return {
            "sequences": text_sha256(sequences_hash(self.sequences), str(self.items)),
            "embeddings": "" if vectors is None else _array_hash(vectors),
            "timestamps": "" if times is None else sequences_hash(times),
            "valid": rows_hash(context.valid),
        }

    def digest(self, kind: type) -> str:
        """Return the hash of all that a fit of ``kind`` learns from; a class that does not say learns from all."""
        reads = getattr(kind, "reads", LEARNED_FROM)
        return text_sha256(*(self._hashes[name] for name in ("sequences", *reads)))


@dataclass(frozen=True)
class Tuned:
    """What `tune` chose.

    Args:
        settings: the chosen ones.
        trials: every setting tried, with its ``metrics`` on validation, in the grid's order.
        model: fitted with the chosen settings.
    """

    settings: Mapping[str, Any]
    trials: Sequence[Mapping[str, Any]]
    model: Any = field(repr=False)


def make_baseline(kind: type, settings: Mapping[str, Any], *, name: str) -> Any:
    """Return an unfitted baseline.

    Args:
        kind: its class.
        settings: keywords of its constructor.
        name: of the baseline, for the message.

    Raises:
        InputError: a keyword that the constructor does not have, or a value that it refuses.
    """
    parameters = inspect.signature(kind).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in settings:
            if key not in parameters:
                raise InputError(f"{name}: no setting {key!r}; it has {', '.join(parameters) or 'none'}")
    try:
        return kind(**settings)
    except TypeError as error:
        raise InputError(f"{name}: a setting is of the wrong type ({error}); given are {dict(settings)}") from error


def fit_baseline(model: Any, data: FitData, *, checkpoint: Path | None = None) -> Any:
    """Fit a baseline and return it; one whose ``fit`` has no ``context`` gets sequences and items alone.

    Args:
        model: to fit.
        data: what it is fitted on.
        checkpoint: folder whence a killed fit goes on; None takes the context's.
    """
    if "context" in inspect.signature(model.fit).parameters:
        context = data.context if checkpoint is None else dataclasses.replace(data.context, checkpoint=checkpoint)
        return model.fit(data.sequences, items=data.items, context=context)
    return model.fit(data.sequences, items=data.items)


def fit_or_load(
    kind: type, settings: Mapping[str, Any], data: FitData, *, name: str, cache: str | Path | None = None
) -> Any:
    """Return a fitted baseline, from the cache where it holds one of the same code, settings and data.

    Args:
        kind: the baseline's class.
        settings: keywords of its constructor.
        data: what it is fitted on.
        name: of the baseline; its folder in the cache is called after it.
        cache: folder; None keeps nothing, and neither does a class without ``save_pretrained``.

    Raises:
        InputError: as `make_baseline` and the baseline's fit.
    """
    model = make_baseline(kind, settings, name=name)
    folder = _folder(model, settings, data, name=name, cache=cache)
    if folder is not None and (folder / CONFIG_NAME).is_file():
        try:
            return type(model).from_pretrained(folder)
        except InputError as error:
            logger.warning("%s is made again: %s", folder, error)
    fit_baseline(model, data, checkpoint=_checkpoint(folder))
    if folder is not None:
        model.save_pretrained(folder)
    return model


def _folder(
    model: Any, settings: Mapping[str, Any], data: FitData, *, name: str, cache: str | Path | None
) -> Path | None:
    """Return where the cache keeps a baseline; None without a cache, and for one that cannot be saved."""
    kind = type(model)
    if cache is None or not hasattr(kind, "save_pretrained") or not hasattr(kind, "from_pretrained"):
        return None
    said = getattr(model, "settings", settings)
    return Path(cache) / f"{_file_name(name)}-{_digest(code_hash(kind), data.digest(kind), _words(said))}"


def _checkpoint(folder: Path | None) -> Path | None:
    """Return where a fit leaves what it needs to go on after a kill: beside the folder of the fitted baseline."""
    return None if folder is None else folder.with_name(f"{folder.name}.checkpoint")


def tune(
    kind: type,
    data: FitData,
    rows: Sequence[History],
    *,
    name: str,
    fixed: Mapping[str, Any] | None = None,
    exclude_seen: bool = False,
    cache: str | Path | None = None,
) -> Tuned:
    """Try every combination of a baseline's ``grid`` and choose the best by ndcg@10 on validation rows.

    Settings that matter only after a fit (``late``) share it; of a kind without such, the cache keeps every fit. Among
    equals the first of the grid is chosen. What an earlier call with the same code, data and rows has measured is read
    from the cache, also when it was cut short.

    Args:
        kind: the baseline's class; without a ``grid`` its defaults are measured alone.
        data: what it is fitted on.
        rows: of validation.
        name: of the baseline.
        fixed: settings that are not tuned, with their values.
        exclude_seen: keep items of the history out of the lists, as the final scoring will.
        cache: folder of measurements and of the chosen baseline; None keeps nothing.

    Raises:
        InputError: as `make_baseline`, the baseline's fit and `evaluate`.
    """
    fixed = dict(fixed or {})
    grid = {key: values for key, values in getattr(kind, "grid", {}).items() if key not in fixed}
    late = getattr(kind, "late", frozenset())
    names = sorted(grid, key=lambda key: key in late)  # those that need another fit change slowest
    tried = [{**dict(zip(names, values, strict=True)), **fixed} for values in product(*(grid[key] for key in names))]
    for settings in tried:
        make_baseline(kind, settings, name=name)

    known: dict[str, Any] = {}
    file = None
    if cache is not None:
        digest = _digest(code_hash(kind), data.digest(kind), rows_hash(rows), str(exclude_seen))
        file = Path(cache) / f"{_file_name(name)}-{digest}.trials.json"
        known = read_json(file, "measurements of a baseline") if file.is_file() else {}
    metric = f"ndcg@{min(CUT, data.items)}"
    quiet = dataclasses.replace(data, context=dataclasses.replace(data.context, progress=False))
    fitted: Any = None
    fitted_for: dict[str, Any] | None = None
    best: Any = None
    best_settings, best_at = None, -1.0
    for settings in tqdm(tried, desc=f"tune {name}", unit="setting", disable=not data.context.progress):
        if _words(settings) in known:
            continue
        early = {key: value for key, value in settings.items() if key not in late}
        if isinstance(fitted, Baseline) and early == fitted_for:
            fitted = fitted.with_late({key: value for key, value in settings.items() if key in late})
        else:
            fitted, fitted_for = None, early  # the old one goes before the new one comes: each can be large
            if late:
                fitted = make_baseline(kind, settings, name=name)
                where = _checkpoint(_folder(fitted, settings, data, name=name, cache=cache))
                fitted = fit_baseline(fitted, quiet, checkpoint=where)
            else:  # a fit a setting: each is kept, for it serves with seen items kept and left out
                fitted = fit_or_load(kind, settings, quiet, name=name, cache=cache)
        found = evaluate(
            fitted, rows, items=data.items, ks=(min(CUT, data.items),), exclude_seen=exclude_seen, name=name,
            progress=False, keep_lists=False,
        )  # fmt: skip
        known[_words(settings)] = found.metrics
        if found.metrics[metric] > best_at:
            best, best_settings, best_at = fitted, settings, found.metrics[metric]
        if file is not None:
            write_json(file, known)
    trials = [{"settings": settings, "metrics": known[_words(settings)]} for settings in tried]
    chosen = max(trials, key=lambda trial: trial["metrics"][metric])
    settings = chosen["settings"]
    if settings != best_settings:  # measured by an earlier call
        return Tuned(settings, trials, fit_or_load(kind, settings, data, name=name, cache=cache))
    folder = (
        _folder(best, settings, data, name=name, cache=cache) if late else None
    )  # other fits are kept as they come
    if folder is not None:
        best.save_pretrained(folder)
    return Tuned(settings, trials, best)


def rows_hash(rows: Sequence[History]) -> str:
    """Return the SHA-256 of histories and targets."""
    return text_sha256(*(f"{','.join(map(str, row.items))}>{row.target}" for row in rows))


def code_hash(kind: type) -> str:
    """Return the SHA-256 of the source files that a class is made of.

    These are the files of the class and of what it inherits from, in its own package and in this one, and the modules
    of their folders that they import, at any depth: for a baseline of this package, what lies in ``llmrec/baselines``.
    """
    packages = (kind.__module__.partition(".")[0], "llmrec")
    waiting = [parent.__module__ for parent in kind.__mro__ if parent.__module__.partition(".")[0] in packages]
    files: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        file = Path(getattr(sys.modules.get(name), "__file__", None) or "")
        if name in files or not file.is_file():
            continue
        files[name] = file_sha256(file)
        near = f"{name.rpartition('.')[0]}."
        imports = [node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.ImportFrom)]
        waiting += [node.module for node in imports if node.module and near != "." and node.module.startswith(near)]
    return text_sha256(*(files[name] for name in sorted(files)))


def _array_hash(array: np.ndarray) -> str:
    return text_sha256(str(array.dtype), str(array.shape), hashlib.sha256(array.tobytes()).hexdigest())


def _words(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), sort_keys=True)


def _digest(*parts: str) -> str:
    return text_sha256(*parts)[:16]


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
