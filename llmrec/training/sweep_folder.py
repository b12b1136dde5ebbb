"""The folder of a sweep: what was tried and found, written whole after each trial, so that a killed sweep goes on."""

import contextlib
import datetime
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmrec.artifacts import made_by, read_json, write_json
from llmrec.errors import InputError
from llmrec.training.sweep import Rung, SweepConfig, Trial
from llmrec.training.sweep_trials import trial_folder

SWEEP_FILE = "sweep.json"
LOCK_FILE = ".lock"


class SweepFolder:
    """What a sweep has done so far, in ``sweep.json`` of its folder.

    Args:
        sweep: the sweep; its ``output_dir`` is the folder.
        trials: its draws.
        identity: as `check_sweep` returns it.

    Raises:
        InputError: the folder holds another sweep (the first key that differs is named), or other files.
    """

    def __init__(self, sweep: SweepConfig, trials: Sequence[Trial], identity: Mapping[str, Any]) -> None:
        self.sweep, self.trials = sweep, list(trials)
        self.path = Path(sweep.output_dir)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; choose another output_dir")
        file = self.path / SWEEP_FILE
        identity = json.loads(json.dumps(identity, default=str))
        if file.is_file():
            self.state = read_json(file, "state of a sweep")
            changed = first_difference(self.state.get("sweep"), identity)
            if changed:
                raise InputError(f"{self.path}: holds another sweep ({changed}); choose another output_dir")
        elif self.path.is_dir() and {child.name for child in self.path.iterdir()} - {LOCK_FILE}:
            raise InputError(
                f"{self.path}: holds files but no {SWEEP_FILE}, so it is left alone; choose another output_dir"
            )
        else:
            drawn = [{"trial": trial.number, "settings": dict(trial.settings)} for trial in trials]
            self.state = {
                "sweep": identity,
                "trials": drawn,
                "runs": [],
                "winner": None,
                "test_read": [],
                "made_by": made_by(),
            }

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the folder to this process while the block runs.

        Raises:
            InputError: another start of the sweep is at work in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / LOCK_FILE, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"{self.path}: the same sweep is running there; wait for it, or end it first"
                ) from error
            yield

    def entrants(self, rung: Rung) -> list[Trial]:
        """Return the trials of a round: all in the first, then the best of the round before.

        Equal scores go to the lower number. Failed trials do not go on, so a round may be smaller than was planned.

        Raises:
            InputError: no trial of the round before ended well; the first reason is given.
        """
        if rung.number == 0:
            return self.trials
        return [trial for trial, _ in self.ranking(self.sweep.rounds()[rung.number - 1])][: rung.trials]

    def find(self, trial: Trial, rung: Rung) -> Mapping[str, Any] | None:
        """Return what is on file of a trial in a round (``valid``, ``users``, ``cost``; or ``failed``), else None."""
        at = {"trial": trial.number, "rung": rung.number}
        return next((row for row in self.state["runs"] if at.items() <= row.items()), None)

    def ranking(self, rung: Rung) -> list[tuple[Trial, float]]:
        """Return the trials of a finished round that ended well with their scores, best first.

        Raises:
            InputError: there is none.
        """
        found = [(trial, self.find(trial, rung)) for trial in self.entrants(rung)]
        good = [(trial, row["valid"][self.sweep.metric]) for trial, row in found if row and "valid" in row]
        if not good:
            reasons = [f"trial {trial.number}: {row['failed']}" for trial, row in found if row]
            raise InputError(f"all {len(found)} trials failed; {reasons[0] if reasons else 'none was run'}")
        return sorted(good, key=lambda pair: (-pair[1], pair[0].number))

    def record(self, trial: Trial, rung: Rung, row: Mapping[str, Any]) -> None:
        """Put on file what became of a trial in a round; the file is written whole."""
        number = {"trial": trial.number, "rung": rung.number, "max_steps": rung.max_steps}
        self.state["runs"].append({**number, **row})
        self.state["runs"].sort(key=lambda row: (row["rung"], row["trial"]))
        self.write()

    def forget_failures(self) -> int:
        """Take failed trials off the file and delete their folders, so that they start anew; return how many.

        Raises:
            InputError: the winner is chosen already.
        """
        failed = [row for row in self.state["runs"] if "failed" in row]
        if failed and self.state["winner"] is not None:
            raise InputError(
                f"--retry_failed: the winner of {self.path} is chosen, and test may have been read; start another "
                "sweep in another output_dir"
            )
        rounds = self.sweep.rounds()
        for row in failed:
            shutil.rmtree(trial_folder(self.sweep, self.trials[row["trial"]], rounds[row["rung"]]), ignore_errors=True)
            self.state["runs"].remove(row)
        if failed:
            self.write()
        return len(failed)

    def choose(self) -> Trial:
        """Return the trial that is best in the last round; the choice is on file before test is opened, and stays."""
        if self.state["winner"] is None:
            rung = self.sweep.rounds()[-1]
            trial, score = self.ranking(rung)[0]
            self.state["winner"] = {
                "trial": trial.number, "settings": dict(trial.settings), self.sweep.metric: score,
                "model": str(trial_folder(self.sweep, trial, rung)),
            }  # fmt: skip
            self.write()
        return self.trials[self.state["winner"]["trial"]]

    def note_test(self) -> None:
        """Put on file that test was read."""
        self.state["test_read"].append(datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
        self.write()

    def write(self) -> None:
        """Write the file, whole or not at all."""
        write_json(self.path / SWEEP_FILE, self.state)


def first_difference(before: Any, now: Any, *, key: str = "") -> str | None:
    """Return where two JSON values differ first, in words (``trials is 4 there, 8 here``), or None."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys((*now, *before)):
            inner = f"{key}.{name}" if key else name
            found = first_difference(before.get(name), now.get(name), key=inner)
            if found:
                return found
        return None
    return None if before == now else f"{key or 'sweep'} is {before!r} there, {now!r} here"
