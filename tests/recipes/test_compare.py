"""recipes/compare.py prints and writes the paired interval."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from llmrec.errors import InputError
from llmrec.evaluation.evaluator import Evaluation
from llmrec.evaluation.results import write_results

main = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "compare.py"))["main"]


def ranks_file(path, users=100, **systems):
    write_results(
        path, [], [Evaluation(name, np.resize(ranks, users), {}, users, 0.0) for name, ranks in systems.items()]
    )
    return str(path.with_suffix(".ranks.parquet"))


def test_two_systems_of_a_file(tmp_path, capsys):
    # recall@10: a hits always, b every other user.
    file = ranks_file(tmp_path / "x.json", a=[3], b=[4, -1])
    out = tmp_path / "interval.json"
    main(["--a", f"{file}:a", "--b", f"{file}:b", "--metric", "recall@10", "--output", str(out)])
    value = json.loads(out.read_text())
    assert (value["mean_a"], value["mean_b"], value["mean"]) == (1.0, 0.5, 0.5)
    # Standard error sqrt(.25 / 100) = .05: about .4 to .6.
    assert value["low"] == pytest.approx(0.4, abs=0.015)
    assert value["high"] == pytest.approx(0.6, abs=0.015)
    assert (value["metric"], value["users"], value["samples"], value["seed"], value["level"]) == (
        "recall@10", 100, 10_000, 0, 0.95,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "a - b +0.5000, 95 % interval +0.4" in printed
    assert "excludes zero" in printed


def test_equal_systems_include_zero(tmp_path, capsys):
    one, other = ranks_file(tmp_path / "x.json", a=[3, -1]), ranks_file(tmp_path / "y.json", b=[-1, 3])
    main(["--a", one, "--b", other])
    assert "includes zero" in capsys.readouterr().out


def test_other_rows_and_other_metrics_are_refused(tmp_path):
    one, other = ranks_file(tmp_path / "x.json", a=[3]), ranks_file(tmp_path / "y.json", users=99, b=[3])
    with pytest.raises(InputError, match="100 users against 99"):
        main(["--a", one, "--b", other])
    with pytest.raises(InputError, match="metric 'hit@10'"):
        main(["--a", one, "--b", one, "--metric", "hit@10"])


@pytest.mark.parametrize(("key", "value"), [("dataset", "toys"), ("split", "valid"), ("protocol", "temporal")])
def test_files_of_other_rows_are_refused_though_as_many(tmp_path, key, value):
    what = {"dataset": "pens", "split": "test", "protocol": "leave_one_out"}
    files = []
    for name, origin in (("x", what), ("y", {**what, key: value}), ("z", what)):
        evaluation = Evaluation(name, np.array([0, 3, -1]), {}, 3, 0.0)
        write_results(tmp_path / f"{name}.json", [{"name": name, **origin}], [evaluation])
        files.append(str(tmp_path / f"{name}.ranks.parquet"))
    with pytest.raises(InputError, match=rf"parquet:y: {key} {value!r}, and .*x\.ranks.*is of {what[key]!r}"):
        main(["--a", files[0], "--b", f"{files[1]}:y"])
    main(["--a", files[0], "--b", files[2]])
    main(["--a", files[1], "--b", ranks_file(tmp_path / "old.json", users=3, a=[1])])  # one that does not say
