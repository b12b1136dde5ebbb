"""Slow and obvious twins of reinforcement learning and preferences: Python numbers, one row at a time."""

import math


def slow_s_dpo(policy: list[float], reference: list[float], margins: list[float], beta: float) -> float:
    """S-DPO of one list: minus the log of the softmax that the chosen one gets among all, by rewards."""
    rewards = [beta * (log_prob - before) for log_prob, before in zip(policy, reference, strict=True)]
    weights = [math.exp(reward) for reward in rewards]
    return -math.log(weights[0] / sum(weights))


def slow_ddro(policy: list[float], reference: list[float], margins: list[float], beta: float) -> float:
    """DDRO of one list: the mean loss of its pairs."""
    return slow_margin(policy, reference, [0.0] * len(margins), beta)


def slow_margin(policy: list[float], reference: list[float], margins: list[float], beta: float) -> float:
    """DPO with an offset of one list: the mean loss of its pairs, each to be won by its margin."""
    losses = []
    for rejected in range(1, len(policy)):
        chosen = policy[0] - reference[0]
        other = policy[rejected] - reference[rejected]
        logit = beta * (chosen - other) - margins[rejected - 1]
        losses.append(-math.log(1.0 / (1.0 + math.exp(-logit))))
    return sum(losses) / len(losses)
