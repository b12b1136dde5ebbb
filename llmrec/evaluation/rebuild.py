"""Bundles rebuilt from public data: which steps stand for a config, which of them are done, and what came out."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from llmrec.artifacts import file_sha256, read_json, text_sha256, write_json
from llmrec.data.folder import load_dataset
from llmrec.embeddings.store import load_embeddings
from llmrec.errors import InputError
from llmrec.evaluation.results import RANKS_SUFFIX, read_ranks
from llmrec.hub.info import CARD_FILE, INFO_FILE, is_bundle_file
from llmrec.sids.table import SIDTable

STEP_KEYS = {"kind", "makes", "run", "seconds", "needs", "published"}


@dataclass(frozen=True)
class Step:
    """One command and the artifact that it leaves.

    Args:
        name: as the file of steps has it.
        kind: of `KINDS`.
        makes: path of the artifact.
        run: words of the command, ``python`` and a script first.
        environ: variables of the command.
        inputs: artifacts of earlier steps that the command reads.
        needs: names of sources that must be there.
        seconds: stated time by the clock; None where it was never measured.
        published: results file that the step's own is compared with.
    """

    name: str
    kind: str
    makes: Path
    run: tuple[str, ...]
    environ: Mapping[str, str]
    inputs: tuple[Path, ...]
    needs: tuple[str, ...]
    seconds: float | None
    published: str | None

    @property
    def record(self) -> Path:
        """The file that says what made the artifact, written when the command has ended well."""
        return self.makes.with_name(self.makes.name + ".made.json")

    @property
    def command(self) -> str:
        """The command as it is typed."""
        return shlex.join([*(f"{key}={value}" for key, value in self.environ.items()), *self.run])


@dataclass(frozen=True)
class Plan:
    """The steps of a bundle in order, and by name the file and the remedy of each source that they need."""

    name: str
    steps: tuple[Step, ...]
    sources: Mapping[str, tuple[Path, str]]


def bundle_name(config: str) -> str:
    """Return the name of the bundle that a config stands for.

    Args:
        config: ``recipes/configs/office/sft_x.yaml``, or the name itself, ``office/sft_x``.
    """
    path = Path(config)
    return f"{path.parent.name}/{path.stem}" if path.suffix in (".yaml", ".yml") else config


def read_plan(path: str | Path, name: str, *, places: Mapping[str, str]) -> Plan:
    """Read the steps of one bundle.

    Args:
        path: YAML with ``steps`` (by name: ``kind``, ``makes``, ``run``; optionally ``seconds``, ``needs``,
            ``published``), ``sources`` (by name: ``path``, ``remedy``) and ``bundles`` (by name: the steps in order).
        name: of the bundle.
        places: what stands for ``{work}``, ``{source}`` and ``{weights}`` in it.

    Raises:
        InputError: an unreadable file, an unknown bundle, step, source, key or place, a command without its own
            artifact, or one that reads what no earlier step makes.
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a readable YAML of bundles ({error})") from error
    if not isinstance(found, dict) or set(found) != {"sources", "steps", "bundles"}:
        raise InputError(f"{path}: must hold sources, steps and bundles, and nothing else")
    if name not in found["bundles"]:
        raise InputError(f"{path}: no bundle {name!r}; it has {', '.join(found['bundles'])}; add its steps there")

    def filled(text: str, what: str) -> str:
        try:
            return text.format_map(places)
        except (KeyError, ValueError, IndexError) as error:
            known = ", ".join(f"{{{place}}}" for place in places)
            raise InputError(f"{path}: {what}: {text!r} holds another place than {known} ({error})") from error

    steps: list[Step] = []
    for step_name in found["bundles"][name]:
        if step_name not in found["steps"]:
            raise InputError(f"{path}: bundle {name}: no step {step_name!r}; it has {', '.join(found['steps'])}")
        given = found["steps"][step_name]
        what = f"step {step_name}"
        wrong = sorted(({"kind", "makes", "run"} - set(given)) | (set(given) - STEP_KEYS))
        if wrong:
            raise InputError(
                f"{path}: {what}: {', '.join(wrong)} is missing or unknown; a step has kind, makes and run, and may "
                "have seconds, needs and published"
            )
        if given["kind"] not in KINDS:
            raise InputError(f"{path}: {what}: kind {given['kind']!r}; choose from {', '.join(KINDS)}")
        words = shlex.split(filled(given["run"], what))
        first = next((place for place, word in enumerate(words) if "=" not in word), len(words))
        makes, work = filled(given["makes"], what), places["work"]
        made = [str(step.makes) for step in steps]
        if makes not in words:
            raise InputError(f"{path}: {what}: its command does not name {makes}, which it makes")
        for word in words:
            if word.startswith(f"{work}/") and word not in (*made, makes):
                raise InputError(f"{path}: {what} reads {word}, which no step before it in {name} makes")
        steps.append(
            Step(
                name=step_name,
                kind=given["kind"],
                makes=Path(makes),
                run=tuple(words[first:]),
                environ=dict(word.split("=", 1) for word in words[:first]),
                inputs=tuple(Path(word) for word in dict.fromkeys(words) if word in made),
                needs=tuple(given.get("needs", ())),
                seconds=given.get("seconds"),
                published=given.get("published"),
            )
        )
    sources = {
        key: (Path(filled(value["path"], f"source {key}")), filled(value["remedy"], f"source {key}"))
        for key, value in found["sources"].items()
    }
    for step in steps:
        for need in step.needs:
            if need not in sources:
                raise InputError(f"{path}: step {step.name} needs {need!r}; sources are {', '.join(sources)}")
    return Plan(name, tuple(steps), sources)


