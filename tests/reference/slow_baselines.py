"""The counting baselines as one would write them down first, a user at a time."""

import math
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np


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


def recent_counts(sequences, timestamps, *, half_life, last_share):
    """Training counts by age, a share of the training period, or of the user's own sequence without times."""
    every = [time for times in timestamps or () for time in times]
    counts = Counter()
    for user, sequence in enumerate(sequences):
        for place, item in enumerate(sequence):
            if timestamps:
                age = (max(every) - timestamps[user][place]) / (max(every) - min(every))
            else:
                age = (len(sequence) - 1 - place) / len(sequence)
            if age <= last_share:
                counts[item] += 0.5 ** (age / half_life)
    return counts


def decayed(history, *, recency, last=None):
    """Weights of the items of a history."""
    weights = Counter()
    for age, item in enumerate(reversed(history)):
        if last is None or age < last:
            weights[item] += recency**age
    return weights


def ease_scores(sequences, history, *, items, l2, recency):
    taken = np.zeros((len(sequences), items))
    for user, sequence in enumerate(sequences):
        taken[user, list(sequence)] = 1
    inverse = np.linalg.inv(taken.T @ taken + l2 * np.eye(items))
    scores = np.zeros(items)
    for item, weight in decayed(history, recency=recency).items():
        for other in range(items):
            if other != item:
                scores[other] -= weight * inverse[item, other] / inverse[other, other]
    return scores


def als_fold_in(factors, history, *, regularization, alpha, recency):
    """The factor that minimises the weighted squared error over all items, by its normal equations."""
    weights = decayed(history, recency=recency)
    confidence = np.array([alpha * weights[item] if item in weights else 1.0 for item in range(len(factors))])
    wanted = np.array([float(item in weights) for item in range(len(factors))])
    left = factors.T @ np.diag(confidence) @ factors + regularization * np.eye(factors.shape[1])
    return np.linalg.solve(left, factors.T @ (confidence * wanted))


def dense_text_scores(vectors, history, *, recency, last):
    scores = np.zeros(len(vectors))
    for item, weight in decayed(history, recency=recency, last=last).items():
        for other in range(len(vectors)):
            if other != item:
                lengths = np.linalg.norm(vectors[item]) * np.linalg.norm(vectors[other])
                scores[other] += weight * (vectors[item] @ vectors[other]) / lengths
    return scores


def softmax_loss(hidden, table, targets):
    """Mean of -log softmax of the target, a place and an item at a time."""
    total = 0.0
    for state, target in zip(hidden, targets, strict=True):
        scores = [sum(a * b for a, b in zip(state, item, strict=True)) for item in table]
        top = max(scores)
        total += top + math.log(sum(math.exp(score - top) for score in scores)) - scores[target]
    return total / len(targets)


def markov_sequences(rng, *, items, users, length, faithful):
    """Planted sequences: with chance ``faithful`` an item's own successor comes next, else any item."""
    successor = rng.permutation(items)
    sequences = []
    for _ in range(users):
        sequence = [int(rng.integers(items))]
        while len(sequence) < length:
            true = rng.random() < faithful
            sequence.append(int(successor[sequence[-1]] if true else rng.integers(items)))
        sequences.append(tuple(sequence))
    return sequences, successor


def rank_with_ties(scores, target, place):
    """Where the target stands: behind better items, and behind equal ones of an earlier place."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], place[item]))
    return order.index(target)


def silu(number):
    return number / (1 + math.exp(-number))


def hstu_mixed(query, key, value, step_bias, second_bias, buckets, *, places):
    """Attention without softmax of one head: each place sums the values before it and its own."""
    mixed = []
    for now in range(len(query)):
        row = [0.0] * len(value[0])
        for then in range(now + 1):
            score = sum(a * b for a, b in zip(query[now], key[then], strict=True)) + step_bias[now - then]
            if buckets is not None:
                score += second_bias[buckets[now][then]]
            weight = silu(score) / places
            row = [total + weight * number for total, number in zip(row, value[then], strict=True)]
        mixed.append(row)
    return mixed


def transition_graph_scores(sequences, vectors, history, *, edge, two_hop, second, popularity_weight):
    """Each item's way from the last two items, the cosine to them, and its popularity, one item after the other."""
    counts = defaultdict(Counter)
    for sequence in sequences:
        for before, after in pairwise(sequence):
            counts[before][after] += 1
    taken = Counter(item for sequence in sequences for item in sequence)
    scores = np.zeros(len(vectors))
    for item in range(len(vectors)):
        scores[item] = popularity_weight * math.log1p(taken[item]) / math.log1p(max(taken.values()))
        for source, weight in zip(history[:-3:-1], (1.0, second), strict=False):
            walk = sum(
                counts[source][middle] / counts[source].total() * counts[middle][item] / counts[middle].total()
                for middle in counts[source]
                if counts[middle]
            )
            lengths = np.linalg.norm(vectors[source]) * np.linalg.norm(vectors[item])
            cosine = vectors[source] @ vectors[item] / lengths if lengths and source != item else 0.0
            walk = walk if source != item else 0.0
            scores[item] += weight * (edge * math.log1p(counts[source][item]) + two_hop * walk + cosine)
    return scores


def slow_rank_fusion(lists, weights, constant, k):
    """One user's lists, fused place by place."""
    scores = Counter()
    for items, weight in zip(lists, weights, strict=True):
        for item in dict.fromkeys(items):
            if item >= 0 and weight > 0:
                scores[item] += weight / (constant + items.index(item) + 1)
    found = sorted(scores, key=lambda item: (-round(scores[item], 11), item))
    return (found + [-1] * k)[:k]


def slow_beam_fusion(rows, beams, others, weights, k):
    """One user's candidates by the product of softmaxes, in logarithms."""
    places = [place for place, row in enumerate(rows) if row >= 0 and rows.index(row) == place]
    total = dict.fromkeys(places, 0.0)
    for scores, weight in zip([beams, *others], weights, strict=True):
        there = [scores[place] for place in places if scores[place] > -math.inf]
        filled = [weight * max(scores[place], min(there, default=0.0)) for place in places]
        normaliser = math.log(sum(math.exp(value) for value in filled)) if filled else 0.0
        for place, value in zip(places, filled, strict=True):
            total[place] += value - normaliser
    best = sorted(places, key=lambda place: (-round(total[place], 8), rows[place]))
    return ([rows[place] for place in best] + [-1] * k)[:k]
