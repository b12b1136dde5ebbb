"""Beam search over the legal SIDs alone: the prompt is read once, each step looks at the children of live beams."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.trie import ROOT, SIDTrie
from llmrec.errors import InputError

SCORES = ("full", "sids", "allowed")


@dataclass(frozen=True)
class BeamResult:
    """What a search found, best first; a place that no SID was left for holds -1, -1 and -inf.

    Args:
        token_ids: ``(batch, beams, levels)`` int64, -1 behind a shorter SID.
        leaves: ``(batch, beams)`` int64 trie nodes.
        scores: ``(batch, beams)`` float32 sums of log-probabilities.
    """

    token_ids: Tensor
    leaves: Tensor
    scores: Tensor


class _Decoder:
    """A causal or encoder-decoder model that has read the prompts and goes on from its cache.

    Args:
        model: the model, in evaluation mode.
        input_ids: ``(batch, length)`` left-padded prompts.
        attention_mask: ``(batch, length)``, 1 on real tokens.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, input_ids: Tensor, attention_mask: Tensor) -> None:
        self.model = model
        self.attention_mask = attention_mask
        self.encoded: Any = None
        if model.config.is_encoder_decoder:
            encoder = model.get_encoder()
            self.encoded = encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
            start = torch.full_like(input_ids[:, :1], model.config.decoder_start_token_id)
            output = self._decode(start, None)
        else:
            positions = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
            output = model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=positions,
                use_cache=True, logits_to_keep=1, return_dict=True,
            )  # fmt: skip
        self.position = attention_mask.sum(dim=-1, keepdim=True)
        self.cache = output.past_key_values
        self.logits = output.logits[:, -1]

    def _decode(self, tokens: Tensor, cache: Any) -> Any:
        return self.model(
            encoder_outputs=self.encoded, attention_mask=self.attention_mask, decoder_input_ids=tokens,
            past_key_values=cache, use_cache=True, return_dict=True,
        )  # fmt: skip

    def advance(self, parents: Tensor, tokens: Tensor) -> None:
        """Let row ``i`` go on from what was row ``parents[i]`` with ``tokens[i]``; both ``(rows,)``."""
        self.cache.reorder_cache(parents)
        self.attention_mask = self.attention_mask.index_select(0, parents)
        if self.encoded is not None:
            self.encoded.last_hidden_state = self.encoded.last_hidden_state.index_select(0, parents)
            output = self._decode(tokens[:, None], self.cache)
        else:
            self.attention_mask = torch.cat([self.attention_mask, torch.ones_like(tokens)[:, None]], dim=1)
            self.position = self.position.index_select(0, parents)
            output = self.model(
                input_ids=tokens[:, None], attention_mask=self.attention_mask, position_ids=self.position,
                past_key_values=self.cache, use_cache=True, logits_to_keep=1, return_dict=True,
            )  # fmt: skip
            self.position = self.position + 1
        self.cache = output.past_key_values
        self.logits = output.logits[:, -1]