def artifact_digest(kind: str, path: Path) -> str:
    """Check that an artifact is whole and return a hash of the files that describe it, weights included.

    Raises:
        InputError: it is missing or not whole.
    """
    files = KINDS[kind](path)
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such file")
    return text_sha256(*(word for file in files for word in (file.name, file_sha256(file))))


def _dataset_files(path: Path) -> list[Path]:
    load_dataset(path)
    return [path / "manifest.json"]


def _embedding_files(path: Path) -> list[Path]:
    load_embeddings(path)
    return [path.with_name(f"{path.name}.json")]


def _sid_files(path: Path) -> list[Path]:
    SIDTable.load(path)
    return sorted(file for file in path.iterdir() if file.is_file())


def _bundle_files(path: Path) -> list[Path]:
    read_json(path / INFO_FILE, "bundle manifest")
    own = sorted(file for file in path.iterdir() if file.is_file() and is_bundle_file(file.name))
    return [path / CARD_FILE, *own]


def _model_files(path: Path) -> list[Path]:
    read_json(path / "config.json", "model config")
    return sorted(file for file in path.iterdir() if file.is_file())


def _result_files(path: Path) -> list[Path]:
    read_json(path, "results file")
    return [path, path.with_suffix(RANKS_SUFFIX)]


KINDS: dict[str, Callable[[Path], list[Path]]] = {
    "dataset": _dataset_files,
    "embeddings": _embedding_files,
    "sids": _sid_files,
    "model": _model_files,
    "bundle": _bundle_files,
    "results": _result_files,
}
"""By kind of artifact: a check that it is whole, which returns the files whose hashes tell it from another."""


def why_to_run(step: Step) -> str | None:
    """Return why a step must be run, or None when its artifact is whole and made by this command from these inputs."""
    if not step.record.is_file():
        return "not made yet"
    before = read_json(step.record, "record of a step")
    if before["command"] != step.command:
        return f"made by another command: {before['command']}"
    try:
        if artifact_digest(step.kind, step.makes) != before["digest"]:
            return "changed since it was made"
    except InputError as error:
        return f"not whole: {error}"
    for path in step.inputs:
        if before["inputs"].get(str(path)) != read_json(_record(path), "record of a step")["digest"]:
            return f"made from another {path}"
    return None


def steps_to_run(plan: Plan, *, again: bool = False) -> dict[str, str]:
    """Return the names of the steps that must be run, with the reason, in order.

    Args:
        plan: the steps.
        again: run all.
    """
    todo: dict[str, str] = {}
    made: set[Path] = set()
    for step in plan.steps:
        anew = [path for path in step.inputs if path in made]
        reason = "asked for" if again else f"{anew[0]} is made anew" if anew else why_to_run(step)
        if reason is not None:
            todo[step.name] = reason
            made.add(step.makes)
    return todo


def check_sources(plan: Plan, todo: Mapping[str, str]) -> None:
    """Check that what the steps to run need from outside is there.

    Raises:
        InputError: it is not; one message for all, with where each belongs.
    """
    needs = dict.fromkeys(need for step in plan.steps if step.name in todo for need in step.needs)
    wanted = [plan.sources[need] for need in needs]
    missing = [f"{path}: no such file; {remedy}" for path, remedy in wanted if not path.exists()]
    if missing:
        raise InputError("; ".join(missing))


