"""The house: pins that agree, a Makefile and a CI script that hold, scripts of one form."""

import ast
import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKE = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {canonical(line.split("==")[0]): line.split("==")[1] for line in lines}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def requirements() -> list[tuple[str, str, str]]:
    extras = [line for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines]
    found = []
    for line in PROJECT["project"]["dependencies"] + extras:
        match = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?(>=|==)([\d.]+)", line)
        assert match, f"{line}: write name>=version or name==version"
        found.append((canonical(match[1]), match[2], match[3]))
    return found


@pytest.mark.parametrize(("name", "sign", "bound"), requirements())
def test_every_dependency_is_pinned_within_its_bounds(name: str, sign: str, bound: str):
    pinned = pins("constraints.txt")[name]
    assert version(pinned) >= version(bound)
    assert sign == ">=" or pinned == bound


def test_the_floor_is_the_one_that_the_package_names():
    floors = {name: bound for name, _, bound in requirements()}
    assert floors["torch"] == "2.11"
    assert floors["transformers"] == "5.17"
    assert pins("constraints-floor.txt")["transformers"] == "5.17.0"


def test_the_floor_differs_only_in_what_old_transformers_needs():
    usual, floor = pins("constraints.txt"), pins("constraints-floor.txt")
    differing = {name for name in usual.keys() | floor.keys() if usual.get(name) != floor.get(name)}
    client = {"httpx", "httpcore", "httpx2", "httpcore2", "truststore"}  # of huggingface_hub 1 and 2
    assert differing <= {"transformers", "huggingface-hub"} | client


def test_make_names_its_targets():
    listing = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo", "test", "test-slow", "lint", "format"],
        cwd=ROOT, env=MAKE, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for part in (
        "pip install",
        "torch==2.13.0",
        "recipes/demo.py",
        "-m pytest",
        "ruff check",
        "pyright",
        "ruff format",
    ):
        assert part in listing
    assert listing.index("torch==2.13.0") < listing.index("-e '.[dev]'")


def test_make_runs_the_real_tests_where_the_data_is():
    def selection(**environ: str) -> str:
        command = ["make", "--dry-run", "test"]
        return subprocess.run(
            command, cwd=ROOT, env={**MAKE, **environ}, capture_output=True, text=True, check=True
        ).stdout

    assert '"not slow and not real and not gpu and not benchmark"' in selection(LLMREC_REAL_DATA="")
    assert '"not slow and not gpu and not benchmark"' in selection(LLMREC_REAL_DATA="/some/folder")


@pytest.mark.parametrize("python", ["old-python", "no-such-python"])
def test_make_refuses_an_old_or_missing_python(tmp_path: Path, python: str):
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "install", f"PYTHON={tmp_path / python}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT, env=MAKE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "older than Python 3.11; name a newer one: make install PYTHON=python3.12" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_ci_script_runs_what_it_should():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    steps = [line.split()[1] for line in text.splitlines() if line.startswith("step ")]
    assert steps == ["install", "lint", "test", "test-slow", "install-floor", "test-floor"]
    assert "timeout --kill-after=30 45m make test-slow" in text


def test_pre_commit_hooks_fetch_nothing():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "pyright"]
    assert {hook["language"] for hook in hooks} == {"system"}


def scripts() -> list[Path]:
    return sorted((*ROOT.glob("data_prep/*.py"), *ROOT.glob("recipes/*.py")))


@pytest.mark.parametrize("path", scripts(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_have_one_form(path: Path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert f"{path.parent.name}/{path.name}" in (ast.get_docstring(tree) or ""), "docstring: the command to paste"
    functions = {node.name: ast.unparse(node.args) for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert functions["main"] == "argv: Sequence[str] | None=None"
    assert source.endswith('\n\nif __name__ == "__main__":\n    run_command(main)\n')
    if path.parent.name == "recipes":
        assert len(source.splitlines()) <= 150


def test_no_drawer_for_everything():
    names = {path.name for folder in ("llmrec", "recipes", "data_prep") for path in ROOT.glob(f"{folder}/**/*.py")}
    assert not names & {"utils.py", "helpers.py", "common.py", "misc.py"}


def test_recipe_configs_are_named_by_stage_model_and_method():
    for path in ROOT.glob("recipes/configs/**/*"):
        if path.is_file():
            assert re.fullmatch(r"(sft|grpo|dpo|grid|sweep|scaling)_[a-z0-9.-]+_[a-z0-9_-]+\.yaml", path.name), path


def test_test_files_have_distinct_names():
    names = [path.name for path in ROOT.glob("tests/**/test_*.py")]
    assert len(names) == len(set(names)), "pytest without packages needs distinct basenames"
