"""recipes/scaling.py: runs made, skipped, gone on with; its trainings in brief, and once for real."""

import json
import runpy
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from bundle_kit import ITEMS, PLAIN, make_table, make_tokenizer, write_bundle
from pens_dataset import write_pens

from llmrec.artifacts import write_json
from llmrec.errors import InputError
from llmrec.evaluation.jobs import Cost, Scripts
from llmrec.training.config import RecipeArguments, SFTRecipeConfig
from llmrec.training.parser import parse_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "scaling.py"
SFT = {
    "dataset": "elsewhere", "sids": "elsewhere", "model": "tiny-qwen3", "text_vocab_size": 300, "output_dir": "x",
    "per_device_train_batch_size": 8, "gradient_checkpointing": False, "report_to": "none", "max_history": 3,
    "eval_ks": [5], "eval_beams": 5, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 4,
    "load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False,
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_pens(tmp_path / "pens")
    make_table().save(tmp_path / "sids")
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(SFT))
    study = {
        "dataset": str(tmp_path / "pens"), "sids": str(tmp_path / "sids"), "train": str(tmp_path / "sft.yaml"),
        "results": str(tmp_path / "out" / "pens.json"), "work": str(tmp_path / "work"), "share_size": "two layers",
        "sizes": [
            {"name": "one layer", "settings": {"model_config": {"num_hidden_layers": 1}}}, {"name": "two layers"},
        ],
        "shares": [{"share": 0.5, "settings": {"max_steps": 2}}, {"share": 1.0}],
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    return tmp_path / "study.yaml"


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the trainings are told; of each only what the study reads is made."""
    calls: list[list[str]] = []

    def run(self: Scripts, script: Path, arguments: list[str], *, log: Path) -> Cost:
        assert script.name == "sft.py"
        assert script.is_file()
        given = dict(pairwise(arguments))
        if len(calls) == 1 and given["--train_users"] == "1.0" and not log.parent.exists():
            log.parent.mkdir(parents=True)
            calls.append(arguments)
            raise InputError("sft.py ended with status 1: out of paper")
        calls.append(arguments)
        path = Path(given["--output_dir"])
        write_bundle(path, PLAIN)
        write_json(path / "run.json", {"max_steps": 4})
        checkpoint = path / "checkpoint-2"
        checkpoint.mkdir()
        write_json(checkpoint / "trainer_state.json", {"log_history": [{"step": 2}], "best_global_step": 2})
        return Cost(6.0, 3.0)

    monkeypatch.setattr(Scripts, "run", run)
    return calls


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    # SIGTERM, as the recipe takes it, is not for the process of the tests.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    run = runpy.run_path(str(RECIPE))["main"]
    return lambda config, *flags: run(["--config", str(config), "--samples", "5", *flags])


def results(config: Path) -> dict:
    return json.loads((config.parent / "out" / "pens.json").read_text())


def test_a_failed_run_is_named_and_the_same_command_makes_it(config: Path, called, main, capsys):
    with pytest.raises(InputError, match=r"1 runs failed: two layers, 1 of the users, seed 0: sft\.py ended w"):
        main(config)
    assert len(called) == 3
    assert [run["name"] for run in results(config)["runs"]] == [
        "one layer, 1 of the users, seed 0", "two layers, 0.5 of the users, seed 0",
    ]  # fmt: skip

    main(config)
    assert len(called) == 4
    assert "3 runs, 2 of them finished" in capsys.readouterr().out
    found = results(config)["runs"]
    assert [(run["size"], run["share"], run["axes"]) for run in found] == [
        ("one layer", 1.0, ["parameters"]), ("two layers", 1.0, ["parameters", "data"]),
        ("two layers", 0.5, ["data"]),
    ]  # fmt: skip
    assert {run["best_step"] for run in found} == {2}
    assert {run["seconds"] for run in found} == {6.0}
    assert {run["all_parameters"] - run["parameters"] for run in found} == {16 * len(make_tokenizer(make_table()))}
    # Thirty users of six items, two held out: three targets each; half of them
    assert [run["targets"] for run in found] == [90, 90, 45]
    losses = pq.read_table(config.parent / "out" / "pens.losses.parquet")
    assert (losses.num_rows, losses.num_columns) == (30, 3)
    assert losses.column(0).to_numpy().mean() == pytest.approx(found[0]["loss"], rel=1e-6)
    page = (config.parent / "out" / "pens.md").read_text()
    assert "![Held-out loss by parameters and by data](pens.svg)" in page
    assert (config.parent / "out" / "pens.svg").read_text().startswith("<svg")
    # The stand-ins are of one size, so that only the data has two points, and no floor
    assert list(results(config)["fits"]) == ["data"]
    assert results(config)["fits"]["data"]["floored"] is None

    main(config)
    assert len(called) == 4


def test_what_the_trainings_are_told(config: Path, called, main):
    with pytest.raises(InputError):
        main(config)
    told = {}
    for call in called:
        arguments, training = parse_recipe(call, RecipeArguments, SFTRecipeConfig)
        told[str(arguments.model_config), arguments.train_users] = (arguments, training)
    arguments, training = told["{}", 0.5]
    assert (arguments.dataset, arguments.sids) == (str(config.parent / "pens"), str(config.parent / "sids"))
    assert (training.max_steps, training.seed, training.use_cpu) == (2, 0, True)
    assert told["{'num_hidden_layers': 1}", 1.0][1].max_steps == 4
    assert len({training.output_dir for _, training in told.values()}) == 3


@pytest.mark.slow
def test_for_real(config: Path, main, capsys):
    main(config)
    found = results(config)
    first, second, half = found["runs"]
    assert first["parameters"] < second["parameters"] == half["parameters"]
    assert second["metrics"][0]["split"] == "valid"
    assert list(found["fits"]) == ["parameters", "data"]
    assert all(0 < run["loss"] < 40 for run in found["runs"])
    assert {run["steps"] for run in found["runs"]} == {4, 2}
    assert len(make_table()) == ITEMS
    main(config)
    assert "3 runs, 3 of them finished" in capsys.readouterr().out
