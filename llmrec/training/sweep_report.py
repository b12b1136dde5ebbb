"""What a sweep found, in words and tables: each trial's validation, the winner, and its one test row."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llmrec.evaluation.results import format_table
from llmrec.training.sweep import Rung, SweepConfig, Trial
from llmrec.training.sweep_folder import SweepFolder
from llmrec.training.sweep_ranges import settings_text, value_text


def plan_text(sweep: SweepConfig, trials: Sequence[Trial]) -> str:
    """Return what a sweep will do: its rounds, and a line a trial."""
    lines = [_round_words(sweep, rung) for rung in sweep.rounds()]
    lines += [f"  {trial.number:3d}: {settings_text(trial.settings)}" for trial in trials]
    return "\n".join(lines)


def luck(score: float, users: int) -> float:
    """Return how far chance among the rows moves a score at most, 19 times in 20.

    A row's value lies in [0, 1], so its variance is at most ``score * (1 - score)``: 1.96 standard errors of the mean
    of ``users`` rows are at most what is returned.

    Args:
        score: mean over the rows, in [0, 1].
        users: rows, at least 1.
    """
    return 1.96 * math.sqrt(score * (1 - score) / users)


def sweep_markdown(folder: SweepFolder, *, command: str, test: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the report of a sweep whose winner is chosen.

    Args:
        folder: the sweep.
        command: that makes it.
        test: rows of the results file of the winner and the baselines; None where test was not opened.
    """
    sweep, winner = folder.sweep, folder.state["winner"]
    last = folder.find(folder.trials[winner["trial"]], folder.sweep.rounds()[-1])
    assert last is not None
    score, rows = winner[sweep.metric], last["users"]
    seconds = sum(row["cost"]["seconds"] for row in folder.state["runs"] if row.get("cost"))
    text = [
        f"# Sweep of `{sweep.config}`\n",
        f"Written by `{command}`; `sweep.json` beside it holds all figures. {sweep.trials} settings drawn with seed "
        f"{sweep.seed}, chosen by {sweep.metric} on {rows} validation rows; {seconds / 60:.1f} minutes of training.\n",
        "## Trials\n",
        *(f"{_round_words(sweep, rung)}\n\n{_trials_table(folder, rung)}\n" for rung in reversed(sweep.rounds())),
        f"## Winner: trial {winner['trial']}\n",
        f"{settings_text(winner['settings'])}; `{winner['model']}` is its bundle, `{winner['model']}.yaml` its whole "
        f"config.\n\n{sweep.metric} on validation {score:.4f}. It is the best of {sweep.trials} tries on the same "
        "rows, so it flatters the winner (the winner's curse): quote the test row and never this one. Chance among "
        f"{rows} rows moves such a score by up to {luck(score, rows):.4f} either way, 19 times in 20; trials nearer "
        "to one another than that may stand in another order on other rows.\n",
    ]
    if test is None:
        return "\n".join([*text, "Test was not opened.\n"])
    excluded = "kept out of the lists" if test[0].get("exclude_seen") else "kept in the lists"
    reads = len(folder.state["test_read"])
    times = f"{reads} times, for one and the same winner" if reads > 1 else "once"
    text += [
        f"## Test, read {times}\n\nSeen items {excluded}. Validation and test are other rows: compare within a table, "
        "never one with the other.\n",
        f"```\n{format_table(test)}\n```\n",
    ]
    return "\n".join(text)


def _round_words(sweep: SweepConfig, rung: Rung) -> str:
    steps = "as long as the config says" if rung.max_steps is None else f"{rung.max_steps} steps each"
    if sweep.method == "random":
        return f"{rung.trials} trials, {steps}:"
    return f"Round {rung.number + 1} of {len(sweep.rounds())}: {rung.trials} trials, {steps}:"


def _trials_table(folder: SweepFolder, rung: Rung) -> str:
    keys = sorted(folder.sweep.ranges)
    good = folder.ranking(rung)
    metrics = list((folder.find(good[0][0], rung) or {})["valid"])
    lines = [["trial", *keys, *metrics, "minutes"], ["---:"] * (len(keys) + len(metrics) + 2)]
    for trial, _ in good:
        row = folder.find(trial, rung) or {}
        minutes = f"{row['cost']['seconds'] / 60:.1f}" if row.get("cost") else "-"
        values = [f"{row['valid'][metric]:.4f}" for metric in metrics]
        lines.append([str(trial.number), *(value_text(trial.settings[key]) for key in keys), *values, minutes])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    failed = [(trial, folder.find(trial, rung) or {}) for trial in folder.entrants(rung)]
    words = [f"- trial {trial.number} failed: {row['failed']}" for trial, row in failed if "failed" in row]
    return "\n".join([table, *(["", *words] if words else [])])
