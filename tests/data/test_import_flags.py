import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from llmrec.data.import_flags import add_import_arguments, domain_phrase, find_file, read_rules
from llmrec.data.import_rules import ImportRules
from llmrec.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("Office", "office products"),
        ("beauty", "beauty products"),
        ("Beauty_5", "beauty products"),
        ("Industrial_and_Scientific", "industrial and scientific products"),
        ("ml-20m", "movies"),
        ("my_shop", "my shop"),
    ],
)
def test_phrases_for_prompts(name, phrase):
    assert domain_phrase(name) == phrase


def parse(tmp_path: Path, *flags: str, **kinds: object) -> ImportRules:
    parser = argparse.ArgumentParser()
    add_import_arguments(parser, **kinds)  # type: ignore[arg-type]
    return read_rules(parser.parse_args(["--out", str(tmp_path / "out"), *flags]))


def test_flags_become_rules(tmp_path: Path):
    assert parse(tmp_path) == ImportRules()
    assert parse(tmp_path, k=5).k_core == 5
    flags = "--limit 7 --strict --k_core 2 --min_rating 3.5 --drop_repeats first --keep_unseen_items"
    flags += " --event_types buy cart"
    assert parse(tmp_path, *flags.split(), ratings=True, events=True) == ImportRules(
        limit=7, strict=True, k_core=2, min_rating=3.5, event_types=("buy", "cart"), drop_repeats="first",
        keep_unseen_items=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "kinds"),
    [
        ("--k_core", {"filters": False}),
        ("--keep_unseen_items", {"unseen": False}),
        ("--min_rating", {}),
        ("--event_types", {}),
    ],
)
def test_flags_that_a_source_cannot_have_are_unknown(tmp_path, flag, kinds, capsys):
    with pytest.raises(SystemExit):
        parse(tmp_path, flag, "1", **kinds)
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


def test_finding_a_file(tmp_path: Path):
    with pytest.raises(InputError, match="no such folder"):
        find_file(tmp_path / "gone", "*.csv", "rows", flag="--name")
    with pytest.raises(InputError, match=r"\*\.csv: no such file; expected the rows"):
        find_file(tmp_path, "*.csv", "rows", flag="--name")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(InputError, match=r"a\.csv: it is empty"):
        find_file(tmp_path, "*.csv", "rows", flag="--name")
    (tmp_path / "a.csv").write_text("x")
    assert find_file(tmp_path, "*.csv", "rows", flag="--name") == tmp_path / "a.csv"
    (tmp_path / "b.csv").write_text("x")
    with pytest.raises(InputError, match=r"\(a\.csv, b\.csv\); choose one by --name"):
        find_file(tmp_path, "*.csv", "rows", flag="--name")


def test_a_command_ends_with_one_line_and_status_two(tmp_path: Path):
    command = [
        sys.executable,
        ROOT / "data_prep" / "table.py",
        "--interactions",
        "gone.csv",
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "error: gone.csv: no such file; expected the interactions\n"
    assert list(tmp_path.iterdir()) == []
