"""GRPO's log-probabilities and loss of whole groups, each of which is one row for the model."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from trl import GRPOTrainer

from llmrec.training.grpo_config import GRPORecipeConfig
from llmrec.training.grpo_loss import own_loss
from llmrec.training.policy_losses.base import PolicyBatch, PolicyLoss
from llmrec.training.rl_logs import RLMeter
from llmrec.training.shared_prefix import groups_of_rows
from llmrec.training.spread import loss_weights

BY_ROWS = ("grpo", "dr_grpo", "sapo", "luspo")
"""Losses of TRL that are a mean over all completions of a micro-batch, those that count for nothing included."""


class GroupLossTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer`, whose log-probabilities are those of groups, and whose loss may be one of ours.

    What is made from it sets the attributes below; its model has `add_group_forward`.
    """

    group_size: int
    meter: RLMeter
    _policy_loss: PolicyLoss | None
    _settings: GRPORecipeConfig

    def _gather_rows(self, tensor: Tensor) -> Tensor:
        """Return the rows of all processes, those of the first first."""
        return cast(Tensor, self.accelerator.gather(tensor))

    def _leave_out(self, batch: dict[str, Any], keep: Tensor) -> None:
        """Let groups count for nothing, and the others for as much as all."""
        weights = loss_weights(keep.to(batch["completion_mask"].device), self._gather_rows)
        rows = (weights > 0).repeat_interleave(self.group_size)
        batch["tool_mask"] = rows[:, None].to(batch["completion_mask"].dtype).expand_as(batch["completion_mask"])
        batch["num_items_in_batch"] = self._gather_rows((batch["completion_mask"] * batch["tool_mask"]).sum()).sum()
        everyone = self._gather_rows(weights)
        batch["scale"] = everyone.max()

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int,
        batch_size: int | None = None, compute_entropy: bool = False, compute_aux_loss: bool = False, **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, None]:  # fmt: skip
        """Return ``(candidates, length)`` log-probabilities and entropies; each prompt is read once."""
        groups = groups_of_rows(
            input_ids, attention_mask, completion_length=logits_to_keep, num_generations=self.group_size
        )
        entropy: bool | str = compute_entropy
        if compute_entropy and self._entropy_bonus_enabled and torch.is_grad_enabled():
            entropy = "grad"
        log_probs, entropies = [], []
        step = max(1, (batch_size or len(input_ids)) // self.group_size)
        for start in range(0, len(groups["input_ids"]), step):
            part = {name: tensor[start : start + step] for name, tensor in groups.items()}
            first = int(part["attention_mask"].any(dim=0).to(torch.uint8).argmax())  # before it all is padding
            for name in ("input_ids", "attention_mask"):
                part[name] = part[name][:, first:]
            with self.accelerator.autocast():
                output = model(**part, entropy=entropy)
            log_probs.append(output.log_probs.flatten(0, 1))
            if compute_entropy:
                entropies.append(output.entropies.flatten(0, 1))
                self.meter.add_policy(part["completion_mask"], entropies=output.entropies, outside=output.outside)
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        if self._policy_loss is not None:
            return self._own_loss(model, inputs)
        scale = float(inputs["scale"]) if "scale" in inputs and self.loss_type in BY_ROWS else 1.0
        if scale in (0.0, 1.0):  # of no row, or of all
            return super()._compute_loss(model, inputs)
        beta = self.beta
        try:  # a bonus for entropy is a mean of its own, so that not the sum is scaled but its other terms
            self.beta = beta * scale
            return super()._compute_loss(model, inputs | {"advantages": inputs["advantages"] * scale})
        finally:
            self.beta = beta

    def _own_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return a policy loss of ours, and log what TRL logs of its own."""
        assert self._policy_loss is not None
        completion_mask = inputs["completion_mask"]
        log_probs, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], completion_mask], dim=1),
            completion_mask.shape[1],
            compute_entropy=True,
        )
        assert entropies is not None
        advantages = inputs["advantages"]
        batch = PolicyBatch(
            log_probs,
            inputs.get("old_per_token_logps", log_probs.detach()),
            completion_mask * inputs["tool_mask"] if "tool_mask" in inputs else completion_mask,
            advantages if advantages.dim() == 2 else advantages[:, None],
            inputs["ranks"],
            self.group_size,
        )
        loss, logged = own_loss(
            self._policy_loss, batch, entropies=entropies, reference=inputs.get("ref_per_token_logps"),
            beta=self.beta, correct_kl=self._settings.use_bias_correction_kl, scale=inputs.get("scale", 1.0),
            entropy_coef=self.entropy_coef,
        )  # fmt: skip
        count = batch.mask.sum().float()
        sums = torch.stack([*((values.detach() * batch.mask).sum() for values in logged.values()), count])
        sums = cast(Tensor, self.accelerator.reduce(sums, reduction="sum"))
        for name, value in zip(logged, sums[:-1] / sums[-1].clamp(min=1.0), strict=True):
            self._metrics["train"][name].append(value.item())
        return loss / self.current_gradient_accumulation_steps
