"""The check that reinforcement learning learns: where it starts, what its shares are of, and how it goes on."""

import itertools
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from llmrec.errors import InputError

check = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "check_rl.py"))

RECALL = {"start": 0.06, "grpo": 0.09, "s_dpo": 0.08, "sft_again": 0.12}


def write_checkpoints(folder: Path, recalls: dict[int, float]) -> None:
    history: list[dict[str, float]] = []
    for step, recall in recalls.items():
        history += [{"step": step, "loss": 1.0}, {"step": step, "eval_recall@1": recall}]
        path = folder / f"checkpoint-{step}" / "trainer_state.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"log_history": history}))


def test_the_start_is_the_first_checkpoint_at_the_bar(tmp_path: Path) -> None:
    write_checkpoints(tmp_path, {20: 0.01, 40: 0.05, 100: 0.04, 120: 0.07})
    assert check["half_way"](tmp_path, bar=0.05).name == "checkpoint-40"
    assert check["half_way"](tmp_path, bar=0.06).name == "checkpoint-120"
    with pytest.raises(InputError, match=r"no checkpoint reaches Recall@1 0\.0800 on validation; train longer"):
        check["half_way"](tmp_path, bar=0.08)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The scripts that would run, each of which takes ten seconds and leaves what the next one reads."""
    asked: list[list[str]] = []

    def run(*command: str, log: Path) -> float:
        del log
        asked.append(list(command))
        told = dict(itertools.pairwise(command))
        if command[0].endswith("synthetic.py"):
            path = Path(told["--out"]) / "manifest.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"ceiling": {"recall@1": 0.11}}))
        elif command[0].endswith("sft.py") and "--start_from" not in command:
            write_checkpoints(Path(told["--output_dir"]), {20: 0.03, 40: 0.06, 60: 0.07})
        elif command[0].endswith("evaluate.py"):
            name = told["--name"]
            metrics = {"recall@1": RECALL[name], "recall@5": 0.2, "recall@10": 0.3, "ndcg@10": 0.1}
            Path(told["--output"]).write_text(json.dumps({"results": [{"metrics": metrics}]}))
        return 10.0

    monkeypatch.setitem(check["check_seed"].__globals__, "run", run)
    return asked


@pytest.mark.parametrize(("wanted", "first"), [(34.0, 60), (34.0, 400), (12.0, 60), (34.0, 165)])
def test_a_control_takes_as_long(wanted: float, first: int) -> None:
    asked: list[int] = []

    def train(steps: int) -> float:
        asked.append(steps)
        return 10.0 + 0.15 * steps

    steps, seconds = check["run_for"](wanted, train, first=first)
    assert asked[-1] == steps
    assert seconds == train(steps) == pytest.approx(wanted, rel=0.05)
    assert len(asked) <= 4 + 1


def test_a_training_that_is_never_as_short_ends() -> None:
    assert check["run_for"](5.0, lambda steps: 10.0, first=60)[1] == 10.0


def test_shares_of_the_gap_and_going_on(tmp_path: Path, commands: list[list[str]]) -> None:
    flags = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "demo.json"), "--seeds"]
    (tmp_path / "work" / "seed-0").mkdir(parents=True)
    check["main"]([*flags, "0"])
    found: dict[str, Any] = json.loads((tmp_path / "demo.json").read_text())
    seed = found["seeds"]["0"]
    assert seed["start_step"] == 40
    gaps = {name: row["gap"] for name, row in seed["systems"].items()}
    assert gaps == pytest.approx({"start": 0, "grpo": 3 / 5, "s_dpo": 2 / 5, "sft_again": 6 / 5})
    assert seed["systems"]["start"]["seconds"] == pytest.approx(6.7, abs=0.05)  # 40 of 60 steps of ten seconds
    again = next(command for command in commands if "--start_from" in command)
    assert again[again.index("--max_steps") + 1] == "60"  # as many steps as GRPO's ten seconds hold
    starts = [
        command[command.index("--model") + 1] for command in commands if "grpo" in command[0] or "dpo" in command[0]
    ]
    assert {Path(path).name for path in starts} == {"checkpoint-40"}

    (tmp_path / "work" / "seed-1").mkdir()
    done = len(commands)
    check["main"]([*flags, "0", "1"])
    assert all("seed-0" not in " ".join(command) for command in commands[done:])
    assert set(json.loads((tmp_path / "demo.json").read_text())["seeds"]) == {"0", "1"}
