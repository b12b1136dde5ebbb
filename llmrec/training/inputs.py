"""What every training recipe reads first: dataset, split, SIDs and how prompts are written."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmrec.data.folder import DatasetFolder, load_dataset
from llmrec.data.splits import Splits, training_popularity
from llmrec.data.user_share import take_users
from llmrec.sids.fitted_on import check_fitted_on
from llmrec.sids.table import SIDTable
from llmrec.tasks.prompt import PromptForm
from llmrec.training.config import RecipeArguments, parse_mapping
from llmrec.training.incremental import Increment, check_trained_on, find_increment
from llmrec.training.objectives.methods import check_objective


@dataclass(frozen=True)
class RecipeInputs:
    """A dataset folder and its SIDs, checked against each other.

    Args:
        dataset: the dataset folder.
        splits: its rows under the recipe's protocol.
        table: the SIDs of its catalogue.
        popularity: ``(items,)`` training counts.
        form: how prompts are written.
        increment: which training targets are new; None where all are learned.
    """

    dataset: DatasetFolder
    splits: Splits
    table: SIDTable
    popularity: np.ndarray = field(repr=False)
    form: PromptForm
    increment: Increment | None = None

    def values(self) -> tuple[DatasetFolder, Splits, SIDTable, np.ndarray, PromptForm]:
        """Return the first five, in the order above."""
        return self.dataset, self.splits, self.table, self.popularity, self.form

    @property
    def described(self) -> dict[str, Any]:
        """Return what `run_identity` and `describe_run` want to know of it."""
        return {
            "dataset": self.dataset,
            "table": self.table,
            "form": self.form,
            "protocol": self.splits.protocol,
        }


def load_inputs(arguments: RecipeArguments) -> RecipeInputs:
    """Load what a recipe's arguments name.

    Raises:
        InputError: an objective that is not known, a folder that cannot be read, SIDs of another catalogue, or SIDs
            fitted on what this protocol holds out.
    """
    check_objective(arguments.objective, parse_mapping(arguments.objective_args, "objective_args"))
    dataset = load_dataset(arguments.dataset)
    splits = dataset.split(arguments.protocol, max_history=arguments.max_history)
    splits = take_users(splits, dataset.interactions, arguments.train_users)
    table = SIDTable.load(arguments.sids)
    table.check_catalog(dataset.catalog.hash, path=arguments.sids)
    check_fitted_on(table.settings, splits.protocol, source=arguments.sids)
    domain = arguments.domain or dataset.manifest["domain"]
    increment = None
    if arguments.old_dataset:
        check_trained_on(str(arguments.start_from), arguments.old_dataset)
        increment = find_increment(arguments.old_dataset, dataset, splits, replay=arguments.replay)
    return RecipeInputs(
        dataset,
        splits,
        table,
        training_popularity(splits.sequences, items=len(dataset.catalog)),
        PromptForm.named(arguments.prompt, domain=domain, max_history=arguments.max_history),
        increment,
    )
