"""Rewards by name: what a candidate is worth, in the form in which TRL calls reward functions."""

from llmrec.rewards.collaborative import collaborative
from llmrec.rewards.diversity import diversity
from llmrec.rewards.exact_match import exact_match
from llmrec.rewards.group_ndcg import group_ndcg
from llmrec.rewards.inputs import RewardFactory
from llmrec.rewards.novelty import novelty
from llmrec.rewards.output_format import output_format
from llmrec.rewards.popularity_corrected import popularity_corrected
from llmrec.rewards.prefix_match import prefix_match
from llmrec.rewards.rank_penalty import rank_penalty
from llmrec.rewards.residual_match import residual_match
from llmrec.rewards.semantic import semantic
from llmrec.rewards.validity import validity

REWARDS: dict[str, RewardFactory] = {
    "exact_match": exact_match,
    "prefix_match": prefix_match,
    "residual_match": residual_match,
    "rank_penalty": rank_penalty,
    "group_ndcg": group_ndcg,
    "collaborative": collaborative,
    "semantic": semantic,
    "popularity_corrected": popularity_corrected,
    "diversity": diversity,
    "novelty": novelty,
    "validity": validity,
    "output_format": output_format,
}
