"""How held-out loss falls with parameters and with data: the runs of a study, and the fitted laws."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from scipy.optimize import least_squares
from scipy.special import expit, logit
from torch import Tensor, nn
from tqdm import tqdm

from llmrec.artifacts import read_yaml, text_sha256
from llmrec.data.folder import DatasetFolder
from llmrec.data.splits import History
from llmrec.data.user_share import take_users
from llmrec.decoding.head import OutputHead
from llmrec.errors import InputError
from llmrec.evaluation.grid import build_from
from llmrec.evaluation.report_training import read_making
from llmrec.hub.bundle import Bundle
from llmrec.tasks.prompt import PromptForm

AXES = ("parameters", "data")
LEAST_EXPONENT, MOST_EXPONENT = 1e-4, 5.0


@dataclass(frozen=True)
class Size:
    """A model size.

    Args:
        name: what tables call it.
        settings: keys of ``recipes/sft.py`` that make it, such as ``model_config``.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """A share of the users.

    Args:
        share: above 0 and at most 1.
        settings: keys of ``recipes/sft.py`` that this share sets otherwise, such as ``max_steps``.
    """

    share: float
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScalingRun:
    """One training of a study.

    Args:
        size: the model.
        share: of the users that train.
        seed: of the training.
        settings: keys of ``recipes/sft.py`` over those of the study's config.
        axes: of ``parameters`` and ``data``, those whose law this run is a point of.
    """

    size: str
    share: float
    seed: int
    settings: Mapping[str, Any] = field(hash=False)
    axes: tuple[str, ...]

    @property
    def name(self) -> str:
        """What tables and files call it."""
        return f"{self.size}, {self.share:g} of the users, seed {self.seed}"

    def folder(self, work: str | Path, *, config: Mapping[str, Any]) -> Path:
        """Return where it lies under ``work``; other settings, of its own or of the config, have another folder.

        Args:
            work: the study's folder.
            config: the YAML of ``recipes/sft.py``.
        """
        digest = text_sha256(json.dumps([dict(config), dict(self.settings)], sort_keys=True))[:8]
        name = "".join(letter if letter.isalnum() else "-" for letter in self.size)
        return Path(work) / f"{name}-{self.share:g}-seed{self.seed}-{digest}"


@dataclass(frozen=True)
class ScalingConfig:
    """A scaling study, as its YAML file says it.

    Args:
        dataset: dataset folder.
        sids: SID folder.
        train: YAML file of ``recipes/sft.py``.
        results: JSON file of what was found.
        work: folder for the models.
        sizes: models, trained on all users.
        shares: of the users, nested; the model is ``share_size``.
        share_size: name of a size.
        settings: keys of ``recipes/sft.py`` that every run sets otherwise.
        seeds: of the trainings; a point of a law is the mean over them.
        batch_size: rows scored at a time.
    """

    dataset: str
    sids: str
    train: str
    results: str
    work: str
    sizes: tuple[Size, ...]
    shares: tuple[Share, ...]
    share_size: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 256

    @classmethod
    def load(cls, path: str | Path) -> "ScalingConfig":
        """Read and check a study's YAML file.

        Raises:
            InputError: a missing or unreadable file, an unknown or missing key, two sizes of one name, a share out of
                its range, or a ``share_size`` that is no size.
        """
        values = read_yaml(path, "YAML of a scaling study")
        for key, kind in (("sizes", Size), ("shares", Share)):
            entries = values.get(key)
            if not isinstance(entries, list) or len(entries) < 2:
                raise InputError(f"{path}: {key}: {entries!r}; a list of at least two, or there is nothing to fit")
            values[key] = tuple(
                build_from(kind, entry, f"{path}: {key} {place}") for place, entry in enumerate(entries)
            )
        if "seeds" in values:
            values["seeds"] = tuple(values["seeds"])
        study = build_from(cls, values, str(path))
        names = [size.name for size in study.sizes]
        if len(set(names)) < len(names):
            raise InputError(f"{path}: sizes: {', '.join(names)}; give each a name of its own")
        if study.share_size not in names:
            raise InputError(f"{path}: share_size {study.share_size!r} is none of the sizes ({', '.join(names)})")
        for share in study.shares:
            if not isinstance(share.share, int | float) or not 0 < share.share <= 1:
                raise InputError(f"{path}: shares: {share.share!r}; a share is above 0 and at most 1")
        return study

    def runs(self) -> list[ScalingRun]:
        """Return the trainings: each size on all users, then each share; one that is both stands once."""
        found: dict[tuple, ScalingRun] = {}
        for seed in self.seeds:
            for size in self.sizes:
                settings = {**self.settings, **size.settings}
                found[size.name, 1.0, seed] = ScalingRun(size.name, 1.0, seed, settings, ("parameters",))
            own = next(size for size in self.sizes if size.name == self.share_size)
            for share in self.shares:
                key = (own.name, float(share.share), seed)
                settings = {**self.settings, **own.settings, **share.settings}
                if key in found and settings == found[key].settings:
                    found[key] = ScalingRun(*key, settings, AXES)
                else:
                    found[(*key, "data")] = ScalingRun(*key, settings, ("data",))
        return list(found.values())


