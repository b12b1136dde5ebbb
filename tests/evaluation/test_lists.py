"""Lists on disk, beside the ranks."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.errors import InputError
from llmrec.evaluation.evaluator import Evaluation
from llmrec.evaluation.lists import lists_path, read_lists
from llmrec.evaluation.results import read_origin, result_row, write_results

LISTS = np.array([[4, 2, 0], [1, -1, -1], [3, 0, 1]], np.int32)
A = Evaluation("model", np.array([0, -1, 2]), {}, 3, 1.0, ks=(1, 3), items=5, recommended=LISTS)
B = replace(A, name="popularity", recommended=LISTS[::-1])
SETTINGS = {"dataset": "toys", "split": "test", "protocol": "leave_one_out", "catalog": "c" * 8, "rows": 7}


def write(path, *evaluations):
    rows = [result_row(evaluation, **SETTINGS, exclude_seen=False) for evaluation in evaluations]
    write_results(path, rows, evaluations)
    return lists_path(path)


def test_lists_stand_beside_the_ranks_and_say_the_same_of_themselves(tmp_path):
    path = write(tmp_path / "x.json", A, B)
    assert path == tmp_path / "x.lists.parquet"
    assert read_lists(f"{path}:model").tolist() == LISTS.tolist()
    assert read_lists(f"{path}:popularity").tolist() == LISTS[::-1].tolist()
    table = pq.read_table(path)
    assert table.column_names == ["row", "model", "popularity"]
    assert table.column("row").to_pylist() == [0, 1, 2]
    assert table.schema.field("model").type.value_type == pa.int32()
    assert read_origin(f"{path}:model") == read_origin(f"{tmp_path / 'x.ranks.parquet'}:model")
    assert read_origin(f"{path}:model")["k"] == "3"


def test_systems_without_lists_are_left_out_and_old_lists_do_not_outlive_their_ranks(tmp_path):
    path = write(tmp_path / "x.json", A, replace(B, recommended=None))
    assert read_lists(str(path)).tolist() == LISTS.tolist()
    write(tmp_path / "x.json", replace(A, recommended=None))
    assert not path.exists()


def test_shorter_lists_end_in_empty_places(tmp_path):
    ragged = pa.array([[4, 2, 0], [], [3]], pa.list_(pa.int32()))
    pq.write_table(pa.table({"row": [0, 1, 2], "other": ragged}), tmp_path / "x.lists.parquet")
    assert read_lists(str(tmp_path / "x.lists.parquet")).tolist() == [[4, 2, 0], [-1, -1, -1], [3, -1, -1]]


def test_what_is_no_file_of_lists_is_refused(tmp_path):
    path = write(tmp_path / "x.json", A, B)
    with pytest.raises(InputError, match=r"several systems; write .*x\.lists\.parquet:NAME with one of model, popul"):
        read_lists(str(path))
    with pytest.raises(InputError, match=r"no such file; give FILE\.lists\.parquet or"):
        read_lists(str(tmp_path / "none.lists.parquet"))
    with pytest.raises(InputError, match=r"column 'model' is int32, expected list<int32>"):
        read_lists(f"{tmp_path / 'x.ranks.parquet'}:model")
    (tmp_path / "bad.lists.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="not a readable lists file"):
        read_lists(str(tmp_path / "bad.lists.parquet"))
