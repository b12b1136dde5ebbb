"""A small model of what users take, by which the policy's own lists are told apart."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from llmrec.artifacts import read_json
from llmrec.baselines.base import CONFIG_NAME, DENSE_SCORES
from llmrec.baselines.context import FitContext
from llmrec.baselines.sasrec import SASRec, SASRecSettings
from llmrec.data.splits import Splits
from llmrec.embeddings.collaborative import sequences_hash
from llmrec.errors import InputError
from llmrec.training.preferences.questions import Questions
from llmrec.training.reward_head import HeadSettings

logger = logging.getLogger(__name__)

KINDS = ("sasrec", "lm_head")
REWARD_FOLDER = "reward-model"


class RewardModel(Protocol):
    """Scores items after histories; only differences within a row mean something."""

    def scores(self, questions: Questions, items: np.ndarray) -> np.ndarray:
        """Return ``(rows, items)`` float32 rewards.

        Args:
            questions: the rows.
            items: ``(rows, items)`` int64 catalogue rows.
        """
        ...


class SASRecReward:
    """The score of a trained SASRec, as log-probabilities over the catalogue, so that users compare.

    Args:
        baseline: fitted on training interactions.
    """

    def __init__(self, baseline: SASRec) -> None:
        self.baseline = baseline

    @torch.no_grad()
    def scores(self, questions: Questions, items: np.ndarray) -> np.ndarray:
        """Return ``(rows, items)`` float32 log-probabilities."""
        found = np.empty(items.shape, dtype=np.float32)
        rows = max(1, DENSE_SCORES // self.baseline.items)
        # Histories of like length are padded least.
        order = np.argsort([len(history) for history in questions.histories], kind="stable")
        for start in range(0, len(order), rows):
            part = order[start : start + rows]
            scores = self.baseline.scores([questions.histories[row] for row in part.tolist()])
            chosen = torch.from_numpy(items[part]).to(scores.device)
            found[part] = scores.log_softmax(dim=1).gather(1, chosen).float().cpu().numpy()
        return found


def parse_reward_model(spec: Any) -> dict[str, Any]:
    """Check what a YAML says of the reward model.

    Args:
        spec: ``{kind: sasrec}`` with `SASRecSettings`' fields or ``path`` of a fitted one; ``{kind: lm_head}`` with
            the options of `llmrec.training.reward_head.HeadSettings`. A name alone is a kind.

    Returns:
        A mapping with ``kind``.

    Raises:
        InputError: an unknown kind, or ``path`` beside settings.
    """
    found = {"kind": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    if found.get("kind") not in KINDS:
        raise InputError(f"reward_model: {spec!r}; give a kind, one of {', '.join(KINDS)}: {{kind: sasrec}}")
    if found["kind"] == "sasrec":
        settings = {name: value for name, value in found.items() if name not in ("kind", "path")}
        if "path" in found and settings:
            raise InputError(f"reward_model: path beside {', '.join(settings)}; a fitted model has its own settings")
        SASRecSettings.of(settings, baseline="reward_model")
    else:
        HeadSettings.of({name: value for name, value in found.items() if name != "kind"})
    return found


def fit_sasrec(spec: Mapping[str, Any], splits: Splits, folder: Path, *, items: int, write: bool = True) -> SASRec:
    """Return a SASRec fitted on training interactions: the one in the folder where it fits, else a new one.

    Nothing of validation is read: it chooses among rounds, so the reward must not know it. The fit stops by training
    items of some users that it holds out itself.

    Args:
        spec: of kind ``sasrec``.
        splits: of the run.
        folder: where it is kept; a killed fit goes on from its checkpoint beside it.
        items: size of the catalogue.
        write: whether this process fits and saves; others wait and read.

    Raises:
        InputError: ``path`` is no SASRec, or one that was fitted on other interactions.
    """
    wanted = sequences_hash(splits.sequences)
    if "path" in spec:
        baseline = SASRec.from_pretrained(spec["path"])
        if baseline.items != items or baseline.fitted_on.get("sequences_sha256") != wanted:
            raise InputError(
                f"reward_model: {spec['path']} was fitted on other interactions than the training part here (protocol "
                f"{splits.protocol!r}); what it knows may be held out: fit it again, or leave path out"
            )
        return baseline
    settings = {name: value for name, value in spec.items() if name != "kind"}
    baseline = SASRec(**settings)
    if (folder / CONFIG_NAME).is_file():
        said = read_json(folder / CONFIG_NAME, "settings of the reward model")
        fitted = said.get("fitted_on", {}).get("sequences_sha256")
        if said.get("settings") == baseline.settings and fitted == wanted:
            logger.info("reward model: the one in %s", folder)
            return SASRec.from_pretrained(folder)
    if not write:
        raise InputError(f"reward_model: {folder} holds none that fits; the main process should have written it")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = folder.with_name(f"{folder.name}-fit")
    baseline.fit(splits.sequences, items=items, context=FitContext(checkpoint=checkpoint, device=device))
    baseline.save_pretrained(folder)
    shutil.rmtree(checkpoint, ignore_errors=True)
    logger.info(
        "reward model: SASRec, ndcg@10 %.4f on training items that it held out, epoch %d of %d",
        baseline.progress.best, baseline.progress.best_epoch, baseline.progress.epoch,
    )  # fmt: skip
    return baseline.to("cpu")


def mean_over_list(reward: RewardModel, questions: Questions, lists: np.ndarray) -> np.ndarray:
    """Return ``(rows, lists)`` float32: the mean reward of a list's items, each after the history and those before it.

    Args:
        reward: scores items.
        questions: the rows.
        lists: ``(rows, lists, n)`` int64 items, -1 behind shorter ones.
    """
    rows, count, length = lists.shape
    total, real = np.zeros((rows, count), dtype=np.float32), (lists >= 0).sum(axis=2)
    owners = np.repeat(np.arange(rows), count)
    flat = lists.reshape(rows * count, length)
    for place in range(length):
        there = np.flatnonzero(flat[:, place] >= 0)
        before: list[Sequence[int]] = [
            [*questions.histories[owner], *head]
            for owner, head in zip(owners[there].tolist(), flat[there, :place].tolist(), strict=True)
        ]
        asked = questions.take(owners[there])
        asked = Questions(before, asked.targets, asked.numbers, asked.users)
        total.reshape(-1)[there] += reward.scores(asked, flat[there, place : place + 1])[:, 0]
    return total / np.maximum(real, 1)