def flags_of(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as flags of ``recipes/sft.py``: mappings as JSON, a list as several words."""
    said = []
    for key, value in settings.items():
        words = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        said += [f"--{key}", *map(str, words)]
    return said


def non_embedding_parameters(model: nn.Module) -> int:
    """Return the parameters of a model outside its input and output tables."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    tables = [base.get_input_embeddings(), base.get_output_embeddings()]
    held = {id(parameter) for table in tables if table is not None for parameter in table.parameters()}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in held)


def sid_losses(
    bundle: Bundle, rows: Sequence[History], *, batch_size: int = 256, progress: bool = False
) -> np.ndarray:
    """Return minus the log-probability of each row's target SID, in nats: the sum over its tokens.

    Each token is scored under the full softmax, given the history and the tokens before it.

    Args:
        bundle: a causal model with its SIDs and its prompt form.
        rows: histories and targets.
        batch_size: rows in one pass.
        progress: whether a bar is drawn.

    Returns:
        ``(rows,)`` float64.

    Raises:
        InputError: an encoder-decoder.
    """
    model: Any = bundle.model.get_base_model() if isinstance(bundle.model, PeftModel) else bundle.model
    if model.config.is_encoder_decoder:
        raise InputError("scaling: held-out loss by SID is for causal models; this bundle is an encoder-decoder")
    form = PromptForm(**bundle.info["prompt"])
    found = np.zeros(len(rows))
    prompts = [form.encode_history(bundle.tokenizer, bundle.vocab, row.items) for row in rows]
    order = sorted(range(len(rows)), key=lambda place: len(prompts[place]))
    starts = range(0, len(rows), batch_size)
    for start in tqdm(starts, "held-out loss", unit="batch", disable=not progress, mininterval=0.5):
        places = order[start : start + batch_size]
        targets = [bundle.vocab.token_ids(rows[place].target) for place in places]
        found[places] = _nats(model, [prompts[place] for place in places], targets)
    return found


def measure_run(
    study: ScalingConfig, run: ScalingRun, bundle: Bundle, *, dataset: DatasetFolder
) -> tuple[dict[str, Any], np.ndarray]:
    """Return a run's row, and the loss of each validation row.

    Args:
        study: whose run it is.
        run: what was trained.
        bundle: what it left, from a folder.
        dataset: of the study.

    Returns:
        The row: names and settings, ``parameters`` outside the tables, ``targets`` that trained, mean ``loss`` in nats
        a SID, ``best_step``, ``steps`` as the settings say, and the ``metrics`` of the bundle; and ``(rows,)`` losses.

    Raises:
        InputError: a bundle without a folder, or as `sid_losses` says.
    """
    splits = dataset.split(bundle.info["protocol"], max_history=bundle.info["prompt"]["max_history"])
    losses = sid_losses(bundle, splits.rows("valid"), batch_size=study.batch_size)
    if bundle.path is None:
        raise InputError(f"scaling: the bundle of {run.name!r} was not loaded from a folder; give one that was")
    making = read_making(run.name, bundle.path)
    sequences = take_users(splits, dataset.interactions, run.share).sequences
    row = {
        "name": run.name,
        "size": run.size,
        "share": run.share,
        "seed": run.seed,
        "settings": dict(run.settings),
        "parameters": non_embedding_parameters(bundle.model),
        "all_parameters": sum(parameter.numel() for parameter in bundle.model.parameters()),
        "targets": sum(len(sequence) - 1 for sequence in sequences),
        "loss": float(losses.mean()),
        "best_step": making.best_step,
        "steps": making.settings.get("max_steps"),
        "metrics": bundle.info["metrics"],
    }
    return row, losses


