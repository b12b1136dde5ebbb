"""YAML files that cannot be read, or are no settings."""

from pathlib import Path

import pytest

from llmrec.errors import InputError
from llmrec.training.config import RecipeArguments, SFTRecipeConfig
from llmrec.training.parser import parse_recipe


def parse(argv: list[str]) -> None:
    parse_recipe(argv, RecipeArguments, SFTRecipeConfig)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--config .*nowhere.yaml: no such file"):
        parse(["--config", str(tmp_path / "nowhere.yaml")])
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="expected a mapping of keys to values"):
        parse(["--config", str(tmp_path / "list.yaml")])
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(InputError, match="not readable as YAML"):
        parse(["--config", str(tmp_path / "bad.yaml")])
    with pytest.raises(InputError, match="no file behind it"):
        parse(["--config"])


def test_unknown_flags_and_joined_config(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"dataset: a\nsids: b\noutput_dir: {tmp_path}\nuse_cpu: true\nmax_history: 3\n")
    with pytest.raises(InputError, match="unknown flag '--learn_rate'; check its spelling"):
        parse(["--config", str(path), "--learn_rate", "1"])
    assert parse_recipe([f"--config={path}"], RecipeArguments, SFTRecipeConfig)[0].max_history == 3
