"""What recipes that start from a bundle can be told: the bundle, its data, an adapter, validation."""

from dataclasses import dataclass, field
from typing import Any

from llmrec.data.folder import PROTOCOLS
from llmrec.decoding.steps import SCORES
from llmrec.errors import InputError
from llmrec.training.config import DTYPES, METHODS, check_choice, check_whole_setting
from llmrec.training.interpolate import check_shares

TARGETS = ("all", "last")

SMALLER_BATCH = "it makes another run; lower per_device_train_batch_size, raise gradient_accumulation_steps as much"
"""What to do in place of ``auto_find_batch_size``."""


@dataclass
class RLArguments:
    """Bundle, data and validation of a training that starts from a bundle; its optimisation stands elsewhere.

    SIDs, prompt form and protocol are the bundle's.

    Raises:
        InputError: a value outside its choices or range.
    """

    dataset: str = field(metadata={"help": "Dataset folder, the one that the bundle was trained on."})
    model: str = field(metadata={"help": "Bundle to start from: a folder that recipes/sft.py wrote, or a hub id."})
    model_revision: str | None = field(default=None, metadata={"help": "Hub revision of the bundle."})
    dtype: str | None = field(
        default=None, metadata={"help": "Dtype in which weights are loaded; as the bundle says when not given."}
    )
    method: str | None = field(
        default=None,
        metadata={
            "help": "What trains: full, lora, qlora or new_rows. When not given, what the bundle was trained by; lora "
            "and qlora put a new adapter on a bundle of whole weights, full merges an adapter first."
        },
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of a new adapter's matrices."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of a new adapter; the update times alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before a new adapter's matrices."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules that get a new adapter; all linear layers but the head if not given."}
    )
    reference: str | None = field(
        default=None,
        metadata={"help": "Bundle that the policy is compared with; the one that it starts from when not given."},
    )
    protocol: str | None = field(
        default=None,
        metadata={"help": "leave_one_out, temporal or provided; must be the bundle's. Its own if absent."},
    )
    train_users: float = field(
        default=1.0, metadata={"help": "Share of the users whose training rows give prompts, the same for a seed."}
    )
    prompts: int | None = field(
        default=None, metadata={"help": "Most training rows that give prompts, a seeded sample; all when not given."}
    )
    targets: str = field(
        default="all", metadata={"help": "Training targets of a user that give prompts: all, or the last one."}
    )
    softmax: str = field(
        default="full",
        metadata={
            "help": "What log-probabilities of the loss are taken over: full (the vocabulary), sids (SID tokens and "
            "the end token) or allowed (tokens that continue a SID of the catalogue)."
        },
    )
    eval_ks: list[int] = field(default_factory=lambda: [5, 10], metadata={"help": "Cut-offs of Recall and NDCG."})
    eval_score: str = field(
        default="full", metadata={"help": "Score of the validation during training: full, sids or allowed."}
    )
    eval_beams: int = field(default=20, metadata={"help": "Beams of the validation during training."})
    eval_users: int = field(
        default=1000, metadata={"help": "Validation rows scored during training, a seeded sample; 0 scores all."}
    )
    interpolate: list[float] | None = field(
        default=None,
        metadata={
            "help": "Shares of the way from the start's weights to the last ones, such as 0.25 0.5 0.75 1.0, of which "
            "validation keeps the best, the start among them. The last weights as they are when not given."
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete another run in output_dir and start anew."}
    )

    def __post_init__(self) -> None:
        for name in ("dataset", "model"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"{name}: {getattr(self, name)!r}; give a path or name")
        for name, least in (("lora_r", 1), ("lora_alpha", 1), ("eval_beams", 1), ("eval_users", 0)):
            check_whole_setting(name, getattr(self, name), least=least)
        if self.prompts is not None:
            check_whole_setting("prompts", self.prompts, least=1)
        for name, choices in (("softmax", SCORES), ("eval_score", SCORES), ("targets", TARGETS)):
            check_choice(name, getattr(self, name), choices)
        for name, choices in (("method", METHODS), ("dtype", DTYPES), ("protocol", PROTOCOLS)):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), choices)
        if not 0.0 < self.train_users <= 1.0:
            raise InputError(f"train_users: {self.train_users}; a share of the users, above 0 and at most 1")
        if not isinstance(self.lora_target_modules, list | None):
            raise InputError(f"lora_target_modules: {self.lora_target_modules!r}; a list of module names")
        if self.interpolate is not None:
            self.interpolate = check_shares(self.interpolate)
        if not isinstance(self.eval_ks, list) or not self.eval_ks:
            raise InputError(f"eval_ks: {self.eval_ks!r}; a list of cut-offs, such as [5, 10]")
        for k in self.eval_ks:
            check_whole_setting("eval_ks", k, least=1)
        if max(self.eval_ks) > self.eval_beams:
            raise InputError(f"eval_ks: {self.eval_ks}; none is above eval_beams ({self.eval_beams})")

    @property
    def measured(self) -> set[str]:
        """What a validation measures, by the names that ``metric_for_best_model`` takes."""
        return {f"{name}@{k}" for name in ("recall", "ndcg") for k in self.eval_ks}


def check_training(training: Any, arguments: RLArguments, *, items: int, recipe: str, loss: bool) -> None:
    """Raise `InputError` for what would be found only later: metrics, checkpoints, the hub's name.

    Args:
        training: how the run is optimised.
        arguments: the recipe's own.
        items: size of the catalogue.
        recipe: its file, for the message.
        loss: whether an evaluation measures a loss.
    """
    if training.n_gpu > 1:
        raise InputError(
            f"{training.n_gpu} GPUs are visible to one process, which would deal each batch out among them "
            f"(nn.DataParallel); start a process for each with accelerate launch --num_processes {training.n_gpu} "
            f"{recipe} ..., or show it one: CUDA_VISIBLE_DEVICES=0"
        )
    if max(arguments.eval_ks) > items:
        raise InputError(f"eval_ks: {arguments.eval_ks}; the catalogue has {items} items")
    metric = training.metric_for_best_model
    known = arguments.measured | ({"loss"} if loss else set())
    if metric is not None and metric.removeprefix("eval_") not in known:
        raise InputError(
            f"metric_for_best_model: {metric!r} is not measured; choose {'loss, ' if loss else ''}recall@k or ndcg@k "
            f"with k from eval_ks ({arguments.eval_ks})"
        )
    if arguments.interpolate is not None and training.load_best_model_at_end:
        raise InputError(
            "interpolate with load_best_model_at_end: true, which ends with the best checkpoint's weights; the way "
            "goes to the last ones: set load_best_model_at_end: false"
        )
    if training.save_only_model and getattr(training.save_strategy, "value", training.save_strategy) != "no":
        raise InputError("save_only_model: true; a killed run could not go on; leave it out or set save_strategy: no")
    if training.push_to_hub and not training.hub_model_id:
        raise InputError("push_to_hub: it needs a name; give hub_model_id, user/name")
