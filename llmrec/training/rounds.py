"""Rounds of preference alignment: beams of the policy, pairs, training, and again from what came out."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset

from llmrec.artifacts import file_sha256, read_json
from llmrec.errors import InputError
from llmrec.hub.bundle import fetch_bundle
from llmrec.hub.info import CARD_FILE
from llmrec.training.inputs import RecipeInputs
from llmrec.training.preferences.make import Maker
from llmrec.training.preferences.pair_file import PairFile
from llmrec.training.reward_model import REWARD_FOLDER
from llmrec.training.round_folder import BUNDLE_FOLDER, RoundsFolder
from llmrec.training.run_folder import RUN_FILE
from llmrec.training.stages import TRAINING_FIELDS

logger = logging.getLogger(__name__)

ARGUMENT_FIELDS = ("negatives", "lists", "pairs", "prompts", "targets")
"""Of the recipe's arguments, what a round may set for itself."""
ROUND_FIELDS = (*TRAINING_FIELDS, "beta", "loss_type", "loss_weights", "label_smoothing")
"""Of the training config likewise."""


@dataclass(frozen=True)
class Round:
    """One training on preferences of the policy that it starts from.

    Args:
        number: from 1.
        count: how many the run has.
        arguments: the recipe's own, as they are in this round; ``model`` is the bundle before it.
        training: how it is optimised; its ``output_dir`` is the round's own.
        start: the bundle that the whole run starts from.
        start_revision: on the hub.
        run: the run's output folder; None where there are no rounds and ``output_dir`` is the run's.
        drawn_before: training rows that earlier rounds took.
    """

    number: int
    count: int
    arguments: Any
    training: Any
    start: str
    start_revision: str | None = None
    run: RoundsFolder | None = field(default=None, repr=False)
    drawn_before: int = 0

    def settings(self) -> tuple[Any, Any]:
        """Return both, as `parse_recipe` would."""
        return self.arguments, self.training

    @property
    def name(self) -> str:
        """What the log calls it."""
        return f"round {self.number} of {self.count}"

    def is_over(self, run: Mapping[str, Any]) -> bool:
        """Return whether its folder holds its bundle, so that the next one can start.

        Args:
            run: the identity of the round's training.
        """
        if self.run is None or self.run.unclaimed:
            return False
        bundle = self.run.round(self.number) / BUNDLE_FOLDER
        if not (bundle / CARD_FILE).is_file():
            return False
        before = read_json(bundle / RUN_FILE, "run description")
        if any(before.get(key) != value for key, value in run.items()):
            return False
        logger.info("%s: was finished before", self.name)
        return True

    def preferences(self, inputs: RecipeInputs, bundle: Path) -> Dataset:
        """Return what it trains on: the pairs in its folder, or new ones, which are written there.

        Every process must call, before the policy that trains is loaded: the search loads its own. The run's folder
        is made here, when the data are known to be sound.

        Args:
            inputs: dataset, split and SIDs of the bundle.
            bundle: folder of the policy before the round.

        Raises:
            InputError: as the sources say, or pairs of other settings beside a training that began with them.
        """
        folder = Path(str(self.training.output_dir)) if self.run is None else self.run.path
        maker = Maker(
            self.arguments,
            inputs,
            bundle=bundle,
            start=bundle if self.number == 1 else fetch_bundle(self.start, revision=self.start_revision),
            reward_folder=folder / REWARD_FOLDER,
            prompts=self.arguments.prompts or 0,
            targets=self.arguments.targets,
            seed=self.training.seed,
            number=self.number,
            drawn_before=self.drawn_before,
        )
        if self.run is None:
            return maker.make()
        self.run.claim()
        file = PairFile(self.run.round(self.number), began=BUNDLE_FOLDER)
        return file.read_or(maker.make, self._said(inputs, bundle))

    def _said(self, inputs: RecipeInputs, bundle: Path) -> dict[str, Any]:
        names = ("negatives", "lists", "reward_model", "pairs", "prompts", "targets", "train_users")
        return {
            "round": self.number,
            "settings": {name: getattr(self.arguments, name) for name in names},
            "drawn_before": self.drawn_before,
            "seed": self.training.seed,
            "sid_hash": inputs.table.hash,
            "dataset": dict(inputs.dataset.manifest.get("files", {})),
            "protocol": inputs.splits.protocol,
            "bundle": {file.name: file_sha256(file) for file in sorted(bundle.glob("*.safetensors"))},
        }


