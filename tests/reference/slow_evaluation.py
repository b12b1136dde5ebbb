"""The figures of evaluation as one would write them down first: a user, a list and an item at a time."""

import math
from collections import Counter
from datetime import UTC, datetime
from itertools import combinations, pairwise, product


def ranks(recommended, targets):
    return [next((place for place, item in enumerate(row) if item == target >= 0), -1)
            for row, target in zip(recommended, targets, strict=True)]  # fmt: skip


def recall(row, relevant, k):
    return sum(item in relevant for item in row[:k]) / len(relevant)


def ndcg(row, relevant, k):
    gained = sum(1 / math.log2(place + 2) for place, item in enumerate(row[:k]) if item in relevant)
    return gained / sum(1 / math.log2(place + 2) for place in range(min(k, len(relevant))))


def mrr(row, relevant, k):
    return next((1 / (place + 1) for place, item in enumerate(row[:k]) if item in relevant), 0.0)


def average_precision(row, relevant, k):
    total = sum(
        sum(other in relevant for other in row[: place + 1]) / (place + 1)
        for place, item in enumerate(row[:k])
        if item in relevant
    )
    return total / len(relevant)


def places(recommended, k):
    """All items in the first ``k`` places of all lists; empty places are none."""
    return [item for row in recommended for item in row[:k] if item >= 0]


def coverage(recommended, k, items):
    return len(set(places(recommended, k))) / items


def gini(recommended, k, items):
    """Mean absolute difference between two items' counts, over twice the mean count."""
    counts = Counter(places(recommended, k))
    values = [counts[item] for item in range(items)]
    if not sum(values):
        return None
    return sum(abs(a - b) for a in values for b in values) / (2 * items * sum(values))


def novelty(recommended, k, popularity):
    found, total = places(recommended, k), sum(popularity)
    if not found or not total:
        return None
    taken = [popularity[item] if item < len(popularity) else 0 for item in found]
    return sum(-math.log2(max(count, 1) / total) for count in taken) / len(found)


def repeats(recommended, histories, k):
    found = [item in history for row, history in zip(recommended, histories, strict=True)
             for item in row[:k] if item >= 0]  # fmt: skip
    return sum(found) / len(found) if found else None


def validity(recommended, k):
    return len(places(recommended, k)) / sum(len(row[:k]) for row in recommended)


def _cosine(a, b):
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def diversity(recommended, vectors, k):
    values = []
    for row in recommended:
        pairs = list(combinations([item for item in row[:k] if item >= 0], 2))
        if pairs:
            values.append(1 - sum(_cosine(vectors[a], vectors[b]) for a, b in pairs) / len(pairs))
    return sum(values) / len(values) if values else None


def category_shares(items, categories):
    """Share of each category among items, each of which gives 1 in equal parts to its own; None without any."""
    shares = Counter()
    for item in items:
        own = categories[item] if 0 <= item < len(categories) else ()
        for category in own:
            shares[category] += 1 / len(own)
    total = sum(shares.values())
    return {category: share / total for category, share in shares.items()} if total else None


def miscalibration(recommended, histories, categories, k, *, alpha=0.01):
    values = []
    for row, history in zip(recommended, histories, strict=True):
        p, q = category_shares(history, categories), category_shares(row[:k], categories)
        if p and q:
            values.append(sum(
                share * math.log(share / ((1 - alpha) * q.get(category, 0.0) + alpha * share))
                for category, share in p.items()
            ))  # fmt: skip
    return sum(values) / len(values) if values else None


def sid_ranks(recommended, targets, sids):
    """Place of the first item that carries the target's SID; an item without a SID is only like itself."""

    def sid(item):
        return sids[item] if item < len(sids) and sids[item] is not None else ("none", item)

    def rank(row, target):
        same = (place for place, item in enumerate(row) if item >= 0 and sid(item) == sid(target))
        return next(same, -1) if target >= 0 else -1

    return [rank(row, target) for row, target in zip(recommended, targets, strict=True)]


def slice_means(values, labels):
    """Rows, mean and standard error by label, without labels of None."""
    found = {}
    for label in dict.fromkeys(labels):
        own = [value for value, other in zip(values, labels, strict=True) if other == label]
        if label is not None:
            mean = sum(own) / len(own)
            spread = sum((value - mean) ** 2 for value in own)
            error = math.sqrt(spread / (len(own) - 1) / len(own)) if len(own) > 1 else None
            found[label] = (len(own), mean, error)
    return found


def day(seconds):
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def next_items(sequences):
    """Every (item, item right after it), one sequence after the other."""
    return [pair for sequence in sequences for pair in pairwise(sequence)]


def entropy(values):
    counts = Counter(values)
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def conditional_entropy(pairs):
    """Mean over pairs of the entropy of what followed their first item."""
    followed = {}
    for first, second in pairs:
        followed.setdefault(first, []).append(second)
    return sum(len(after) / len(pairs) * entropy(after) for after in followed.values())


def reached(sequences, history, hops, last):
    """Items within so many hops of the last items; a way back to where it began reaches nothing new."""
    edges = set(next_items(sequences))
    starts = set(history[-last:])
    one = {second for first, second in edges if first in starts}
    two = {second for first, second in edges if first in one} - starts
    return one if hops == 1 else one | two


