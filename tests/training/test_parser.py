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
