"""Branches behind a prompt: who sees whom, and at which position."""

import torch
from torch import Tensor


def branch_mask(attention_mask: Tensor, *, group: int, length: int) -> Tensor:
    """Return ``(prompts, tokens, tokens)``, True where a token sees another: what came before it on its own branch.

    Args:
        attention_mask: ``(prompts, prompt)``, padded on the left.
        group: branches of a prompt.
        length: tokens of a branch.
    """
    device, width = attention_mask.device, attention_mask.shape[1]
    branch = torch.arange(group, device=device).repeat_interleave(length)
    of = torch.cat([torch.full((width,), -1, device=device), branch])
    sees = torch.ones((len(of), len(of)), dtype=torch.bool, device=device).tril_()
    sees &= (of[None, :] == -1) | (of[None, :] == of[:, None])
    seen = torch.nn.functional.pad(attention_mask.bool(), (0, group * length), value=True)
    # Padding sees itself: a query that saw nothing would be NaN.
    return (sees & seen[:, None]) | torch.eye(len(of), dtype=torch.bool, device=device)


def branch_positions(attention_mask: Tensor, *, group: int, length: int) -> Tensor:
    """Return ``(prompts, tokens)`` positions: those of the prompt, and going on from its end on each branch."""
    within = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    depths = torch.arange(length, device=attention_mask.device).repeat(group)
    return torch.cat([within, attention_mask.sum(dim=1, keepdim=True) + depths], dim=1)