@torch.no_grad()
def _nats(model: Any, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> np.ndarray:
    device = model.device
    whole = [[*prompt, *target] for prompt, target in zip(prompts, targets, strict=True)]
    length = max(len(row) for row in whole)
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in whole], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in whole], device=device)
    states = cast(nn.Module, model.base_model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    owner = [number for number, target in enumerate(targets) for _ in target]
    place = [len(prompts[number]) - 1 + at for number, target in enumerate(targets) for at in range(len(target))]
    wanted = torch.tensor([token for target in targets for token in target], device=device)
    head = OutputHead(model.get_output_embeddings())
    hidden: Tensor = states[owner, place]
    logits = (hidden.float() * head.table.rows(wanted).float()).sum(1)
    if head.table.bias is not None:
        logits = logits + head.table.bias[wanted].float()
    nats = head.log_total(hidden) - logits
    sums = torch.zeros(len(whole), dtype=torch.float64)
    return sums.index_add(0, torch.tensor(owner), nats.double().cpu()).numpy()


@dataclass(frozen=True)
class PowerLaw:
    """``loss = floor + coefficient * x ** -exponent``.

    Args:
        exponent: above 0.
        coefficient: above 0.
        floor: what no amount takes away; 0 in the pure power law.
        error: root mean square of the logarithms' residuals.
    """

    exponent: float
    coefficient: float
    floor: float
    error: float

    def at(self, x: np.ndarray | float) -> np.ndarray:
        """Return the losses that the law has at ``x``."""
        return self.floor + self.coefficient * np.asarray(x, dtype=np.float64) ** -self.exponent


def fit_power_law(x: np.ndarray, losses: np.ndarray, *, floor: bool, start: PowerLaw | None = None) -> PowerLaw:
    """Fit a power law by least squares on the logarithms of the losses.

    Args:
        x: ``(points,)`` parameters or targets, above 0.
        losses: ``(points,)``, above 0.
        floor: whether a floor is fitted too, between 0 and the least loss; it needs three points.
        start: where the search begins; None tries several floors.

    Raises:
        InputError: too few points, or a number that is not above 0.

    Paper: Hoffmann et al., 2022, "Training Compute-Optimal Large Language Models". How we differ: one law an axis, so
    that the floor of each holds what the other axis leaves; plain squares in place of Huber's loss.
    """
    x, losses = np.asarray(x, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if len(np.unique(x)) < (3 if floor else 2):
        raise InputError(f"power law: {len(np.unique(x))} points; {'three' if floor else 'two'} are needed")
    if not (x > 0).all() or not (losses > 0).all() or not np.isfinite([*x, *losses]).all():
        raise InputError("power law: a point that is not above 0; logarithms are fitted")
    middle = float(np.exp(np.log(x).mean()))  # in its units the two other parameters hardly depend on each other
    steps, logs, least = np.log(x / middle), np.log(losses), float(losses.min())
    if not floor:
        slope, level = np.polyfit(steps, logs, 1)
        error = float(np.sqrt(np.mean((level + slope * steps - logs) ** 2)))
        return PowerLaw(float(-slope), float(np.exp(level - slope * np.log(middle))), 0.0, error)

    # The exponent and the floor's share of the least loss stay within their bounds by what is fitted in their place
    def parts(values: np.ndarray) -> tuple[np.ndarray, float]:
        return np.exp(values[0] - np.exp(values[1]) * steps), least * expit(values[2])

    def residuals(values: np.ndarray) -> np.ndarray:
        falling, bottom = parts(values)
        return np.log(bottom + falling) - logs

    def slopes(values: np.ndarray) -> np.ndarray:
        falling, bottom = parts(values)
        share = expit(values[2])
        columns = [falling, -falling * np.exp(values[1]) * steps, np.full_like(steps, bottom * (1 - share))]
        return np.stack(columns, axis=1) / (bottom + falling)[:, None]

    shares = (0.02, 0.5, 0.9, 0.99) if start is None else (float(np.clip(start.floor / least, 0.02, 0.99)),)
    best = None
    for share in shares:
        slope, level = np.polyfit(steps, np.log(losses - share * least), 1)
        begin = [level, np.log(np.clip(-slope, 1e-3, 5.0)), logit(share)]
        found = least_squares(residuals, begin, jac=slopes, method="lm", max_nfev=300)  # type: ignore[arg-type]
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    exponent = float(np.exp(np.clip(best.x[1], np.log(LEAST_EXPONENT), np.log(MOST_EXPONENT))))
    bottom = float(least * expit(best.x[2]))
    # With exponent and floor in their bounds, the coefficient follows
    level = float(np.mean(np.log(np.maximum(losses - bottom, 1e-12 * least)) + exponent * steps))
    if exponent == float(np.exp(best.x[1])):
        level = float(best.x[0])
    law = PowerLaw(exponent, float(np.exp(level + exponent * np.log(middle))), bottom, 0.0)
    return replace(law, error=float(np.sqrt(np.mean((np.log(law.at(x)) - logs) ** 2))))


def fit_laws(
    x: Sequence[float], losses: np.ndarray, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Any]:
    """Fit an axis' laws, with bootstrap intervals over held-out rows.

    Each sample draws rows with replacement, the same ones for all points, averages each point's losses over them and
    fits anew. The intervals cover which rows were held out; they say nothing of another training.

    Args:
        x: parameters or targets of each point.
        losses: ``(points, rows)`` loss of each held-out row, a mean over seeds where there are several.
        samples: of the bootstrap.
        seed: of the draws.
        level: of the intervals.

    Returns:
        ``pure`` and ``floored`` (None for two points): parameters, ``error`` and intervals; ``floor_is_known``:
        whether the interval of the floor is no wider than a tenth of its middle, and apart from 0; ``points``: ``x``,
        mean loss and its interval.
    """
    points, means = np.asarray(x, dtype=np.float64), losses.mean(1)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(losses.shape[1], np.full(losses.shape[1], 1 / losses.shape[1]), size=samples)
    drawn = draws @ losses.T / losses.shape[1]
    tails = [100 * (1 - level) / 2, 100 * (1 + level) / 2]
    found: dict[str, Any] = {
        "rows": losses.shape[1],
        "points": [
            {"x": float(at), "loss": float(mean), "interval": [float(end) for end in np.percentile(values, tails)]}
            for at, mean, values in zip(points, means, drawn.T, strict=True)
        ],
    }
    for name, floor in (("pure", False), ("floored", True)):
        if floor and len(np.unique(points)) < 3:
            found[name] = None
            continue
        law = fit_power_law(points, means, floor=floor)
        again = [fit_power_law(points, sample, floor=floor, start=law) for sample in drawn]
        found[name] = {
            key: {
                "value": getattr(law, key),
                "interval": [float(end) for end in np.percentile([getattr(each, key) for each in again], tails)],
            }
            for key in ("exponent", "coefficient", "floor")
        } | {"error": law.error}
    found["floor_is_known"] = found["floored"] is not None and _is_known(found["floored"]["floor"], float(means.min()))
    return found


def _is_known(floor: Mapping[str, Any], least: float) -> bool:
    low, high = floor["interval"]
    return bool(low > 0.01 * least and high - low <= 0.1 * (low + high) / 2)


def fit_axes(
    runs: Sequence[Mapping[str, Any]], losses: Sequence[np.ndarray], *, samples: int = 1000
) -> dict[str, dict[str, Any]]:
    """Return the laws of each axis that has two points or more; a point is the mean over its seeds.

    Args:
        runs: rows of `measure_run`, with ``axes``.
        losses: ``(rows,)`` losses of each.
        samples: of the bootstrap.
    """
    found = {}
    for axis, x in zip(AXES, ("parameters", "targets"), strict=True):
        points: dict[int, list[np.ndarray]] = {}
        for run, values in zip(runs, losses, strict=True):
            if axis in run["axes"]:
                points.setdefault(run[x], []).append(values)
        if len(points) > 1:
            means = np.stack([np.mean(points[at], axis=0) for at in sorted(points)])
            found[axis] = fit_laws(sorted(points), means, samples=samples)
    return found
