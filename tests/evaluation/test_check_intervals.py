"""tests/benchmarks/check_intervals.py in small, and the figures that it wrote at full length."""

import json
from pathlib import Path

import pytest
from benchmarks import check_intervals as check

from llmrec.evaluation.intervals import FEW_HITS

MEASURED = Path(__file__).parents[2] / "recipes" / "results" / "evaluation" / "intervals.json"


def test_the_populations_have_the_hit_rates_they_are_named_by():
    law = check.joint_law(0.1, 0.09)
    assert law.sum() == pytest.approx(1)
    assert (law >= 0).all()
    assert law.sum(axis=1) == pytest.approx(check.rank_law(0.1))
    assert law.sum(axis=0) == pytest.approx(check.rank_law(0.09))
    assert check.rank_law(0.1)[-1] == pytest.approx(0.9)
    # Rank 1 is as likely as ranks 2 and 3 with half and a third of it: 1 / (1 + 1/2 + ... + 1/10) = .3414 of all hits.
    assert check.rank_law(0.1)[0] == pytest.approx(0.1 * 0.3414, abs=1e-5)


def test_a_small_check_writes_its_shares_and_goes_on_where_it_was_cut_off(tmp_path, capsys):
    settings = ["--repetitions", "8", "--samples", "100", "--rates", "0.1", "--users", "200"]
    out = tmp_path / "intervals.json"
    check.main([*settings, "--out", str(out)])
    found = json.loads(out.read_text())
    cells = 3 + len(check.CROWDS) * len(check.CROWD_RATES) + len(check.SEEDS) * len(check.TIMES)
    assert len(found["rows"]) == cells
    assert all(0 <= share <= 1 for row in found["rows"].values() for share in row.values())
    assert found["settings"] == {"repetitions": 8, "samples": 100, "seed": 0}
    found["rows"]["tests, hit rate 0.1, 200 users"] = {"recall@10": 0.125}
    out.write_text(json.dumps(found))
    capsys.readouterr()
    check.main([*settings, "--out", str(out)])
    assert "tests, hit rate 0.1, 200 users: recall@10 0.1250" in capsys.readouterr().out


def measured(kind):
    rows = json.loads(MEASURED.read_text(encoding="utf-8"))["rows"]
    return {name: row for name, row in rows.items() if name.startswith(kind)}


def test_what_tables_show_covers_the_truth_within_a_point_and_a_half():
    means, differences = measured("means"), measured("differences")
    assert len(means) == len(differences) == len(check.RATES) * len(check.USERS)
    for name, row in means.items():
        for metric in check.METRICS:
            assert row[f"{metric} wilson"] == pytest.approx(0.95, abs=check.TOLERANCE), (name, metric)
    for name, row in differences.items():
        for metric in check.METRICS:
            assert row[metric] == pytest.approx(0.95, abs=check.TOLERANCE), (name, metric)
    assert min(check.RATES) * min(check.USERS) >= FEW_HITS


def test_equal_systems_are_not_told_apart_more_often_than_stated():
    # .05 has standard error .0049 with 2,000 repetitions; the exact test of recall is below it where few users differ.
    for name, row in measured("tests").items():
        assert all(share <= 0.05 + check.TOLERANCE for share in row.values()), name


def test_pooled_seeds_cover_at_least_what_is_stated_however_much_trainings_differ():
    found = measured("seeds")
    assert len(found) == len(check.SEEDS) * len(check.TIMES)
    for name, row in found.items():
        assert row["pool_seeds"] >= 0.95 - check.TOLERANCE, name
        assert row["pooled_difference"] >= 0.95 - check.TOLERANCE, name
        if " 4 times" in name:
            assert row["one seed alone"] < 0.8, "a single seed says nothing of another training"


def test_users_with_several_rows_are_covered_and_rows_taken_as_independent_are_not():
    found = measured("users")
    assert len(found) == len(check.CROWDS) * len(check.CROWD_RATES)
    for name, row in found.items():
        # With most of the rows in a few users' hands 166 are as good as some 50, and the tolerance is twice as wide.
        allowed = check.TOLERANCE if "2000 users" in name else 2 * check.TOLERANCE
        for metric in check.METRICS:
            assert row[f"{metric} wilson by user"] == pytest.approx(0.95, abs=allowed), (name, metric)
            assert row[f"{metric} rows alone"] < 0.95 - check.TOLERANCE, (name, metric)
        assert row["difference by user"] == pytest.approx(0.95, abs=allowed), name
        assert row["difference by user"] >= 0.95 - check.TOLERANCE, name
        assert row["test by user"] <= 0.05 + check.TOLERANCE < row["test of rows"], name
