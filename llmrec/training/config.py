"""What a training recipe can be told, in YAML or by flag."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from trl import SFTConfig

from llmrec.data.folder import PROTOCOLS
from llmrec.decoding.steps import SCORES
from llmrec.errors import InputError
from llmrec.tasks.mixture import check_tasks

METHODS = ("full", "lora", "qlora", "new_rows")
SUPERVISE = ("history", "row")
PROMPTS = ("plain", "chat")
SID_INITS = ("mean", "text")
PERPLEXITY_ACTIONS = ("warn", "stop")
DTYPES = ("float32", "bfloat16", "float16")
NOT_FOLLOWED = (
    ("completion_only_loss", "which tokens are labels is said by supervise and tasks"),
    ("assistant_only_loss", "which tokens are labels is said by supervise and tasks"),
    ("packing_strategy", "lines are packed batch by batch, in one way"),
    ("eval_packing", "held-out rows are laid out as packing says"),
    ("padding_free", "packing: true leaves no padding either"),
    ("truncation_mode", "rows that are too long lose the oldest items of their history"),
    ("dataset_text_field", "rows are made of a dataset folder and its SIDs"),
    ("dataset_num_proc", "rows are made in one process"),
    ("shuffle_dataset", "rows are shuffled anew each epoch by seed"),
    ("chat_template_path", "the chat template is the tokenizer's own, and prompt: chat uses it"),
    ("eos_token", "rows are made with the tokenizer's own tokens"),
    ("pad_token", "rows are made with the tokenizer's own tokens"),
)
"""Settings of TRL that would be passed over, and what says the same here."""
TASK_METRICS = ("ndcg@10", "prefix_accuracy@1", "exact", "chrf_mean", "chrf", "accuracy", "rmse")
"""Metrics of a task that are logged beside its main one."""


def parse_mapping(value: dict[str, Any] | str | None, name: str) -> dict[str, Any]:
    """Return a dict field that came as a YAML mapping or as a flag's JSON text.

    Raises:
        InputError: text that is no JSON object.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(
                f"--{name} {value!r}: not a JSON object ({error}); write --{name} '{{\"key\": 1}}'"
            ) from error
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{name}: expected a mapping, found {value!r}")
    return value or {}


