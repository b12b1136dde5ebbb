"""Importers as functions: a script's ``main`` by its name, and what it wrote."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from llmrec.data.folder import DatasetFolder, load_dataset

SCRIPTS = Path(__file__).parents[2] / "data_prep"
Import = Callable[..., DatasetFolder]


def load_main(name: str) -> Callable[[Sequence[str]], None]:
    spec = importlib.util.spec_from_file_location(f"data_prep_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def importer(tmp_path: Path) -> Callable[[str], Import]:
    """Give a script's name, get a function that runs it with flags and loads the folder it wrote."""

    def named(name: str) -> Import:
        main = load_main(name)

        def run(*flags: object) -> DatasetFolder:
            main([*map(str, flags), "--out", str(tmp_path / "out")])
            return load_dataset(tmp_path / "out")

        return run

    return named
