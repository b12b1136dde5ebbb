"""A command's bad input is one line and status 2; a bug keeps its traceback."""

import pytest

from llmrec.errors import InputError, run_command


def test_input_error_becomes_one_line(capsys: pytest.CaptureFixture[str]):
    def main() -> None:
        raise InputError("items.parquet: no such file; import the dataset")

    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: items.parquet: no such file; import the dataset\n")


def test_other_errors_pass_through():
    def main() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_command(main)


def test_success_returns():
    done = []
    run_command(lambda: done.append(1))
    assert done == [1]


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)
