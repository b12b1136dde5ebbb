"""The scores of SIDs that are given, from prompts that were read: what a search would have said of each."""

import torch
from torch import Tensor

from llmrec.decoding.filters import SearchSpace
from llmrec.decoding.reader import PromptReader
from llmrec.decoding.steps import Frontier, check_score


def score_sids(
    reader: PromptReader,
    space: SearchSpace,
    leaves: Tensor,
    *,
    score: str = "full",
    end_token_id: int | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Return the log-probability of each given SID, by the steps of `llmrec.decoding.beam.beam_search`.

    Args:
        reader: the prompts, as `llmrec.decoding.prompts.read_prompts` or `PromptReader.rewind` leaves them.
        space: the trie and the prompts' filters; without an ``allow``.
        leaves: ``(batch, sids)`` int64 leaves of the trie, on its device.
        score: ``full``, ``sids`` or ``allowed``.
        end_token_id: the token that ends an answer; needed by ``sids``.
        temperature: what logits are divided by, above 0.

    Returns:
        ``(batch, sids)`` float32, -inf for a SID that the filter takes.

    Raises:
        InputError: an unknown score, or logits that are NaN.
    """
    check_score(score, end_token_id)
    trie = space.trie
    paths = trie.paths(trie.rows[trie.first_item[leaves.flatten()].long()]).view(*leaves.shape, -1)
    paths = torch.where(paths >= 0, paths, leaves[..., None])  # a shorter SID stays where it ends
    frontier = Frontier(reader, space, score=score, end_token_id=end_token_id, temperature=temperature)
    while frontier.going_on:
        nodes, scores = frontier.expand()
        # What is not legal stands in `nodes` as the root, which no path goes through.
        nodes = torch.where(scores > -torch.inf, nodes, -1)
        ordered, order = nodes.sort(dim=1)
        on, at_on = _find(ordered, paths[..., frontier.depth])
        ended, at_end = _find(ordered, leaves)  # under ``allowed`` a single ending is taken at once
        place = order.gather(1, torch.where(on, at_on, at_end))
        frontier.keep(place, torch.where(on | ended, 0.0, -torch.inf))
    return frontier.result()[2]


def _find(ordered: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether each wanted node stands in ``(batch, candidates)`` rising nodes, and where."""
    at = torch.searchsorted(ordered, wanted.contiguous()).clamp(max=ordered.shape[1] - 1)
    return ordered.gather(1, at) == wanted, at