def parse_stages(value: list[dict[str, Any]] | str | None) -> list[dict[str, Any]] | None:
    """Return the stages that came as a YAML list or as a flag's JSON text; None where there are none.

    Raises:
        InputError: text that is no JSON, or no list of mappings.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(f"--stages {value!r}: not JSON ({error}); better in a YAML file") from error
    if value is not None and (not isinstance(value, list) or not all(isinstance(one, dict) and one for one in value)):
        raise InputError(f"stages: {value!r}; a list of mappings, such as [{{method: new_rows}}, {{method: lora}}]")
    return value or None


def check_whole_setting(name: str, value: object, *, least: int) -> None:
    """Raise `InputError` where a setting is no whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}: {value!r}; a whole number, at least {least}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `InputError` where a setting is none of its words."""
    if value not in choices:
        raise InputError(f"{name}: {value!r}; choose one of {', '.join(choices)}")


@dataclass
class RecipeArguments:
    """Data, SIDs, model and tasks of a training run; how it is optimised stands in `SFTRecipeConfig`.

    Raises:
        InputError: a value outside its choices or range.
    """

    dataset: str = field(metadata={"help": "Dataset folder, as data_prep/ writes it."})
    sids: str = field(metadata={"help": "SID folder, as data_prep/learn_sids.py writes it."})
    model: str = field(
        default="small-qwen3",
        metadata={
            "help": "Hub id or path of a causal LM or T5; tiny-qwen3, small-qwen3, tiny-t5 and tiger-t5 are built."
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "Hub revision of the model."})
    random_weights: bool = field(
        default=False,
        metadata={"help": "Take shape and tokenizer of a pretrained model, and draw its weights anew by the seed."},
    )
    model_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Config fields that override those of a built model."}
    )
    text_vocab_size: int = field(
        default=1024, metadata={"help": "Text tokens of a tokenizer trained on the catalogue (built models only)."}
    )
    dtype: str = field(default="float32", metadata={"help": "Dtype in which a pretrained model is loaded."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention backend, as transformers names it."}
    )
    method: str = field(default="full", metadata={"help": "What trains: full, lora, qlora or new_rows."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale; the update is multiplied by alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the LoRA matrices."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules that get LoRA; all linear layers but the head when not given."}
    )
    freeze: list[str] | None = field(
        default=None,
        metadata={
            "help": "Parts that do not train: ends of module names (embed_tokens, layers.0-5, mlp); SID rows train "
            "all the same unless sid_rows is named."
        },
    )
    sid_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the SID rows; learning_rate when not given."}
    )
    layer_learning_rate_decay: float = field(
        default=1.0, metadata={"help": "Each layer's learning rate over that of the layer above it, in (0, 1]."}
    )
    stages: list[dict[str, Any]] | str | None = field(
        default=None,
        metadata={
            "help": "Trainings one after another, each a mapping of what differs in it: method, max_steps, "
            "learning_rate and others; the last one's bundle is the run's."
        },
    )
    start_from: str | None = field(
        default=None,
        metadata={
            "help": "Bundle of an earlier training of the same model with the same SIDs, whose weights to take."
        },
    )
    sid_init: str = field(default="mean", metadata={"help": "How SID rows start: mean or text."})
    residual_dropout: float = field(
        default=0.0, metadata={"help": "Dropout on the embeddings and on what each attention and MLP block adds."}
    )
    protocol: str | None = field(
        default=None, metadata={"help": "leave_one_out, temporal or provided; the dataset's own when not given."}
    )
    max_history: int = field(default=20, metadata={"help": "Most recent items that a prompt keeps."})
    supervise: str = field(
        default="history",
        metadata={
            "help": "next_item rows: history = one row a user, every position a target; row = one row a target."
        },
    )
    walks: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Further sequences under supervise: history, drawn from a fitted baseline; fields of "
            "llmrec.training.walks.Walks, such as {alone: 60000, embeddings: FILE}."
        },
    )
    history_stride: int | None = field(
        default=None,
        metadata={
            "help": "Targets that each further window of a history longer than max_history adds under supervise: "
            "history; half of max_history when not given."
        },
    )
    prompt: str = field(default="plain", metadata={"help": "Prompt form: plain or chat."})
    domain: str | None = field(
        default=None, metadata={"help": "Phrase for the items in prompts; the dataset's when not given."}
    )
    tasks: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "By task a weight (1.0 = each example once an epoch), or weight, start, stop and options. Default "
            "next_item: 1.0."
        },
    )
    task_temperature: float = field(
        default=1.0, metadata={"help": "Above 1, tasks with few examples get a larger share of an epoch."}
    )
    hold_out_items: float = field(
        default=0.0, metadata={"help": "Share of items that tasks about one item's text leave out, to score on."}
    )
    eval_tasks: bool = field(default=False, metadata={"help": "Score every task at each evaluation."})
    eval_task_examples: int = field(default=200, metadata={"help": "Examples a task that eval_tasks scores."})
    language_guard: str | None = field(
        default=None,
        metadata={
            "help": "Held-out text (.txt) or conversations (.jsonl, .parquet), whose perplexity is logged before "
            "training and at each evaluation."
        },
    )
    max_perplexity_ratio: float | None = field(
        default=None, metadata={"help": "Most that the guard's perplexity may grow to, over that before training."}
    )
    perplexity_action: str = field(
        default="warn", metadata={"help": "What follows where it grows beyond: warn, or stop training."}
    )
    objective: str = field(
        default="cross_entropy",
        metadata={"help": "Loss of each label: a name of OBJECTIVES (docs/training.md), or package.module:attribute."},
    )
    objective_args: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of the objective, by name."}
    )
    train_users: float = field(
        default=1.0,
        metadata={
            "help": "Share of the users whose training rows are used, the same ones for a seed; held-out rows stay."
        },
    )
    old_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Dataset folder that the bundle of start_from was trained on: only what dataset has beyond it is "
            "learned, and old targets replayed."
        },
    )
    replay: float = field(default=1.0, metadata={"help": "Old targets learned again for each new one (old_dataset)."})
    eval_ks: list[int] = field(default_factory=lambda: [5, 10], metadata={"help": "Cut-offs of Recall and NDCG."})
    eval_score: str = field(
        default="full", metadata={"help": "Score of the validation during training: full, sids or allowed."}
    )
    eval_beams: int = field(default=20, metadata={"help": "Beams of the validation during training."})
    eval_users: int = field(
        default=1000, metadata={"help": "Validation rows scored during training, a seeded sample; 0 scores all."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete another run in output_dir and start anew."}
    )
    find_batch_size: bool = field(
        default=False,
        metadata={
            "help": "Where memory ends, halve per_device_train_batch_size and double gradient_accumulation_steps."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Print parameters, memory, tokens, steps and an estimate of the time, and train nothing."},
    )
    dry_run_json: str | None = field(default=None, metadata={"help": "Also write what dry_run found to this file."})

    def __post_init__(self) -> None:
        for name in ("dataset", "sids", "model"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"{name}: {getattr(self, name)!r}; give a path or name")
        for name, least in (("lora_r", 1), ("lora_alpha", 1), ("text_vocab_size", 300), ("eval_beams", 1)):
            check_whole_setting(name, getattr(self, name), least=least)
        check_choice("method", self.method, METHODS)
        check_choice("supervise", self.supervise, SUPERVISE)
        check_choice("prompt", self.prompt, PROMPTS)
        check_choice("sid_init", self.sid_init, SID_INITS)
        check_choice("eval_score", self.eval_score, SCORES)
        check_choice("dtype", self.dtype, DTYPES)
        if self.protocol is not None:
            check_choice("protocol", self.protocol, PROTOCOLS)
        if self.random_weights and self.method != "full":
            raise InputError(
                f"random_weights: true with method: {self.method}, which keeps the weights that are drawn; use "
                "method: full"
            )
        if self.supervise == "history" and self.prompt == "chat":
            raise InputError(
                "supervise: history with prompt: chat would train other conditionals than the ones decoded; use "
                "supervise: row, or prompt: plain"
            )
        if not 0.0 <= self.residual_dropout < 1.0:
            raise InputError(f"residual_dropout: {self.residual_dropout}; it lies in [0, 1)")
        if self.freeze is not None and not (
            isinstance(self.freeze, list) and all(isinstance(name, str) and name for name in self.freeze)
        ):
            raise InputError(f"freeze: {self.freeze!r}; a list of names, such as [embed_tokens, layers.0-5]")
        if self.sid_learning_rate is not None and not self.sid_learning_rate > 0:
            raise InputError(
                f"sid_learning_rate: {self.sid_learning_rate}; above 0 (freeze: [sid_rows] holds the rows)"
            )
        if not 0.0 < self.layer_learning_rate_decay <= 1.0:
            raise InputError(f"layer_learning_rate_decay: {self.layer_learning_rate_decay}; in (0, 1], 1 is off")
        self.stages = parse_stages(self.stages)
        if self.old_dataset and not self.start_from:
            raise InputError("old_dataset: it says what the bundle of start_from knows; name that bundle")
        if not isinstance(self.replay, int | float) or isinstance(self.replay, bool) or not 0 <= self.replay < 1e9:
            raise InputError(f"replay: {self.replay!r}; old targets for each new one, 0 or more")
        check_whole_setting("max_history", self.max_history, least=1)
        if self.history_stride is not None:
            check_whole_setting("history_stride", self.history_stride, least=1)
            if self.supervise != "history":
                raise InputError(
                    f"history_stride: {self.history_stride} with supervise: {self.supervise}, which has no windows; "
                    "leave it out, or set supervise: history"
                )
            if self.history_stride > self.max_history:
                raise InputError(
                    f"history_stride: {self.history_stride}; at most max_history ({self.max_history}), or targets "
                    "between two windows would be missed"
                )
        check_whole_setting("eval_users", self.eval_users, least=0)
        if not isinstance(self.objective, str) or not self.objective:
            raise InputError(f"objective: {self.objective!r}; give a name, such as cross_entropy")
        self.objective_args = parse_mapping(self.objective_args, "objective_args")
        if not 0.0 < self.train_users <= 1.0:
            raise InputError(f"train_users: {self.train_users}; a share of the users, above 0 and at most 1")
        if not isinstance(self.eval_ks, list) or not self.eval_ks:
            raise InputError(f"eval_ks: {self.eval_ks!r}; a list of cut-offs, such as [5, 10]")
        for k in self.eval_ks:
            check_whole_setting("eval_ks", k, least=1)
        if max(self.eval_ks) > self.eval_beams:
            raise InputError(f"eval_ks: {self.eval_ks}; none is above eval_beams ({self.eval_beams})")
        if not isinstance(self.lora_target_modules, list | None):
            raise InputError(f"lora_target_modules: {self.lora_target_modules!r}; a list of module names")
        if self.dry_run_json and not self.dry_run:
            raise InputError(f"dry_run_json: {self.dry_run_json!r} without dry_run; add --dry_run true")
        self.model_config = parse_mapping(self.model_config, "model_config")
        self.walks = parse_mapping(self.walks, "walks") or None
        if self.walks and self.supervise != "history":
            raise InputError("walks: they are rows of supervise: history; use it, or leave walks out")
        self.tasks = parse_mapping(self.tasks, "tasks") or {"next_item": 1.0}
        check_tasks(self.tasks)
        if not self.task_temperature > 0:
            raise InputError(f"task_temperature: {self.task_temperature}; above 0, and 1 changes nothing")
        if not 0.0 <= self.hold_out_items < 1.0:
            raise InputError(f"hold_out_items: {self.hold_out_items}; a share of the items, in [0, 1)")
        check_whole_setting("eval_task_examples", self.eval_task_examples, least=1)
        check_choice("perplexity_action", self.perplexity_action, PERPLEXITY_ACTIONS)
        if self.max_perplexity_ratio is not None:
            if self.language_guard is None:
                raise InputError(
                    f"max_perplexity_ratio: {self.max_perplexity_ratio} without a text to measure; give language_guard"
                )
            if not self.max_perplexity_ratio > 0:
                raise InputError(f"max_perplexity_ratio: {self.max_perplexity_ratio}; above 0, such as 1.5")
        elif self.perplexity_action == "stop":
            raise InputError("perplexity_action: stop has no bound; give max_perplexity_ratio, such as 1.5")


def _of_task(metric: str, tasks: Mapping[str, Any]) -> bool:
    """Return whether a metric's name is that of a task and one that tasks are scored by."""
    for name in (name.rpartition(":")[2] for name in tasks):
        kind = metric.removeprefix(f"{name}_")
        if kind != metric and (kind in TASK_METRICS or re.fullmatch(r"recall@\d+", kind)):
            return True
    return False


