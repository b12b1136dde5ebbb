"""What a bundle was trained as: one key for the seeds of a configuration, another for anything else."""

import copy

import pytest
from bundle_kit import write_bundle

from llmrec.evaluation.bundle_row import trained_as
from llmrec.tasks.prompt import PromptForm

INFO = {
    "sid_hash": "aa", "seed": 0, "base_model": "small", "base_revision": None, "method": "full", "commit": "1",
    "dataset": {"name": "pens", "catalog_hash": "cc", "licence": "x", "counts": {"users": 3}},
    "prompt": {"kind": "plain", "max_history": 20}, "tasks": {"next_item": 1.0}, "versions": {"torch": "2"},
    "sids": {"quality": {"fit": {"seconds": 2.0}}}, "metrics": [], "settings": {"dtype": "float32"},
    "training": {"learning_rate": 0.002, "seed": 0, "data_seed": None, "output_dir": "runs/a"},
}  # fmt: skip


def changed(*path, to):
    info = copy.deepcopy(INFO)
    held = info
    for key in path[:-1]:
        held = held[key]
    held[path[-1]] = to
    return info


def test_seeds_of_one_configuration_share_it():
    other = changed("training", "seed", to=1)
    other |= {"seed": 1, "commit": "2", "versions": {"torch": "3"}, "metrics": [{"dataset": "pens"}]}
    other |= {"rounds": [{"round": 1, "sha256": "ab"}], "best": {"share": 0.5}}
    other["training"] |= {"data_seed": 4, "output_dir": "runs/b"}
    other["dataset"] |= {"licence": "y"}
    other["sids"] = {"quality": {"fit": {"seconds": 3.0}}}
    assert trained_as(other) == trained_as(INFO)
    assert len(trained_as(INFO) or "") == 16


def test_a_setting_that_came_later_counts_where_it_is_used_alone():
    """Bundles of before and after it stay seeds of one configuration; its use makes another one."""
    unused = changed("settings", to={"dtype": "float32", "freeze": None, "replay": 1.0, "random_weights": False})
    assert trained_as({**unused, "architecture": "causal"}) == trained_as(INFO)
    for name, value in (("freeze", ["embed_tokens"]), ("replay", 0.5), ("random_weights", True)):
        assert trained_as(changed("settings", to={"dtype": "float32", name: value})) != trained_as(INFO)
    assert trained_as({**INFO, "architecture": "seq2seq"}) != trained_as(INFO)


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("sid_hash",), "bb"),
        (("base_model",), "runs/sft"),
        (("base_revision",), "main"),
        (("method",), "lora"),
        (("tasks", "next_item"), 0.5),
        (("prompt", "max_history"), 10),
        (("dataset", "catalog_hash"), "dd"),
        (("dataset", "train"), "recovered"),
        (("training", "learning_rate"), 0.001),
        (("settings", "dtype"), "bfloat16"),
        (("rewards",), {"hit": 1.0}),  # what a trainer that came later says of itself
    ],
)
def test_anything_else_that_differs_gives_another(path, to):
    assert trained_as(changed(*path, to=to)) != trained_as(INFO)


def test_a_bundle_that_does_not_say_how_it_was_trained_has_none(tmp_path):
    assert trained_as({key: value for key, value in INFO.items() if key != "training"}) is None
    assert trained_as(write_bundle(tmp_path / "b", PromptForm(domain="pens")).info) is None
