"""Policy losses of ours: hand-computed advantages, losses and gradients, and what is refused."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.slow_rl import slow_clipped_loss, slow_pass_at_k
from torch import Tensor
from trl import GRPOConfig

from llmrec.errors import InputError
from llmrec.training.policy_losses.base import PolicyBatch, PolicyLoss, group_advantages
from llmrec.training.policy_losses.ecpo import ECPO
from llmrec.training.policy_losses.methods import POLICY_LOSSES, TRL_POLICY_LOSSES, resolve_policy_loss
from llmrec.training.policy_losses.rank_grpo import RankGRPO
from llmrec.training.policy_losses.srpo import SRPO, pass_at_k_advantages

RANKS = torch.arange(4)[None]


def batch_of(ratios: list[list[float]], advantages: list[list[float]], *, mask=None, segments=None) -> PolicyBatch:
    """A batch whose tokens have these ratios of new to old probability; ``log_probs`` is a leaf."""
    old = torch.full((len(ratios), len(ratios[0])), -1.0)
    new = (old + torch.tensor(ratios).log()).requires_grad_()
    stands = torch.ones_like(old) if mask is None else torch.tensor(mask)
    ranks = torch.zeros(len(ratios), dtype=torch.long)
    return PolicyBatch(new, old, stands, torch.tensor(advantages), ranks, len(ratios), segments)


def grads(loss: PolicyLoss, batch: PolicyBatch) -> Tensor:
    found = loss.token_losses(batch)
    return torch.autograd.grad(found.sum(), batch.log_probs)[0]


def test_group_advantages_by_hand():
    # Rewards 1, 0, 0, 0: mean 1/4, deviation of a sample sqrt((9/16 + 3/16) / 3) = 1/2.
    rewards = torch.tensor([[1.0, 0, 0, 0], [2.0, 2, 2, 2]])
    found = group_advantages(rewards, scale=True)
    torch.testing.assert_close(found, torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.0] * 4]) / (0.5 + 1e-4))
    torch.testing.assert_close(group_advantages(rewards, scale=False)[0], torch.tensor([0.75, -0.25, -0.25, -0.25]))


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.0, 1.1, 2.0])
@pytest.mark.parametrize("advantage", [-1.5, 0.0, 0.7])
def test_clipped_tokens_as_counted_slowly(ratio: float, advantage: float):
    loss = PolicyLoss(epsilon=0.2, epsilon_high=0.3)
    batch = batch_of([[ratio, 1.0]], [[advantage]], mask=[[1.0, 0.0]])
    wanted = slow_clipped_loss(ratio, advantage, 0.2, 0.3)
    torch.testing.assert_close(loss.token_losses(batch), torch.tensor([[wanted, 0.0]]))
    out = (ratio < 0.8 and advantage < 0) or (ratio > 1.3 and advantage > 0)
    assert loss.clipped(batch).tolist() == [[out, False]]
    assert (grads(loss, batch)[0, 0] == 0) == (out or advantage == 0)


def test_levels_of_ratios_by_hand():
    # Three tokens, the last masked: ratios 2 and 0.5 have the product 1; 2 and 2 the product 4 and the mean 2.
    batch = batch_of([[2.0, 0.5, 9.0], [2.0, 2.0, 9.0]], [[1.0], [1.0]], mask=[[1.0, 1, 0], [1, 1, 0]])
    wanted = {"token": [[2, 0.5, 1], [2, 2, 1]], "item": [[1] * 3, [4] * 3], "mean": [[1] * 3, [2] * 3]}
    for level, ratios in wanted.items():
        found = PolicyLoss(level=level).log_ratios(batch).exp()
        torch.testing.assert_close(found, torch.tensor(ratios, dtype=torch.float32))


def test_levels_of_items_in_a_list_by_hand():
    # Items (2, 0.5), (3, 3) and a token between them that belongs to none.
    segments = torch.tensor([[0, 0, -1, 1, 1]])
    batch = batch_of([[2.0, 0.5, 7.0, 3.0, 3.0]], [[10.0, 20.0]], segments=segments)
    found = PolicyLoss(level="mean").log_ratios(batch).exp()
    torch.testing.assert_close(found[:, [0, 1, 3, 4]], torch.tensor([[1.0, 1, 3, 3]]))
    loss = PolicyLoss(epsilon=1.0, epsilon_high=9.0, level="mean").token_losses(batch)
    torch.testing.assert_close(loss, torch.tensor([[-10.0, -10, 0, -60, -60]]))


def test_ecpo_bounds_the_ratio_of_bad_items_by_hand():
    """A bad item five times as likely as before: GRPO pushes with 5, ECPO with 1 + 0.2 + 0.1."""
    ratios = [[5.0, 1.0]]
    loss = ECPO(delta=0.1, epsilon=0.2)
    bad = batch_of(ratios, [[-2.0]])
    torch.testing.assert_close(loss.token_losses(bad), torch.full((1, 2), 2.6))
    # Both tokens' losses hold the item's ratio: each token gets twice A * 1.3, by the chain rule of exp.
    torch.testing.assert_close(grads(loss, bad), torch.full((1, 2), 2 * 2.6))
    plain = PolicyLoss(epsilon=0.2, level="item")
    torch.testing.assert_close(grads(plain, bad), torch.full((1, 2), 2 * 10.0))


def test_ecpo_is_grpo_elsewhere():
    """Below the bound, and for good items, which the clip stops already."""
    loss, plain = ECPO(delta=0.1, epsilon=0.2), PolicyLoss(epsilon=0.2, level="item")
    for ratio, advantage in ((1.25, -1.0), (0.5, -1.0), (1.1, 1.0), (5.0, 1.0)):
        batch = batch_of([[ratio, 1.0]], [[advantage]])
        torch.testing.assert_close(loss.token_losses(batch), plain.token_losses(batch))
        torch.testing.assert_close(grads(loss, batch), grads(plain, batch))


def test_ecpo_by_token():
    batch = batch_of([[5.0, 1.0]], [[-1.0]])
    loss = ECPO(level="token").token_losses(batch)
    torch.testing.assert_close(loss, torch.tensor([[1.3, 1.0]]))


def test_rank_grpo_of_beam_lists_is_grpo_with_the_mean_ratio():
    rewards = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0, 0, 1]])
    found = RankGRPO().advantages(rewards, ranks=RANKS.expand(2, 4))
    torch.testing.assert_close(found, group_advantages(rewards, scale=True))
    batch = batch_of([[4.0, 1.0]], [[-1.0]])
    torch.testing.assert_close(RankGRPO().token_losses(batch), torch.full((1, 2), 2.0))  # sqrt(4 * 1)


def test_rank_grpo_compares_the_same_place_of_other_prompts_by_hand():
    # By place (columns 0 to 3): hits 1, 0 | 0, 0 | 0, 0 | 0, 1; each mean 1/2, 0, 0, 1/2.
    rewards = torch.tensor([[1.0, 0, 0, 0], [0.0, 0, 0, 1]])
    loss = RankGRPO(baseline="rank", scale=False)
    found = loss.advantages(rewards, ranks=RANKS.expand(2, 4))
    torch.testing.assert_close(found, torch.tensor([[0.5, 0, 0, -0.5], [-0.5, 0, 0, 0.5]]))
    # The same candidates in another order have the same advantages.
    order = torch.tensor([[2, 0, 3, 1], [1, 3, 0, 2]])
    shuffled = loss.advantages(rewards.gather(1, order), ranks=order)
    torch.testing.assert_close(shuffled, found.gather(1, order))
    # Scaled by one deviation: the root of the mean square, sqrt(4 * .25 / 8).
    scaled = RankGRPO(baseline="rank").advantages(rewards, ranks=RANKS.expand(2, 4))
    torch.testing.assert_close(scaled, found / (math.sqrt(0.125) + 1e-4))


def test_rank_grpo_of_written_lists_by_hand():
    """Two lists of three items for one prompt: gains 1, 1 / log2(3), 1 / log2(4) from each place on."""
    rewards = torch.tensor([[[1.0, 0, 1], [0.0, 1, 0]]])
    second, third = 1 / math.log2(3), 0.5
    returns = torch.tensor([[[1 + third, third, third], [second, second, 0]]])
    found = RankGRPO(scale=False).advantages(rewards, ranks=RANKS[:, :2])
    torch.testing.assert_close(found, returns - returns.mean(dim=1, keepdim=True))
    own = RankGRPO(scale=False, credit="own").advantages(rewards, ranks=RANKS[:, :2])
    torch.testing.assert_close(own, torch.tensor([[[0.5, -0.5, 0.5], [-0.5, 0.5, -0.5]]]))


def test_rank_grpo_credits_what_follows_in_a_beam_list_when_asked():
    rewards = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    found = RankGRPO(scale=False, credit="rest").advantages(rewards, ranks=RANKS)
    gain = 1 / math.log2(3)  # from places 0 and 1 on
    torch.testing.assert_close(found, torch.tensor([[gain / 2, gain / 2, -gain / 2, -gain / 2]]))


@pytest.mark.parametrize("baseline", ["group", "rank"])
@pytest.mark.parametrize("credit", ["own", "rest"])
@pytest.mark.parametrize("reward", [0.7, 0.1, 1e6 / 3])
def test_rank_grpo_learns_nothing_from_equal_rewards(credit: str, baseline: str, reward: float):
    loss = RankGRPO(credit=credit, baseline=baseline)
    ranks = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(seed)) for seed in range(7)])
    assert not loss.advantages(torch.full((7, 16), reward), ranks=ranks).any()
    rewards = torch.full((7, 16), reward)
    rewards[3, 5] += 1.0
    found = loss.advantages(rewards, ranks=ranks)
    assert found[3].any()
    assert baseline == "rank" or not found[:3].any()


def test_srpo_by_hand():
    # One success of four, two draws: p = 1 - C(3,2) / C(4,2) = 1/2, root 1/2. The success has 1, a miss
    # (1/2 - C(2,1) / C(3,1)) / (1/2) = -1/3. GRPO's part: 3/4 and -1/4 over 1/2.
    rewards = torch.tensor([[1.0, 0, 0, 0]])
    bonus = torch.tensor([[1.0, -1 / 3, -1 / 3, -1 / 3]])
    torch.testing.assert_close(pass_at_k_advantages(rewards > 0, 2), bonus, atol=1e-5, rtol=0)
    found = SRPO(k=2).advantages(rewards, ranks=RANKS)
    wanted = torch.tensor([[0.75, -0.25, -0.25, -0.25]]) / (0.5 + 1e-4) + bonus
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    # A weighted success: 0.5 * 1 of one reward beside -0.1 of another.
    other = SRPO(k=2, success=0.4, bonus=2.0, scale=False).advantages(rewards * 0.5 - 0.1, ranks=RANKS)
    torch.testing.assert_close(other, 0.5 * torch.tensor([[0.75, -0.25, -0.25, -0.25]]) + 2 * bonus, atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(hits=st.lists(st.booleans(), min_size=3, max_size=8), data=st.data())
def test_pass_at_k_as_counted_over_all_draws(hits: list[bool], data: st.DataObject):
    k = data.draw(st.integers(1, len(hits) - 1))
    found = pass_at_k_advantages(torch.tensor([hits]), k)[0]
    assert found.tolist() == pytest.approx(slow_pass_at_k(hits, k), abs=1e-4)


def test_a_rare_success_counts_more_with_the_bonus():
    """One success of 16: GRPO gives it 3.75, pass@4 another 1.73; with 12 of 16 there is no bonus left."""
    rewards = torch.zeros(2, 16)
    rewards[0, 0] = 1
    rewards[1, :13] = 1
    plain = group_advantages(rewards, scale=True)
    found = SRPO(k=4).advantages(rewards, ranks=torch.arange(16).expand(2, 16))
    assert (found - plain)[0, 0] == pytest.approx(math.sqrt(3), abs=1e-4)  # p = 1/4: (3/4) / sqrt(3/16)
    assert (found - plain)[1].abs().max() == 0


def test_trl_names_are_fields_of_its_config(tmp_path):
    for name, fields in TRL_POLICY_LOSSES.items():
        assert resolve_policy_loss(name) == fields
        given_fields: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, **fields}
        config = GRPOConfig(**given_fields)
        assert {field: getattr(config, field) for field in fields} == fields
    assert resolve_policy_loss("gspo") == {"loss_type": "grpo", "importance_sampling_level": "sequence"}


def test_ours_take_arguments():
    assert set(POLICY_LOSSES) == {"rank_grpo", "ecpo", "srpo"}
    for name, kind in POLICY_LOSSES.items():
        found = resolve_policy_loss(name, {"epsilon": 0.1, "epsilon_high": 0.4})
        assert isinstance(found, kind)
        assert found.name == name
        assert (found.epsilon, found.epsilon_high) == (0.1, 0.4)
    found = resolve_policy_loss("ecpo", {"delta": 0.5})
    assert isinstance(found, ECPO)
    assert found.delta == 0.5


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ecpa", None, r"unknown loss 'ecpa' \(did you mean ecpo.*there are rank_grpo, ecpo, srpo, grpo"),
        ("grpo", {"epsilon": 0.1}, "grpo is TRL's and takes its settings from the config itself.*move epsilon there"),
        ("ecpo", {"delat": 0.1}, r"ecpo has no argument 'delat' \(did you mean delta\?\); it takes delta, epsilon"),
        ("ecpo", {"delta": 0}, "ecpo: delta 0; it is at least 1e-06"),
        ("ecpo", {"epsilon": "a"}, "epsilon 'a'; give a number"),
        ("ecpo", {"epsilon": 2.0}, "epsilon 2.0; it is between 0 and 1"),
        ("ecpo", {"level": "list"}, "level 'list'; choose one of token, item, mean"),
        ("srpo", {"k": 0}, "srpo: k 0; give a whole number"),
        ("srpo", {"scale": "no"}, "scale 'no'; give true or false"),
        ("rank_grpo", {"credit": "all"}, "credit 'all'; choose one of own, rest"),
        ("rank_grpo", {"baseline": "item"}, "baseline 'item'; choose one of group, rank"),
    ],
)
def test_what_is_refused(name: str, arguments: dict | None, message: str):
    with pytest.raises(InputError, match=message):
        resolve_policy_loss(name, arguments)


def test_groups_that_are_too_small_or_without_places_are_refused():
    with pytest.raises(InputError, match="k 4 draws of a group of 4"):
        SRPO().advantages(torch.zeros(1, 4), ranks=RANKS)
    with pytest.raises(InputError, match="k is below num_generations"):
        SRPO().check_group_size(4)
    SRPO().check_group_size(5)
    with pytest.raises(InputError, match="there is one; raise per_device_train_batch_size"):
        RankGRPO(baseline="rank").advantages(torch.zeros(1, 4), ranks=RANKS)
    ranks = torch.tensor([[0, 1, 2, 3], [0, 1, 1, 3]])
    with pytest.raises(InputError, match=r"group 1 has ranks \[0, 1, 1, 3\]; each of 0 to 3"):
        RankGRPO(baseline="rank").advantages(torch.zeros(2, 4), ranks=ranks)
