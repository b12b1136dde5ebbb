"""What is new since a bundle was trained, old targets replayed beside it, and users' metrics before and after."""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel

from llmrec.artifacts import made_by, read_json, write_json
from llmrec.data.folder import DatasetFolder, load_dataset
from llmrec.data.splits import History, Splits
from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import Recommender, evaluate
from llmrec.evaluation.intervals import difference_interval
from llmrec.evaluation.metrics import ndcg_at, recall_at
from llmrec.hub.info import INFO_FILE
from llmrec.training.config import RecipeArguments
from llmrec.training.validation import Validation

logger = logging.getLogger(__name__)

INCREMENT_FILE = "incremental.json"


@dataclass(frozen=True)
class Increment:
    """Which training targets of a split a bundle has learned already.

    Args:
        begins: how many items at the start of each of the split's training sequences the bundle was trained on.
        learned_by_user: the same by user number.
        known_items: ``(items,)`` whether an item stood in the old dataset's catalogue.
        replay: old targets that are learned again for each new one, 0 or more.
    """

    begins: tuple[int, ...] = field(repr=False)
    learned_by_user: Mapping[int, int] = field(repr=False)
    known_items: np.ndarray = field(repr=False)
    replay: float = 1.0

    def rows(self, train: Sequence[History]) -> tuple[list[History], list[History]]:
        """Return training rows whose targets are new, and those that were learned; rows stand in a user's order."""
        places: dict[int, Any] = {}
        new, old = [], []
        for row in train:
            # A user's first item is no target, so that its first row is place 1
            place = next(places.setdefault(row.user, count(1)))
            (old if place < self.learned_by_user.get(row.user, 0) else new).append(row)
        return new, old

    def draw(self, old: Sequence[Any], *, targets: Sequence[int], new_targets: int, rng: random.Random) -> list[Any]:
        """Return old rows, drawn without repeats until they hold ``replay`` targets for each new one, or are used up.

        Args:
            old: what was learned.
            targets: how many targets each holds.
            new_targets: targets that are new.
            rng: of the draw.
        """
        wanted, chosen = round(self.replay * new_targets), []
        for place in rng.sample(range(len(old)), len(old)):
            if wanted <= 0:
                break
            chosen.append(place)
            wanted -= targets[place]
        return [old[place] for place in sorted(chosen)]

    def groups(self, rows: Sequence[History]) -> dict[str, np.ndarray]:
        """Return which rows are of old users (the bundle was trained on them), new users, and new items."""
        old = np.array([self.learned_by_user.get(row.user, 0) > 0 for row in rows])
        return {
            "all": np.ones(len(rows), dtype=bool),
            "old users": old,
            "new users": ~old,
            "new items": ~self.known_items[[row.target for row in rows]],
        }


def check_trained_on(bundle: str, old_path: str) -> None:
    """Raise `InputError` when a bundle was trained on another number of interactions than a folder has."""
    said = read_json(Path(bundle) / INFO_FILE, "manifest of the bundle of start_from").get("dataset", {})
    trained = said.get("counts", {}).get("interactions")
    there = load_dataset(old_path).manifest["counts"]["interactions"]
    if trained is not None and trained != there:
        raise InputError(
            f"old_dataset: {old_path} has {there} interactions, and {bundle} was trained on a folder of {trained}; "
            "name that folder"
        )