def trains_on_gpu(*, use_cpu: bool) -> bool:
    """Return whether a CUDA device is there and neither ``use_cpu`` nor accelerate (cpu.yaml) keeps it out."""
    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    return torch.cuda.is_available() and not (use_cpu or asked_for_cpu)


def settle_training(training: Any, *, smaller_batch: str) -> None:
    """Settle what follows from device and metric in a config of TRL's, before its own ``__post_init__``.

    bf16, unless set, and pinned memory are on with a CUDA device and off without one; the better way of the metric of
    the best checkpoint is known.

    Args:
        training: a `transformers.TrainingArguments` that is being made.
        smaller_batch: what to do in place of ``auto_find_batch_size``.

    Raises:
        InputError: a value that would be passed over, or that chooses the worst checkpoint.
    """
    check_whole_setting("per_device_train_batch_size", training.per_device_train_batch_size, least=1)
    if str(training.resume_from_checkpoint).lower() in ("true", "false"):
        raise InputError(
            f"resume_from_checkpoint: {training.resume_from_checkpoint}; give a checkpoint's folder, or leave it out: "
            "a killed run goes on by the same command"
        )
    if training.learning_rate < 0:
        raise InputError(f"learning_rate: {training.learning_rate}; it is not negative")
    if training.auto_find_batch_size:
        raise InputError(f"auto_find_batch_size: {smaller_batch}")
    training.logging_nan_inf_filter = False  # it would hide the loss at which a run must stop
    on_gpu = trains_on_gpu(use_cpu=training.use_cpu)
    if training.bf16 is None and not training.fp16:
        training.bf16 = on_gpu
    if training.bf16 and not torch.cuda.is_available():
        training.use_cpu = True  # transformers asks for this word before it multiplies bfloat16 on a CPU
    training.dataloader_pin_memory = training.dataloader_pin_memory and on_gpu
    # transformers 5.23 warns about the name that TRL 1.16 still sets; 5.17 knows that name alone.
    if getattr(training, "activation_checkpointing", False) is None:
        training.activation_checkpointing = training.gradient_checkpointing
    if training.metric_for_best_model is not None or training.load_best_model_at_end:
        metric = training.metric_for_best_model or "loss"
        more = not (metric.endswith(("loss", "_rmse")) or metric.removeprefix("eval_").startswith("perplexity"))
        if training.greater_is_better not in (None, more):
            raise InputError(
                f"greater_is_better: {training.greater_is_better} with metric_for_best_model: {metric}, of which "
                f"{'more' if more else 'less'} is better, so the worst checkpoint would be kept; leave it out"
            )
        training.greater_is_better = more


