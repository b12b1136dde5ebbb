"""The trie as a logits processor, for stock ``generate`` and for what is built on it."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from llmrec.decoding.trie import ROOT, SIDTrie
from llmrec.errors import InputError


class SIDLogitsProcessor(LogitsProcessor):
    """Leave only legal SID tokens, by masks of -inf.

    It keeps no state: where a row stands is read from its tokens. After the last code the end token alone is legal, at
    no cost, so a beam's score is the SID's. For plain sums of log-probabilities give ``generate``
    ``length_penalty=0.0``.

    Args:
        trie: the legal SIDs, on the model's device.
        prompt_length: tokens of the (padded) prompt; 1 for an encoder-decoder, whose decoder opens with one token.
        end_token_id: the token that ends an answer.
    """

    def __init__(self, trie: SIDTrie, prompt_length: int, *, end_token_id: int) -> None:
        self.trie = trie
        self.prompt_length = prompt_length
        self.end_token_id = end_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with what is illegal at -inf.

        Args:
            input_ids: ``(rows, length)`` tokens so far.
            scores: ``(rows, vocab)`` logits or log-probabilities.

        Returns:
            ``(rows, vocab)``; legal scores unchanged, the end token after a whole SID at 0.

        Raises:
            InputError: the first token after the prompt is no SID token in any row, so ``prompt_length`` is wrong.
        """
        nodes = torch.full((len(input_ids),), ROOT, device=input_ids.device)
        for column in range(self.prompt_length, input_ids.shape[1]):
            nodes = self.trie.child(nodes, input_ids[:, column])
            if column == self.prompt_length and bool((nodes < 0).all()):
                raise InputError(
                    f"prompt_length {self.prompt_length}: no row has a SID token there; give the length of the padded "
                    "prompt"
                )
        # A row that has left the trie (after the end token, or a spare beam of generate) may only end.
        first = torch.where(nodes >= 0, self.trie.first_child[nodes], 0)
        counts = torch.where(nodes >= 0, self.trie.first_child[nodes + 1], 0) - first
        rows = torch.arange(len(nodes), device=nodes.device).repeat_interleave(counts)
        within = torch.arange(len(rows), device=nodes.device) - (counts.cumsum(0) - counts)[rows]
        tokens = self.trie.token[first[rows] + within]
        masked = torch.full_like(scores, -torch.inf)
        masked[rows, tokens] = scores[rows, tokens]
        masked[counts == 0, self.end_token_id] = 0.0
        return masked