def place_after(sequences, history, target, popularity):
    """Place of the target among what followed the last item, from 1; 0 where it never did."""
    counts = Counter(second for first, second in next_items(sequences) if first == history[-1])
    order = sorted(counts, key=lambda item: (-counts[item], -popularity[item], item))
    return order.index(target) + 1 if target in counts else 0


def random_cosine(vectors, weights):
    """Mean and standard deviation of the cosine of two different items drawn by weight."""
    drawn = [(weights[a] * weights[b], _cosine(vectors[a], vectors[b]))
             for a in range(len(vectors)) for b in range(len(vectors))
             if a != b and any(vectors[a]) and any(vectors[b])]  # fmt: skip
    total = sum(weight for weight, _ in drawn)
    mean = sum(weight * cosine for weight, cosine in drawn) / total
    return mean, math.sqrt(sum(weight * (cosine - mean) ** 2 for weight, cosine in drawn) / total)


def nearest(vectors, item, count):
    others = [other for other in range(len(vectors)) if other != item]
    return sorted(others, key=lambda other: (-_cosine(vectors[item], vectors[other]), other))[:count]


def rules(sequences, support, confidence):
    """Pairs of different items, the second right after the first in enough sequences of those that hold the first."""
    found = 0
    items = {item for sequence in sequences for item in sequence}
    for first in items:
        holding = [sequence for sequence in sequences if first in sequence]
        for second in items - {first}:
            after = sum((first, second) in pairwise(sequence) for sequence in holding)
            found += after >= support and after >= confidence * len(holding)
    return found


def overlap(train, valid, test):
    """Counts of the test rows ``(user, history, target)`` that stand in training and validation too."""
    users = {user for user, _, _ in test}
    return {
        "test_rows": len(test),
        "same_rows_train": sum(any(row[1:] == other[1:] for other in train) for row in test),
        "same_rows_valid": sum(any(row[1:] == other[1:] for other in valid) for row in test),
        "users": len(users),
        "users_in_train": len(users & {user for user, _, _ in train}),
        "users_in_valid": len(users & {user for user, _, _ in valid}),
        "target_in_own_train": sum(
            any(user == own and (target == goal or target in items) for own, items, goal in train)
            for user, _, target in test
        ),
        "target_is_own_valid": sum(
            any(user == own and target == goal for own, _, goal in valid) for user, _, target in test
        ),
        "valid_target_in_history": sum(
            any(user == own and goal in items for own, _, goal in valid) for user, items, _ in test
        ),
    }


def stands_in_both(history, target, trained, taken):
    """For every m: the training row and the scored row need "the target after these m items" more often than it is."""

    def count(gram, sequence):
        return sum(sequence[at : at + len(gram)] == gram for at in range(len(sequence)))

    grams = [(*history[len(history) - m :], target) for m in range(len(history) + 1)]
    return any(count(gram, trained) > 0 and count(gram, trained) + 1 > count(gram, taken) for gram in grams)


def randomisation_counted_out(a, b):
    """Share of all ways to exchange the two systems' values whose difference is as large as the one found."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    found = [abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
             for signs in product((1, -1), repeat=len(differences))]  # fmt: skip
    return sum(value >= abs(sum(differences)) - 1e-12 for value in found) / len(found)


def randomisation_drawn(a, b, samples, rng):
    """The same with ``samples`` random exchanges, one user at a time."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    extreme = 0
    for _ in range(samples):
        total = sum(d if rng.random() < 0.5 else -d for d in differences)
        extreme += abs(total) >= abs(sum(differences)) - 1e-12
    return (extreme + 1) / (samples + 1)


def two_way_bootstrap(values, samples, rng):
    """Means of ``(seeds, users)`` values under draws of seeds and, apart from them, of users."""
    seeds, users = len(values), len(values[0])
    means = []
    for _ in range(samples):
        rows = [rng.integers(seeds) for _ in range(seeds)]
        columns = [rng.integers(users) for _ in range(users)]
        means.append(sum(values[row][column] for row in rows for column in columns) / (seeds * users))
    return means


def _rows_of(users):
    found = {}
    for row, user in enumerate(users):
        found.setdefault(user, []).append(row)
    return list(found.values())


def user_bootstrap(values, users, samples, rng):
    """Means over rows of samples of users, each of whom brings all of their rows."""
    own, means = _rows_of(users), []
    for _ in range(samples):
        rows = [row for _ in own for row in own[rng.integers(len(own))]]
        means.append(sum(values[row] for row in rows) / len(rows))
    return means


def user_jackknife(values, users):
    """Variance of the mean over rows, by how it moves when one user's rows are left out."""
    mean, own = sum(values) / len(values), _rows_of(users)
    without = []
    for rows in own:
        left = [value for row, value in enumerate(values) if row not in rows]
        without.append(sum(left) / len(left))
    return (len(own) - 1) / len(own) * sum((value - mean) ** 2 for value in without)


def user_exchanges_counted_out(a, b, users):
    """Share of all ways to exchange the systems in whole users whose difference is as large as the one found."""
    own = [sum(a[row] - b[row] for row in rows) for rows in _rows_of(users)]
    return randomisation_counted_out(own, [0.0] * len(own))
