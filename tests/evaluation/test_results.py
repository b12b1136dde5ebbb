"""Results files: what stands in them, and what is refused before any work."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.errors import InputError
from llmrec.evaluation.evaluator import Evaluation
from llmrec.evaluation.results import (
    check_output,
    format_table,
    ranks_path,
    read_origin,
    read_ranks,
    read_results,
    result_row,
    write_results,
)

A = Evaluation("model", np.array([0, -1, 3]), {"recall@5": 2 / 3, "ndcg@5": 0.5}, 3, 1.23456)
B = Evaluation("popularity", np.array([-1, -1, 1]), {"recall@5": 1 / 3}, 3, 0.1)
SETTINGS = {"dataset": "toys", "split": "test", "protocol": "leave_one_out", "exclude_seen": False}


def write(path):
    rows = [
        result_row(A, **SETTINGS, score="full", num_beams=20, seed=0),
        result_row(B, **SETTINGS, train="recovered"),
    ]
    write_results(path, rows, [A, B])


def test_a_row_a_system_and_how_it_was_made(tmp_path):
    write(tmp_path / "deep" / "x.json")
    whole = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert set(whole) == {"results", "made_by"}
    assert {"command", "commit", "versions", "hardware", "date"} <= set(whole["made_by"])
    model, popularity = read_results(tmp_path / "deep" / "x.json")
    assert model == {
        **SETTINGS, "name": "model", "score": "full", "num_beams": 20, "seed": 0, "metrics": A.metrics, "users": 3,
        "seconds": 1.235,
    }  # fmt: skip
    assert popularity["train"] == "recovered"
    assert popularity["score"] is None


def test_ranks_stand_by_row_number(tmp_path):
    write(tmp_path / "x.json")
    path = ranks_path(tmp_path / "x.json")
    assert path == tmp_path / "x.ranks.parquet"
    assert pq.read_table(path).to_pydict() == {"row": [0, 1, 2], "model": [0, -1, 3], "popularity": [-1, -1, 1]}
    assert read_ranks(f"{path}:popularity").tolist() == [-1, -1, 1]


def test_a_ranks_file_says_what_its_rows_are(tmp_path):
    write(tmp_path / "x.json")
    path = tmp_path / "x.ranks.parquet"
    assert read_origin(f"{path}:popularity") == {
        "dataset": "toys", "split": "test", "protocol": "leave_one_out", "exclude_seen": "false"
    }  # fmt: skip
    pq.write_table(pa.table(pq.read_table(path).to_pydict()), path)
    assert read_origin(f"{path}:popularity") == {}
    rows = [result_row(A, **SETTINGS), result_row(B, **{**SETTINGS, "split": "valid"})]
    with pytest.raises(InputError, match="split 'test' and 'valid'; one file holds systems on the same rows"):
        write_results(tmp_path / "y.json", rows, [A, B])
    assert not (tmp_path / "y.json").exists()


def test_a_file_with_one_system_needs_no_name(tmp_path):
    write_results(tmp_path / "x.json", [result_row(A, **SETTINGS)], [A])
    assert read_ranks(str(tmp_path / "x.ranks.parquet")).tolist() == [0, -1, 3]


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "several systems; write .*:NAME with one of model, popularity"), (":sasrec", "no system 'sasrec'; write")],
)
def test_a_wrong_system_is_refused(tmp_path, name, message):
    write(tmp_path / "x.json")
    with pytest.raises(InputError, match=message):
        read_ranks(f"{tmp_path / 'x.ranks.parquet'}{name}")


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file; give FILE"):
        read_ranks(str(tmp_path / "none.ranks.parquet"))
    (tmp_path / "bad.ranks.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="not a readable ranks file"):
        read_ranks(str(tmp_path / "bad.ranks.parquet"))
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InputError, match="no list 'results'"):
        read_results(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text('{"results": [{"name": "a", "dataset": "b"}]}')
    with pytest.raises(InputError, match="row 0 of 'results' has no 'metrics'"):
        read_results(tmp_path / "bad.json")


def test_bad_outputs_are_refused_before_any_work(tmp_path):
    with pytest.raises(InputError, match="it is a folder; name a file"):
        check_output(tmp_path, ["model"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, so no folder can be made there"):
        check_output(tmp_path / "file" / "x.json", ["model"])
    with pytest.raises(InputError, match="system name 'popularity': taken"):
        check_output(tmp_path / "x.json", ["popularity", "item_knn", "popularity"])
    with pytest.raises(InputError, match="system name 'row': taken"):
        check_output(tmp_path / "x.json", ["row"])


def test_systems_of_different_rows_are_refused(tmp_path):
    other = Evaluation("other", np.array([0]), {}, 1, 0.0)
    with pytest.raises(InputError, match=r"scored on \[1, 3\] users"):
        write_results(tmp_path / "x.json", [], [A, other])
    assert not list(tmp_path.iterdir())


def test_a_ranks_file_says_how_its_lists_were_made(tmp_path):
    a, b = replace(A, ks=(1, 5)), replace(B, ks=(5, 10))
    known = {**SETTINGS, "catalog": "abc", "rows": 9}
    rows = [result_row(a, **known), result_row(b, **{**known, "exclude_seen": True})]
    assert (rows[0]["catalog"], rows[0]["rows"], rows[0]["users"]) == ("abc", 9, 3)
    write_results(tmp_path / "x.json", rows, [a, b])
    path = tmp_path / "x.ranks.parquet"
    of_all = {
        "dataset": "toys", "split": "test", "protocol": "leave_one_out", "catalog": "abc", "rows": "9",
        "exclude_seen": "both", "k": "5",
    }  # fmt: skip
    assert read_origin(str(path)) == of_all
    assert read_origin(f"{path}:model") == {**of_all, "exclude_seen": "false", "k": "5"}
    assert read_origin(f"{path}:popularity") == {**of_all, "exclude_seen": "true", "k": "10"}
    assert {key.decode(): value.decode() for key, value in pq.read_schema(path).metadata.items()} == of_all
    assert read_ranks(f"{path}:popularity").tolist() == [-1, -1, 1]


def test_whose_each_row_is_stands_by_number_and_never_by_id(tmp_path):
    rows = [result_row(A, **SETTINGS), result_row(B, **SETTINGS)]
    write_results(tmp_path / "x.json", rows, [A, B], users=[4711, 12, 4711])
    path = tmp_path / "x.ranks.parquet"
    table = pq.read_table(path)
    assert table.column_names == ["row", "user", "model", "popularity"]
    assert table.column("user").to_pylist() == [0, 1, 0]
    assert table.schema.field("user").type == pa.int32()
    assert read_ranks(f"{path}:model").tolist() == [0, -1, 3]
    write_results(tmp_path / "y.json", rows[:1], [A], users=[0, 1, 2])
    assert read_ranks(str(tmp_path / "y.ranks.parquet")).tolist() == [0, -1, 3]
    assert read_origin(str(tmp_path / "y.ranks.parquet"))["exclude_seen"] == "false"
    with pytest.raises(InputError, match="users of 2 rows, and 3 were scored; give the user of each"):
        write_results(tmp_path / "z.json", rows, [A, B], users=[0, 1])
    with pytest.raises(InputError, match="system name 'user': taken"):
        check_output(tmp_path / "x.json", ["user"])


def test_table():
    rows = [result_row(A, **SETTINGS), result_row(B, **SETTINGS)]
    assert format_table(rows).splitlines() == [
        "system      recall@5  ndcg@5  users  seconds",
        "model         0.6667  0.5000      3      1.2",
        "popularity    0.3333              3      0.1",
    ]
