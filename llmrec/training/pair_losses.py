"""TRL's own losses of pairs, for log-probabilities that were computed elsewhere."""

from collections import defaultdict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from trl import DPOTrainer

from llmrec.training.preference_losses import Preferences


def trl_pair_loss(
    weights: Mapping[str, float],
    preferences: Preferences,
    *,
    log_probs: Tensor,
    mask: Tensor,
    rows: Tensor,
    settings: Any,
) -> tuple[Tensor, Tensor]:
    """Return the mean over all pairs of a weighed sum of TRL's losses, and how many pairs there are.

    `DPOTrainer`'s own method computes it, on a stand-in for the trainer whose model answers with what is given, so
    that each formula is that of the installed TRL. TRL's metrics, which gather over processes at each step, are left
    out.

    Args:
        weights: of losses of `TRL_LOSSES`, by name.
        preferences: the lists; each present rejected completion makes a pair with the chosen one.
        log_probs: ``(batch, beams, levels)`` of each token, from which ``preferences.policy`` was summed.
        mask: ``(batch, beams, levels)`` which tokens are there.
        rows: ``(batch,)`` bool: which lists count.
        settings: a `DPOConfig`: beta, label smoothing, divergence and what else a formula reads.
    """
    row, other = (preferences.present[:, 1:] & rows[:, None]).nonzero(as_tuple=True)
    pairs = torch.tensor(len(row), device=log_probs.device)
    if not len(row):
        return log_probs.sum() * 0.0, pairs
    chosen_first = torch.cat([row, row]), torch.cat([torch.zeros_like(other), other + 1])
    tokens, there = log_probs[chosen_first], mask[chosen_first].long()
    # TRL looks at labels from the second position on
    there = torch.cat([torch.zeros_like(there[:, :1]), there], dim=1)
    nothing = torch.zeros_like(tokens)
    answer = SimpleNamespace(log_probs=tokens, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    batch = {
        "input_ids": torch.zeros_like(there),
        "attention_mask": torch.ones_like(there),
        "completion_mask": there,
        "ref_chosen_logps": preferences.reference[row, 0],
        "ref_rejected_logps": preferences.reference[row, other + 1],
    }
    trainer = _stand_in(weights, settings, device=log_probs.device)
    loss = DPOTrainer._compute_loss(cast(DPOTrainer, trainer), lambda **_: answer, batch, return_outputs=False)
    return cast(Tensor, loss), pairs


def _stand_in(weights: Mapping[str, float], settings: Any, *, device: torch.device) -> Any:
    """Return what TRL's method reads of its trainer, alone on its process."""
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device=device, gather=_same, gather_for_metrics=_same),
        args=settings,
        beta=settings.beta,
        loss_types=list(weights),
        loss_weights=list(weights.values()),
        label_smoothing=settings.label_smoothing,
        f_divergence_type=settings.f_divergence_type,
        f_alpha_divergence_coef=settings.f_alpha_divergence_coef,
        use_weighting=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )


def _same(value: Tensor) -> Tensor:
    return value
