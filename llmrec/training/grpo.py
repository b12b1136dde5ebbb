"""GRPO on TRL's trainer: candidates from constrained search, each prompt read once, groups that stay whole."""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.models import prepare_deepspeed, prepare_fsdp, unwrap_model_for_generation
from trl.trainer.utils import split_tensor_dict

from llmrec.artifacts import read_json, write_json
from llmrec.errors import InputError
from llmrec.rewards.build import Rewards
from llmrec.training.bundle_trainer import BundleTrainer
from llmrec.training.group_order import PromptOrder, shuffle_groups
from llmrec.training.group_softmax import GroupSoftmax
from llmrec.training.grpo_config import GRPORecipeConfig
from llmrec.training.grpo_group_loss import GroupLossTrainer
from llmrec.training.grpo_loss import own_advantages
from llmrec.training.guard import FiniteGuard
from llmrec.training.hard_prompts import Collected, HardPrompts, HardPromptSettings
from llmrec.training.policy import Policy, disable_dropout
from llmrec.training.policy_losses.base import PolicyLoss
from llmrec.training.reference_policy import add_reference, same_parameters_train
from llmrec.training.rl_logs import RLMeter, named_for
from llmrec.training.rollouts import Group, Rollouts, rollout_generator
from llmrec.training.run_folder import check_resume
from llmrec.training.sample_tables import SampleTables
from llmrec.training.shared_prefix import add_group_forward
from llmrec.training.spread import SpreadWatch, has_spread
from llmrec.training.start_kept import StartKeptTrainer

logger = logging.getLogger(__name__)

STATE_FILE = "rl_state-{}.json"
"""What a process keeps beside a checkpoint."""
MAX_PROMPTS = 65536
"""Most encoded prompts that are kept."""


