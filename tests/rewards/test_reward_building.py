"""From the YAML to checked functions, and what is refused on the way."""

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmrec.errors import InputError
from llmrec.rewards import REWARDS
from llmrec.rewards.build import build_rewards, check_rewards, reward_options
from llmrec.rewards.checks import check_answer, checked
from llmrec.rewards.inputs import RewardInputs
from llmrec.vocab import SIDVocab


def length(completion_ids, **columns):
    """A function as TRL calls it."""
    return [float(len(ids)) for ids in completion_ids]


async def late(completion_ids, **columns):
    return [1.0 for _ in completion_ids]


def one_item(vocab, *, row, inputs):
    """A factory."""
    wanted = vocab.token_ids(row)
    return lambda completion_ids, **columns: [float(ids == wanted) for ids in completion_ids]


def no_reward(vocab, *, inputs):
    return 3


word = "a"


def test_a_yaml_becomes_functions_and_weights(vocab: SIDVocab, inputs: RewardInputs):
    spec = {"exact_match": 1, "rank_penalty": {"weight": 0.5, "needs_hit": False}, f"{__name__}:length": 0}
    rewards = build_rewards(spec, vocab, inputs)
    assert rewards.names == ["exact_match", "rank_penalty", f"{__name__}:length"]
    assert rewards.weights == [1.0, 0.5, 0.0]
    columns = {"completion_ids": [vocab.token_ids(row) for row in range(4)], "target": [1] * 4, "rank": [0, 1, 2, 3]}
    extra = {"prompts": ["p"] * 4, "completions": [""] * 4, "trainer_state": None, "log_extra": None}
    found = [function(**columns, **extra) for function in rewards.functions]
    assert found[0] == [0, 1, 0, 0]
    assert found[1][1] == 0
    assert found[1][0] < found[1][2] < 0
    assert found[2] == [3, 3, 3, 3]


def test_a_factory_of_ones_own_takes_options(vocab: SIDVocab, inputs: RewardInputs):
    rewards = build_rewards({f"{__name__}:one_item": {"row": 5}}, vocab, inputs)
    assert rewards.functions[0](completion_ids=[vocab.token_ids(5), vocab.token_ids(6)]) == [1, 0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "name at least one"),
        (["exact_match"], "name at least one"),
        ({"exact_mach": 1}, r"unknown reward 'exact_mach' \(did you mean exact_match.*there are exact_match, "),
        ({3: 1}, "3 is no name"),
        ({"exact_match": "1"}, "reward exact_match: weight '1'; give a number"),
        ({"exact_match": True}, "weight True; give a number"),
        ({"exact_match": math.nan}, "weight nan; give a number"),
        ({"exact_match": None}, "weight None; give a number"),
        ({"exact_match": 0, "validity": 0}, "every weight is 0"),
        ({"exact_match": {"weight": 1, "share": "any"}}, r"no option 'share' \(did you mean shared\?\); its options"),
        ({"validity": {"of": 1}}, "no option 'of'; it has none, beside weight"),
        ({"semantic": 1}, "reward semantic: it needs its option 'embeddings'; write semantic: {embeddings: ...}"),
        ({f"{__name__}:nothing": 1}, "cannot be imported"),
        ({f"{__name__}:word": 1}, "is str; name a function"),
        ({f"{__name__}:length": {"power": 2}}, "no option 'power'"),
        ({f"{__name__}:no_reward": 1}, "its factory returned int"),
        ({f"{__name__}:late": 1}, "it is async, and rewards are asked one after the other"),
    ],
)
def test_what_a_yaml_may_not_say(vocab: SIDVocab, inputs: RewardInputs, spec, message: str):
    with pytest.raises(InputError, match=message):
        build_rewards(spec, vocab, inputs)


def test_names_are_checked_before_anything_is_loaded():
    check_rewards({"semantic": {"embeddings": "nowhere.safetensors"}})
    with pytest.raises(InputError, match="unknown reward"):
        check_rewards({"semantics": 1})


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_has_options_of_its_own_and_reads_inputs(name: str):
    parameters = inspect.signature(REWARDS[name]).parameters
    assert next(iter(parameters)) == "vocab"
    assert "inputs" in parameters
    assert "weight" not in reward_options(REWARDS[name])


def test_inputs_of_another_catalogue_are_refused(vocab: SIDVocab, inputs: RewardInputs):
    with pytest.raises(InputError, match=r"popularity of shape \(3,\) for 9 items"):
        build_rewards({"exact_match": 1}, vocab, replace(inputs, popularity=np.ones(3)))
    assert inputs.catalog is not None
    other = replace(inputs.catalog, item_ids=tuple(f"j{row}" for row in range(9)))
    with pytest.raises(InputError, match="made for another catalogue"):
        build_rewards({"exact_match": 1}, vocab, replace(inputs, catalog=other))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("ab", "reward mine: it returned str; return a list with one number for each of the 2"),
        (1.0, "it returned float"),
        ({0: 1.0, 1: 1.0}, "it returned dict"),
        (np.ones((2, 1)), "it returned ndarray"),
        ([1.0], "it returned 1 values for 2 completions"),
        ([1.0, 2.0, 3.0], "it returned 3 values for 2 completions"),
        ([1.0, math.nan], "row 1 is nan, which would make every weight NaN"),
        ([math.inf, 1.0], "row 0 is inf"),
        ([1.0, "2"], "row 1 is '2'; return numbers"),
        ([1.0, [2.0]], r"row 1 is \[2.0\]"),
    ],
)
def test_what_a_reward_may_not_return(answer, message: str):
    with pytest.raises(InputError, match=message):
        checked("mine", lambda **columns: answer)(completion_ids=[[1], [2]])


@pytest.mark.parametrize(
    "answer", [(1, 2), [True, 2], np.array([1, 2]), torch.tensor([1.0, 2.0]), [np.float32(1), torch.tensor(2.0)]]
)
def test_what_counts_as_numbers(answer):
    found = check_answer("mine", answer, 2)
    assert found == [1.0, 2.0]
    assert all(type(value) is float for value in found)


def test_none_says_nothing():
    assert check_answer("mine", [None, 1.0], 2) == [None, 1.0]
