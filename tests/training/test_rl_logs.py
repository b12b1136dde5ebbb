"""The log of reinforcement learning: every number by hand, and the same whatever processes share the prompts."""

import math

import pytest
import torch

from llmrec.training.hard_prompts import Collected
from llmrec.training.rl_logs import RLMeter, named_for
from llmrec.training.rollout_group import Group

NONE = torch.nan
NAMES, WEIGHTS = ["exact_match", "novelty"], [1.0, 0.5]


def group(rows: list[list[int]], places: list[int], added: list[bool]) -> Group:
    shape = torch.tensor(rows)
    tokens = torch.stack([shape, shape, torch.full_like(shape, -1)], dim=2)  # SIDs of two tokens, of three places
    return Group(
        token_ids=tokens, rows=shape, ranks=torch.arange(shape.shape[1]).repeat(len(rows), 1),
        log_probs=torch.zeros(shape.shape), leaves=shape, target_places=torch.tensor(places),
        added=torch.tensor(added),
    )  # fmt: skip


def batches() -> list[Collected]:
    """Two batches of G = 2: three prompts, of which one was replaced and one is left out, then one."""
    first = Collected(
        rows=[{}, {}, {}],
        group=group([[0, 1], [1, 2], [0, 5]], [1, -1, 3], [False, True, False]),
        rewards=torch.tensor(
            [[[0.0, 0.2], [1.0, 0.4]], [[0.0, NONE], [1.0, NONE]], [[NONE, NONE], [0.0, 0.6]]]
        ),
        spread=torch.tensor([True, True, False]),
        keep=torch.tensor([True, True, False]),
        counts={"asked": 3, "no_spread": 2, "resampled": 0, "replaced": 1, "skipped": 1},
        first_hits=torch.tensor([True, False, False]),
    )  # fmt: skip
    second = Collected(
        rows=[{}],
        group=group([[1, 0]], [0], [False]),
        rewards=torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]),
        spread=torch.tensor([True]),
        keep=torch.tensor([True]),
        counts={"asked": 1, "no_spread": 0, "resampled": 0, "replaced": 0, "skipped": 0},
        first_hits=torch.tensor([True]),
    )
    return [first, second]


EXPECTED = {
    # Sums of weighted parts: .1, 1.2; 0, 1; (none), .3; 1, 0: 3.6 over 7 scored candidates
    "reward": 3.6 / 7,
    "rewards/exact_match/mean": 3 / 7,  # 0 1 0 1 - 0 1 0
    "rewards/exact_match/std": math.sqrt(3 / 7 - 9 / 49),
    "rewards/novelty/mean": 1.2 / 5,  # .2 .4 - - - .6 0 0
    "rewards/novelty/std": math.sqrt((0.04 + 0.16 + 0.36) / 5 - 0.24**2),
    "hit_rate": 2 / 4,
    "hit_rank": (2 + 1) / 2,  # places 1 and 0; place 3 is behind the group
    "added_targets": 1 / 4,
    "frac_reward_zero_std": 1 / 4,  # the third group has one scored candidate
    "no_spread": 2 / 4,
    "resampled": 0.0,
    "replaced": 1 / 4,
    "skipped": 1 / 4,
    "distinct_items": 4.0,  # 0 1 2 5
    "coverage": 4 / 8,
    "tokens_per_second": (30 + 12 + 9 + 4) / 2.0,  # prompts of 30 and 9 tokens, 6 and 2 candidates of two
    "prompts_per_second": 4 / 2.0,
}


def alone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def test_a_log_by_hand():
    meter = RLMeter(NAMES, WEIGHTS, items=8)
    for batch, tokens in zip(batches(), (30, 9), strict=True):
        meter.add_rollouts(batch, prompt_tokens=tokens)
    assert meter.read(alone, seconds=2.0) == pytest.approx(EXPECTED, rel=1e-6)
    assert meter.read(alone, seconds=2.0) == {}


def test_two_processes_log_what_one_does():
    meters = [RLMeter(NAMES, WEIGHTS, items=8) for _ in range(2)]
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    values = torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]])
    for meter, batch, tokens in zip(meters, batches(), (30, 9), strict=True):
        meter.add_rollouts(batch, prompt_tokens=tokens)
        meter.add_policy(mask, entropies=values, outside=values / 10)
    sent: list[list[torch.Tensor]] = []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        sent[-1].append(tensor)
        return tensor

    for meter in meters:
        sent.append([])
        meter.add_rollouts(batches()[1], prompt_tokens=1)
        meter.read(record)
    assert all(first.shape == second.shape for first, second in zip(*sent, strict=True))
    joined = iter([torch.cat(pair) for pair in zip(*sent, strict=True)])
    both = RLMeter(NAMES, WEIGHTS, items=8).read(lambda _: next(joined), seconds=1.0)
    one = RLMeter(NAMES, WEIGHTS, items=8)
    for batch in (*batches(), batches()[1], batches()[1]):
        one.add_rollouts(batch, prompt_tokens=10)
    one.add_policy(mask, entropies=values, outside=values / 10)
    expected = one.read(alone, seconds=1.0)
    del both["tokens_per_second"], expected["tokens_per_second"]
    assert both == pytest.approx(expected)


def test_means_over_tokens_that_count():
    meter = RLMeter(NAMES, WEIGHTS, items=8)
    mask = torch.tensor([[[1, 1, 0], [1, 0, 0]]])
    entropies = torch.tensor([[[1.0, 2.0, NONE], [3.0, 9.0, 9.0]]], requires_grad=True)
    meter.add_policy(mask, entropies=entropies, outside=torch.full((1, 2, 3), 0.25))
    meter.add_policy(mask[:, :1], entropies=entropies[:, :1].detach() + 2, outside=torch.zeros(1, 1, 3))
    # (1 + 2 + 3 + 3 + 4) / 5 and (3 * .25) / 5; no KL was given
    assert meter.read(alone) == pytest.approx({"entropy": 13 / 5, "outside_mass": 0.15})
    meter.add_policy(torch.ones(2), kl=torch.tensor([0.5, 1.0]))
    assert meter.read(alone) == pytest.approx({"kl": 0.75})


def test_kl_over_candidates_is_a_penalty():
    logs = {"kl": 0.1, "loss": 1.0, "eval_kl": 0.2, "completions/clipped_ratio": 1.0, "completions/mean_length": 3.0,
            "eval_completions/max_terminated_length": 0.0}  # fmt: skip
    kept = {"loss": 1.0, "completions/mean_length": 3.0}
    assert named_for(logs) == {**kept, "kl_penalty": 0.1, "eval_kl_penalty": 0.2}
