"""Tables whose numbers contradict one another are found, and no table that came from ranks ever is."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.errors import InputError
from llmrec.evaluation.consistency import check_file, check_table, format_findings
from llmrec.evaluation.metrics import per_user

RESULTS = Path(__file__).parents[2] / "recipes" / "results"
COVERAGES = RESULTS / "evaluation" / "intervals.json"  # shares of intervals, by metric


def test_a_cell_above_its_bound_is_found():
    # The cell that broke in the published Office table is NDCG@10 .1255, at most .1192; the cells beside it are made
    # up so that this bound comes out. Between places 6 and 10 a hit gains at most 1 / log2(7) = .35621:
    # .1150 + .00005 + (.1515 - .1400 + .0001) x .35621 = .11918, and .00005 for its own rounding: .11923.
    row = {"name": "S-DPO", "HR@5": ".1400", "NDCG@5": ".1150", "HR@10": ".1515", "NDCG@10": ".1255"}
    (finding,) = check_table([row])
    assert finding.metric == "ndcg@10"
    assert finding.high == pytest.approx(0.11923, abs=5e-6)
    assert finding.message == (
        "S-DPO: ndcg@10 0.1255 can be at most 0.1192, for ndcg@5 0.115, recall@5 0.14, recall@10 0.1515"
    )
    assert check_table([{**row, "NDCG@10": ".1192"}]) == []
    assert len(check_table([{**row, "NDCG@10": ".1193"}])) == 1


def test_a_cell_below_its_bound_is_found():
    # A hit among places 6 to 10 gains at least 1 / log2(11) = .28906:
    # .1150 - .00005 + (.0115 - .0001) x .28906 = .11825, less .00005: .11820, so .1182 may be printed and .1181 not.
    row = {"model": "x", "R@5": "0.1400", "N@5": "0.1150", "R@10": "0.1515", "N@10": "0.1181"}
    (finding,) = check_table([row])
    assert finding.message.startswith("x: ndcg@10 0.1181 must be at least 0.1182, for ndcg@5")
    assert check_table([{**row, "N@10": "0.1182"}]) == []


def test_a_single_cut_has_bounds_too():
    # NDCG@10 lies between HR@10 / log2(11) = .0289 and HR@10 = .1, half a unit of the third digit on each.
    assert check_table([{"hr@10": "0.100", "ndcg@10": "0.101"}]) == []
    assert check_table([{"hr@10": "0.100", "ndcg@10": "0.102"}])[0].message.startswith("row 0: ndcg@10 0.102 can be")
    assert check_table([{"hr@10": "0.100", "ndcg@10": "0.029"}]) == []
    assert check_table([{"hr@10": "0.100", "ndcg@10": "0.027"}])[0].message.endswith("for recall@10 0.1")
    # MRR between a tenth of it and all of it.
    assert check_table([{"hr@10": "0.100", "mrr@10": "0.0100", "map@10": "0.100"}]) == []
    assert [finding.metric for finding in check_table([{"hr@10": ".1000", "mrr@10": ".0098", "map@10": ".1002"}])] == [
        "map@10", "mrr@10",
    ]  # fmt: skip


def test_no_metric_falls_as_the_cut_grows():
    found = check_table([{"name": "x", "hr@5": "0.12", "hr@10": "0.10", "ndcg@5": "0.08", "ndcg@20": "0.06"}])
    assert [finding.message for finding in found] == [
        "x: ndcg@20 0.06 must be at least 0.07, for ndcg@5 0.08",
        "x: recall@10 0.10 must be at least 0.11, for recall@5 0.12",
    ]
    assert check_table([{"hr@5": "0.12", "hr@10": "0.11"}]) == []  # .115 and .115 before rounding


def test_rows_that_hold_pass():
    # MiniOneRec's own rows of its Table 1, Industrial and Office.
    columns = ("HR@3", "NDCG@3", "HR@5", "NDCG@5", "HR@10", "NDCG@10")
    rows = [
        (".1143", ".1011", ".1321", ".1084", ".1586", ".1167"),
        (".1217", ".1088", ".1420", ".1172", ".1634", ".1242"),
    ]
    assert check_table([dict(zip(columns, row, strict=True)) for row in rows]) == []


def test_per_cent_marks_and_gaps():
    row = {"Method": "y", "HR@5": "14.00%", "NDCG@5": "**11.50**", "HR@10": "15.15", "NDCG@10": "12.55", "year": "x"}
    assert check_table([row])[0].message.startswith("y: ndcg@10 12.55 can be at most 11.92")
    assert check_table([{**row, "NDCG@10": "-", "HR@10": ""}]) == []


def test_per_cent_beside_shares(tmp_path):
    # 12.1 % of the rows are hit, so ndcg can be .121 at most, .1215 before rounding, and at least .1205 / log2(11).
    (tmp_path / "t.csv").write_text("model,HR@10,ndcg@10\na,12.1%,0.07\nb,9%,.05\nc,12.1%,0.13\n")
    [found] = check_file(tmp_path / "t.csv")
    assert found.message.startswith("c: ndcg@10 0.13 can be at most 0.12, for recall@10 0.121")
    # Bare numbers above 1 are per cent themselves, and so are those of rows where none is.
    mixed = [{"HR@10": "12.1%", "ndcg@10": "7.0"}, {"HR@10": "0.9%", "ndcg@10": "0.5"}]
    assert check_table(mixed) == []
    [found] = check_table([*mixed, {"name": "d", "HR@10": "0.9%", "ndcg@10": "0.99"}])
    assert found.message.startswith("d: ndcg@10 0.99 can be at most 0.95")


@given(
    st.lists(st.integers(-1, 30), min_size=1, max_size=80),
    st.sets(st.integers(1, 25), min_size=1, max_size=5),
    st.sampled_from([2, 3, 4, None]),
)
@settings(deadline=None)
def test_what_comes_from_ranks_is_never_found(ranks, cuts, digits):
    means = {
        f"{metric}@{k}": float(per_user(f"{metric}@{k}", np.array(ranks)).mean())
        for metric in ("recall", "ndcg", "mrr", "map")
        for k in cuts
    }
    if digits is None:
        assert check_table([means], exact=True) == []
    else:
        assert check_table([{key: f"{value:.{digits}f}" for key, value in means.items()}]) == []


def published(value):
    """Every dict of metrics in a results file, at any depth; standard errors are none."""
    if isinstance(value, dict):
        if any(str(key).startswith("recall@") for key in value):
            yield {key: number for key, number in value.items() if isinstance(number, int | float)}
        for key, part in value.items():
            if key != "standard_errors":
                yield from published(part)
    elif isinstance(value, list):
        for part in value:
            yield from published(part)


@pytest.mark.parametrize(
    "file", sorted({*RESULTS.rglob("*.json")} - {COVERAGES}), ids=lambda file: str(file.relative_to(RESULTS))
)
def test_our_own_results_hold(file):
    rows = [row for row in published(json.loads(file.read_text(encoding="utf-8"))) if row]
    assert not rows or check_table(rows, exact=True) == []


def test_files(tmp_path):
    file = tmp_path / "table.csv"
    head = "name,HR@5,NDCG@5,HR@10,NDCG@10\n"
    file.write_text(f'\ufeff{head}good,.14,.115,.1515,.119\n"bad, too",.1400,.1150,.1515,.1255\nshort,.1\n')
    found = check_file(file)
    assert [finding.name for finding in found] == ["bad, too"]
    assert format_findings(found) == found[0].message
    assert format_findings([]).startswith("every row is consistent")
    (tmp_path / "table.tsv").write_text(file.read_text().replace('"bad, too"', "bad").replace(",", "\t"))
    assert [finding.name for finding in check_file(tmp_path / "table.tsv")] == ["bad"]
    broken = {"recall@5": 0.14, "ndcg@5": 0.115, "recall@10": 0.1515, "ndcg@10": 0.1255}
    (tmp_path / "x.json").write_text(json.dumps({"results": [{"name": "z", "dataset": "toys", "metrics": broken}]}))
    assert check_file(tmp_path / "x.json")[0].high == pytest.approx(0.115 + 0.0115 / math.log2(7))
    (tmp_path / "y.json").write_text(json.dumps([{"name": "z", **broken}]))
    # Half a unit of the third digit on NDCG@5, of the second on HR@5 (.14), of the fourth on HR@10.
    assert check_file(tmp_path / "y.json")[0].high == pytest.approx(
        0.1155 + (0.0115 + 0.005 + 0.00005) / math.log2(7) + 0.00005
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,HR@5\na,high\n", r"t\.csv: 'HR@5' of 'a' is 'high'; write a number"),
        ("name,HR@5\na,-0.1\n", r"t\.csv: 'HR@5' of 'a' is '-0\.1'"),
        (
            "name,HR@5,recall@5\na,0.1,0.1\n",
            r"t\.csv: 'a' has two columns of recall@5, the second 'recall@5'; keep one",
        ),
        ("name,hits\na,0.1\n", r"t\.csv: table of 1 rows: no cell under a metric; name columns recall@5"),
        ("name,HR@5\na,0.1,0.2\n", r"t\.csv: line 2: more cells than the head has"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        check_file(tmp_path / "t.csv")


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: no such file; give a CSV"):
        check_file(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"none\.json: no such file; expected the table"):
        check_file(tmp_path / "none.json")
    (tmp_path / "t.csv").write_bytes(b"name,HR@5\n\xff\xfe,0.1\n")
    with pytest.raises(InputError, match=r"t\.csv: not a readable table"):
        check_file(tmp_path / "t.csv")
    (tmp_path / "t.json").write_text('{"rows": 3}')
    with pytest.raises(InputError, match=r"t\.json: no list of rows, nor a results file"):
        check_file(tmp_path / "t.json")
