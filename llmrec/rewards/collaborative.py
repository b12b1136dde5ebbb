"""What a trained baseline thinks of a candidate after the user's history."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.baselines.item_scores import score_items
from llmrec.errors import InputError
from llmrec.rewards.candidates import read_candidates
from llmrec.rewards.groups import by_group, check_groups
from llmrec.rewards.inputs import Reward, RewardInputs
from llmrec.rewards.options import check_choice, check_flag, check_number
from llmrec.rewards.saved_baseline import load_baseline
from llmrec.rewards.within_group import SCALES, scale_scores
from llmrec.vocab import SIDVocab


def collaborative(
    vocab: SIDVocab,
    *,
    baseline: str | Sequence[str],
    scale: str = "rank",
    temperature: float = 1.0,
    exclude_seen: bool = False,
    kind: str | None = None,
    inputs: RewardInputs,
) -> Reward:
    """Return the score that a saved baseline gives each candidate, on a scale within its group.

    Of items that share a SID the most popular one is scored.

    Args:
        vocab: the SIDs.
        baseline: folder of a fitted baseline, such as a `SASRec`, written by ``save_pretrained``; or several, each on
            the scale by itself, of which the mean is taken.
        scale: ``rank``, ``softmax``, ``zscore`` or ``none``, as `scale_scores` takes them.
        temperature: of ``softmax``, above 0.
        exclude_seen: an item of the history has no score, as the worst there is: many baselines put what a user has
            just taken first.
        kind: class of a baseline of the user's own, ``package.module:Class``.
        inputs: ``num_generations``, ``sequences`` or ``popularity``, ``folder`` are read.

    Raises:
        InputError: an option out of range, or as `load_baseline` says.

    Paper: MiniOneRec (Kong et al., 2025, arXiv:2510.24431), its collaborative reward, a SASRec's score as it stands.
    How we differ: a scale within the group, any baseline and any number of them, what is no item counts as the worst
    (theirs scores a random item there), and a baseline that has seen more than the training part is refused.
    """
    how = check_choice("collaborative", "scale", scale, SCALES)
    heat = check_number("collaborative", "temperature", temperature, low=1e-6)
    unseen = check_flag("collaborative", "exclude_seen", exclude_seen)
    size = inputs.num_generations
    folders = [baseline] if isinstance(baseline, str | Path) else baseline
    if not isinstance(folders, list | tuple) or not folders:
        raise InputError(f"reward collaborative: baseline {baseline!r}; give a path, or a list of them")
    judges = [
        load_baseline(path, reward="collaborative", inputs=inputs, items=len(vocab), kind=kind) for path in folders
    ]

    def reward(
        *,
        completion_ids: list[list[int]],
        history: Sequence[Sequence[int]] | None = None,
        prompts: Sequence[Any] | None = None,
        **_: Any,
    ) -> list[float]:
        groups = check_groups(len(completion_ids), size, reward="collaborative", prompts=prompts)
        if history is None or len(history) != len(completion_ids):
            raise InputError(
                f"reward collaborative: {0 if history is None else len(history)} histories for {len(completion_ids)} "
                "completions; the dataset needs a column 'history' with the item rows of each prompt, oldest first"
            )
        rows = by_group(read_candidates(completion_ids, vocab).rows, size)
        histories = [list(history[group * size]) for group in range(groups)]
        seen = np.zeros(rows.shape, dtype=bool)
        if unseen:
            seen = np.stack([np.isin(row, items) for row, items in zip(rows, histories, strict=True)])
        found = []
        for judge in judges:
            scores = np.where(seen, -np.inf, score_items(judge, histories, rows))
            found.append(scale_scores(scores, scale=how, temperature=heat))
        return np.mean(found, axis=0).ravel().tolist()

    return reward
