"""Verdicts: planted datasets are called what they are, and each figure is held against its bound."""

import copy
from typing import Any

import numpy as np
import pytest
from audit_kit import make_audit

from llmrec.data.folder import load_dataset, write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.errors import InputError
from llmrec.evaluation.audit import heuristics, structure
from llmrec.evaluation.audit_table import audit_table
from llmrec.evaluation.audit_words import BOUNDS, NO_SHORTCUT, SOLVABLE, SOME, WARNINGS, judge, verdict_text


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("audits")
    return {kind: make_audit(folder, kind)[0] for kind in ("cycle", "noise")}


def finding(audit: dict[str, Any], name: str) -> dict[str, Any]:
    verdict = judge(audit)
    return next(part for part in (*verdict["shortcuts"], *verdict["warnings"]) if part["name"] == name)


def test_a_cycle_is_a_shortcut_and_noise_is_none(audits):
    assert audits["cycle"]["heuristics"]["exclude_seen"] is True
    assert audits["cycle"]["verdict"]["words"] == SOLVABLE
    assert audits["cycle"]["branching"]["successors"]["most"] == 1
    assert {part["name"]: part["holds"] for part in audits["cycle"]["verdict"]["shortcuts"]} == dict.fromkeys(
        BOUNDS, True
    )
    noise = {part["name"]: part for part in audits["noise"]["verdict"]["shortcuts"]}
    assert not noise["local transitions"]["holds"]
    assert not noise["smooth features"]["holds"]
    assert audits["noise"]["verdict"]["words"] != SOLVABLE
    assert abs(audits["noise"]["branching"]["information_bits"]) < 0.1


def test_the_verdict_counts_shortcuts(audits):
    audit = copy.deepcopy(audits["cycle"])
    graph = audit["heuristics"]["systems"]["transition_graph"]
    kept = graph["ndcg@10"]
    graph["ndcg@10"] = 0.0
    assert judge(audit)["words"] == SOME  # without the graph heuristic nothing solves it
    graph["ndcg@10"] = kept
    audit["features"] = None
    assert judge(audit)["words"] == SOLVABLE
    assert finding(audit, "smooth features")["holds"] is None
    audit["reach"]["valid"]["one hop from the last two"]["lift"] = BOUNDS["local transitions"].value - 0.01
    assert judge(audit)["words"] == SOME
    graph["ndcg@10"] = 0.0
    next(part for part in audit["heuristics"]["history"] if part["last"] == 2)["recall@10"] = 0.0
    assert judge(audit)["words"] == NO_SHORTCUT
    assert "None of the shortcuts looked for holds" in judge(audit)["sentence"]


@pytest.mark.parametrize(("lift", "share", "holds"), [(4.0, 0.05, True), (3.99, 0.9, False), (90.0, 0.049, False), (None, 0.0, False)])  # fmt: skip # noqa: E501
def test_a_lift_needs_a_share(audits, lift, share, holds):
    audit = copy.deepcopy(audits["cycle"])
    audit["features"]["near"]["valid"][0] |= {"lift": lift, "share": share}
    assert finding(audit, "smooth features")["holds"] is holds


def test_warnings_come_at_their_bounds(audits):
    audit = copy.deepcopy(audits["cycle"])
    # Shuffled, the items of a cycle still say where on it the user is: order is worth little here.
    assert [part["name"] for part in audit["verdict"]["warnings"]] == ["weak order"]
    audit["heuristics"]["order"]["transition_graph"]["change"] = -0.21
    assert judge(audit)["warnings"] == []
    best = max(values["recall@10"] for values in audit["heuristics"]["systems"].values())
    audit["heuristics"]["systems"]["popularity"]["recall@10"] = best / 2
    audit["heuristics"]["order"]["transition_graph"]["change"] = -0.1
    audit["tied_times"], audit["later_than_test"] = 0.2, 0.381
    audit["repeats"]["targets"]["valid"] = 0.05
    audit["duplicates"] |= {"items_sharing": 45, "items_sharing_share": 0.027}
    next(part for part in audit["target_popularity"]["valid"] if part["slice"] == "unseen")["share"] = 0.189
    found = {part["name"]: part["says"] for part in judge(audit)["warnings"]}
    assert set(found) == set(WARNINGS)
    assert found["later than test"] == "38.1 % of the training rows are later than the median test target"
    assert found["same titles"] == "45 items (2.7 %) share their title with another"
    audit["tied_times"] = 0.19
    assert "tied times" not in {part["name"] for part in judge(audit)["warnings"]}