@dataclass
class SFTRecipeConfig(SFTConfig):
    """TRL's `SFTConfig`; bf16, unless set, and pinned memory are on with a CUDA device and off without one.

    Raises:
        InputError: a value outside its range, or a loss of TRL's that ours would pass over.
    """

    packing: bool = field(
        default=True,
        metadata={
            "help": "Pack the rows of a batch into few lines, without leaks; false pads them. Not TRL's packing: the "
            "optimiser sees the same rows in a step either way."
        },
    )
    pack_length: int | None = field(
        default=None, metadata={"help": "Tokens of a packed line, where above the batch's longest row."}
    )

    def __post_init__(self) -> None:
        if self.pack_length is not None:
            check_whole_setting("pack_length", self.pack_length, least=1)
        if self.label_smoothing_factor > 0:
            raise InputError(
                f"label_smoothing_factor: {self.label_smoothing_factor}; it is not applied here, use objective: "
                "level_smoothing"
            )
        if self.loss_type != "nll":
            raise InputError(f"loss_type: {self.loss_type!r}; leave it at nll and choose an objective")
        defaults = {entry.name: entry.default for entry in fields(SFTConfig)}
        for name, why in NOT_FOLLOWED:
            value = getattr(self, name, None)
            if name in defaults and value != defaults[name]:
                raise InputError(f"{name}: {value!r}; it is not followed here, since {why}; leave it out")
        settle_training(
            self,
            smaller_batch="it starts again with a smaller effective batch and with weights that have trained; use "
            "find_batch_size: true",
        )
        super().__post_init__()

    def check(self, arguments: RecipeArguments, *, items: int) -> None:
        """Raise `InputError` for what would be found only later: metrics, checkpoints, the hub's name.

        Args:
            arguments: the recipe's own.
            items: size of the catalogue.
        """
        if self.n_gpu > 1:
            raise InputError(
                f"{self.n_gpu} GPUs are visible to one process, which would deal each batch out among them "
                "(nn.DataParallel), and packed rows cannot be dealt out; start a process for each with accelerate "
                f"launch --num_processes {self.n_gpu} recipes/sft.py ..., or show it one: CUDA_VISIBLE_DEVICES=0"
            )
        if max(arguments.eval_ks) > items:
            raise InputError(f"eval_ks: {arguments.eval_ks}; the catalogue has {items} items")
        metric = (self.metric_for_best_model or "loss").removeprefix("eval_")
        measured = {"loss", "mean_token_accuracy"}
        measured |= {f"{name}@{k}" for name in ("recall", "ndcg") for k in arguments.eval_ks}
        if arguments.language_guard:
            measured |= {"perplexity", "perplexity_ratio"}
        if metric not in measured and not (
            arguments.eval_tasks and _of_task(metric, parse_mapping(arguments.tasks, "tasks"))
        ):
            raise InputError(
                f"metric_for_best_model: {self.metric_for_best_model!r} is not measured; choose loss, recall@k or "
                f"ndcg@k with k from eval_ks ({arguments.eval_ks}), with eval_tasks: true TASK_METRIC, such as "
                "title_to_sid_recall@10, or with language_guard perplexity"
            )
        if self.save_only_model and getattr(self.save_strategy, "value", self.save_strategy) != "no":
            raise InputError(
                "save_only_model: true; a killed run could not go on; leave it out or set save_strategy: no"
            )
        if self.push_to_hub and not self.hub_model_id:
            raise InputError("push_to_hub: it needs a name; give hub_model_id, user/name")