def constrained_beam_search(
    model: PreTrainedModel | PeftModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    trie: SIDTrie,
    num_beams: int,
    score: str = "full",
    end_token_id: int | None = None,
    excluded: Sequence[Sequence[int]] | None = None,
) -> BeamResult:
    """Return the best SIDs after each prompt, each of them legal and none twice.

    With ``num_beams`` at least the number of SIDs the search is exhaustive. The model's ``generation_config`` is not
    read: no sampling setting of a checkpoint can bend the search. The end token after the last code is not scored.

    Args:
        model: a causal or encoder-decoder model in evaluation mode; call under ``torch.inference_mode``.
        input_ids: ``(batch, length)`` prompts, padded on the left.
        attention_mask: ``(batch, length)``, 1 on real tokens, 0 on padding.
        trie: the legal SIDs, on the model's device.
        num_beams: how many prefixes are kept, and SIDs returned, a prompt; at least 1.
        score: what a log-probability is taken over: ``full`` the whole vocabulary, ``sids`` all SID tokens and the end
            token, ``allowed`` the legal children of the beam.
        end_token_id: the token that ends an answer; needed by ``sids``.
        excluded: for each prompt the item rows that must not come out.

    Raises:
        InputError: an unknown score, no beams, a mask without tokens or padded on the right, logits that are NaN, or a
            prompt for which nothing legal is left.
    """
    _check(input_ids, attention_mask, num_beams, score, end_token_id)
    batch = len(input_ids)
    blocked = None if excluded is None else _blocked_nodes(trie, excluded)
    decoder = _Decoder(model, input_ids, attention_mask)
    normalizer = trie.sid_token_ids
    if end_token_id is not None:
        normalizer = torch.cat([normalizer, normalizer.new_tensor([end_token_id])]).unique()

    requests = torch.arange(batch, device=input_ids.device)[:, None]
    nodes = torch.full((batch, 1), ROOT, device=input_ids.device)
    scores = torch.zeros((batch, 1), device=input_ids.device)
    path = nodes.new_empty((batch, 1, 0))
    for level in range(trie.levels):
        # One column a possible child of each beam; a finished beam has one, itself.
        first, stop = trie.first_child[nodes], trie.first_child[nodes + 1]
        finished = first == stop
        width = max(1, int((stop - first).max()))
        children = first[..., None] + torch.arange(width, device=nodes.device)
        legal = children < stop[..., None]
        children = torch.where(legal, children, ROOT)

        logits = decoder.logits.view(batch, nodes.shape[1], -1)
        gathered = logits.gather(2, trie.token[children].clamp(min=0))
        gathered = gathered.float().masked_fill(~legal, -torch.inf)
        if score == "full":
            total = logits.float().logsumexp(dim=-1)
        elif score == "sids":
            total = logits.index_select(-1, normalizer).float().logsumexp(dim=-1)
        else:
            total = gathered.logsumexp(dim=-1)
        step = gathered - total[..., None]
        children[..., 0] = torch.where(finished, nodes, children[..., 0])
        step[..., 0] = step[..., 0].masked_fill(finished, 0.0)
        legal[..., 0] |= finished
        legal &= (scores > -torch.inf)[..., None]
        if blocked is not None:
            legal &= ~torch.isin(requests[..., None] * len(trie) + children, blocked)

        candidates = (scores[..., None] + step).masked_fill(~legal, -torch.inf).flatten(1)
        if candidates.isnan().any():
            raise InputError("model: its logits are NaN; load it in float32 or bfloat16, or train it again")
        scores, best = candidates.topk(min(num_beams, candidates.shape[1]), dim=1)
        if (scores[:, 0] == -torch.inf).any():
            request = int((scores[:, 0] == -torch.inf).nonzero()[0])
            raise InputError(
                f"request {request}: no legal SID is left at level {level}; exclude fewer items, or look for infinite "
                "logits in the model"
            )
        parents = best // width
        nodes = children.flatten(1).gather(1, best)
        tokens = torch.where(finished.gather(1, parents), -1, trie.token[nodes])
        path = torch.cat([path.gather(1, parents[..., None].expand(-1, -1, path.shape[2])), tokens[..., None]], dim=2)
        if level + 1 < trie.levels:
            rows = (requests * logits.shape[1] + parents).flatten()
            decoder.advance(rows, tokens.clamp(min=0).flatten())
    dead = scores == -torch.inf
    return BeamResult(path.masked_fill(dead[..., None], -1), nodes.masked_fill(dead, -1), scores)


def _check(input_ids: Tensor, attention_mask: Tensor, num_beams: int, score: str, end_token_id: int | None) -> None:
    if score not in SCORES:
        raise InputError(f"score {score!r}: choose one of {', '.join(SCORES)}")
    if score == "sids" and end_token_id is None:
        raise InputError("score 'sids': it is taken over the SID tokens and the end token; give end_token_id")
    if num_beams < 1:
        raise InputError(f"num_beams {num_beams}: at least 1")
    if attention_mask.shape != input_ids.shape:
        raise InputError(f"attention_mask is {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}")
    if not attention_mask[:, -1].all():
        raise InputError("attention_mask: a prompt ends in padding; pad prompts on the left")


def _blocked_nodes(trie: SIDTrie, excluded: Sequence[Sequence[int]]) -> Tensor:
    """Return ``request * nodes + node`` for each node below which every item is excluded from the request."""
    keys = [request * trie.items + row for request, rows in enumerate(excluded) for row in rows]
    pairs = torch.tensor(keys, dtype=torch.int64, device=trie.rows.device).unique()
    paths = trie.paths[pairs % max(trie.items, 1)]
    on_path = (pairs // trie.items * len(trie))[:, None] + paths
    found, counts = on_path[paths >= 0].unique(return_counts=True)
    return found[counts == trie.items_below[found % len(trie)]]
