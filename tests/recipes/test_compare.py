"""recipes/compare.py: a page, a table and a JSON file from results files; what may not stand together is refused."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from pens_dataset import write_pens

from llmrec.errors import InputError
from llmrec.evaluation.evaluator import Evaluation
from llmrec.evaluation.results import result_row, write_results

main = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "compare.py"))["main"]
ORIGIN = {"dataset": "pens", "split": "test", "protocol": "leave_one_out"}


def results_file(path, users=100, *, origin=None, seen=False, row=None, **systems):
    """A results file of systems whose ranks repeat what is given."""
    found = [Evaluation(name, np.resize(ranks, users), {}, users, 0.0, ks=(10,)) for name, ranks in systems.items()]
    rows = []
    for one in found:
        metrics = {"recall@10": float((one.ranks >= 0).mean()), "ndcg@10": 0.0}
        rows.append(
            {**result_row(one, **{**ORIGIN, **(origin or {})}, exclude_seen=seen, **(row or {})), "metrics": metrics}
        )
    write_results(path, rows, found)
    return str(path)


def test_two_systems_of_a_file(tmp_path, capsys):
    # recall@10: a hits always, b every other user.
    file = results_file(tmp_path / "x.json", a=[3], b=[4, -1])
    page = tmp_path / "compare.html"
    main([f"{file}:a", f"{file}:b", "--metrics", "recall@10", "--output", str(page)])
    (group,) = json.loads((tmp_path / "compare.comparison.json").read_text())["groups"]
    assert {key: group[key] for key in ("dataset", "split", "protocol", "exclude_seen", "users")} == {
        **ORIGIN, "exclude_seen": "false", "users": 100,
    }  # fmt: skip
    assert [score["interval"]["mean"] for score in group["scores"]] == [1.0, 0.5]
    (pair,) = group["pairs"]
    # Standard error sqrt(.25 / 100) = .05: about .4 to .6; 50 users differ, all one way: p = 2 / 2**50.
    assert pair["interval"]["mean"] == 0.5
    assert pair["interval"]["low"] == pytest.approx(0.4, abs=0.015)
    assert pair["interval"]["high"] == pytest.approx(0.6, abs=0.015)
    assert pair["p"] == pytest.approx(2 / 2**50)
    assert (pair["mark"], group["correction"], group["level"]) == ("*", "holm", 0.95)
    printed = capsys.readouterr().out
    assert "| a - b | recall@10 | +0.5000 | [+0.4" in printed
    assert "<0.0001 | * |" in printed
    markdown = (tmp_path / "compare.md").read_text()
    assert "## pens, test rows of leave_one_out, seen items kept, 100 users" in markdown
    assert "recall@10" in page.read_text()


def test_equal_systems_are_not_marked(tmp_path, capsys):
    one, other = results_file(tmp_path / "x.json", a=[3, -1]), results_file(tmp_path / "y.json", b=[-1, 3])
    main([one, other])  # recall@10 and ndcg@10 are what both rows hold
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| a - b")]
    assert [line.split(" | ")[1] for line in lines] == ["recall@10", "ndcg@10"]
    assert all(line.endswith("| 1 | 1 |  |") for line in lines)


def test_seen_items_kept_and_left_out_get_a_table_each(tmp_path, capsys):
    kept = results_file(tmp_path / "x.json", model=[3, -1], knn=[4])
    left = results_file(tmp_path / "y.json", seen=True, model=[2], knn=[1])
    main([kept, left, "--reference", "knn", "--output", str(tmp_path / "c.html")])
    groups = json.loads((tmp_path / "c.comparison.json").read_text())["groups"]
    assert [(group["exclude_seen"], group["reference"], len(group["pairs"])) for group in groups] == [
        ("false", "knn", 2), ("true", "knn", 2),
    ]  # fmt: skip
    page = (tmp_path / "c.html").read_text()
    assert "Scores, seen items kept" in page
    assert "Scores, seen items left out" in page
    assert page.count('id="scores') == len({part.split('"')[0] for part in page.split('id="scores')[1:]}) == 2
    capsys.readouterr()
    with pytest.raises(InputError, match=r"y\.json: exclude_seen 'true' of 'model.*x\.json has 'false'"):
        main([f"{kept}:model", f"{left}:model"])  # one of each: nothing that could be compared


def test_seeds_are_pooled(tmp_path, capsys):
    files = [results_file(tmp_path / f"s{seed}.json", row={"seed": seed}, model=ranks) for seed, ranks in
             ((0, [3, -1]), (1, [3, 3, 3, -1]))]  # fmt: skip
    main([*files, "--metrics", "recall@10"])
    # Means of .5 and .75.
    assert "| model (2 seeds) | 0.6250 [" in capsys.readouterr().out


def test_leaks_and_part_of_the_rows_are_said(tmp_path):
    row = {
        "leaks": ["the SIDs were fitted elsewhere"],
        "train": "recovered",
        "score": "full",
        "num_beams": 20,
        "rows": 200,
    }
    file = results_file(tmp_path / "x.json", a=[3], row=row)
    main([file, "--output", str(tmp_path / "c.html")])
    for text in ((tmp_path / "c.html").read_text(), (tmp_path / "c.md").read_text()):
        assert "LEAK: the SIDs were fitted elsewhere" in text
        assert "scored on 100 of the split&#x27;s 200 rows only" in text.replace("split's", "split&#x27;s")
        assert "score full, 20 beams" in text
    assert json.loads((tmp_path / "c.comparison.json").read_text())["groups"][0]["notes"]["a"][0].startswith("LEAK")


@pytest.mark.parametrize(("key", "value"), [("dataset", "toys"), ("split", "valid"), ("protocol", "temporal"),
                                            ("catalog", "f00")])  # fmt: skip
def test_files_of_other_rows_are_refused_though_as_many(tmp_path, key, value):
    first = results_file(tmp_path / "x.json", origin={"catalog": "abc"}, a=[3])
    other = results_file(tmp_path / "y.json", origin={"catalog": "abc", key: value}, b=[3])
    with pytest.raises(InputError, match=rf"y\.json: {key} {value!r} of 'b', and .*x\.json has"):
        main([first, other])


def test_what_is_wrong_is_one_clear_line(tmp_path):
    one, other = results_file(tmp_path / "x.json", a=[3]), results_file(tmp_path / "y.json", users=99, b=[3])
    for arguments, message in (
        ([one, other], "'b'"),
        ([one, "--metrics", "hit@10"], "metric 'hit@10'"),
        ([one, "--metrics", "recall@20"], "needs lists of 20 items"),
        ([one, "--reference", "c"], "--reference 'c': no such system; choose one of a"),
        ([one, "--output", str(tmp_path / "x.json")], "name the page"),
        ([one, "--output", str(tmp_path / "page.txt")], "name the page, such as"),
        ([one, "--bundles", f"m={tmp_path / 'none'}", "--output", str(tmp_path / "c.html")], "bundle 'm'"),
        ([one, "--dataset", str(tmp_path / "none")], "no such dataset folder"),
        ([], "no RESULTS: name at least one FILE.json"),
        ([one, "--samples", "0"], "--samples 0: at least 1"),
        ([one, "--examples", "-1"], "--examples -1: at least 0"),
        ([one, "--seed", "-1"], "--seed -1: at least 0"),
        ([one, "--level", "1"], "--level 1.0: between 0 and 1"),
        (["--a", "x:1", "--b", "y:2", "--metric", "ndcg@10"], "write recipes/compare.py x:1 y:2 --metrics ndcg@10"),
    ):
        with pytest.raises(InputError) as raised:
            main(arguments)
        assert message in str(raised.value), arguments
    assert not (tmp_path / "c.html").exists()
    beside = tmp_path / "c.comparison.json"
    beside.write_text((tmp_path / "x.json").read_text())
    (tmp_path / "c.comparison.ranks.parquet").write_bytes((tmp_path / "x.ranks.parquet").read_bytes())
    with pytest.raises(InputError, match=r"c\.comparison\.json is among the RESULTS and would be lost"):
        main([str(beside), "--output", str(tmp_path / "c.html")])


def test_no_examples_when_none_are_asked_for(tmp_path):
    file = results_file(tmp_path / "x.json", a=[3])
    flags = ["--dataset", str(write_pens(tmp_path / "pens")), "--output", str(tmp_path / "c.html")]
    main([file, *flags, "--examples", "0", "--samples", "20"])
    assert "Worked examples: --examples 0 asks for none" in (tmp_path / "c.html").read_text()


def test_a_table_is_checked(tmp_path, capsys):
    # One hit in three from place 6 to 10 adds at most .3 / log2(7) = .107 to NDCG@5.
    table = tmp_path / "t.csv"
    table.write_text("name,recall@5,ndcg@5,recall@10,ndcg@10\ngood,.200,.100,.500,.200\nwrong,.200,.100,.500,.300\n")
    with pytest.raises(SystemExit) as ended:
        main(["--check", str(table)])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "wrong: ndcg@10 0.300 can be at most 0.20" in printed
    assert "good" not in printed
    table.write_text("name,recall@5,ndcg@5,recall@10,ndcg@10\ngood,.200,.100,.500,.200\n")
    with pytest.raises(SystemExit) as ended:
        main(["--check", str(table)])
    assert not ended.value.code
    assert "every row is consistent" in capsys.readouterr().out