def run_step(step: Step) -> float:
    """Run a step's command in a child process, record what it made, and return its seconds by the clock.

    What an earlier call recorded under the same name is deleted first; anything else that lies there is the command's
    to judge, so that a killed training goes on.

    Raises:
        InputError: the command failed.
    """
    if step.record.is_file():
        _delete(step.makes)
        step.record.unlink()
    step.makes.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, *step.run[1:]]
    if step.run[:2] == ("accelerate", "launch"):
        words = [sys.executable, "-m", "accelerate.commands.launch", *step.run[2:]]
    start = time.monotonic()
    status = subprocess.run(words, env={**os.environ, **step.environ}, check=False).returncode
    seconds = time.monotonic() - start
    if status:
        raise InputError(
            f"step {step.name} ended with status {status} ({step.command}); mend what it says above and run again: "
            "the steps before it are kept"
        )
    digest = artifact_digest(step.kind, step.makes)
    inputs = {str(path): read_json(_record(path), "record of a step")["digest"] for path in step.inputs}
    record = {"command": step.command, "seconds": round(seconds, 1), "digest": digest, "inputs": inputs}
    write_json(step.record, record)
    return seconds


def _record(makes: Path) -> Path:
    return makes.with_name(makes.name + ".made.json")


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    for file in (path, path.with_name(f"{path.name}.json"), path.with_suffix(RANKS_SUFFIX)):
        if file.is_file():
            file.unlink()


def compare_results(rebuilt: str | Path, published: str | Path) -> list[dict[str, Any]]:
    """Set the metrics of a results file beside the published ones.

    Args:
        rebuilt: the file that was written now.
        published: the file of the repository.

    Returns:
        A row a system and metric that both have: ``name``, ``metric``, ``published``, ``rebuilt``; and a row a system
        with ``metric`` ``equal ranks``, the share of users with the same rank, where both have ranks a user.

    Raises:
        InputError: a missing file, or no system that both have.
    """
    files = [read_json(path, "results file")["results"] for path in (published, rebuilt)]
    before, now = ({row["name"]: row["metrics"] for row in rows} for rows in files)
    rows: list[dict[str, Any]] = []
    for name in (name for name in before if name in now):
        pairs = {metric: (value, now[name][metric]) for metric, value in before[name].items() if metric in now[name]}
        ranks = _equal_ranks(Path(rebuilt), Path(published), name)
        if ranks is not None:
            pairs["equal ranks"] = (1.0, ranks)
        rows += [
            {"name": name, "metric": metric, "published": pair[0], "rebuilt": pair[1]}
            for metric, pair in pairs.items()
        ]
    if not rows:
        raise InputError(f"{rebuilt}: shares no system with {published} ({', '.join(before)}); give it that --name")
    return rows


def _equal_ranks(rebuilt: Path, published: Path, name: str) -> float | None:
    try:
        a, b = (read_ranks(f"{path.with_suffix(RANKS_SUFFIX)}:{name}") for path in (rebuilt, published))
    except InputError:
        return None
    return float(np.mean(a == b)) if len(a) == len(b) else None


def format_times(steps: Sequence[Step], measured: Mapping[str, float]) -> str:
    """Return a table of times.

    Args:
        steps: in order, all done.
        measured: seconds by name of the steps that ran now; one that was kept shows those of the run that made it.
    """
    lines = [f"{'step':32}{'stated':>10}{'measured':>10}"]
    taken = []
    for step in steps:
        before = read_json(step.record, "record of a step")["seconds"] if step.record.is_file() else None
        taken.append(measured.get(step.name, before))
        kept = "" if step.name in measured else "   kept"
        lines.append(f"{step.name:32}{_seconds(step.seconds)}{_seconds(taken[-1])}{kept}")
    return "\n".join([*lines, f"{'all':32}{_seconds(_sum([step.seconds for step in steps]))}{_seconds(_sum(taken))}"])


def _seconds(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.0f} s':>10}"


def _sum(values: Sequence[float | None]) -> float | None:
    """A sum that is unknown where a part of it is."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def format_comparison(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of `compare_results` as aligned text."""
    lines = [f"{'system':32}{'metric':>14}{'published':>11}{'rebuilt':>11}{'difference':>12}"]
    for row in rows:
        before, now = row["published"], row["rebuilt"]
        lines.append(f"{row['name']:32}{row['metric']:>14}{before:11.4f}{now:11.4f}{now - before:+12.4f}")
    return "\n".join(lines)
