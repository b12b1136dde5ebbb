"""The README's commands name scripts, flags and files that exist, and CI runs its test command."""

import ast
import importlib
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LAUNCHERS = ("accelerate launch", "torchrun")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> list[list[str]]:
    lines = (line.split("#")[0].strip() for line in text.replace("\\\n", " ").splitlines())
    return [shlex.split(line) for line in lines if line and not line.startswith(". ")]


COMMANDS = [line for block in blocks("") for line in command_lines(block)]
SCRIPTED = [line for line in COMMANDS if line[0] in ("python", "accelerate", "torchrun")]


def script_of(line: list[str]) -> int:
    return next(place for place, word in enumerate(line) if word.endswith(".py"))


def flags(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if word.startswith("--")}


def known_flags(script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> set[str]:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert not stopped.value.code
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", capsys.readouterr().out))


def unknown(line: list[str], known: set[str]) -> set[str]:
    return flags(line[script_of(line) + 1 :]) - known


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_readme_holds_the_two_commands_and_every_step():
    assert ["make", "demo"] in COMMANDS
    assert ["make", "test"] in COMMANDS
    scripts = {line[script_of(line)] for line in SCRIPTED}
    for name in ("lcrec", "sequences", "minionerec", "recbole", "embed_items", "learn_sids"):
        assert f"data_prep/{name}.py" in scripts
    for name in ("sft", "baselines", "evaluate"):
        assert f"recipes/{name}.py" in scripts


@pytest.mark.parametrize("script", sorted({line[script_of(line)] for line in SCRIPTED}))
def test_every_flag_exists(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert (ROOT / script).is_file()
    known = known_flags(ROOT / script, monkeypatch, capsys)
    if script == "recipes/sft.py":
        known.add("--config")  # TRL's parser takes it and does not list it
    for line in SCRIPTED:
        if line[script_of(line)] == script:
            assert unknown(line, known) == set()


def test_a_wrong_flag_is_found():
    line = shlex.split("python recipes/evaluate.py --model x --beams 3")
    assert unknown(line, {"--model", "--num_beams"}) == {"--beams"}


def test_configs_in_commands_exist():
    words = [word for line in SCRIPTED for word in line if word.endswith(".yaml")]
    assert len(words) >= 2
    assert [word for word in words if not (ROOT / word).is_file()] == []


def test_targets_of_make_exist():
    made = {word for line in COMMANDS if line[0] == "make" for word in line[1:]} | set(
        re.findall(r"`make ([\w-]+)`", README)
    )
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert made <= set(phony[1].split())


def test_links_and_named_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    missing += [
        path for path in re.findall(r"`((?:llmrec|recipes|docs|data_prep|accelerate_configs)/[\w/.-]*)`", README)
        if not (ROOT / path).exists()
    ]  # fmt: skip
    assert missing == []


def test_python_blocks_import_what_exists():
    for block in blocks("python"):
        for node in ast.parse(block).body:
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_ci_calls_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    found = re.search(r'^test_command="\$\((.*)\)"$', script, re.MULTILINE)
    assert found is not None
    command = subprocess.run(
        ["bash", "-c", found[1]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert command == "make test"
    assert shlex.split(command) in COMMANDS
    assert "step test $test_command\n" in script


def test_the_demo_ends_with_commands_of_the_readme():
    following = runpy.run_path(str(ROOT / "recipes" / "demo.py"))["NEXT"]
    lines = [line for line in command_lines(following) if line[0] in ("python", "accelerate")]
    assert len(lines) == 7
    assert [line for line in lines if line not in COMMANDS] == []
