"""Objectives in recipes/sft.py: told by name, refused before work, and the loss that is logged is theirs."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from llmrec.errors import InputError
from llmrec.hub import load_bundle

main = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "sft.py"))["main"]


def flags(dataset, sid_folder: Path, out: Path, **settings: Any) -> list[str]:
    defaults = {
        "dataset": dataset.path, "sids": sid_folder, "output_dir": out, "model": "tiny-qwen3", "text_vocab_size": 320,
        "max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "gradient_checkpointing": False, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2,
        "save_steps": 2, "eval_beams": 10, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return [text for key, value in {**defaults, **settings}.items() for text in (f"--{key}", str(value))]


def logged(out: Path) -> tuple[list[float], list[float]]:
    """Training losses and held-out losses of a run."""
    history = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    return tuple([entry[key] for entry in history if key in entry] for key in ("loss", "eval_loss"))


@pytest.mark.slow
def test_a_run_trains_under_each_objective(dataset, sid_folder: Path, tmp_path: Path) -> None:
    main(flags(dataset, sid_folder, tmp_path / "plain"))
    plain, _ = logged(tmp_path / "plain")
    for name, given, above in (
        ("apao", {"beta": 0.5}, True),
        ("level_smoothing", {"epsilon": 0.2, "over": "children"}, None),
        ("distillation", {"teacher": str(tmp_path / "plain"), "share": 0.5}, False),
        ("legal_children", {}, False),
    ):
        out = tmp_path / name
        settings = {"objective": name, "objective_args": json.dumps(given), "eval_score": "allowed"}
        main(flags(dataset, sid_folder, out, **settings))
        losses, held_out = logged(out)
        # The first step is of the same weights and rows
        assert losses[0] != pytest.approx(plain[0], rel=1e-4)
        assert above is None or (losses[0] > plain[0]) == above
        info = load_bundle(out).info
        assert info["settings"]["objective"] == name
        assert info["settings"]["objective_args"] == given
        assert info["metrics"][0]["score"] == "allowed"
        assert held_out
    # Children of the root are 5 of 5 codes, then 3 of 4 and 2 of 2: ln 5 + ln 3 + ln 2 over three tokens is 1.13
    assert losses[0] < 1.6 < plain[0]


@pytest.mark.slow
def test_a_share_of_the_users_trains_and_all_are_scored(dataset, sid_folder: Path, tmp_path: Path) -> None:
    main(flags(dataset, sid_folder, tmp_path / "part", train_users=0.3, eval_users=0))
    bundle = load_bundle(tmp_path / "part")
    assert bundle.info["metrics"][0]["users"] == 100
    # Thirty users of eight items, of which six train
    assert bundle.vocab.popularity.sum() == 30 * 6


def test_messages(dataset, sid_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for settings, message in (
        ({"objective": "focal"}, "unknown objective 'focal'"),
        ({"objective_args": '{"beta": 1}'}, "objective cross_entropy has no argument 'beta'"),
        ({"objective": "distillation"}, "objective distillation needs 'teacher'"),
        ({"objective_args": "beta"}, "--objective_args 'beta': not a JSON object"),
        ({"train_users": 0}, r"train_users: 0\.0; a share of the users, above 0 and at most 1"),
        ({"train_users": 0.001}, r"share of users 0\.001: none of 100 is left"),
        ({"eval_score": "some"}, "eval_score: 'some'; choose one of full, sids, allowed"),
    ):
        with pytest.raises(InputError, match=message):
            main(flags(dataset, sid_folder, out, **settings))
        assert not out.exists()
