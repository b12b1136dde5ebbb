"""Slow and obvious twins of reinforcement learning and preferences: Python numbers, one row at a time."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from llmrec.vocab import SIDVocab


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


def slow_preference_loss(
    model: Any,
    reference: Any,
    rows: Sequence[Any],
    *,
    vocab: SIDVocab,
    softmax: str,
    beta: float,
    end: int = 0,
) -> torch.Tensor:
    """S-DPO's mean over token rows: each completion behind its prompt in a row of its own, without padding."""
    losses = []
    for row in rows:
        rewards = []
        for completion in row["completions"]:
            given = [slow_log_prob(each, row["input_ids"], completion, vocab=vocab, softmax=softmax, end=end)
                     for each in (model, reference)]  # fmt: skip
            rewards.append(beta * (given[0] - given[1].detach()))
        losses.append(-torch.stack(rewards).log_softmax(dim=0)[0])
    return torch.stack(losses).mean()


def slow_log_prob(
    model: Any, prompt: Sequence[int], completion: Sequence[int], *, vocab: SIDVocab, softmax: str, end: int
) -> torch.Tensor:
    """The log-probability of a completion of whole SIDs, a token at a time."""
    sids = [vocab.token_ids(item) for item in range(len(vocab))]
    total, whole = torch.zeros(()), 0
    for place, token in enumerate(completion):
        logits = model(input_ids=torch.tensor([[*prompt, *completion[:place]]])).logits[0, -1]
        if list(completion[whole:place]) in sids:
            whole = place
        prefix = list(completion[whole:place])
        if softmax == "full":
            considered = list(range(len(logits)))
        elif softmax == "sids":
            considered = sorted({*(token for level in vocab.level_token_ids for token in level.tolist()), end})
        else:
            considered = sorted({sid[len(prefix)] for sid in sids if sid[: len(prefix)] == prefix})
        total = total + logits[considered].log_softmax(dim=0)[considered.index(token)]
    return total


def slow_prefix_match(candidate: list[int], target: list[int], weights: Sequence[float]) -> float:
    """Weights of the levels up to the first wrong code, of those that the target has."""
    earned = 0.0
    for level, code in enumerate(target):
        if level >= len(candidate) or candidate[level] != code:
            break
        earned += weights[level]
    return earned / sum(weights[: len(target)])


def slow_rank_penalty(hits: list[bool], ranks: list[int]) -> list[float]:
    """MiniOneRec's ranking reward of one group, by the places of its candidates."""
    if not any(hits):
        return [0.0] * len(hits)
    total = sum(1 / math.log2(place + 2) for place in range(len(hits)))
    return [0.0 if hit else -(1 / math.log2(rank + 2)) / total for hit, rank in zip(hits, ranks, strict=True)]


def slow_ndcg(hits: list[bool]) -> float:
    """NDCG of a list with at most one hit, best place first."""
    return sum(1 / math.log2(place + 2) for place, hit in enumerate(hits) if hit)


def slow_difference_ndcg(hits: list[bool], ranks: list[int]) -> list[float]:
    """What the NDCG of a group's list loses when a candidate is taken out of it."""
    order = sorted(range(len(hits)), key=lambda candidate: ranks[candidate])
    whole = slow_ndcg([hits[candidate] for candidate in order])
    return [
        whole - slow_ndcg([hits[other] for other in order if other != candidate]) for candidate in range(len(hits))
    ]


def slow_group_ranks(scores: list[float]) -> list[float]:
    """Places of scores from 0 (worst) to 1 (best), equal ones sharing the mean."""
    if all(score == -math.inf for score in scores):
        return [0.0] * len(scores)
    found = []
    for score in scores:
        below = sum(other < score for other in scores)
        equal = sum(other == score for other in scores)
        found.append((below + (equal - 1) / 2) / (len(scores) - 1))
    return found


def slow_diversity(vectors: list[list[float] | None]) -> list[float]:
    """Mean distance, 1 less the cosine, of each candidate from the others that are items."""
    found = []
    for place, own in enumerate(vectors):
        others = [other for number, other in enumerate(vectors) if number != place and other is not None]
        if own is None or not others:
            found.append(0.0)
            continue
        cosines = [
            sum(a * b for a, b in zip(own, other, strict=True)) / (math.hypot(*own) * math.hypot(*other))
            for other in others
        ]
        found.append(sum(1 - cosine for cosine in cosines) / len(others))
    return found


def slow_pass_at_k(hits: list[bool], k: int) -> list[float]:
    """The advantages of pass@k of one group, by counting the draws of k candidates."""
    draws = list(itertools.combinations(range(len(hits)), k))
    values = [1.0 if any(hits[candidate] for candidate in draw) else 0.0 for draw in draws]
    mean = sum(values) / len(values)
    deviation = math.sqrt(mean * (1 - mean))
    if deviation == 0:
        return [0.0] * len(hits)
    found = []
    for candidate in range(len(hits)):
        own = [value for draw, value in zip(draws, values, strict=True) if candidate in draw]
        found.append((sum(own) / len(own) - mean) / deviation)
    return found


def slow_clipped_loss(ratio: float, advantage: float, low: float, high: float) -> float:
    """The clipped loss of one token."""
    clipped = min(max(ratio, 1 - low), 1 + high)
    return -min(ratio * advantage, clipped * advantage)


def slow_softmax(logits, chosen: int, among, legal, temperature: float):
    """Log-probability of one token among some, their entropy, and the probability of those that are illegal."""
    among = list(among)
    log_probs = (logits[among] / temperature).log_softmax(0)
    entropy = -(log_probs.exp() * log_probs).sum()
    outside = sum(log_probs[place].exp().item() for place, token in enumerate(among) if token not in legal)
    return log_probs[among.index(chosen)], entropy, outside


def slow_group_scores(logits_of, prompts, completions, *, kind, temperature, sids, sid_tokens, end_token_id):
    """Each candidate's ``(log-probability, entropy, outside)`` token by token, each read in a row of its own.

    ``logits_of(prompt, written)`` gives the logits behind the tokens written so far; ``sids`` are tuples of tokens.
    """
    found = {}
    for number, (prompt, candidates) in enumerate(zip(prompts, completions, strict=True)):
        for place, candidate in enumerate(candidates):
            for level, token in enumerate(candidate):
                written = tuple(candidate[:level])
                legal = {sid[level] for sid in sids if sid[:level] == written and len(sid) > level}
                logits = logits_of(prompt, list(written))
                among = {"full": range(len(logits)), "sids": [*sid_tokens, end_token_id], "allowed": sorted(legal)}
                found[number, place, level] = slow_softmax(logits, token, among[kind], legal, temperature)
    return found
