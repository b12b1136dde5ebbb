import csv
import gzip
import io
import json
import re
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.sources import (
    literal,
    open_table,
    read_json_lines,
    read_json_pairs,
    read_lines,
    require_file,
    split_lines,
)
from llmrec.errors import InputError


def put(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows(path: Path) -> list[dict]:
    return [dict(row) for _, row in open_table(path, "table").rows]


def test_lines_end_at_newline_alone(tmp_path: Path):
    path = put(tmp_path / "a.txt", "\ufeffone\u2028still\r\n\n  \nfour\x0bstill\rstill")
    assert list(read_lines(path, "text")) == [(1, "one\u2028still"), (4, "four\x0bstill\rstill")]


def test_gzip_and_zip(tmp_path: Path):
    packed = put(tmp_path / "a.txt.gz", gzip.compress("ä\nb\n".encode()))
    assert [line for _, line in read_lines(packed, "text")] == ["ä", "b"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/a.txt", "ä\nb\n".encode("latin-1"))
    lines = read_lines(tmp_path / "a.zip", "text", encoding="latin-1", member="in/a.txt")
    assert [line for _, line in lines] == ["ä", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "it is empty; expected the text"),
        ("a.txt", b"\n \n", "it is empty; expected the text"),
        ("a.txt", b"ok\n\xff\xfe\n", "not utf-8-sig text"),
        ("a.txt.gz", gzip.compress(b"line\n" * 1000)[:40], "damaged or cut off after line"),
        ("a.txt.gz", b"plain text", "damaged or cut off after line 0"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name, content, message):
    with pytest.raises(InputError, match=message):
        list(read_lines(put(tmp_path / name, content), "text"))


def test_missing_files(tmp_path: Path):
    with pytest.raises(InputError, match=r"gone\.csv: no such file; expected the item table"):
        require_file(tmp_path / "gone.csv", "item table")
    with pytest.raises(InputError, match="no such file; expected the item table"):
        open_table(tmp_path / "gone.csv", "item table")


def test_csv_as_pandas_writes_it(tmp_path: Path):
    path = put(tmp_path / "a.csv", 'item_id,title\n1,"a ""b"", c"\n2,"two\nlines"\n3,5" pipe\n4,Käse\n')
    assert [row["title"] for row in rows(path)] == ['a "b", c', "two\nlines", '5" pipe', "Käse"]


def test_tsv_with_quotes_that_do_not_pair(tmp_path: Path):
    text = 'item_id:token\ttitle:token_seq\tprice:float\n1\t"Weird Al\t1\n2\t"Weird" Al\t2\n3\tAl\t3\n4\t"a\tb"\t4\n'
    table = open_table(put(tmp_path / "a.item", text), "item table")
    assert table.columns == ("item_id", "title", "price")
    assert table.kinds == {"item_id": "token", "title": "token_seq", "price": "float"}
    assert [row["title"] for _, row in table.rows] == ['"Weird Al', '"Weird" Al', "Al", "a\tb"]


def test_a_quoted_field_may_go_on_in_the_next_line(tmp_path: Path):
    # The first line has its two fields already: only the next line shows that the second goes on.
    assert [row["b"] for row in rows(put(tmp_path / "a.tsv", 'a\tb\n1\t"x\ny"\n2\tz\n'))] == ["x\ny", "z"]


@pytest.mark.parametrize(("delimiter", "letters"), [(",", "ab\"', \t\n"), ("\t", "ab\"', \t")])
@settings(deadline=None)
@given(data=st.data())
def test_what_the_csv_module_writes_is_read(delimiter, letters, data):
    cells = st.text(letters).map(lambda text: re.sub(r"\n\s*", "\n", f"x{text}y"))  # No blank lines: they are skipped.
    fields = data.draw(st.lists(st.lists(cells, min_size=2, max_size=2), min_size=1, max_size=6))
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(fields)
    lines = [(number, line) for number, line in enumerate(buffer.getvalue().split("\n"), start=1) if line]
    read = [row for _, row in split_lines(iter(lines), delimiter=delimiter, width=2, path="x")]
    assert read == fields


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,b\n1,2\n3\n", r"a\.csv: line 3 has 1 fields, expected 2: '3'"),
        ("a.csv", 'a,b\n1,"2\n', None),
        ("a.csv", "a,a\n1,2\n", "column 'a' stands twice"),
        ("a.xlsx", "a,b\n", "cannot tell the form of the table from its name"),
        ("a.csv", "\n\n", "it is empty; expected the table"),
        ("a.jsonl", '{"a": 1}\n[2]\n', "line 2 is no JSON object"),
        ("a.json", "[1, 2]", "expected the table as JSON objects"),
        ("a.json", '[{"a": 1}', "not a readable table"),
        ("a.json", '{"1": {"a": 1},\n"2": 5}', "expected the table as JSON objects"),
        ("a.parquet", "PAR1", "not a readable parquet file"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, name, text, message):
    path = put(tmp_path / name, text)
    if message is None:
        assert rows(path) == [{"a": "1", "b": '"2'}]
        return
    with pytest.raises(InputError, match=message):
        rows(path)


def test_required_columns(tmp_path: Path):
    table = open_table(put(tmp_path / "a.csv", "a,b\n1,2\n"), "table")
    table.require(["a", "b"])
    with pytest.raises(InputError, match=r"a\.csv: no column 'c'; it has a, b: say --c"):
        table.require(["a", "c"], remedy="say --c")


ENTRIES = [{"item_id": "1", "title": "Ä"}, {"item_id": "2", "title": 'b "c"', "brand": "d"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, ENTRIES))),
        ("a.json", "\n".join(map(json.dumps, ENTRIES))),
        ("a.jsonl", "\n".join(map(repr, ENTRIES))),
        ("a.json", json.dumps(ENTRIES)),
        ("a.json", json.dumps(ENTRIES, indent=1)),
        ("a.json", json.dumps({entry["item_id"]: entry for entry in ENTRIES})),
        ("a.json", json.dumps({entry["item_id"]: entry for entry in ENTRIES}, indent=1)),
        ("a.jsonl.gz", "\n".join(map(json.dumps, ENTRIES))),
    ],
)
def test_json_of_every_form(tmp_path: Path, name, text):
    path = put(tmp_path / name, gzip.compress(text.encode()) if name.endswith("gz") else text)
    table = open_table(path, "table")
    assert table.columns == ("item_id", "title", "brand")
    assert [dict(row) for _, row in table.rows] == ENTRIES


