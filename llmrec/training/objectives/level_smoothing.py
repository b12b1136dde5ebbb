"""Label smoothing inside a level: a little of the target's mass goes to the codes that could stand there."""

import torch
from torch import Tensor

from llmrec.training.labelled import Head, Labelled
from llmrec.training.objectives.base import Objective, ObjectiveContext, check_choice, check_number
from llmrec.training.objectives.sid_labels import (
    LevelTokens,
    in_parts,
    labels_by_level,
    legal_columns,
    nodes_before,
)

WHERE = ("level", "children")


def level_smoothing(context: ObjectiveContext, *, epsilon: float = 0.1, over: str = "level") -> Objective:
    """Return cross-entropy with smoothed targets at codes, and with plain ones at text.

    The target has ``1 - epsilon``, and ``epsilon`` is dealt evenly to the tokens of its level, itself included. No
    token that could not stand there gets any.

    Args:
        context: gives the levels and the trie.
        epsilon: mass that is dealt out, in [0, 1).
        over: ``level`` deals to the whole codebook of the level, ``children`` to the legal children alone (a label
            that is none, of a retired item, is not smoothed).

    Raises:
        InputError: a value out of its range.

    Paper: Szegedy et al., 2016, "Rethinking the Inception Architecture for Computer Vision". How we differ: the
    uniform part lies on one level's codes in place of the whole vocabulary, of which text and other levels are
    nearly all.
    """
    epsilon = check_number("level_smoothing", "epsilon", epsilon, low=0.0, high=0.999)
    children = check_choice("level_smoothing", "over", over, WHERE) == "children"
    levels = LevelTokens.of(context.vocab, context.device)
    trie = context.trie if children else None

    def objective(labelled: Labelled, head: Head) -> Tensor:
        # -(1 - e) log p(target) - e mean log p(code) = -log p(target) + e (logit(target) - mean logit(code)):
        # the normaliser of the full softmax is in both, so that the level's logits alone are needed beside it.
        found = -head.log_probs(labelled.hidden, labelled.targets)
        smoothed = labelled.levels >= 0
        nodes = None
        if trie is not None:
            nodes = nodes_before(labelled, trie)
            smoothed = (nodes >= 0) & (trie.child(nodes, labelled.targets) >= 0)
        for level, places in labels_by_level(labelled, smoothed, len(levels)):
            tokens = levels[level]
            legal = [] if nodes is None or trie is None else [legal_columns(nodes[places], trie, tokens)]
            gaps = in_parts(
                _above_mean,
                head,
                labelled.hidden[places],
                tokens.token_ids,
                tokens.columns(labelled.targets[places]),
                *legal,
            )
            found = found.index_add(0, places, (epsilon * gaps).to(found.dtype))
        return found

    return objective


def _above_mean(logits: Tensor, columns: Tensor, legal: Tensor | None = None) -> Tensor:
    target = logits.gather(1, columns[:, None])[:, 0]
    if legal is None:
        return target - logits.mean(1)
    return target - torch.where(legal, logits, 0.0).sum(1) / legal.sum(1)
