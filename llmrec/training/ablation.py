"""A table of trainings that differ in what is named: the variants of one config, and what each row is good for."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import safe_open

from llmrec.artifacts import made_by, read_json, read_yaml, text_sha256, whole_file, write_json
from llmrec.data.folder import load_dataset
from llmrec.decoding.steps import SCORES
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import BOTH
from llmrec.evaluation.grid import build_from
from llmrec.evaluation.jobs import Scripts
from llmrec.evaluation.report_training import read_making
from llmrec.evaluation.results import read_results
from llmrec.evaluation.scaling import sid_losses
from llmrec.hub import load_bundle
from llmrec.hub.info import CARD_FILE
from llmrec.sids.table import SIDTable
from llmrec.training.parser import parse_recipe
from llmrec.training.sweep import SWEPT_RECIPES

SPLITS = ("valid", "test")
OWN_KEYS = {
    "output_dir": "each run has a folder of its own",
    "overwrite_output_dir": "each run has a folder of its own",
    "resume_from_checkpoint": "a run goes on from its own checkpoint",
    "push_to_hub": "push the one that you keep by hand",
    "seed": "write it under seeds",
}
"""Keys of a recipe that the table itself sets, and why."""
SAME_FOR_ALL = ("dataset", "protocol")
"""Keys that decide what is scored: rows that differ in them would not belong in one table."""


@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Args:
        name: what the table calls it.
        settings: keys of the recipe that it sets otherwise than the config.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """How every model is scored, by ``recipes/evaluate.py``.

    Args:
        ks: cuts of the metrics.
        num_beams: of the search.
        score: what log-probabilities are taken over: one of `SCORES`.
        exclude_seen: true, false, or both.
        limit_users: the first so many rows; None scores all.
        loss_users: the first so many validation rows, whose loss in nats a SID is measured (causal models); None
            leaves it out.
    """

    ks: tuple[int, ...] = (5, 10)
    num_beams: int = 20
    score: str = "full"
    exclude_seen: bool | str = BOTH
    limit_users: int | None = None
    loss_users: int | None = None


@dataclass(frozen=True)
class AblationConfig:
    """A table of trainings, as its YAML file says it.

    Args:
        title: of the page.
        config: YAML file of the recipe; it holds whatever a variant does not set.
        results: JSON file of the rows; the page lies beside it.
        work: folder for the models.
        variants: in the order of the table.
        recipe: a key of `SWEPT_RECIPES`.
        settings: keys of the recipe that all variants set otherwise than the config.
        seeds: of the trainings.
        evaluate: how models are scored.
        metric: by which validation is said to choose; higher is better.
        notes: a paragraph under the title.
    """

    title: str
    config: str
    results: str
    work: str
    variants: tuple[Variant, ...]
    recipe: str = "sft"
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    evaluate: Scored = Scored()
    metric: str = "ndcg@10"
    notes: str = ""

    @classmethod
    def load(cls, path: str | Path) -> "AblationConfig":
        """Read and check a table's YAML file; the settings themselves are checked by `parse_run`.

        Raises:
            InputError: a missing or unreadable file, an unknown or missing key, no variants or two of one name, a key
                that the table sets itself, or one that would change what is scored.
        """
        values = read_yaml(path, "YAML of a table of trainings")
        given = values.get("variants")
        if not isinstance(given, list) or not given:
            raise InputError(f"{path}: no list 'variants'; each has a name and settings")
        values["variants"] = tuple(build_from(Variant, entry, f"{path}: variant {n}") for n, entry in enumerate(given))
        if "evaluate" in values:
            scored = values["evaluate"]
            if isinstance(scored, dict) and "ks" in scored:
                scored = {**scored, "ks": tuple(scored["ks"])}
            values["evaluate"] = build_from(Scored, scored, f"{path}: evaluate")
        if "seeds" in values:
            values["seeds"] = tuple(values["seeds"])
        made = build_from(cls, values, str(path))
        if made.recipe not in SWEPT_RECIPES:
            raise InputError(f"{path}: recipe: {made.recipe!r}; choose one of {', '.join(SWEPT_RECIPES)}")
        if made.evaluate.score not in SCORES:
            raise InputError(f"{path}: evaluate: score: {made.evaluate.score!r}; choose one of {', '.join(SCORES)}")
        if made.evaluate.exclude_seen not in (True, False, BOTH):
            raise InputError(f"{path}: evaluate: exclude_seen: {made.evaluate.exclude_seen!r}; true, false or {BOTH}")
        if made.metric not in [f"{name}@{k}" for name in ("recall", "ndcg") for k in made.evaluate.ks]:
            raise InputError(f"{path}: metric: {made.metric!r} is not measured with ks {list(made.evaluate.ks)}")
        names = [variant.name for variant in made.variants]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{path}: two variants are named {name!r}; give each a name of its own")
        for where, settings in (("settings", made.settings), *((v.name, v.settings) for v in made.variants)):
            for key in settings:
                if key in OWN_KEYS:
                    raise InputError(f"{path}: {where}: {key!r} is set by the table: {OWN_KEYS[key]}")
                if key in SAME_FOR_ALL and where != "settings":
                    raise InputError(f"{path}: {where}: {key!r} would change what is scored; set it for all variants")
        return made

    def runs(self, *, only: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> list["Run"]:
        """Return the trainings: all variants of the first seed, then of the next.

        Args:
            only: names of variants; None takes all.
            seeds: in place of the config's.

        Raises:
            InputError: a name that no variant has, or data or SIDs that are missing.
        """
        known = [variant.name for variant in self.variants]
        for name in only or ():
            if name not in known:
                raise InputError(f"--only {name!r}: no variant of that name; there are {', '.join(map(repr, known))}")
        base, found = self.config_of(self.variants[0], seed=0), []
        files, tables = dict(load_dataset(base["dataset"]).manifest.get("files", {})), {}
        for seed in seeds or self.seeds:
            for variant in self.variants:
                if only and variant.name not in only:
                    continue
                config = self.config_of(variant, seed=seed)
                if config["sids"] not in tables:
                    tables[config["sids"]] = SIDTable.load(config["sids"]).hash
                found.append(Run(variant, seed, config, {"files": files, "sid_hash": tables[config["sids"]]}, self))
        return found

    def config_of(self, variant: Variant, *, seed: int) -> dict[str, Any]:
        """Return the whole YAML of a variant, all but its folder."""
        config = {**read_yaml(self.config, "YAML of a recipe"), **self.settings, **variant.settings, "seed": seed}
        return {key: value for key, value in config.items() if key != "output_dir"}


@dataclass(frozen=True)
class Run:
    """One training: a variant, a seed, the whole config of the recipe, and what identifies its data."""

    variant: Variant
    seed: int
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    table: AblationConfig

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.variant.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Where its model, logs and scores lie; other settings or other data have another folder."""
        said = json.dumps([self.table.recipe, self.config, self.data], sort_keys=True)
        name = "".join(letter if letter.isalnum() else "-" for letter in self.variant.name)
        return Path(self.table.work) / f"{name}-{text_sha256(said)[:8]}-seed{self.seed}"

    @property
    def scores(self) -> Path:
        """Where its scores lie; other settings of the search have another folder."""
        return self.folder / f"scores-{text_sha256(json.dumps(asdict(self.table.evaluate)))[:8]}"

    def is_done(self, split: str) -> bool:
        """Whether it is trained and scored on a split."""
        return (self.scores / f"{split}_cost.json").is_file()

    def write_config(self, folder: Path) -> Path:
        """Write its whole YAML into a folder, and return the file."""
        file = folder / "config.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({**self.config, "output_dir": str(self.folder / "model")}, sort_keys=False)
        with whole_file(file) as part:
            part.write_text(text, encoding="utf-8")
        return file