class RecommenderGRPOTrainer(StartKeptTrainer, BundleTrainer, GroupLossTrainer):
    """TRL's `GRPOTrainer`, of which candidates, log-probabilities, the order of rows and evaluations are ours.

    Args:
        policy: what trains; its model is patched in place.
        args: how it is optimised.
        prompts: training rows, see `llmrec.training.policy.prompt_rows`.
        rollouts: finds candidates.
        rewards: scores them.
        softmax: what log-probabilities are taken over.
        policy_loss: a loss of ours; None takes ``args.loss_type``.
        reference: the model that the KL term compares with; None takes a frozen copy of the policy's adapter.
        hard_prompts: what is done with groups without spread.
        samples: writes tables of candidates, or None.
        manifest: what checkpoints say of the run (``llmrec.json``).
        **kwargs: as `BundleTrainer` takes them.

    Raises:
        InputError: a KL term without a reference, too few prompts, or a checkpoint to go on from that does not fit.

    Paper: GRPO (Shao et al., 2024, https://arxiv.org/abs/2402.03300), as TRL has it. How we differ: candidates are the
        distinct items of a constrained search (MiniOneRec, Kong et al., 2025), whose group is one row for the model.
    """

    evaluates_loss: ClassVar[bool] = False

    def __init__(
        self,
        policy: Policy,
        args: GRPORecipeConfig,
        *,
        prompts: Dataset,
        rollouts: Rollouts,
        rewards: Rewards,
        softmax: GroupSoftmax,
        policy_loss: PolicyLoss | None = None,
        reference: PreTrainedModel | PeftModel | None = None,
        hard_prompts: HardPromptSettings | None = None,
        samples: SampleTables | None = None,
        manifest: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._policy, self._rewards, self._rollouts, self._samples = policy, rewards, rollouts, samples
        self._policy_loss, self._settings, self.group_size = policy_loss, args, rollouts.num_generations
        check_resume(args.resume_from_checkpoint, manifest or {})
        beta, args.beta = args.beta, 0.0  # TRL would load its own reference, from another place or without SID rows
        args.reward_weights = list(rewards.weights)
        # TRL casts what trains over 4 bits to bfloat16, in which steps as small as ours are lost
        try:
            with same_parameters_train(policy.model):
                policy.model.requires_grad_(False)
                super().__init__(
                    model=policy.model,
                    args=args,
                    reward_funcs=list(rewards.functions),
                    train_dataset=prompts,
                    eval_dataset=prompts.select(range(1)),  # asked for, and never read: see `evaluates_loss`
                    processing_class=policy.tokenizer,
                    **kwargs,
                )
        finally:
            args.beta, args.reward_weights = beta, None
        if args.disable_dropout:
            disable_dropout(policy.model)
        self.max_completion_length = rollouts.trie.levels
        self.aux_loss_enabled = False
        add_group_forward(_base(policy.model), softmax)
        self._set_reference(beta, reference, softmax)
        weights = list(rewards.weights)
        spread_of = functools.partial(has_spread, weights=weights, by_part=args.by_part)
        self.hard_prompts = HardPrompts(
            hard_prompts or HardPromptSettings(), rollouts, has_spread=spread_of, encode=self.encode,
            score=self._score, next_rows=self._next_rows, seed=args.seed, process=args.process_index,
        )  # fmt: skip
        self.watch = SpreadWatch(self.hard_prompts.settings.stop_after, rewards.names, spread_of)
        self.meter = RLMeter(rewards.names, weights, items=len(policy.vocab))
        self.generation = 0
        self._collected: Collected | None = None
        self._encoded: dict[str, list[int]] = {}
        self._text = functools.cache(policy.vocab.tokens)
        self._guard = FiniteGuard(self.accelerator, describe_step=self._describe_step)
        self.add_callback(self._guard)
        self._order = cast(PromptOrder, self._get_train_sampler())
        self.add_callback(_Epochs(self))

    def _set_reference(
        self, beta: float, reference: PreTrainedModel | PeftModel | None, softmax: GroupSoftmax
    ) -> None:
        self.beta = beta
        if beta == 0.0:
            return
        if reference is None:
            if not isinstance(self._policy.model, PeftModel):
                raise InputError(f"beta: {beta} needs a reference; give the model that the policy started from")
            add_reference(self._policy.model)
            return
        disable_dropout(reference)
        add_group_forward(_base(reference), softmax)
        if self.is_deepspeed_enabled:
            self.ref_model = prepare_deepspeed(reference, self.accelerator)
        elif self.is_fsdp_enabled:
            self.ref_model = prepare_fsdp(reference, self.accelerator)
        else:
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)

    def _describe_step(self, step: int) -> str:
        rewards = (
            "none yet" if self._collected is None else str(self._collected.rewards.flatten(0, 1).mean(0).tolist())
        )
        return f"candidates of generation {self.generation}, with mean rewards {rewards}"

    # Prompts

    def get_train_dataloader(self) -> DataLoader:
        """Return generation batches of this process: one row a prompt, where TRL repeats it for each candidate."""
        return self._get_dataloader(
            dataset=cast(Any, self.train_dataset),
            description="Training",
            batch_size=self._train_batch_size * cast(int, self._settings.steps_per_generation) // self.group_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        rows = cast(Dataset, self.train_dataset if dataset is None else dataset)
        self._order = PromptOrder(
            rows,
            batch=cast(int, self._settings.generation_batch_size) // self.group_size,
            repeats=self.num_iterations * cast(int, self._settings.steps_per_generation),
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            shuffle=bool(self.shuffle_dataset),
        )
        return self._order

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Return the token ids of rows' prompts, each made once."""
        found = []
        for row in rows:
            ids = self._encoded.get(row["prompt"])
            if ids is None:
                policy = self._policy
                ids = policy.form.encode_history(policy.tokenizer, policy.vocab, row["history"])
                if len(self._encoded) >= MAX_PROMPTS:
                    self._encoded.clear()
                self._encoded[row["prompt"]] = ids
            found.append(ids)
        return found

    def _next_rows(self, count: int, attempt: int, step: int) -> list[dict[str, Any]]:
        rows = cast(Dataset, self.train_dataset)
        generator = rollout_generator(self.args.seed, step, process=self.args.process_index * 997 + attempt + 1)
        return [rows[place] for place in torch.randint(len(rows), (count,), generator=generator).tolist()]

    # Candidates and rewards

    def _score(self, rows: Sequence[Mapping[str, Any]], group: Group) -> Tensor:
        """Return ``(prompts, G, parts)`` rewards, NaN for none."""
        size = group.num_generations
        columns = {
            name: [row[name] for row in rows for _ in range(size)]
            for name in rows[0]
            if name not in ("prompt", "completion", "completion_ids")
        }
        given = {
            "prompts": [row["prompt"] for row in rows for _ in range(size)],
            "completions": [self._text(item) for item in group.rows.flatten().tolist()],
            "completion_ids": group.completions(),
            **columns,
            "rank": group.ranks.flatten().tolist(),
            "trainer_state": self.state,
            "log_extra": lambda column, values: None,
            "log_metric": self._log_metric,
        }
        parts = [
            torch.tensor([torch.nan if value is None else value for value in reward(**given)], dtype=torch.float32)
            for reward in self._rewards.functions
        ]
        return torch.stack(parts, dim=1).view(len(rows), size, len(parts))

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Return the micro-batch that is due, of whole groups; draw and score candidates when it is time."""
        steps = cast(int, self._settings.steps_per_generation)
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            generator = torch.Generator().manual_seed((self.args.seed * 1_000_003 + self.generation) % 2**63)
            batch = shuffle_groups(batch, group=self.group_size, generator=generator)
            self._buffered_inputs = split_tensor_dict(batch, steps)
            self.generation += 1
        return self._buffered_inputs[self._step % steps]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return TRL's batch, a row a candidate, for a row a prompt."""
        context = unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self._settings.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=cast(dict[str, Any] | None, self.args.gradient_checkpointing_kwargs),
        )
        with context as model, self.accelerator.autocast(), self._dist.summon_full_params(self.model_wrapped):
            collected = self.hard_prompts.collect(cast(PreTrainedModel, model), inputs, step=self.generation)
        self._collected = collected
        ids = self.encode(collected.rows)
        self.meter.add_rollouts(collected, prompt_tokens=sum(map(len, ids)))
        self.watch.see(self._gather_rows(collected.rewards.to(self.accelerator.device)).cpu())
        size = self.group_size
        with same_parameters_train(cast(nn.Module, self.model)):  # TRL chooses the reference's adapter, and ours again
            batch = super()._generate_and_score_completions([row for row in collected.rows for _ in range(size)])
        batch["ranks"] = collected.group.ranks.flatten().to(batch["advantages"].device)
        # A constant reward such as 0.7 is no float, so its distance from the mean is rounding, which TRL scales up.
        flat = ~collected.spread
        batch["advantages"].view(len(flat), size)[flat.to(batch["advantages"].device)] = 0.0
        if self._policy_loss is not None:
            advantages = own_advantages(
                self._policy_loss, collected.rewards, weights=self._rewards.weights, ranks=collected.group.ranks
            )
            batch["advantages"] = advantages.to(batch["advantages"].device)
        if self.hard_prompts.settings.skip:
            self._leave_out(batch, collected.keep)
        if (
            self._samples is not None
            and self.accelerator.is_main_process
            and self._samples.due(self.state.global_step, since=self.state.global_step - self._settings.period)
        ):
            advantages = batch["advantages"].view(len(collected.rows), size, -1)[..., 0].cpu()
            self._samples.write(
                self.state.global_step, collected.rows, collected.group, collected.rewards,
                names=self._rewards.names, weights=self._rewards.weights, advantages=advantages,
            )  # fmt: skip
        return batch

    def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
        """Return what TRL's method does, for the candidates that were collected."""
        collected = self._collected
        assert collected is not None
        ids, size = self.encode(collected.rows), self.group_size
        group = collected.group
        completions = [self._text(item) for item in group.rows.flatten().tolist()]
        tokens = torch.tensor(sum(map(len, ids)) + int((group.token_ids >= 0).sum()), device=self.accelerator.device)
        self.state.num_input_tokens_seen += int(self._gather_rows(tokens).sum())
        self._metrics["train"]["num_tokens"] = [self.state.num_input_tokens_seen]
        return [one for one in ids for _ in range(size)], group.completions(), None, completions, None, {}, None, []

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """Return ``(candidates of all processes, parts)`` rewards, which were computed when they were collected."""
        assert self._collected is not None
        return self._gather_rows(self._collected.rewards.flatten(0, 1).to(self.accelerator.device))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return a micro-batch's loss, and let the guard see it."""
        loss = super().training_step(*args, **kwargs)
        self._guard.watch(loss)
        return loss

    # Logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write logs; beside a training loss, what candidates and policy were like since the last one."""
        if "loss" in logs:
            kept = {
                name: [value for value in values if value == value] for name, values in self._metrics["train"].items()
            }
            self._metrics["train"].clear()
            logs = logs | {name: sum(values) / len(values) for name, values in kept.items() if values}
            seconds = self.seconds_trained()
            logs |= self.meter.read(self._gather, device=self.accelerator.device, seconds=seconds)
            logs = named_for(logs)
        Trainer.log(self, logs, start_time)  # TRL's own would take the sums of training along with an evaluation

    # Going on

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._guard.check_weights(model, self.args, self.state)
        # First, for the checkpoint counts as whole once the trainer's own state is there
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        state = {
            "generation": self.generation,
            "hard_prompts": self.hard_prompts.state_dict(),
            "watch": self.watch.state_dict(),
        }
        write_json(folder / STATE_FILE.format(self.args.process_index), state)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        own, first = (Path(checkpoint) / STATE_FILE.format(number) for number in (self.args.process_index, 0))
        state = read_json(own if own.is_file() else first, "state of a GRPO run")
        self.generation = int(state["generation"])
        self.watch.load_state_dict(state["watch"])
        if own.is_file():  # with more processes than before, some begin without near misses
            self.hard_prompts.load_state_dict(state["hard_prompts"])


class _Epochs(TrainerCallback):
    """Looks where a run will end; tells the order of prompts which epoch begins, also in a run that goes on midway."""

    def __init__(self, trainer: RecommenderGRPOTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._settings.check_last_step(state.max_steps)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._order.set_epoch(int((state.epoch or 0.0) + 1e-6))


def _base(model: Any) -> PreTrainedModel:
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
