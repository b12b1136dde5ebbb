"""The counting baselines as one would write them down first, a user at a time."""

import math
from collections import Counter, defaultdict
from itertools import pairwise


def popularity_order(sequences, items):
    counts = Counter(item for sequence in sequences for item in sequence)
    return sorted(range(items), key=lambda item: (-counts[item], item))


def transition_scores(sequences, history):
    scores = Counter()
    for sequence in sequences:
        for before, after in pairwise(sequence):
            if history and before == history[-1]:
                scores[after] += 1
    return scores


def item_knn_scores(sequences, history, *, recency=0.5):
    takers = defaultdict(set)
    for user, sequence in enumerate(sequences):
        for item in sequence:
            takers[item].add(user)
    scores = Counter()
    for age, item in enumerate(reversed(history)):
        for other in list(takers):
            common = len(takers[item] & takers[other])
            if other != item and common:
                scores[other] += recency**age * common / math.sqrt(len(takers[item]) * len(takers[other]))
    return scores


def recommend(scores, order, history, k, *, exclude_seen, fill):
    """Scored items by score, then popularity; then the popular ones; -1 in what stays empty."""
    place = {item: rank for rank, item in enumerate(order)}
    # Rounded, because sums in another order differ in the last bit and would break ties otherwise.
    found = sorted(scores, key=lambda item: (-round(scores[item], 12), place[item]))
    if fill or exclude_seen:
        found += [item for item in order if item not in scores]
    if exclude_seen:
        found = [item for item in found if item not in history]
    return (found + [-1] * k)[:k]
