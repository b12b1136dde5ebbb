"""What the DPO recipe can be told, in YAML or by flag."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

from trl import DPOConfig

from llmrec.errors import InputError
from llmrec.training.config import check_whole_setting, settle_training
from llmrec.training.preference_losses import PREFERENCE_LOSSES, check_losses
from llmrec.training.preferences.config import PreferenceArguments
from llmrec.training.rl_config import SMALLER_BATCH, RLArguments, check_training

_ROWS = "rows are made of a dataset folder and the bundle's SIDs"
NOT_FOLLOWED = (
    ("model_init_kwargs", "the bundle says how its weights are loaded"),
    ("trust_remote_code", "code that ships with a bundle is never run"),
    ("dataset_num_proc", _ROWS), ("truncation_mode", "a row that is too long is refused"),
    ("padding_free", "a prompt and its completions are one row"), ("pad_token", _ROWS),
    ("ld_alpha", "completions are SIDs, whose length says nothing"),
    ("use_weighting", "it needs the whole softmax at each token"),
    ("sync_ref_model", "log-probabilities of the reference are on disk; for another reference use rounds"),
)  # fmt: skip
"""Settings of TRL that would be passed over, and why."""


@dataclass
class DPOArguments(PreferenceArguments, RLArguments):
    """Bundle, data, preferences and validation of a DPO run; how it is optimised stands in `DPORecipeConfig`.

    Raises:
        InputError: a value outside its choices or range.
    """

    eval_preferences: int = field(
        default=500,
        metadata={"help": "Preferences held out of training, a seeded sample, at most a tenth: accuracy and margins."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole_setting("eval_preferences", self.eval_preferences, least=1)


@dataclass
class DPORecipeConfig(DPOConfig):
    """TRL's `DPOConfig` with defaults for models of up to a few billion weights and completions of a few tokens.

    Raises:
        InputError: a value outside its range, an unknown loss, or a setting that would be passed over.
    """

    loss_type: list[str] = field(
        default_factory=lambda: ["s_dpo"],
        metadata={
            "help": "Losses of lists: s_dpo (softmax over all rejected), ddro (mean of pairs), margin (pairs with a "
            "margin); or TRL's losses of pairs: sigmoid, ipo, hinge, robust, apo_zero, and others."
        },
    )
    learning_rate: float = field(default=2e-5, metadata={"help": "Of AdamW; TRL's 1e-6 is for huge models."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the preferences."})
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Preferences of a micro-batch, each with all its completions."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Store less in the forward pass; completions share their prompt's anyway."}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are cut to this norm."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two entries of the log."})
    eval_strategy: str = field(default="steps", metadata={"help": "When validation is scored: no, steps or epoch."})
    eval_steps: float | None = field(default=50, metadata={"help": "Steps between two validations."})
    eval_on_start: bool = field(
        default=True, metadata={"help": "Score the start too; its weights stay where no checkpoint is better."}
    )
    save_strategy: str = field(default="steps", metadata={"help": "When checkpoints are saved: no, steps or epoch."})
    save_steps: float = field(default=50, metadata={"help": "Steps between two checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints that are kept."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint's weights."})
    metric_for_best_model: str | None = field(default="ndcg@10", metadata={"help": "By which it is chosen."})
    reference_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the reference's log-probabilities, by what they depend on; reference-log-probs beside "
            "output_dir when not given. Later runs read them there."
        },
    )
    reference_log_probs: str | None = field(
        default=None,
        metadata={
            "help": "A file of them to use or to write; refused where it is of another reference or other rows."
        },
    )

    decides: ClassVar[tuple[str, ...]] = (
        "loss_type", "loss_weights", "beta", "label_smoothing", "f_divergence_type", "f_alpha_divergence_coef",
        "discopop_tau", "disable_dropout",
    )  # fmt: skip
    """Fields beside those of every training that decide the weights."""

    def __post_init__(self) -> None:
        settle_training(self, smaller_batch=SMALLER_BATCH)
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        check_losses(self.loss_type)
        defaults = {entry.name: entry.default for entry in fields(DPOConfig)}
        for name, why in NOT_FOLLOWED:
            value = getattr(self, name, None)
            if name in defaults and value != defaults[name]:
                raise InputError(f"{name}: {value!r}; it is not followed here, since {why}; leave it out")
        if not self.beta > 0:
            raise InputError(f"beta: {self.beta}; above 0, such as 0.1")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise InputError(f"label_smoothing: {self.label_smoothing}; a share of wrong labels, in [0, 0.5)")
        if "exo_pair" in self.loss_type and self.label_smoothing == 0.0:
            raise InputError("label_smoothing: 0 with loss_type: exo_pair, which needs some; the paper takes 1e-3")
        ours = [name for name in self.loss_type if name in PREFERENCE_LOSSES]
        if ours and self.f_divergence_type != "reverse_kl":
            raise InputError(
                f"f_divergence_type: {self.f_divergence_type} with loss_type: {ours[0]}, which has reverse_kl alone; "
                "use a loss of TRL's, such as sigmoid"
            )
        if not self.evaluates:
            self.eval_on_start = False
        super().__post_init__()

    @property
    def evaluates(self) -> bool:
        """Whether validation and held-out preferences are scored."""
        return str(getattr(self.eval_strategy, "value", self.eval_strategy)) != "no"

    @property
    def reference_folder(self) -> Path:
        """Where the reference's log-probabilities lie."""
        return Path(self.reference_dir or Path(str(self.output_dir)).parent / "reference-log-probs")

    def check(self, arguments: DPOArguments, *, items: int) -> None:
        """Raise `InputError` for what would be found only later.

        Args:
            arguments: the recipe's own.
            items: size of the catalogue.
        """
        check_training(self, arguments, items=items, recipe="recipes/dpo.py", loss=True)