def rounds_of(arguments: Any, training: Any) -> list[Round]:
    """Return the trainings of a run: the run itself where it names no rounds.

    Round ``r`` lies in ``output_dir/round-r``: its pairs, and in ``bundle`` its training and what came of it, from
    which the next one starts.

    Args:
        arguments: of the run: `RLArguments` with `PreferenceArguments`.
        training: how it is optimised.

    Raises:
        InputError: settings of a round that there is not or that a round cannot set, ``resume_from_checkpoint``, a
            reward model without rounds, or ``keep_round: best`` without validation.
    """
    count = arguments.rounds
    if count is None:
        if arguments.reward_model is not None:
            raise InputError("reward_model: it works in rounds, one or more; write rounds: 1")
        return [Round(1, 1, arguments, training, arguments.model, arguments.model_revision)]
    if training.resume_from_checkpoint:
        raise InputError("resume_from_checkpoint: with rounds the same command goes on where it stopped; leave it out")
    scored = arguments.interpolate or training.evaluates
    if arguments.keep_round == "best" and not scored:
        raise InputError("keep_round: best compares the rounds on validation; set eval_strategy: epoch or steps")
    own = {_number(key, count): settings for key, settings in (arguments.round_settings or {}).items()}
    run = RoundsFolder.of(arguments, training)
    found: list[Round] = []
    drawn = 0
    for number in range(1, count + 1):
        changed, optimised = _split(own.get(number, {}), training, number=number)
        # A round is the same however many follow it.
        changed |= {"overwrite_output_dir": False, "rounds": 1, "round_settings": None, "keep_round": "last"}
        optimised |= {"output_dir": str(run.round(number) / BUNDLE_FOLDER), "push_to_hub": False}
        if number > 1:
            changed |= {"model": str(found[-1].training.output_dir), "model_revision": None}
        if training.run_name:
            optimised["run_name"] = f"{training.run_name}-round-{number}"
        try:
            its_own, settings = replace(arguments, **changed), replace(training, **optimised)
        except InputError as error:
            raise InputError(f"round_settings: round {number}: {error}") from error
        except (TypeError, ValueError) as error:
            raise InputError(f"round_settings: round {number}: {own.get(number)} is refused ({error})") from error
        start = (arguments.model, arguments.model_revision)
        found.append(Round(number, count, its_own, settings, *start, run, drawn))
        drawn += its_own.prompts or 0
    return found


def run_rounds(rounds: Sequence[Round], train: Callable[[Round], object]) -> None:
    """Run rounds one after another, and make the bundle of the last or best one that of the run.

    Args:
        rounds: as `rounds_of` returns them.
        train: trains one, or returns at once where it is over.

    Raises:
        InputError: the output folder holds something else, or this very run, finished.

    Paper: OneRec (Deng et al., 2025, https://arxiv.org/abs/2502.18965), iterative preference alignment. Theirs makes
        pairs within one stream of training, for one request in a hundred; here rounds follow one another, each from
        the bundle before it, with that bundle as its reference, on training rows that no round has had yet.
    """
    run = rounds[0].run
    if run is None:
        train(rounds[0])
        return
    run.check()
    for one in rounds:
        logger.info("%s: in %s", one.name, one.training.output_dir)
        train(one)
        clear_device_cache(garbage_collection=True)
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        run.finish(len(rounds))
    state.wait_for_everyone()


def _number(key: object, count: int) -> int:
    """Return the round that a key of ``round_settings`` names; flags write it as text."""
    number = int(key) if isinstance(key, str) and key.isdigit() else key
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= count:
        raise InputError(f"round_settings: {key!r}; the run has rounds 1 to {count}")
    return number


def _split(settings: Any, training: Any, *, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide what a round sets into the recipe's own and the training's; numbers in text (5e-7) become numbers."""
    if not isinstance(settings, Mapping):
        raise InputError(f"round_settings: round {number}: {settings!r}; a mapping, such as {{learning_rate: 5e-7}}")
    defaults = {entry.name: entry.default for entry in fields(training) if entry.default is not MISSING}
    changed: dict[str, Any] = {}
    optimised: dict[str, Any] = {}
    for name, value in settings.items():
        if name in ARGUMENT_FIELDS:
            changed[name] = value
        elif name in ROUND_FIELDS:
            number_in_text = isinstance(value, str) and type(defaults.get(name)) in (int, float)
            optimised[name] = type(defaults[name])(value) if number_in_text else value
        else:
            raise InputError(
                f"round_settings: round {number} sets {name!r}, which is the whole run's; a round may set "
                f"{', '.join(ARGUMENT_FIELDS + ROUND_FIELDS)}"
            )
    return changed, optimised
