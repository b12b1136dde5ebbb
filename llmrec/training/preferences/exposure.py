"""Rejected items that the data itself tells of: shown and passed over, or taken and rated low."""

from dataclasses import dataclass, field

import numpy as np

from llmrec.errors import InputError
from llmrec.tasks.inputs import TaskInputs
from llmrec.training.preferences.exposure_file import ItemLists, interactions_of_rows, load_exposure
from llmrec.training.preferences.inputs import PreferenceInputs
from llmrec.training.preferences.questions import Questions

FIRST_WIDTH = 64


@dataclass(frozen=True)
class ExposureNegatives:
    """The first permitted items of a list that each training row has; rows may have too few."""

    lists: ItemLists = field(repr=False)
    list_of: np.ndarray = field(repr=False)
    exclude_history: bool
    inputs: PreferenceInputs = field(repr=False)
    may_fall_short: bool = True

    def __call__(self, questions: Questions, *, count: int, taken: np.ndarray | None = None) -> np.ndarray:
        """Return ``(rows, count)`` items, -1 where a row has fewer."""
        candidates = self.inputs.candidates
        forbidden = candidates.forbidden(questions, history=self.exclude_history, taken=taken)
        own = self.list_of[questions.numbers]
        has = own >= 0
        lists = np.where(has, own, 0)
        lengths = np.where(has, self.lists.lengths(lists), 0)
        found = np.full((len(questions), count), -1, dtype=np.int64)
        open_rows, width = np.flatnonzero(lengths > 0), min(FIRST_WIDTH, int(lengths.max(initial=0)))
        while len(open_rows):
            items = self.lists.padded(lists[open_rows], width)
            drawn = np.full((len(questions), width), -1, dtype=np.int64)
            drawn[open_rows] = np.where(items >= 0, candidates.sid_of[items], -1)
            found[open_rows] = candidates.first_permitted(drawn, forbidden, count=count)[open_rows]
            open_rows = open_rows[(found[open_rows, -1] < 0) & (lengths[open_rows] > width)]
            width = min(4 * width, int(lengths.max()))
        return candidates.rows(found)


def exposure_negatives(
    *, inputs: PreferenceInputs, rating_below: float | None = None, exclude_history: bool | None = None
) -> ExposureNegatives:
    """Take what the user was shown beside the target and passed over (``exposure.parquet``), in the order shown.

    With ``rating_below``, take instead what the same user rated so low in training, oldest first; rows whose target
    was itself rated so have none. A row that has too few is left out, and the log counts such rows.

    Args:
        inputs: with dataset and splits; held-out interactions are not read.
        rating_below: ratings below it are low; None reads exposures.
        exclude_history: never take an item of the history; None does so for exposures, and not for ratings, where the
            history is what was rated.

    Raises:
        InputError: no dataset, no exposures or ratings in it, or a rating that is no number.

    Paper: OneRec (Deng et al., 2025, https://arxiv.org/abs/2502.18965) says that feedback on what was shown is too
        sparse for a preference each, which is why it scores beams; where a log has it, it stands here.
    """
    if inputs.dataset is None or inputs.splits is None:
        raise InputError("negatives: exposure reads a dataset folder, and was given none; use another source")
    dataset, splits = inputs.dataset, inputs.splits
    at = interactions_of_rows(splits, dataset.interactions)
    if rating_below is None:
        lists = load_exposure(
            dataset.path, interactions=dataset.interactions, item_ids=tuple(dataset.catalog.item_ids)
        )
        return ExposureNegatives(lists, at, exclude_history is not False, inputs)
    if not isinstance(rating_below, int | float) or isinstance(rating_below, bool):
        raise InputError(f"negatives: exposure: rating_below {rating_below!r}; a number, such as 3")
    visible = TaskInputs.of(dataset, splits)
    low = visible.ratings() < rating_below
    if not low.any():
        raise InputError(
            f"negatives: exposure: no training interaction is rated below {rating_below}; the lowest has "
            f"{float(visible.ratings().min()):g}, the import may have dropped low ones: raise rating_below"
        )
    users = visible.interactions.users
    lists = ItemLists.grouped(users[low], visible.interactions.items[low], count=len(visible.interactions.user_ids))
    rated = dataset.interactions.ratings
    owners = np.fromiter((row.user for row in splits.train), dtype=np.int64, count=len(splits.train))
    liked = (at >= 0) & ~((np.zeros(1) if rated is None else rated)[np.maximum(at, 0)] < rating_below)
    return ExposureNegatives(lists, np.where(liked, owners, -1), bool(exclude_history), inputs)
