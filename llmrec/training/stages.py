"""Stages: several trainings one after another in one run, such as the SID rows alone, then LoRA."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import PreTrainedModel

from llmrec.artifacts import read_json
from llmrec.errors import InputError
from llmrec.hub.info import CARD_FILE
from llmrec.training.adapters import attach_adapter
from llmrec.training.config import RecipeArguments, SFTRecipeConfig, parse_stages
from llmrec.training.layers import TrainedParts
from llmrec.training.run_folder import RUN_FILE
from llmrec.vocab import SIDVocab

logger = logging.getLogger(__name__)

RECIPE_FIELDS = (
    "method", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "freeze", "sid_learning_rate",
    "layer_learning_rate_decay",
)  # fmt: skip
TRAINING_FIELDS = (
    "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "weight_decay", "optim", "max_grad_norm", "eval_steps", "save_steps", "logging_steps",
)  # fmt: skip
"""What a stage may set for itself; everything else is the run's."""

AFTER = {
    "new_rows": ("new_rows", "lora", "qlora", "full"),
    "lora": ("lora", "full"),
    "qlora": ("qlora",),
    "full": ("full",),
}
"""Methods that may follow each method: an adapter must fit the base that its bundle names."""


@dataclass(frozen=True)
class Stage:
    """One training of a run.

    Args:
        number: from 1.
        count: how many the run has.
        arguments: the recipe's own, as they are in this stage.
        training: how it is optimised; its ``output_dir`` is the stage's own, and the last stage's is the run's.
    """

    number: int
    count: int
    arguments: RecipeArguments
    training: SFTRecipeConfig

    def settings(self) -> tuple[Any, Any]:
        """Return both, as `parse_recipe` would; their optional fields are filled by now."""
        return self.arguments, self.training

    @property
    def name(self) -> str:
        """What the log calls it."""
        return f"stage {self.number} of {self.count} ({self.arguments.method})"

    def is_over(self, run: Mapping[str, Any]) -> bool:
        """Return whether its folder holds its bundle, so that the next one can start.

        The last stage is never over: that its folder holds a finished run is for `check_run_folder` to say.

        Args:
            run: the identity of the stage's run.
        """
        folder = Path(str(self.training.output_dir))
        if self.number == self.count or self.arguments.overwrite_output_dir or not (folder / CARD_FILE).is_file():
            return False
        before = read_json(folder / RUN_FILE, "run description")
        if any(before.get(key) != value for key, value in run.items()):
            return False
        logger.info("%s: was finished before", self.name)
        return True


def stages_of(arguments: RecipeArguments, training: SFTRecipeConfig) -> list[Stage]:
    """Return the trainings of a run: the run itself where it names no stages.

    Stage ``n`` but the last writes a bundle of its own to ``output_dir-stage-n``, and the next one starts from it. So
    each goes on from its last checkpoint, can be evaluated, and has its own schedule and optimiser.

    Args:
        arguments: of the run; a stage's own settings stand over them.
        training: likewise.

    Raises:
        InputError: a field that a stage cannot set, a value that the field refuses, a method that cannot follow the
            one before it, or ``resume_from_checkpoint`` (a run with stages finds its checkpoints itself).
    """
    wanted = parse_stages(arguments.stages)
    if not wanted:
        return [Stage(1, 1, arguments, training)]
    if training.resume_from_checkpoint:
        raise InputError("resume_from_checkpoint: with stages the same command goes on where it stopped; leave it out")
    stages: list[Stage] = []
    count = len(wanted)
    for number, settings in enumerate(wanted, start=1):
        for key in settings:
            if key not in RECIPE_FIELDS + TRAINING_FIELDS:
                raise InputError(
                    f"stages: stage {number} sets {key!r}, which is the whole run's; a stage may set "
                    f"{', '.join(RECIPE_FIELDS + TRAINING_FIELDS)}"
                )
        own = {name: settings[name] for name in RECIPE_FIELDS if name in settings}
        optimised = {name: settings[name] for name in TRAINING_FIELDS if name in settings}
        if number > 1 and not arguments.dry_run:  # which writes no bundle to start from
            own["start_from"] = str(stages[-1].training.output_dir)
        if number < count:
            optimised |= {"output_dir": f"{training.output_dir}-stage-{number}", "push_to_hub": False}
        if training.run_name:
            optimised["run_name"] = f"{training.run_name}-stage-{number}"
        try:
            stage = Stage(
                number,
                count,
                replace(arguments, **_typed(RecipeArguments, own)),
                replace(training, **_typed(SFTRecipeConfig, optimised)),
            )
        except InputError as error:
            raise InputError(f"stages: stage {number}: {error}") from error
        except (TypeError, ValueError) as error:
            raise InputError(f"stages: stage {number}: {settings} is refused ({error})") from error
        before = stages[-1].arguments.method if stages else None
        if before is not None and stage.arguments.method not in AFTER[before]:
            raise InputError(f"stages: stage {number}: {cannot_follow(before, stage.arguments.method)}")
        stages.append(stage)
    return stages


def run_stages(stages: Sequence[Stage], train: Callable[[Stage], None]) -> None:
    """Run stages one after another, each with the memory to itself.

    Args:
        stages: as `stages_of` returns them.
        train: trains one, or returns at once where it is over.
    """
    for stage in stages:
        if stage.count > 1:
            logger.info("%s: in %s", stage.name, stage.training.output_dir)
        train(stage)
        clear_device_cache(garbage_collection=True)


def cannot_follow(before: str, method: str) -> str:
    """Return why a method cannot follow another, and what can."""
    return (
        f"method: {method} cannot follow {before}, whose weights would be lost or fit another base; after {before} "
        f"comes {' or '.join(AFTER[before])}"
    )


def _typed(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give numbers the type of their field's default: YAML reads ``5e-3`` as text."""
    defaults = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    numbers = {"sid_learning_rate": float}
    found = {}
    for name, value in settings.items():
        kind_of = numbers.get(name, type(defaults.get(name)))
        found[name] = kind_of(value) if isinstance(value, str) and kind_of in (int, float) else value
    return found


def check_later_stages(arguments: RecipeArguments, base: PreTrainedModel, vocab: SIDVocab) -> None:
    """Refuse what a later stage would refuse, before the first one has cost anything.

    Args:
        arguments: with ``stages``.
        base: the model without its adapter; its shapes alone are read.
        vocab: the SIDs.

    Raises:
        InputError: modules that LoRA cannot reach, or parts to freeze that the model has not.
    """
    for number, settings in enumerate(parse_stages(arguments.stages) or [], start=1):
        own = {name: value for name, value in settings.items() if name in RECIPE_FIELDS}
        wanted = replace(arguments, stages=None, **_typed(RecipeArguments, own))
        with torch.device("meta"):
            model: Any = type(base)(copy.deepcopy(base.config))
        try:
            if wanted.method != "full":
                model = attach_adapter(
                    model, vocab, method=wanted.method, rank=wanted.lora_r, target_modules=wanted.lora_target_modules
                )
            TrainedParts(model, vocab.trainable_token_indices, freeze=wanted.freeze or ())
        except (InputError, ValueError) as error:
            raise InputError(f"stages: stage {number}: {error}") from error
