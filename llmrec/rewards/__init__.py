"""Rewards by name: what a candidate is worth, in the form in which TRL calls reward functions."""

from llmrec.rewards.exact_match import exact_match
from llmrec.rewards.inputs import RewardFactory
from llmrec.rewards.prefix_match import prefix_match
from llmrec.rewards.rank_penalty import rank_penalty

REWARDS: dict[str, RewardFactory] = {
    "exact_match": exact_match,
    "prefix_match": prefix_match,
    "rank_penalty": rank_penalty,
}
