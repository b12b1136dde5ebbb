"""Several audits side by side, as the Markdown table of docs/audits/README.md."""

from collections.abc import Mapping
from typing import Any

from llmrec.evaluation.audit_words import NDCG, RECALL, percent

NOTHING = "\u2013"
NAMES = ("popularity", "item_knn", "transitions", "transition_graph")


def _lift(part: Mapping[str, Any]) -> str:
    return percent(part["share"]) + ("" if part["lift"] is None else f" ({part['lift']:.1f}x)")


def _score(values: Mapping[str, Any] | None) -> str:
    return NOTHING if values is None else f"{values[RECALL]:.4f} / {values[NDCG]:.4f}"


def _column(audit: Mapping[str, Any]) -> dict[str, str]:
    """One audit's cells, by the line that each stands in."""
    found, heuristics = audit["branching"], audit["heuristics"]
    features, overlap = audit["features"], audit["overlap"]
    bounds = {part["name"]: part["value"] for part in audit["verdict"]["shortcuts"]}
    memory = bounds["short memory"]
    targets = audit["target_popularity"]["valid"]
    unseen = next(part["share"] for part in targets if part["slice"] == "unseen")
    by_design = " (by design)" if audit["protocol"] == "leave_one_out" else ""
    return {
        "verdict": f"**{audit['verdict']['words']}**",
        "users / items / interactions": " / ".join(
            f"{audit['counts'][name]:,}" for name in ("users", "items", "interactions")
        ),
        "successors of an item, median / most": f"{found['successors']['median']:g} / {found['successors']['most']}",
        "bits of the next item / known the last / dealt anew": " / ".join(
            f"{found[name]:.2f}" for name in ("next_bits", "next_given_last_bits", "dealt_anew_bits")
        ),
        "targets one hop from the last two (times chance)": _lift(
            audit["reach"]["valid"]["one hop from the last two"]
        ),
        "the same of test rows": _lift(audit["reach"]["test"]["one hop from the last two"]),
        "targets two hops from the last two": _lift(audit["reach"]["valid"]["two hops from the last two"]),
        "targets among the 10 nearest of the last": NOTHING
        if features is None
        else _lift(features["near"]["valid"][0]),
        "the last two items' share of item_knn's best recall": NOTHING if memory is None else f"{memory:.2f}",
        **{f"{name}, {RECALL} / {NDCG}": _score(heuristics["systems"].get(name)) for name in NAMES},
        "seen items": "left out" if heuristics["exclude_seen"] else "kept",
        "transition_graph when histories are shuffled": percent(heuristics["order"]["transition_graph"]["change"], 0),
        "Gini / share of the top 10 % of items": f"{audit['popularity']['gini']:.2f} / "
        f"{percent(audit['popularity']['top_10_percent'], 0)}",
        "validation targets that are head / middle / tail, a third of training each": " / ".join(
            percent(part["share"], 0) for part in targets if part["slice"] != "unseen"
        ),
        "validation targets never taken in training": percent(unseen),
        "validation targets in their own history": percent(audit["repeats"]["targets"]["valid"]),
        "items that share a title": f"{audit['duplicates']['items_sharing']:,}",
        "test rows equal to one in training / validation": f"{overlap['same_rows_train']:,} / "
        f"{overlap['same_rows_valid']:,}",
        "test histories with the user's validation target": f"{overlap['valid_target_in_history']:,}{by_design}",
        "training rows later than the median test target": percent(audit["later_than_test"]),
        "steps that take no time": percent(audit["tied_times"]),
    }


def audit_table(audits: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table, one column an audit; scores and targets are of validation unless a line says otherwise.

    Args:
        audits: what `recipes/audit.py` wrote, by the name of the file without its ending.
    """
    columns = {name: _column(audit) for name, audit in audits.items()}
    head = [f"[{name}]({name}.json), {audits[name]['protocol']}" for name in columns]
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for label in next(iter(columns.values()), {}):
        lines.append(f"| {label} | " + " | ".join(column[label] for column in columns.values()) + " |")
    return "\n".join(lines)
