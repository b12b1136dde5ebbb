"""Filters and protocols as one would write them down first: lists of (user, item, time), one rule at a time."""


def slow_k_core(pairs, k):
    """Positions of the pairs (user, item) that stay, dropping one offender at a time."""
    stay = set(range(len(pairs)))
    while True:
        for position in sorted(stay):
            user, item = pairs[position]
            same_user = sum(pairs[other][0] == user for other in stay)
            same_item = sum(pairs[other][1] == item for other in stay)
            if same_user < k or same_item < k:
                stay.remove(position)
                break
        else:
            return stay


def slow_drop_repeats(events, which):
    """Positions of events (user, item, time) that stay when only the first or last of each pair may."""
    stay = set()
    for user, item, _ in events:
        same = [(time, at) for at, (other, thing, time) in enumerate(events) if (other, thing) == (user, item)]
        stay.add((min(same) if which == "first" else max(same))[1])
    return stay


def slow_leave_one_out(sequences):
    """(train, valid, test) as lists of (user, history, target)."""
    train, valid, test = [], [], []
    for user, items in enumerate(sequences):
        for position in range(1, len(items)):
            row = (user, tuple(items[:position]), items[position])
            from_end = len(items) - position
            part = train
            if len(items) >= 3 and from_end == 1:
                part = test
            elif len(items) >= 3 and from_end == 2:
                part = valid
            part.append(row)
    return train, valid, test


def slow_temporal(events):
    """(train, valid, test) of events (user, item, time) sorted by user and time."""
    targets = []
    for position, (user, item, time) in enumerate(events):
        before = [thing for other, thing, _ in events[:position] if other == user]
        if before:
            targets.append((time, position, (user, tuple(before), item)))
    rows = [row for _, _, row in sorted(targets)]
    first, second = len(rows) * 8 // 10, len(rows) * 9 // 10
    return rows[:first], rows[first:second], rows[second:]