def test_leaks_are_named_with_their_counts(audits):
    audit = copy.deepcopy(audits["cycle"])
    audit["protocol"], audit["train"], audit["leaks"] = "provided", "recovered", ["the embeddings saw tomorrow"]
    audit["overlap"] |= {
        "test_rows": 4533, "valid_target_in_history": 1353, "target_in_own_train": 1, "same_rows_train": 41,
        "same_rows_valid": 57,
    }  # fmt: skip
    found = {part["name"]: part["says"] for part in judge(audit)["warnings"]}
    assert found["validation in test"] == "1,353 of 4,533 test histories hold a validation target of the same user"
    assert found["target in own training"] == "1 of 4,533 test targets were taken by the same user in training"
    assert "(41 in training, 57 in validation)" in found["same rows"]
    assert "publishes no training rows" in found["incomplete training"]
    assert found["embeddings"] == "the embeddings saw tomorrow"
    audit["protocol"] = "leave_one_out"  # there it is so by design
    assert "validation in test" not in {part["name"] for part in judge(audit)["warnings"]}


def test_the_verdict_as_text(audits):
    lines = verdict_text(audits["cycle"]).splitlines()
    assert lines[0] == "cycle (leave_one_out): shortcut-solvable"
    assert lines[2].startswith("  yes  local transitions: ")
    assert [line[2:6].strip() for line in lines[2:]] == ["yes"] * len(BOUNDS) + ["note"]


def test_the_table_has_a_column_an_audit(audits):
    lines = audit_table(audits).splitlines()
    assert lines[0] == "| | [cycle](cycle.json), leave_one_out | [noise](noise.json), leave_one_out |"
    cells = {line.split(" | ")[0][2:]: line[:-2].split(" | ")[1:] for line in lines[2:]}
    assert cells["verdict"][0] == "**shortcut-solvable**"
    assert cells["users / items / interactions"] == ["150 / 120 / 1,200"] * 2
    assert cells["transitions, recall@10 / ndcg@10"] == ["\u2013"] * 2  # not among the systems here
    knn = audits["noise"]["heuristics"]["systems"]["item_knn"]
    assert cells["item_knn, recall@10 / ndcg@10"][1] == f"{knn['recall@10']:.4f} / {knn['ndcg@10']:.4f}"
    assert cells["test histories with the user's validation target"] == ["150 (by design)"] * 2
    assert {len(line.split("|")) for line in lines} == {5}
    alone = audit_table({"cycle": {**audits["cycle"], "features": None}})
    assert alone.count("\u2013") == 4  # transitions, features, and two of time


def test_a_dataset_without_test_rows_is_refused(tmp_path):
    dataset_of = load_dataset(
        write_dataset(
            tmp_path / "short",
            catalog=Catalog(("a", "b"), {"title": ("a", "b")}),
            interactions=Interactions(("u",), np.zeros(2, dtype=np.int64), np.array([0, 1]), np.arange(2)),
            manifest={"name": "short", "domain": "pens", "source": "drawn", "licence": "none", "times": "position"},
        )
    )
    with pytest.raises(InputError, match="no user has 3 interactions or more"):
        structure(dataset_of, dataset_of.split())


def test_few_items_are_refused():
    with pytest.raises(InputError, match="a catalogue of 9 items; lists hold 10"):
        heuristics({}, {}, [], items=9, exclude_seen=False)
