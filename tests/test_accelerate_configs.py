"""Every file of accelerate_configs/ is read by accelerate itself, which must take each of its keys."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "accelerate_configs"
NAMES = ("cpu", "ddp", "fsdp2", "multi_node", "single_gpu", "zero2", "zero3")
NESTED = ("fsdp_config", "deepspeed_config")


def unknown_nested_keys(config: ClusterConfig) -> set[str]:
    """Keys of a nested block that accelerate would set on its arguments without a word, and never read."""
    known = {action.dest for action in launch_command_parser()._actions}
    return {key for block in NESTED for key in getattr(config, block)} - known


def launch_arguments(path: Path) -> argparse.Namespace:
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    return _validate_launch_command(arguments)[0]


def test_the_folder_holds_what_the_readme_promises():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_takes_every_key(name: str):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert unknown_nested_keys(config) == set()
    assert config.num_processes >= config.num_machines


def test_unknown_keys_are_refused(tmp_path: Path):
    source = yaml.safe_load((FOLDER / "fsdp2.yaml").read_text())
    path = tmp_path / "outer.yaml"
    path.write_text(yaml.safe_dump({**source, "num_procesess": 2}))
    with pytest.raises(ValueError, match="num_procesess"):
        load_config_from_file(str(path))
    source["fsdp_config"]["fsdp_reshard"] = True
    path.write_text(yaml.safe_dump(source))
    assert unknown_nested_keys(load_config_from_file(str(path))) == {"fsdp_reshard"}


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("cpu", set()), ("single_gpu", set()), ("ddp", {"multi_gpu"}), ("multi_node", {"multi_gpu"}),
        ("fsdp2", {"use_fsdp"}), ("zero2", {"use_deepspeed"}), ("zero3", {"use_deepspeed"}),
    ],
)  # fmt: skip
def test_each_picks_its_launcher(name: str, chosen: set[str]):
    arguments = launch_arguments(FOLDER / f"{name}.yaml")
    launchers = ("multi_gpu", "use_fsdp", "use_deepspeed", "use_megatron_lm", "tpu")
    assert {launcher for launcher in launchers if getattr(arguments, launcher)} == chosen
    assert arguments.use_cpu == (name == "cpu")
    if name.startswith("zero"):
        assert arguments.zero_stage == int(name[-1])


@pytest.mark.parametrize("name", NAMES)
def test_every_key_has_a_comment(name: str):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    bare = [line for line in lines if re.match(r"\s*\w+:", line) and not re.search(r"  # \w", line)]
    assert bare == []


@pytest.mark.slow
def test_cpu_config_really_launches_one_process(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text("from llmrec.launch import check_launch\ncheck_launch()\nprint('ran')\n")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "MASTER_"))}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / "cpu.yaml")]
    done = subprocess.run([*command, str(script)], env=environ, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("ran") == 1, done.stderr
    assert done.returncode == 0
