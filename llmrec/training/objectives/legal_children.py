"""Softmax over the legal children alone: what may follow the codes written so far."""

from dataclasses import replace

import torch
from torch import Tensor

from llmrec.training.labelled import Head, Labelled
from llmrec.training.objectives.base import Objective, ObjectiveContext, check_number
from llmrec.training.objectives.sid_labels import (
    LevelTokens,
    in_parts,
    labels_by_level,
    legal_columns,
    nodes_before,
)


def legal_children(context: ObjectiveContext, *, full: float = 0.0) -> Objective:
    """Return cross-entropy over the children of the trie's node at each code, and over everything at text.

    What it trains is what ``score: allowed`` decodes with. Under ``score: full`` a model that never learned to keep
    mass off other tokens ranks worse: decode with ``allowed``, or mix.

    Args:
        context: gives the trie.
        full: share of plain cross-entropy in the loss of a code, in [0, 1].

    Raises:
        InputError: a share out of its range.

    Paper: Vandenhirtz et al., 2026, "Multimodal Generative Recommendation for Fusing Semantic and Collaborative
    Signals" (MSCGRec, arXiv:2602.03713), its constrained sequence learning. How we differ: several modalities a SID
    are left out; every code of a history is a target; a label that is no legal child (a retired item) keeps the full
    softmax, as text does; and the mixture is ours.
    """
    full = check_number("legal_children", "full", full, low=0.0, high=1.0)
    trie, levels = context.trie, LevelTokens.of(context.vocab, context.device)

    def objective(labelled: Labelled, head: Head) -> Tensor:
        nodes = nodes_before(labelled, trie)
        legal = (nodes >= 0) & (trie.child(nodes, labelled.targets) >= 0)
        found = torch.zeros(len(labelled.targets), dtype=labelled.hidden.dtype, device=labelled.hidden.device)
        others = torch.ones_like(legal).nonzero().flatten() if full else (~legal).nonzero().flatten()
        if len(others) or not len(legal):  # without labels too, the losses hang on the hidden states and the table
            # A head keeps the hits of its log-probabilities, and these may be of some labels alone
            asked = head if len(others) == len(legal) else replace(head, hits=[])
            losses = -asked.log_probs(labelled.hidden[others], labelled.targets[others])
            found = found.to(losses.dtype).index_add(0, others, torch.where(legal[others], full * losses, losses))
        for level, places in labels_by_level(labelled, legal, len(levels)):
            tokens = levels[level]
            losses = in_parts(
                _restricted,
                head,
                labelled.hidden[places],
                tokens.token_ids,
                tokens.columns(labelled.targets[places]),
                legal_columns(nodes[places], trie, tokens),
            )
            found = found.to(losses.dtype).index_add(0, places, (1.0 - full) * losses)
        return found

    return objective


def _restricted(logits: Tensor, columns: Tensor, legal: Tensor) -> Tensor:
    target = logits.gather(1, columns[:, None])[:, 0]
    return logits.masked_fill(~legal, -torch.inf).logsumexp(1) - target
