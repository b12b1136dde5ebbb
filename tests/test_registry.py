"""Names in a literal table, or ``package.module:attribute``."""

import math
from pathlib import Path

import pytest

from llmrec.errors import InputError
from llmrec.registry import resolve

TABLE = {"two": 2, "one": 1}


def test_a_name_of_the_table():
    assert resolve("one", TABLE, "number") == 1


def test_a_name_of_a_module():
    assert resolve("math:sqrt", TABLE, "function") is math.sqrt
    assert resolve("os.path:join", {}, "function")("a", "b") == str(Path("a") / "b")


def test_the_table_comes_before_modules():
    assert resolve("math:sqrt", {"math:sqrt": 3}, "function") == 3


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(InputError, match=r"unknown number 'three': choose one of one, two, or name your own"):
        resolve("three", TABLE, "number")


@pytest.mark.parametrize("name", ["no_such_module:thing", "math:no_such_thing", "math.no_such:thing"])
def test_a_module_that_cannot_be_imported_is_named(name: str):
    with pytest.raises(InputError, match=f"function '{name}' cannot be imported .*PYTHONPATH"):
        resolve(name, TABLE, "function")


@pytest.mark.parametrize("name", [":x", "math:", ":", ".math:sqrt"])
def test_half_a_name_is_bad_input_too(name: str):
    with pytest.raises(InputError, match="choose one of one, two"):
        resolve(name, TABLE, "function")


def test_a_broken_module_of_the_users_own_names_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_broken_rewards.py").write_text("import a_library_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="a_library_nobody_has"):
        resolve("my_broken_rewards:reward", {}, "reward")
