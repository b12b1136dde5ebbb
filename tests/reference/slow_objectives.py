"""Training objectives as one would write them down first: label by label, over dense logits."""

import math

import torch


def log_softmax(logits):
    """Log-probabilities of the logits of one label."""
    logits = torch.stack(list(logits))
    top = logits.detach().max()
    return logits - ((logits - top).exp().sum().log() + top)


def logits_of(hidden, weight):
    """All logits of one label."""
    return (weight * hidden).sum(dim=1)


def codes_before(labelled, place):
    """The codes of a label's SID before it, None where one has no label."""
    found = []
    for level in range(int(labelled.levels[place])):
        same = [
            int(labelled.targets[other])
            for other in range(len(labelled.targets))
            if int(labelled.levels[other]) == level and int(labelled.sids[other]) == int(labelled.sids[place])
        ]
        if not same:
            return None
        found.append(same[0])
    return tuple(found)


def children_of(sids, before):
    """Tokens that may follow a beginning, none where no SID starts with it."""
    return sorted({sid[len(before)] for sid in sids if sid[: len(before)] == before and len(sid) > len(before)})


def slow_cross_entropy(labelled, weight):
    """Minus the log-probability of each label."""
    return [
        -log_softmax(logits_of(hidden, weight))[int(target)]
        for hidden, target in zip(labelled.hidden, labelled.targets, strict=True)
    ]


def legal_at(labelled, place, sids):
    """The legal children at a label, or None where the label is text or none of them."""
    if int(labelled.levels[place]) < 0:
        return None
    before = codes_before(labelled, place)
    legal = [] if before is None else children_of(sids, before)
    return legal if int(labelled.targets[place]) in legal else None


def slow_legal_children(labelled, weight, sids, *, full):
    """Cross-entropy over the children alone, mixed with plain cross-entropy; plain where there is no legal child."""
    found = []
    for place, plain in enumerate(slow_cross_entropy(labelled, weight)):
        legal = legal_at(labelled, place, sids)
        if legal is None:
            found.append(plain)
            continue
        logits = logits_of(labelled.hidden[place], weight)
        target = legal.index(int(labelled.targets[place]))
        restricted = -log_softmax([logits[token] for token in legal])[target]
        found.append((1 - full) * restricted + full * plain)
    return found


def slow_level_smoothing(labelled, weight, levels, sids, *, epsilon, over):
    """Cross-entropy with a target that deals ``epsilon`` to a level's tokens, or to the legal children."""
    found = []
    for place, plain in enumerate(slow_cross_entropy(labelled, weight)):
        level, legal = int(labelled.levels[place]), legal_at(labelled, place, sids)
        if level < 0 or (over == "children" and legal is None):
            found.append(plain)
            continue
        dealt = legal if over == "children" else levels[level]
        log_probs = log_softmax(logits_of(labelled.hidden[place], weight))
        found.append((1 - epsilon) * plain - epsilon * sum(log_probs[token] for token in dealt) / len(dealt))
    return found


def slow_apao(labelled, weight, *, beta, eta, by_batch):
    """Summed losses: cross-entropy, and per SID ``beta * codes * sum_m w_m L_m`` with ``L_m`` the mean of m losses."""
    plain = slow_cross_entropy(labelled, weight)
    sids = {}
    for place in range(len(plain)):
        if int(labelled.levels[place]) >= 0:
            sids.setdefault(int(labelled.sids[place]), {})[int(labelled.levels[place])] = plain[place]
    prefixes = {}
    for number, losses in sids.items():
        whole = []
        while len(whole) in losses:
            whole.append(losses[len(whole)])
        prefixes[number] = [sum(whole[:codes]) / codes for codes in range(1, len(whole) + 1)]
    total = torch.stack(plain).sum()
    for losses in prefixes.values():
        judged = []
        for place, loss in enumerate(losses):
            same = [other[place] for other in prefixes.values() if len(other) > place]
            judged.append(float((sum(same) / len(same) if by_batch else loss).detach()))
        weights = [math.exp(eta * value) for value in judged]
        for w, loss in zip(weights, losses, strict=True):
            total = total + beta * len(losses) * w / sum(weights) * loss
    return total


def slow_distillation(labelled, weight, levels, teacher_logits, *, share, temperature):
    """Cross-entropy and the divergence from a teacher over the tokens of the level."""
    found = []
    for place, plain in enumerate(slow_cross_entropy(labelled, weight)):
        level = int(labelled.levels[place])
        if level < 0:
            found.append(plain)
            continue
        own = logits_of(labelled.hidden[place], weight)
        student = log_softmax([own[token] / temperature for token in levels[level]])
        teacher = log_softmax([teacher_logits[place][token] / temperature for token in levels[level]])
        divergence = sum(t.exp() * (t - s) for t, s in zip(teacher, student, strict=True))
        found.append((1 - share) * plain + share * temperature**2 * divergence)
    return found
