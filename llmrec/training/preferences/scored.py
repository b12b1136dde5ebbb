"""Pairs that a reward model makes of the policy's beams: the best against the worst."""

import logging
from dataclasses import dataclass, field

import numpy as np

from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.training.preferences.candidates import Candidates
from llmrec.training.preferences.questions import Questions
from llmrec.training.preferences.self_hard import search_sids
from llmrec.training.reward_model import RewardModel

logger = logging.getLogger(__name__)

CHOSEN = ("best", "target")


@dataclass(frozen=True)
class ScoredPairs:
    """Preferences by reward.

    Args:
        questions: the rows that have a preference.
        chosen: ``(rows,)`` items.
        rejected: ``(rows, m)`` items, the worst first.
        gaps: ``(rows, m)`` float32, the reward of the chosen less that of each rejected.
        hits: share of all searched rows whose target was among the beams.
        dropped: rows whose beams all have one reward.
    """

    questions: Questions
    chosen: np.ndarray = field(repr=False)
    rejected: np.ndarray = field(repr=False)
    gaps: np.ndarray = field(repr=False)
    hits: float
    dropped: int


def scored_pairs(
    recommender: LLMRecommender,
    reward: RewardModel,
    candidates: Candidates,
    questions: Questions,
    *,
    beams: int = 20,
    rejected: int = 1,
    chosen: str = "best",
    exclude_history: bool = True,
) -> ScoredPairs:
    """Search the policy's beams and keep the one of the highest reward and those of the lowest.

    Args:
        recommender: the policy.
        reward: scores items after histories.
        candidates: the SIDs.
        questions: training rows.
        beams: items searched a row, N of best-of-N and worst-of-N.
        rejected: worst ones kept, 1 to below ``beams``.
        chosen: ``best``: the beam of the highest reward; ``target``: what the user took, whether it was found or not.
            The target is never rejected.
        exclude_history: search no item of the history.

    Raises:
        InputError: numbers out of range, fewer SIDs than beams, or rewards that are all equal.

    Paper: OneRec (Deng et al., 2025, https://arxiv.org/abs/2502.18965), self-hard pairs for iterative preference
        alignment. Theirs are lists of a session, scored by a model of several goals on logged feedback, one pair a
        prompt; here a beam is an item (or a list, see `llmrec.training.preferences.sessions`), the reward is trained
        on the interactions alone, several may be rejected, and the target may be the chosen one.
    """
    check_pairs(beams=beams, rejected=rejected, chosen=chosen)
    # The target is let in: whether the policy finds it is what the log wants to know.
    own = np.arange(len(questions)) * candidates.count + candidates.sid_of[questions.targets]
    forbidden = None
    if exclude_history:
        keys = candidates.forbidden(questions)
        history_keys = np.setdiff1d(keys, own, assume_unique=False)
        forbidden = history_keys if len(history_keys) else None
    found, _ = search_sids(recommender, candidates, questions, count=beams, forbidden=forbidden, beams=beams)
    items = found.numpy()
    is_target = candidates.sid_of[items] == candidates.sid_of[questions.targets][:, None]
    both = np.concatenate([items, questions.targets[:, None]], axis=1)
    rewards = reward.scores(questions, both)
    best, worst = best_and_worst(rewards[:, :-1], is_target, rejected=rejected, target_wins=chosen == "target")
    rows = np.arange(len(questions))
    if chosen == "target":
        chosen_items, chosen_rewards = questions.targets, rewards[:, -1]
    else:
        chosen_items, chosen_rewards = items[rows, best], rewards[rows, best]
    worst_rewards = np.take_along_axis(rewards, worst, axis=1)
    # Without a difference there is nothing to prefer; a target is preferred whatever the model thinks of it.
    kept = rows if chosen == "target" else np.flatnonzero(worst_rewards.max(axis=1) < chosen_rewards)
    if not len(kept):
        raise InputError(
            f"reward_model: all {len(questions)} rows have beams of one reward; raise beams, or train another one"
        )
    return ScoredPairs(
        questions.take(kept),
        np.asarray(chosen_items)[kept],
        np.take_along_axis(items, worst, axis=1)[kept],
        (chosen_rewards[:, None] - worst_rewards)[kept],
        float(is_target.any(axis=1).mean()),
        len(questions) - len(kept),
    )


def best_and_worst(
    rewards: np.ndarray, is_target: np.ndarray, *, rejected: int, target_wins: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of the highest reward, and those of the lowest; of equals the earlier beam is the better one.

    Args:
        rewards: ``(rows, beams)``.
        is_target: ``(rows, beams)`` bool: never among the lowest.
        rejected: how many of the lowest.
        target_wins: whether something outside these beams is chosen, so that all but the target may be rejected.

    Returns:
        ``(rows,)`` and ``(rows, rejected)`` places, the lowest first.
    """
    width = rewards.shape[1]
    best = rewards.argmax(axis=1)
    kept_out = is_target.copy()
    if not target_wins:
        kept_out[np.arange(len(rewards)), best] = True
    keys = np.where(kept_out, np.inf, rewards)
    # Read from the back, so that of equals the later one comes first.
    order = width - 1 - np.argsort(keys[:, ::-1], axis=1, kind="stable")
    return best, order[:, :rejected]


def check_pairs(*, beams: int, rejected: int, chosen: str) -> None:
    """Raise `InputError` for settings of `scored_pairs` that cannot be."""
    if chosen not in CHOSEN:
        raise InputError(f"chosen {chosen!r}: choose one of {', '.join(CHOSEN)}")
    for name, value, least in (("beams", beams, 3), ("rejected", rejected, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} {value!r}: a whole number, at least {least}")
    if rejected > beams - 2:
        raise InputError(
            f"rejected {rejected} of {beams} beams; at most {beams - 2}, for the best one and the target are kept out"
        )