def find_increment(old_path: str, dataset: DatasetFolder, splits: Splits, *, replay: float) -> Increment:
    """Compare a dataset with an earlier state of it, the one that a bundle was trained on.

    What was held out then (each user's last two items under ``leave_one_out``) is new now, as far as the present split
    trains on it.

    Args:
        old_path: dataset folder of the earlier state.
        dataset: the present one; it holds all items and interactions of the earlier one.
        splits: of the present one.
        replay: old targets for each new one.

    Raises:
        InputError: a published split, an item or user that is gone, a user whose interactions changed, or nothing new.
    """
    if splits.parts is None:
        raise InputError(
            f"old_dataset: protocol {splits.protocol} does not say what each interaction is for; use leave_one_out or "
            "temporal"
        )
    old = load_dataset(old_path)
    before = old.split(splits.protocol)
    assert before.parts is not None
    place = {item_id: row for row, item_id in enumerate(dataset.catalog.item_ids)}
    gone = [item_id for item_id in old.catalog.item_ids if item_id not in place]
    if gone:
        raise InputError(
            f"old_dataset: {old_path} holds item {gone[0]!r} ({len(gone)} such), which {dataset.path} lacks; old "
            "items stay in the catalogue (data_prep/update_items.py retires them)"
        )
    number = {user_id: user for user, user_id in enumerate(dataset.interactions.user_ids)}
    present = dict(zip(_owners(dataset, splits), splits.sequences, strict=True))
    learned: dict[int, int] = {}
    for owner, sequence in zip(_owners(old, before), before.sequences, strict=True):
        user_id = old.interactions.user_ids[owner]
        rows = tuple(place[old.catalog.item_ids[item]] for item in sequence)
        now = present.get(number.get(user_id, -1), ())
        if now[: len(rows)] != rows:
            raise InputError(
                f"old_dataset: the training interactions of user {user_id!r} in {old_path} are not the beginning of "
                f"those in {dataset.path}; name the folder that this one grew from"
            )
        learned[number[user_id]] = len(rows)
    begins = tuple(learned.get(owner, 0) for owner in present)
    if not any(len(now) > max(begin, 1) for now, begin in zip(present.values(), begins, strict=True)):
        raise InputError(f"old_dataset: {dataset.path} has no training target that {old_path} has not")
    known = np.zeros(len(dataset.catalog), dtype=bool)
    known[[place[item_id] for item_id in old.catalog.item_ids]] = True
    return Increment(begins, learned, known, replay)


def _owners(dataset: DatasetFolder, splits: Splits) -> list[int]:
    """Return the user of each training sequence."""
    return np.unique(dataset.interactions.users[splits.parts == 0]).tolist()


def compare(
    before: Recommender, after: Recommender, increment: Increment, rows: Sequence[History], *, items: int,
    ks: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    """Score the bundle before and after on the same rows, by group.

    Args:
        before: the bundle that was gone on from.
        after: the new one.
        increment: tells old users and items from new ones.
        rows: held-out rows of the present dataset.
        items: size of the catalogue.
        ks: cuts of Recall and NDCG.

    Returns:
        By group (empty ones left out): ``users``, and by metric ``before``, ``after`` and the 95 % interval of the
        paired ``difference``.
    """
    ranks = [
        evaluate(system, rows, items=items, ks=ks, name=name, keep_lists=False).ranks
        for name, system in (("before", before), ("after", after))
    ]
    found: dict[str, Any] = {}
    for group, mask in increment.groups(rows).items():
        if not mask.any():
            continue
        found[group] = {"users": int(mask.sum())}
        for k in ks:
            for metric, values_at in (("recall", recall_at), ("ndcg", ndcg_at)):
                old, new = (values_at(part[mask], k) for part in ranks)
                entry: dict[str, Any] = {"before": float(old.mean()), "after": float(new.mean())}
                if len(old) > 1:
                    interval = difference_interval(new, old)
                    entry["difference"] = [interval.mean, interval.low, interval.high]
                found[group][f"{metric}@{k}"] = entry
        last = found[group][f"ndcg@{max(ks)}"]
        logger.info(
            "%s (%d): ndcg@%d %.4f before, %.4f after", group, mask.sum(), max(ks), last["before"], last["after"]
        )
    return found


def tell(
    increment: Increment, arguments: RecipeArguments, after: PreTrainedModel | PeftModel, validation: Validation,
    folder: str | Path,
) -> dict[str, Any]:  # fmt: skip
    """Compare the bundle that a run started from with the run's model on its validation rows, and write what is found.

    Args:
        increment: what was new.
        arguments: of the run.
        after: the trained model.
        validation: its rows, vocabulary, cuts and beams.
        folder: of the run; gets ``incremental.json``.

    Returns:
        What `compare` found.
    """
    settings: dict[str, Any] = {"num_beams": validation.num_beams, "score": validation.score}
    before = LLMRecommender.from_pretrained(str(arguments.start_from), device=str(after.device), **settings)
    now = LLMRecommender(after, validation.tokenizer, validation.vocab, validation.form, **settings)
    found = compare(before, now, increment, validation.rows, items=len(validation.vocab), ks=validation.ks)
    write_json(Path(folder) / INCREMENT_FILE, {"split": "valid", "groups": found, "made_by": made_by()})
    return found
