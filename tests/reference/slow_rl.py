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


def slow_negatives(
    sid_of: list[int],
    weights: list[float],
    targets: list[int],
    histories: list[list[int]],
    stream: list[list[float]],
    count: int,
) -> list[list[int]]:
    """Rejected SIDs of each row: read the row's uniform numbers in turn, and keep what it may have and has not yet."""
    total, found = sum(weights), []
    for target, history, numbers in zip(targets, histories, stream, strict=True):
        forbidden = {sid_of[target], *(sid_of[item] for item in history)}
        kept: list[int] = []
        for number in numbers:
            drawn, below = 0, weights[0]
            while number * total >= below:
                drawn += 1
                below += weights[drawn]
            if drawn not in forbidden and drawn not in kept:
                kept.append(drawn)
        found.append(kept[:count])
    return found


def slow_nearest(
    vectors: list[list[float]], target: int, forbidden: set[int], sid_of: list[int], skip: int, count: int
) -> list[int]:
    """The SIDs nearest to a target by cosine, behind the ``skip`` nearest items, none twice and none forbidden."""

    def cosine(one: list[float], other: list[float]) -> float:
        size = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
        return sum(x * y for x, y in zip(one, other, strict=True)) / size

    others = [item for item in range(len(vectors)) if item != target]
    others.sort(key=lambda item: (-cosine(vectors[target], vectors[item]), item))
    kept: list[int] = []
    for item in others[skip:]:
        if sid_of[item] not in forbidden | {sid_of[target]} and sid_of[item] not in kept:
            kept.append(sid_of[item])
    return kept[:count]


def slow_best_and_worst(rewards: list[float], target: int | None, rejected: int) -> tuple[int, list[int]]:
    """Places of the best reward and of the worst ones; of equals the earlier beam counts as the better one."""
    order = sorted(range(len(rewards)), key=lambda place: (-rewards[place], place))
    worst = [place for place in reversed(order) if place not in (order[0], target)]
    return order[0], worst[:rejected]
