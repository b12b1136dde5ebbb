"""What the GRPO recipe can be told, in YAML or by flag."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from trl import GRPOConfig

from llmrec.decoding.steps import SCORES
from llmrec.errors import InputError
from llmrec.rewards.build import check_rewards
from llmrec.training.config import check_choice, check_whole_setting, parse_mapping, settle_training
from llmrec.training.group_order import check_group_shape, check_on_boundary, generation_period
from llmrec.training.hard_prompts import HardPromptSettings
from llmrec.training.policy_losses.methods import resolve_policy_loss
from llmrec.training.rl_config import SMALLER_BATCH, RLArguments, check_training
from llmrec.training.rollouts import KINDS

_SEARCH = "candidates come from the constrained search that rollouts names"
_LENGTH = "a completion is the SID of an item"
_VLLM = "candidates come from the constrained search in this process"
TRL_DEFAULTS = {entry.name: entry.default for entry in fields(GRPOConfig)}
OF_TRL_LOSSES = (
    "epsilon", "epsilon_high", "delta", "scale_rewards", "multi_objective_aggregation", "top_entropy_quantile",
    "use_adaptive_entropy", "off_policy_mask_threshold",
)  # fmt: skip
"""Settings that no loss of ours reads."""
CISPO_HIGH = 5.0
"""`cispo` cuts ratios from above alone, for which TRL would take ``epsilon``, 0.2: no ratio would count. The value is
that of ScaleRL (Khatri et al., 2025, https://arxiv.org/abs/2510.13786), which TRL's documentation recommends."""
NOT_FOLLOWED = (
    ("loss_type", "policy_loss names the loss"),
    ("importance_sampling_level", "policy_loss names it: gspo has ratios of whole SIDs"),
    ("reward_weights", "weights stand beside the rewards"),
    ("num_generations_eval", "an evaluation is Recall and NDCG on validation"),
    ("log_completions", "tables of candidates are written every sample_steps"),
    ("max_completion_length", _LENGTH), ("mask_truncated_completions", _LENGTH),
    ("top_p", _SEARCH), ("top_k", _SEARCH), ("min_p", _SEARCH), ("repetition_penalty", _SEARCH),
    ("generation_kwargs", _SEARCH), ("cache_implementation", _SEARCH), ("use_vllm", _VLLM),
    ("use_transformers_continuous_batching", _VLLM), ("use_transformers_paged", _VLLM),
    ("chat_template_kwargs", "prompts are written as the bundle says"),
    ("model_init_kwargs", "the bundle says how its weights are loaded"),
    ("cast_lm_head_to_fp32", "log-probabilities are summed in float32 anyway"),
    ("router_aux_loss_coef", "groups are scored without the routers' loss"),
    ("sync_ref_model", "the reference stays; start the next run from this one's bundle for another"),
)  # fmt: skip
"""Settings of TRL that would be passed over, and why."""


@dataclass
class GRPOArguments(RLArguments):
    """Bundle, data, candidates, rewards and loss of a GRPO run; how it is optimised stands in `GRPORecipeConfig`.

    Raises:
        InputError: a value outside its choices or range.
    """

    rollouts: str = field(
        default="beam",
        metadata={
            "help": "Where candidates come from: beam (the best SIDs), sample (drawn without replacement) or mixed."
        },
    )
    rollout_score: str = field(
        default="full",
        metadata={"help": "Score of the beam search: full, sids or allowed; validation has eval_score."},
    )
    add_ground_truth: bool = field(
        default=False, metadata={"help": "Put the target in place of the last candidate where the search missed it."}
    )
    exclude_seen: bool = field(
        default=False, metadata={"help": "Items of the history are no candidates; their targets are then never hit."}
    )
    rollout_tokens: int = field(
        default=16384, metadata={"help": "Most cached positions of a search at a time; lower it where memory ends."}
    )
    rewards: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "By reward a weight, or weight and options (docs/rewards.md); names of REWARDS or "
            "package.module:attribute. Default exact_match: 1.0."
        },
    )
    policy_loss: str = field(
        default="grpo",
        metadata={
            "help": "grpo, dr_grpo, bnpo, dapo, gspo, cispo, sapo, luspo, vespo (TRL's), rank_grpo, ecpo or srpo."
        },
    )
    policy_loss_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of rank_grpo, ecpo or srpo, by name."}
    )
    hard_prompts: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "What is done with prompts whose candidates all get one reward: fields of HardPromptSettings, "
            "such as {replace: replay_next, skip: true}."
        },
    )
    sample_steps: int = field(
        default=100, metadata={"help": "Steps between two tables of candidates in output_dir/samples; 0 writes none."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rollouts", self.rollouts, KINDS)
        check_choice("rollout_score", self.rollout_score, SCORES)
        check_whole_setting("rollout_tokens", self.rollout_tokens, least=1)
        check_whole_setting("sample_steps", self.sample_steps, least=0)
        self.rewards = parse_mapping(self.rewards, "rewards") or {"exact_match": 1.0}
        check_rewards(self.rewards)
        self.policy_loss_args = parse_mapping(self.policy_loss_args, "policy_loss_args")
        resolve_policy_loss(self.policy_loss, self.policy_loss_args)
        self.hard_prompts = parse_mapping(self.hard_prompts, "hard_prompts")
        HardPromptSettings.parse(self.hard_prompts)


@dataclass
class GRPORecipeConfig(GRPOConfig):
    """TRL's `GRPOConfig` with defaults for models of up to a few billion weights and completions of a few tokens.

    Raises:
        InputError: a value outside its range, a batch that splits groups, or a setting that would be passed over.
    """

    learning_rate: float = field(default=2e-5, metadata={"help": "Of AdamW; TRL's 1e-6 is for huge models."})
    num_generations: int | None = field(default=16, metadata={"help": "G, candidates of a prompt."})
    per_device_train_batch_size: int = field(
        default=256, metadata={"help": "Completions of a micro-batch; a multiple of num_generations."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Store less in the forward pass; groups share their prompt's memory anyway."}
    )
    disable_dropout: bool = field(
        default=True,
        metadata={"help": "No dropout, so that the ratio to the policy that drew candidates begins at 1."},
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are cut to this norm."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two entries of the log."})
    eval_strategy: str = field(default="steps", metadata={"help": "When validation is scored: no, steps or epoch."})
    eval_steps: float | None = field(default=50, metadata={"help": "Steps between two validations."})
    eval_on_start: bool = field(
        default=True, metadata={"help": "Score the start too; its weights stay where no checkpoint is better."}
    )
    save_strategy: str = field(default="steps", metadata={"help": "When checkpoints are saved: no, steps or epoch."})
    save_steps: float = field(
        default=50, metadata={"help": "Steps between two checkpoints, at generation boundaries."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that are kept."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint's weights."})
    metric_for_best_model: str | None = field(default="ndcg@10", metadata={"help": "By which it is chosen."})

    decides: ClassVar[tuple[str, ...]] = (
        "num_generations", "num_iterations", "steps_per_generation", "temperature", "beta", "epsilon", "epsilon_high",
        "delta", "scale_rewards", "multi_objective_aggregation", "disable_dropout", "shuffle_dataset",
        "use_bias_correction_kl", "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy", "entropy_target",
        "off_policy_mask_threshold", "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos",
        "vespo_k_neg", "vespo_lambda_neg",
    )  # fmt: skip
    """Fields beside those of every training that decide the weights."""

    def __post_init__(self) -> None:
        settle_training(self, smaller_batch=SMALLER_BATCH)
        for name, why in NOT_FOLLOWED:
            value = getattr(self, name, None)
            if name in TRL_DEFAULTS and value != TRL_DEFAULTS[name]:
                raise InputError(f"{name}: {value!r}; it is not followed here, since {why}; leave it out")
        if not self.temperature > 0:
            raise InputError(f"temperature: {self.temperature}; above 0, and 1 changes nothing")
        if str(getattr(self.eval_strategy, "value", self.eval_strategy)) == "no":
            self.eval_on_start = False
        check_group_shape(self.per_device_train_batch_size, group=self.num_generations or 0)
        if self.save_strategy_name == "steps":
            check_on_boundary("save_steps", self.save_steps, period=1)  # of a share of max_steps, TRL says less
        self.num_generations_eval = 1  # an evaluation draws no groups, whose shape TRL would check
        super().__post_init__()
        self.num_generations_eval = None
        if self.save_strategy_name == "steps":
            check_on_boundary("save_steps", self.save_steps, period=self.period)
        if self.max_steps > 0:
            self.check_last_step(self.max_steps)
        if self.save_strategy_name == "best" and str(getattr(self.eval_strategy, "value", "")) == "steps":
            check_on_boundary("eval_steps", self.eval_steps or 0, period=self.period)

    @property
    def save_strategy_name(self) -> str:
        """``no``, ``steps``, ``epoch`` or ``best``."""
        return str(getattr(self.save_strategy, "value", self.save_strategy))

    @property
    def period(self) -> int:
        """Optimiser steps from one generation boundary to the next."""
        return generation_period(
            accumulation=self.gradient_accumulation_steps,
            steps_per_generation=self.steps_per_generation or 1,
            iterations=self.num_iterations,
        )

    @property
    def by_part(self) -> bool:
        """Whether rewards are scaled each by itself before they are summed."""
        return self.multi_objective_aggregation == "normalize_then_sum"

    def check_last_step(self, steps: int) -> None:
        """Raise `InputError` where the checkpoint that a run ends with would fall between generation boundaries.

        Args:
            steps: optimiser steps of the run.
        """
        if self.save_strategy_name in ("steps", "epoch"):
            check_on_boundary("max_steps", steps, period=self.period)

    def check(self, arguments: GRPOArguments, *, items: int) -> None:
        """Raise `InputError` for what would be found only later; and take the loss that the arguments name.

        Args:
            arguments: the recipe's own.
            items: size of the catalogue.
        """
        check_training(self, arguments, items=items, recipe="recipes/grpo.py", loss=False)
        given = parse_mapping(arguments.policy_loss_args, "policy_loss_args")
        named = resolve_policy_loss(arguments.policy_loss, given)
        if isinstance(named, dict):
            for name, value in named.items():
                setattr(self, name, value)
            if self.loss_type == "cispo" and self.epsilon_high is None:
                self.epsilon_high = CISPO_HIGH
            if self.loss_type == "bnpo" and parse_mapping(arguments.hard_prompts, "hard_prompts").get("skip"):
                raise InputError(
                    "policy_loss: bnpo divides by the tokens of a micro-batch, of which hard_prompts: {skip: true} "
                    "may leave none; take dapo, which divides by those that are left of all"
                )
        else:
            self._refuse_what_is_trl_s(arguments.policy_loss)
            named.check_group_size(self.num_generations or 0)

    def _refuse_what_is_trl_s(self, loss: str) -> None:
        """Raise `InputError` for settings of TRL's losses that one of ours would pass over."""
        given = [name for name in OF_TRL_LOSSES if getattr(self, name) != TRL_DEFAULTS[name]]
        if given:
            raise InputError(
                f"{given[0]}: {getattr(self, given[0])!r} with policy_loss: {loss}, which does not read it; leave it "
                "out, and set what the loss has in policy_loss_args, or take a loss of TRL's"
            )
