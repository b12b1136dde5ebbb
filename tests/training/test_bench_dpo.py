"""The benchmark of S-DPO: all of its sides have one loss and one gradient."""

import json
import runpy
from pathlib import Path

import pytest

BENCH = str(Path(__file__).parents[1] / "benchmarks" / "bench_dpo.py")


def test_all_sides_have_one_loss_and_one_gradient(tmp_path: Path) -> None:
    out = tmp_path / "figure_3.json"
    runpy.run_path(BENCH)["main"]([
        "--hidden", "32", "--layers", "2", "--heads", "2", "--kv_heads", "1", "--head_dim", "16", "--intermediate",
        "64", "--codes", "8", "--items", "100", "--vocab_sizes", "300", "--prompt", "12", "--prompts", "2",
        "--rejected", "1", "3", "--repeats", "1", "--threads", "1", "--out", str(out),
    ])  # fmt: skip
    found = json.loads(out.read_text())
    assert [(row["softmax"], row["rejected"]) for row in found["rows"]] == [
        ("full", 1), ("sids", 1), ("full", 3), ("sids", 3),
    ]  # fmt: skip
    for row in found["rows"]:
        assert row["loss_difference"] < 1e-5
        assert row["gradient_difference"] < 1e-4
        assert row["over_rows"] == pytest.approx(row["rows_ms"] / row["groups_ms"])
        assert row["loss"] > 0
    assert found["made_by"]["command"]
