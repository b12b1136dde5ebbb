"""`make bundle`: every shipped config has its steps, they name what exists, and the demo's are run."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmrec.evaluation.rebuild import Plan, bundle_name, read_plan

ROOT = Path(__file__).parents[2]
FILE = ROOT / "recipes" / "bundles.yaml"
FOUND = yaml.safe_load(FILE.read_text(encoding="utf-8"))
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*/sft_*.yaml"))
PLACES = {"work": "runs/bundles", "source": "../shared/data", "weights": "weights"}


def plan(name: str) -> Plan:
    return read_plan(FILE, name, places=PLACES)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_config_has_its_bundle(config: Path):
    steps = plan(bundle_name(str(config.relative_to(ROOT)))).steps
    trained = [step for step in steps if "recipes/sft.py" in step.run]
    assert {step.kind for step in trained} == {"bundle"}
    words = trained[-1].run  # one that goes on needs one to start from
    assert words[words.index("--config") + 1] == str(config.relative_to(ROOT))
    assert steps[0].kind == "dataset"
    assert steps[-1].kind == "results"


def test_no_step_and_no_source_is_left_over():
    used = {step for steps in FOUND["bundles"].values() for step in steps}
    assert used == set(FOUND["steps"])
    assert {need for step in FOUND["steps"].values() for need in step.get("needs", ())} == set(FOUND["sources"])


def test_published_results_exist_and_hold_the_rebuilt_system():
    compared = 0
    for name in FOUND["bundles"]:
        for step in plan(name).steps:
            if step.published:
                rows = json.loads((ROOT / step.published).read_text(encoding="utf-8"))["results"]
                assert step.run[step.run.index("--name") + 1] in {row["name"] for row in rows}
                compared += 1
    assert compared >= 4


def test_flags_of_every_step_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    given: dict[str, set[str]] = {}
    for name in FOUND["bundles"]:
        for step in plan(name).steps:
            script = next(word for word in step.run if word.endswith(".py"))
            words = step.run[step.run.index(script) + 1 :]
            given.setdefault(script, set()).update(word for word in words if word.startswith("--"))
    assert len(given) >= 7
    for script, flags in given.items():
        monkeypatch.setattr(sys, "argv", [script, "--help"])
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        known = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", capsys.readouterr().out)) | {"--config"}
        assert flags <= known, script


def bundle(*flags: str, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes" / "bundle.py"), *flags]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=timeout, check=False)


def test_commands_are_shown_without_running(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(ROOT)
    main = runpy.run_path(str(ROOT / "recipes" / "bundle.py"))["main"]
    main(["--config", "recipes/configs/office/sft_small-qwen3_full.yaml", "--show", "--work", "W", "--source", "S"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "python data_prep/lcrec.py --source S/office --name Office --out W/office/data"
    assert lines[2].split(" --method_args ")[1].startswith("""'{"backend": "sklearn"}'""")
    assert shlex.split(lines[3])[0] == "OMP_NUM_THREADS=1"


def test_a_missing_source_is_one_line_before_any_work(tmp_path: Path):
    done = bundle("--config", "office/sft_small-qwen3_full", "--source", str(tmp_path), "--weights", str(tmp_path),
                  "--work", str(tmp_path / "work"))  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"error: {tmp_path}/office/Office.inter.json: no such file; put Office.inter.json")
    assert "docs/weights.md has the command" in said
    assert not (tmp_path / "work").exists()


def test_make_bundle_names_what_it_wants():
    done = subprocess.run(
        ["make", "--dry-run", "bundle", "CONFIG=recipes/configs/office/x.yaml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "recipes/bundle.py --config recipes/configs/office/x.yaml" in done.stdout
    assert 'echo "error: name a config: make bundle CONFIG=' in done.stdout


@pytest.mark.slow
def test_the_demo_is_rebuilt_and_then_kept(tmp_path: Path):
    """The demo's own steps, smaller; a killed training's checkpoints are not what makes it whole."""
    small = json.loads(
        json.dumps(FOUND).replace("--users 2500", "--users 120").replace("train_epochs 8", "train_epochs 1")
    )
    assert "--users 120" in small["steps"]["demo-data"]["run"]
    file = tmp_path / "bundles.yaml"
    file.write_text(yaml.safe_dump(small))
    flags = [
        "--config",
        "recipes/configs/demo/sft_tiny-qwen3_full.yaml",
        "--bundles",
        str(file),
        "--work",
        str(tmp_path),
    ]
    done = bundle(*flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(re.findall(r"^\$ ", done.stdout, re.MULTILINE)) == 5
    names = [row["name"] for row in json.loads((tmp_path / "demo/sft_tiny-qwen3_full.json").read_text())["results"]]
    assert names[-1] == "tiny-qwen3"

    (tmp_path / "demo" / "sft_tiny-qwen3_full" / "README.md").unlink()
    done = bundle(*flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"^([\w-]+): kept", done.stdout, re.MULTILINE) == ["demo-data", "demo-tfidf", "demo-sids"]
    assert re.search(r"^demo-data +\d+ s +\d+ s   kept$|^demo-data +- +\d+ s   kept$", done.stdout, re.MULTILINE)