def parse_run(run: Run) -> tuple[Any, ...]:
    """Return a run's settings as its recipe reads them, before anything is trained.

    Raises:
        InputError: the recipe refuses them; the message names the variant.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = run.write_config(Path(folder))
        try:
            return parse_recipe(["--config", str(file)], *SWEPT_RECIPES[run.table.recipe].kinds)
        except InputError as error:
            said = str(error).replace(f"--config {file}", run.table.config)
            raise InputError(f"variant {run.variant.name!r}: {said}") from error


def train_run(run: Run, *, scripts: Scripts, recipes: Path) -> None:
    """Train a run, or go on with one that was killed; one that is finished is left as it is.

    Args:
        run: what to train.
        scripts: runs the recipe.
        recipes: folder of the recipes.

    Raises:
        InputError: the recipe failed, with the end of its log.
    """
    if (run.folder / "model" / CARD_FILE).is_file():
        return
    train = ["--config", str(run.write_config(run.folder))]
    write_json(run.folder / "made_by.json", made_by())
    took = scripts.run(recipes / SWEPT_RECIPES[run.table.recipe].script, train, log=run.folder / "train.log")
    write_json(run.folder / "cost.json", asdict(took))


def score_run(run: Run, split: str, *, scripts: Scripts, recipes: Path) -> None:
    """Score a trained run on a split, with seen items kept and left out.

    Args:
        run: a trained one.
        split: valid or test.
        scripts: runs ``evaluate.py``.
        recipes: folder of the recipes.

    Raises:
        InputError: the evaluation failed, with the end of its log.
    """
    if run.is_done(split):
        return
    how, protocol = run.table.evaluate, run.config.get("protocol")
    limit = [] if how.limit_users is None else ["--limit_users", str(how.limit_users)]
    score = [
        "--model", str(run.folder / "model"), "--dataset", str(run.config["dataset"]), "--split", split, "--ks",
        *map(str, how.ks), "--num_beams", str(how.num_beams), "--score", how.score, "--exclude_seen",
        str(how.exclude_seen).lower(), *limit,
        *(["--protocol", protocol] if protocol else []), *(["--device", "cpu"] if run.config.get("use_cpu") else []),
        "--baselines", "--name", run.variant.name, "--output", str(run.scores / f"{split}.json"),
    ]  # fmt: skip
    took = scripts.run(recipes / "evaluate.py", score, log=run.scores / f"{split}.log")
    if split == "valid" and how.loss_users is not None and not (run.scores / "loss.json").is_file():
        write_json(run.scores / "loss.json", _held_out_loss(run, how.loss_users))
    write_json(run.scores / f"{split}_cost.json", asdict(took))


def _held_out_loss(run: Run, users: int) -> dict[str, Any]:
    """Mean over validation rows of minus the log-probability of the target's SID, and its standard error."""
    bundle = load_bundle(run.folder / "model", device="cpu" if run.config.get("use_cpu") else None)
    splits = load_dataset(run.config["dataset"]).split(
        bundle.info["protocol"], max_history=bundle.info["prompt"]["max_history"]
    )
    losses = sid_losses(bundle, splits.rows("valid")[:users])
    error = float(losses.std(ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else None
    return {"nats": float(losses.mean()), "standard_error": error, "users": len(losses)}


def run_row(run: Run) -> dict[str, Any]:
    """Return the row of a run that is trained and scored on validation.

    Returns:
        Its name, seed and settings; ``steps`` trained and ``best_step`` where validation chose a checkpoint;
        ``stored_parameters``, the numbers in its weights file (an adapter holds what trained); ``cost`` of training,
        None where a start ended before it could be noted, and of each scored split; ``users``; and by split and by
        whether seen items are excluded, ``metrics``.
    """
    making, told = read_making(run.name, run.folder / "model"), run.config.get("max_steps", -1)
    cost = run.folder / "cost.json"
    row: dict[str, Any] = {
        "name": run.variant.name,
        "seed": run.seed,
        "settings": dict(run.config),
        "data": dict(run.data),
        "steps": max((int(entry["step"]) for entry in making.history), default=told if told > 0 else None),
        "best_step": making.best_step,
        "stored_parameters": _stored_parameters(run.folder / "model"),
        "made_by": read_json(run.folder / "made_by.json", "how a run was made"),
        "cost": {"training": read_json(cost, "cost of a run") if cost.is_file() else None},
        "users": {},
        "metrics": {},
    }
    for split in SPLITS:
        if run.is_done(split):
            found = read_results(run.scores / f"{split}.json")
            row["cost"][split] = read_json(run.scores / f"{split}_cost.json", "cost of a run")
            row["users"][split] = found[0]["users"]
            row["metrics"][split] = {
                "excluded" if result["exclude_seen"] else "kept": result["metrics"] for result in found
            }
    if (run.scores / "loss.json").is_file():
        row["loss"] = read_json(run.scores / "loss.json", "held-out loss")
    return row


def _stored_parameters(folder: Path) -> int:
    """Numbers in the weights of a model or of an adapter; a bundle's quantizer is a safetensors file too."""
    total = 0
    for file in (*folder.glob("model*.safetensors"), *folder.glob("adapter_model*.safetensors")):
        with safe_open(file, framework="np") as weights:
            for name in weights.keys():  # noqa: SIM118 (it is no mapping)
                count = 1
                for size in weights.get_slice(name).get_shape():
                    count *= size
                total += count
    return total