def test_parquet(tmp_path: Path):
    pq.write_table(pa.table({"a": [1, None], "b": ["x", "y"]}), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [{"a": 1, "b": "x"}, {"a": None, "b": "y"}]
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="it is empty"):
        open_table(tmp_path / "b.parquet", "table")


def test_json_lines_take_python_dicts(tmp_path: Path):
    path = put(tmp_path / "a.json", '{\'asin\': \'A\', \'title\': "it\'s 1\\2 inch"}\n{"asin": "B", "x": null}\n')
    assert [value["asin"] for _, value in read_json_lines(path, "metadata")] == ["A", "B"]
    with pytest.raises(InputError, match="line 1 is no JSON object"):
        list(read_json_lines(put(tmp_path / "b.json", "{'asin': __import__('os')}\n"), "metadata"))


def test_json_pairs_keep_double_keys(tmp_path: Path):
    path = put(tmp_path / "a.json", '{"1": {"title": "x", "title": "y"}, "2": [{"a": 1}], "1": {}}')
    assert read_json_pairs(path, "items") == [("1", {"title": "x"}), ("2", [{"a": 1}]), ("1", {})]
    for text, message in (("[1]", "found list"), ("{}", "with entries"), ('{"1": ', "not a readable items")):
        with pytest.raises(InputError, match=message):
            read_json_pairs(put(tmp_path / "b.json", text), "items")


@pytest.mark.parametrize(
    ("text", "value"), [("[1, 'a']", [1, "a"]), ("1 + x", None), ("[" * 5000, None), ("'\\d'", "\\d"), ("", None)]
)
def test_literals(text, value):
    assert literal(text) == value
