"""Decoding as one would write it down first: dicts of prefixes, one forward pass an item."""

import math

import torch


def legal_next(token_lists, prefix):
    """Tokens that may follow a prefix."""
    prefix = list(prefix)
    return sorted({ids[len(prefix)] for ids in token_lists if ids[: len(prefix)] == prefix and len(ids) > len(prefix)})


def score_item(model, prompt, token_ids, token_lists, *, score="full", sid_tokens=(), end_token_id=None):
    """Sum of log-probabilities of a SID after an unpadded prompt, one forward pass a token, no cache."""
    total = 0.0
    for depth, token in enumerate(token_ids):
        ids = torch.tensor([list(prompt) + list(token_ids[:depth])])
        if model.config.is_encoder_decoder:
            start = model.config.decoder_start_token_id
            decoder_ids = torch.tensor([[start, *token_ids[:depth]]])
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([list(prompt)]), decoder_input_ids=decoder_ids).logits[0, -1]
        else:
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, -1]
        values = [float(value) for value in logits]
        if score == "full":
            over = range(len(values))
        elif score == "sids":
            over = sorted({*sid_tokens, end_token_id})
        else:
            over = legal_next(token_lists, token_ids[:depth])
        top = max(values[i] for i in over)
        total += values[token] - top - math.log(sum(math.exp(values[i] - top) for i in over))
    return total
