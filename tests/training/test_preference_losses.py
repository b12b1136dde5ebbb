"""Losses of lists: by hand, and against a slow twin."""

import math

import pytest
import torch

from llmrec.errors import InputError
from llmrec.training.preference_losses import (
    PREFERENCE_LOSSES,
    TRL_LOSSES,
    Preferences,
    check_losses,
    ddro,
    margin,
    s_dpo,
)
from tests.reference.slow_rl import slow_ddro, slow_margin, slow_s_dpo


def batch(policy, reference, present=None, margins=None) -> Preferences:
    policy, reference = torch.tensor(policy), torch.tensor(reference)
    here = torch.ones_like(policy, dtype=torch.bool) if present is None else torch.tensor(present)
    return Preferences(policy, reference, here, None if margins is None else torch.tensor(margins))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Log-ratios: chosen -1 - -2 = 1, rejected -3 - -2.5 = -0.5 and -4 - -6 = 2
LIST = ([[-1.0, -3.0, -4.0]], [[-2.0, -2.5, -6.0]])


def test_s_dpo_by_hand():
    # beta 0.5: logits 0.5 * (1 + 0.5) = 0.75 and 0.5 * (1 - 2) = -0.5; log(1 + e^-0.75 + e^0.5)
    expected = math.log(1 + math.exp(-0.75) + math.exp(0.5))
    assert s_dpo(batch(*LIST), 0.5).tolist() == pytest.approx([expected])


def test_ddro_by_hand():
    # the same logits, each a pair of its own: (-log s(0.75) - log s(-0.5)) / 2
    expected = (-math.log(sigmoid(0.75)) - math.log(sigmoid(-0.5))) / 2
    assert ddro(batch(*LIST), 0.5).tolist() == pytest.approx([expected])


def test_margin_by_hand():
    # margins 0.25 and 1: logits 0.75 - 0.25 = 0.5 and -0.5 - 1 = -1.5
    expected = (-math.log(sigmoid(0.5)) - math.log(sigmoid(-1.5))) / 2
    assert margin(batch(*LIST, margins=[[0.25, 1.0]]), 0.5).tolist() == pytest.approx([expected])


def test_margins_of_zero_change_nothing():
    rows = batch(*LIST, margins=[[0.0, 0.0]])
    assert torch.equal(margin(rows, 0.5), ddro(rows, 0.5))


@pytest.mark.parametrize("rejected", [1, 3, 8])
def test_where_policy_and_reference_agree_only_the_number_of_rejected_counts(rejected: int):
    same = torch.randn(4, 1 + rejected, generator=torch.Generator().manual_seed(0))
    rows = Preferences(same, same.clone(), torch.ones_like(same, dtype=torch.bool))
    assert s_dpo(rows, 0.7).tolist() == pytest.approx([math.log(1 + rejected)] * 4)
    assert ddro(rows, 0.7).tolist() == pytest.approx([math.log(2)] * 4)


@pytest.mark.parametrize(("name", "slow"), [("s_dpo", slow_s_dpo), ("ddro", slow_ddro), ("margin", slow_margin)])
def test_lists_of_unequal_length_agree_with_the_slow_twin(name: str, slow):
    generator = torch.Generator().manual_seed(1)
    policy, reference = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64) * 3
    counts = [1, 5, 3, 2, 4]
    present = torch.arange(6) <= torch.tensor(counts)[:, None]
    margins = torch.rand(5, 5, generator=generator, dtype=torch.float64)
    found = PREFERENCE_LOSSES[name](Preferences(policy, reference, present, margins), 0.3)
    expected = [
        slow(policy[row, : 1 + count].tolist(), reference[row, : 1 + count].tolist(), margins[row].tolist(), 0.3)
        for row, count in enumerate(counts)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_gradients_raise_the_chosen_and_leave_absent_places_alone(name: str):
    policy = torch.zeros(1, 4, requires_grad=True)
    present = torch.tensor([[True, True, True, False]])
    rows = Preferences(policy, torch.zeros(1, 4), present, torch.zeros(1, 3))
    PREFERENCE_LOSSES[name](rows, 1.0).sum().backward()
    assert policy.grad is not None
    chosen, first, second, absent = policy.grad[0].tolist()
    assert chosen < 0 < first
    assert first == pytest.approx(second)
    assert absent == 0.0
    assert chosen + first + second == pytest.approx(0.0)


def test_large_logits_stay_finite():
    rows = batch([[-500.0, 0.0]], [[0.0, -500.0]])
    assert s_dpo(rows, 1.0).tolist() == pytest.approx([1000.0])


def test_margin_without_margins_is_refused():
    with pytest.raises(InputError, match="give rows a column 'margins'"):
        margin(batch(*LIST), 0.5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sdpo"], "loss_type: 'sdpo' is not known; choose of s_dpo, ddro, margin, sigmoid"),
        (["s_dpo", "s_dpo"], "'s_dpo' is named twice"),
        ([], "loss_type: no loss"),
    ],
)
def test_losses_that_cannot_be_are_refused(names: list[str], message: str):
    with pytest.raises(InputError, match=message):
        check_losses(names)


def test_losses_of_trl_keep_their_names():
    assert not set(TRL_LOSSES) & set(PREFERENCE_LOSSES)
    check_losses([*PREFERENCE_LOSSES, *TRL_LOSSES])
