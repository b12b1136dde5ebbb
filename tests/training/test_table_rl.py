"""The table of reinforcement learning on real data: what it runs, what it reads, and how it goes on after a cut."""

import importlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmrec.errors import InputError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
METRICS = {"recall@5": 0.2, "ndcg@5": 0.1, "recall@10": 0.3, "ndcg@10": 0.15, "coverage@10": 0.5, "mrr@10": 0.1}


@pytest.fixture
def commands() -> list[list[str]]:
    """The scripts that were asked for."""
    return []


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, commands: list[list[str]]) -> Callable[..., dict[str, Any]]:
    """Make the table of some seeds of one config, each script taking seven seconds; ``fails`` stops at a script."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    table_rl = importlib.import_module("table_rl")

    fails: list[str] = []

    def run(*command: str, log: Path) -> float:
        del log
        commands.append(list(command))
        told = dict(itertools.pairwise(command))
        if any(name in " ".join(command) for name in fails):
            raise InputError(f"{command[0]} failed")
        if command[0].endswith("evaluate.py"):
            gain = 0.0 if told["--name"] == "start" else 0.01 * (1 + int(told["--model"][-1]))
            rows = [
                {
                    "name": f"{told['--name']}{suffix}",
                    "exclude_seen": seen,
                    "metrics": {key: value + gain + (0.1 if seen else 0.0) for key, value in METRICS.items()},
                }
                for seen, suffix in ((False, ""), (True, " (seen excluded)"))
            ]
            other = {"name": "popularity", "exclude_seen": False, "metrics": METRICS}
            path = Path(told["--output"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"results": [*rows, other]}))
        else:
            folder = Path(told["--output_dir"])
            folder.mkdir(parents=True)
            (folder / "llmrec.json").write_text(json.dumps({"best": {"step": 40}}))
        return 7.0

    monkeypatch.setattr(table_rl, "run", run)

    def make(*, seeds: int, stop_at: str | None = None) -> dict[str, Any]:
        fails[:] = [] if stop_at is None else [stop_at]
        table_rl.main([
            "--dataset", "data/office", "--starts", *(str(tmp_path / f"start-{seed}") for seed in range(seeds)),
            "--configs", "recipes/configs/office/grpo_some_exact.yaml", "--work", str(tmp_path / "work"),
            "--rows", str(tmp_path / "rows"), "--out", str(tmp_path / "office.json"),
        ])  # fmt: skip
        return json.loads((tmp_path / "office.json").read_text())["systems"]

    return make


def test_starts_and_what_is_trained_from_them_are_read_alike(
    table: Callable[..., dict[str, Any]], tmp_path: Path, commands: list[list[str]]
) -> None:
    found = table(seeds=2)
    assert list(found) == ["start", "grpo_some_exact"]
    assert found["start"]["1"]["kept"] == {key: METRICS[key] for key in list(METRICS)[:5]}
    trained = found["grpo_some_exact"]["1"]
    assert (trained["seconds"], trained["best"]) == (7.0, {"step": 40})
    assert trained["kept"]["recall@10"] == pytest.approx(0.32)
    assert trained["left out"]["recall@10"] == pytest.approx(0.42)

    training = [dict(itertools.pairwise(command)) for command in commands if command[0] == "recipes/grpo.py"]
    assert [(told["--model"][-1], told["--seed"]) for told in training] == [("0", "0"), ("1", "1")]
    asked = [command for command in commands if command[0] == "recipes/evaluate.py"]
    ignored = ("--model", "--name", "--output")
    flags = [
        [(flag, value) for flag, value in itertools.pairwise(command) if flag[:2] == "--" and flag not in ignored]
        for command in asked
    ]
    assert flags == [flags[0]] * 4
    # only what was trained is a row of the results
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == [
        "grpo_some_exact.json", "grpo_some_exact_seed1.json",
    ]  # fmt: skip
    line = (tmp_path / "office.md").read_text().splitlines()[4]
    assert line == "| grpo_some_exact | kept | 2 | " + " | ".join(
        f"{value:.4f} ± 0.0071" for value in (0.215, 0.115, 0.315, 0.165, 0.515)
    ) + " | 7 |"  # fmt: skip


def test_a_table_that_was_cut_off_goes_on(table: Callable[..., dict[str, Any]], commands: list[list[str]]) -> None:
    with pytest.raises(InputError, match=r"grpo\.py failed"):
        table(seeds=2, stop_at="grpo_some_exact-1")
    done = len(commands)
    assert len(table(seeds=2)["grpo_some_exact"]) == 2
    assert {Path(dict(itertools.pairwise(command))["--model"]).name for command in commands[done:]} == {
        "start-1", "grpo_some_exact-1",
    }  # fmt: skip
