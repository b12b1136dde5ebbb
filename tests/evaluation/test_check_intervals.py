"""tests/benchmarks/check_intervals.py in small, and the figures that it wrote at full length."""

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import check_intervals as check

from llmrec.evaluation.significance import FEW_HITS

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


def test_the_bootstrap_of_both_is_wider_where_seeds_differ():
    rng = np.random.default_rng(0)
    users = (rng.random(400) < 0.2).astype(float)
    same = check.bootstrap_both(np.stack([users] * 3), samples=2000, rng=rng)
    # Equal seeds leave the chance of users: 1.96 x sqrt(.2 x .8 / 400) = .0392 to either side.
    assert (same.high - same.low) / 2 == pytest.approx(0.0392, rel=0.15)
    other = check.bootstrap_both(np.stack([users, users, np.zeros(400)]), samples=2000, rng=rng)
    assert other.high - other.low > 1.5 * (same.high - same.low)


def test_a_small_check_writes_its_shares_and_goes_on_where_it_was_cut_off(tmp_path, capsys):
    settings = ["--repetitions", "8", "--samples", "100", "--rates", "0.1", "--users", "200"]
    out = tmp_path / "intervals.json"
    check.main([*settings, "--out", str(out)])
    found = json.loads(out.read_text())
    assert len(found["rows"]) == 3 + len(check.SEEDS) * len(check.MOVES)
    assert all(0 <= share <= 1 for row in found["rows"].values() for share in row.values())
    assert found["settings"] == {"repetitions": 8, "samples": 100, "seed": 0}
    found["rows"]["tests, hit rate 0.1, 200 users"] = {"recall@10": 0.125}
    out.write_text(json.dumps(found))
    capsys.readouterr()
    check.main([*settings, "--out", str(out)])
    assert "tests, hit rate 0.1, 200 users: recall@10 0.1250" in capsys.readouterr().out


def measured(kind):
    if not MEASURED.is_file():
        pytest.skip("not measured yet")
    rows = json.loads(MEASURED.read_text(encoding="utf-8"))["rows"]
    return {name: row for name, row in rows.items() if name.startswith(kind)}


def test_what_tables_show_covers_the_truth_within_a_point_and_a_half():
    means, differences = measured("means"), measured("differences")
    assert len(means) == len(differences) == len(check.RATES) * len(check.USERS)
    for name, row in means.items():
        for metric in check.METRICS:
            assert row[f"{metric} wilson"] == pytest.approx(0.95, abs=0.015), (name, metric)
    for name, row in differences.items():
        for metric in check.METRICS:
            assert row[metric] == pytest.approx(0.95, abs=0.015), (name, metric)
    assert min(check.RATES) * min(check.USERS) >= FEW_HITS


def test_equal_systems_are_not_told_apart_more_often_than_stated():
    # .05 has standard error .0049 with 2,000 repetitions; the exact test of recall is below it where few users differ.
    for name, row in measured("tests").items():
        assert all(share <= 0.065 for share in row.values()), name


def test_pooled_seeds_cover_the_truth_and_one_seed_does_not_where_trainings_differ():
    rows = measured("seeds")
    assert len(rows) == len(check.SEEDS) * len(check.MOVES) * len(check.USERS)
    for name, row in rows.items():
        assert row["pool_seeds"] >= 0.935, name
        assert row["pooled_difference"] >= 0.935, name
        if "spread 0.05" in name and "5000 users" in name:
            assert max(row["one seed alone"], row["one seed of each"]) < 0.85, name
