"""Runs are read back with all that their files say, and those that were not scored alike are refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.errors import InputError
from llmrec.evaluation.comparable import by_exclusion, check_comparable, group_seeds, users_of, without_copies
from llmrec.evaluation.evaluator import Evaluation
from llmrec.evaluation.results import result_row, write_results
from llmrec.evaluation.runs import load_runs

WHAT = {"dataset": "toys", "split": "test", "protocol": "leave_one_out", "exclude_seen": False}


def write(path, *, metadata=(), row=None, users=None, **systems):
    """Write a results file of systems, and put ``metadata`` into the schema of its ranks."""
    evaluations, rows = [], []
    for name, ranks in systems.items():
        ranks = np.resize(ranks, users or len(ranks))
        evaluations.append(Evaluation(name, ranks, {"recall@10": 0.0, "ndcg@10": 0.0}, len(ranks), 0.0))
        rows.append(result_row(evaluations[-1], **{**WHAT, **(row or {})}))
    write_results(path, rows, evaluations)
    ranks_file = path.with_name(path.stem + ".ranks.parquet")
    table = pq.read_table(ranks_file)
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **dict(metadata)}), ranks_file)
    return str(path)


def test_all_systems_of_a_file_or_one(tmp_path):
    file = write(tmp_path / "x.json", a=[0, -1, 3], b=[-1, 2, 1], metadata={"catalog": "abc", "k": "50", "rows": "3"})
    runs = load_runs([file])
    assert [run.name for run in runs] == ["a", "b"]
    assert runs[0].ranks.tolist() == [0, -1, 3]
    assert runs[0].ranks.dtype == np.int64
    assert (runs[0].k, runs[0].source, runs[0].system) == (50, tmp_path / "x.json", "a")
    assert runs[0].row["metrics"] == {"recall@10": 0.0, "ndcg@10": 0.0}
    assert "commit" in runs[0].made_by
    facts = ("dataset", "split", "protocol", "catalog", "exclude_seen", "rows")
    assert [runs[0].fact(key) for key in facts] == ["toys", "test", "leave_one_out", "abc", "false", "3"]
    (run,) = load_runs([f"{file}:b"])
    assert (run.name, run.ranks.tolist()) == ("b", [-1, 2, 1])
    # recall@2: only the rank 1 of the last user is below 2.
    assert run.values("recall@2").tolist() == [0, 0, 1]


def test_a_ranks_file_means_the_results_beside_it_and_is_enough_without(tmp_path):
    file = write(tmp_path / "x.json", a=[0, -1], b=[1, 1])
    (run,) = load_runs([f"{tmp_path / 'x.ranks.parquet'}:b"])
    assert (run.source, run.row["users"]) == (tmp_path / "x.json", 2)
    assert len(load_runs([file, f"{tmp_path / 'x.ranks.parquet'}:b"])) == 2
    (tmp_path / "x.json").unlink()
    (run,) = load_runs([f"{tmp_path / 'x.ranks.parquet'}:b"])
    assert (run.source, run.fact("dataset"), run.k) == (tmp_path / "x.ranks.parquet", "toys", None)


def test_a_column_may_say_its_own(tmp_path):
    evaluations = [
        Evaluation("a", np.array([0, 9]), {"recall@10": 1.0}, 2, 0.0, ks=(5, 10)),
        Evaluation("a (seen excluded)", np.array([0, 19]), {"recall@20": 1.0}, 2, 0.0, ks=(20,)),
    ]
    rows = [
        result_row(evaluation, **{**WHAT, "exclude_seen": number == 1}, catalog="abc", rows=4)
        for number, evaluation in enumerate(evaluations)
    ]
    write_results(tmp_path / "x.json", rows, evaluations)
    for removed in (False, True):
        if removed:
            (tmp_path / "x.json").unlink()
        runs = load_runs([str(tmp_path / "x.ranks.parquet")])
        assert [(run.k, run.fact("exclude_seen")) for run in runs] == [(10, "false"), (20, "true")]
        assert {(run.fact("catalog"), run.fact("rows")) for run in runs} == {("abc", "4")}


def test_names_may_hold_colons(tmp_path):
    file = write(tmp_path / "x.json", **{"small: office": [0, 1], "b": [0, 1]})
    assert [run.name for run in load_runs([f"{file}:small: office"])] == ["small: office"]


def test_equal_names_are_told_apart_by_their_files(tmp_path):
    files = [write(tmp_path / name, a=[0], b=[1]) for name in ("s0/x.json", "s1/x.json", "s1/y.json")]
    names = [run.name for run in load_runs([files[0], f"{files[1]}:a", f"{files[2]}:a"])]
    assert names == ["a (s0/x)", "b", "a (s1/x)", "a (y)"]
    assert [run.system for run in load_runs([f"{files[1]}:a", f"{files[2]}:a"])] == ["a", "a"]


def test_the_largest_cut_of_a_file_that_does_not_tell_is_its_length_of_lists(tmp_path):
    (run,) = load_runs([write(tmp_path / "x.json", a=[0, 9])])
    assert run.k == 10
    with pytest.raises(InputError, match=r"x\.json: ndcg@20 of 'a' needs lists of 20 items and they had 10; choose"):
        run.values("ndcg@20")
    with pytest.raises(InputError, match="metric 'hits@10'"):
        run.values("hits@10")


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("dataset", "pens", "compare systems on one dataset"),
        ("split", "valid", "one --split"),
        ("protocol", "temporal", "one --protocol"),
        ("exclude_seen", True, "the same --exclude_seen"),
    ],
)
def test_runs_that_were_not_scored_alike_are_refused(tmp_path, key, value, remedy):
    one, other = write(tmp_path / "x.json", a=[0, 1]), write(tmp_path / "y.json", b=[0, 1], row={key: value})
    said, first = (str(entry).lower() if isinstance(entry, bool) else entry for entry in (value, WHAT[key]))
    with pytest.raises(
        InputError, match=rf"y\.json: {key} '{said}' of 'b', and .*x\.json has '{first}' of 'a'; .*{remedy}"
    ):
        check_comparable(load_runs([one, other]))
    check_comparable(load_runs([one]))


def test_another_catalogue_and_another_number_of_rows_are_refused_where_known(tmp_path):
    one = write(tmp_path / "x.json", a=[0, 1], metadata={"catalog": "abc"})
    other = write(tmp_path / "y.json", b=[0, 1], metadata={"catalog": "xyz"})
    old = write(tmp_path / "z.json", c=[0, 1])
    with pytest.raises(
        InputError, match=r"y\.json: catalog 'xyz' of 'b', and .*x\.json has 'abc' .*one dataset folder"
    ):
        check_comparable(load_runs([one, old, other]))
    check_comparable(load_runs([one, old]))
    longer = write(tmp_path / "l.json", d=[0, 1, 2])
    with pytest.raises(InputError, match=r"l\.json: rows '3' of 'd', and .*x\.json has '2' of 'a'; .* same version"):
        check_comparable(load_runs([one, longer]))


def test_a_run_with_missing_users_is_named(tmp_path):
    whole = write(tmp_path / "x.json", a=[0, 1, 2], metadata={"rows": "3"})
    part = write(tmp_path / "y.json", b=[0, 1], metadata={"rows": "3"})
    with pytest.raises(InputError, match=r"y\.json: 'b' lacks 1 of the split's 3 users; .*without --limit_users"):
        check_comparable(load_runs([whole, part]))
    check_comparable(load_runs([part, part]), allow_partial=True)
    with pytest.raises(InputError, match=r"y\.json: 2 users of 'b', and .*x\.json has 3 of 'a'"):
        check_comparable(load_runs([whole, part]), allow_partial=True)


def test_ranks_that_lack_users_or_belong_elsewhere_are_refused(tmp_path):
    file, ranks = write(tmp_path / "x.json", a=[0, 1, 2]), tmp_path / "x.ranks.parquet"
    pq.write_table(pa.table({"row": [0, 1, 2], "a": pa.array([0, None, 2], pa.int32())}), ranks)
    with pytest.raises(InputError, match="'a' lacks 1 of 3 users, the first in row 1; evaluate it again"):
        load_runs([file])
    pq.write_table(pa.table({"row": [0, 2, 3], "a": pa.array([0, 1, 2], pa.int32())}), ranks)
    with pytest.raises(InputError, match="its rows are not 0 to 2, row 1 of the split is not there"):
        load_runs([file])
    pq.write_table(pa.table({"row": [0, 2, 1], "a": pa.array([0, 1, 2], pa.int32())}), ranks)
    with pytest.raises(InputError, match="rows are not in order"):
        load_runs([file])
    pq.write_table(pa.table({"row": [0, 1], "a": pa.array([0, 1], pa.int32())}), ranks)
    with pytest.raises(
        InputError, match=r"2 ranks of 'a', and the results file says 3 users; .* different evaluations"
    ):
        load_runs([file])
    pq.write_table(pa.table({"row": [0, 1, 2], "a": [0.5, 1.0, 2.0]}), ranks)
    with pytest.raises(InputError, match="ranks of 'a' are double, not whole numbers"):
        load_runs([file])
    pq.write_table(pa.table({"row": [0, 1, 2], "b": [0, 1, 2]}), ranks)
    with pytest.raises(InputError, match=r"no ranks of 'a', which .*x\.json holds"):
        load_runs([file])
    for key in ("k", "rows"):
        write(tmp_path / "x.json", a=[0, 1, 2], metadata={key: "many"})
        with pytest.raises(InputError, match=f"{key} 'many' in its schema is no number"):
            load_runs([file])


def test_unreadable_and_unknown_sources_are_refused(tmp_path):
    file, ranks = write(tmp_path / "x.json", a=[0]), tmp_path / "x.ranks.parquet"
    with pytest.raises(InputError, match="no results files given"):
        load_runs([])
    with pytest.raises(InputError, match=r"none\.json:a: no such file; give FILE\.json"):
        load_runs([str(tmp_path / "none.json:a")])
    with pytest.raises(InputError, match=r"x\.json: no system 'b'; it holds a"):
        load_runs([f"{file}:b"])
    ranks.write_text("no parquet")
    with pytest.raises(InputError, match="not a readable ranks file"):
        load_runs([file])
    ranks.unlink()
    with pytest.raises(InputError, match=r"its ranks are missing, .*x\.ranks\.parquet; evaluate again"):
        load_runs([file])
    (tmp_path / "y.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(InputError, match="no list 'results'"):
        load_runs([str(tmp_path / "y.json")])


def test_lists_with_and_without_seen_items_stand_apart(tmp_path):
    files = [write(tmp_path / f"{name}.json", **{name: [0]}, row={"exclude_seen": name == "b"}) for name in "abc"]
    found = by_exclusion(load_runs(files))
    assert {key: [run.name for run in runs] for key, runs in found.items()} == {"false": ["a", "c"], "true": ["b"]}


def test_copies_of_a_baseline_are_taken_once(tmp_path):
    files = [write(tmp_path / f"{n}.json", popularity=[0, 4], **{f"model{n}": [n, 1]}) for n in range(2)]
    changed = write(tmp_path / "2.json", popularity=[0, 5])
    assert [run.name for run in without_copies(load_runs(files))] == ["popularity", "model0", "model1"]
    kept = [run.name for run in without_copies(load_runs([*files, changed]))]
    assert kept == ["popularity (0)", "model0", "model1", "popularity (2)"]


def test_seeds_of_one_configuration_are_grouped(tmp_path):
    def one(number, **row):
        return write(tmp_path / f"{number}.json", sasrec=[number, 1], row=row)

    settings = {"dim": 64, "dropout": 0.2}
    files = [
        one(0, seed=0, settings={**settings, "seed": 0}),
        one(1, seed=1, settings={**settings, "seed": 1}),
        one(2, seed=2, settings={**settings, "dim": 128, "seed": 2}),
        one(3, seed=1, settings={**settings, "seed": 1}),
        one(4, seed=3, exclude_seen=True, settings={**settings, "seed": 3}),
        one(5),
        one(6),
    ]
    groups = [[run.source.stem for run in group] for group in group_seeds(load_runs(files))]
    assert groups == [["0", "1"], ["2"], ["3"], ["4"], ["5"], ["6"]]


def test_models_of_one_name_are_seeds_only_where_they_were_trained_alike(tmp_path):
    def one(number, **row):
        return write(
            tmp_path / f"{number}.json", model=[number, 1], row={"seed": number, "model": f"runs/{number}", **row}
        )

    sft, grpo = {"trained_as": "aa"}, {"trained_as": "bb"}
    files = [one(0, **sft), one(1, **sft), one(2, **grpo), one(3), one(4), one(5, **grpo), one(6, **sft, num_beams=5)]
    groups = [[run.source.stem for run in group] for group in group_seeds(load_runs(files))]
    assert groups == [["0", "1"], ["2", "5"], ["3"], ["4"], ["6"]]


def test_fusions_of_seeds_are_pooled_whatever_weights_each_chose(tmp_path):
    def one(number, *, trained_as="aa", **fused):
        said = {
            "method": "rrf",
            "parts": ["model", "ease"],
            "weights": {"model": number},
            "chosen_on": "valid",
            **fused,
        }
        row = {"seed": number, "fused": said, "trained_as": trained_as}
        return write(tmp_path / f"{number}.json", both=[number, 1], row=row)

    files = [one(0), one(1), one(2, method="beam_fusion"), one(3, chosen_on=None), one(4, trained_as=None), one(5)]
    groups = [[run.source.stem for run in group] for group in group_seeds(load_runs(files))]
    assert groups == [["0", "1", "5"], ["2"], ["3"], ["4"]]


def test_whose_rows_they_are_is_read_back(tmp_path):
    found = Evaluation("a", np.array([0, -1, 3]), {"recall@10": 0.0}, 3, 0.0)
    files = []
    for name, users in (("x", [7, 5, 7]), ("y", [7, 5, 5]), ("z", None)):
        write_results(tmp_path / f"{name}.json", [result_row(found, **WHAT)], [found], users=users)
        files.append(str(tmp_path / f"{name}.json"))
    x, y, z = load_runs(files)
    assert (x.users.tolist(), z.users) == ([0, 1, 0], None)
    assert users_of([z, y]) is y.users
    check_comparable([x, z])
    with pytest.raises(InputError, match=r"y\.json: rows of 'a \(y\)' are of other users than those of 'a \(x\)'"):
        check_comparable([x, y, z])
    table = pq.read_table(tmp_path / "x.ranks.parquet")
    pq.write_table(table.set_column(1, "user", pa.array([0.5, 1.0, 0.5])), tmp_path / "x.ranks.parquet")
    with pytest.raises(InputError, match="its column 'user' is no number in every row; evaluate again"):
        load_runs(files[:1])
