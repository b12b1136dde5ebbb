"""A reward that is read off the language model: a linear head on its hidden state behind prompt and item."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import logsigmoid

from llmrec.artifacts import file_sha256, read_json, whole_file, write_json
from llmrec.decoding.prompts import read_prompts, why_expanded
from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.training.preferences.inputs import PreferenceInputs
from llmrec.training.preferences.popularity import popularity_negatives
from llmrec.training.preferences.questions import Questions

logger = logging.getLogger(__name__)

HEAD_FILE, HEAD_WEIGHTS = "reward.json", "reward.safetensors"
LOSSES = ("cross_entropy", "bpr")


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """How the head is trained.

    Args:
        examples: training rows that it learns from; 0 takes all.
        negatives: items drawn by popularity beside each target.
        loss: ``cross_entropy`` of the target among them, or ``bpr`` of each pair.
        l2: penalty on the weights of standardised states.
        steps: of LBFGS.

    Raises:
        InputError: a value out of range.
    """

    examples: int = 4096
    negatives: int = 7
    loss: str = "cross_entropy"
    l2: float = 1e-3
    steps: int = 50

    def __post_init__(self) -> None:
        for name, least in (("examples", 0), ("negatives", 1), ("steps", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"reward_model: {name} {value!r}; a whole number, at least {least}")
        if self.loss not in LOSSES:
            raise InputError(f"reward_model: loss {self.loss!r}; choose one of {', '.join(LOSSES)}")
        if not isinstance(self.l2, int | float) or not self.l2 >= 0:
            raise InputError(f"reward_model: l2 {self.l2!r}; 0 or more")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Return settings with the given ones in place of defaults.

        Raises:
            InputError: one that the head does not have, or a value out of range.
        """
        known = [entry.name for entry in fields(cls)]
        for name in given:
            if name not in known:
                raise InputError(f"reward_model: kind lm_head has no setting {name!r}; it has {', '.join(known)}")
        return cls(**given)


class HeadReward:
    """A linear head on the hidden state of a language model behind prompt and item.

    Args:
        recommender: the model that the head was trained on, which stays as it is while the policy changes.
        weight: ``(dim,)`` float32.
    """

    def __init__(self, recommender: LLMRecommender, weight: Tensor) -> None:
        self.recommender, self.weight = recommender, weight

    def scores(self, questions: Questions, items: np.ndarray) -> np.ndarray:
        """Return ``(rows, items)`` float32 rewards."""
        states = item_states(self.recommender, questions.histories, items)
        return (states @ self.weight).numpy()

    def save(self, folder: Path, said: Mapping[str, Any]) -> None:
        """Write the head and what it was trained on; the weights first."""
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / HEAD_WEIGHTS) as part:
            save_file({"weight": self.weight.contiguous()}, part)
        write_json(folder / HEAD_FILE, {**said, "files": {HEAD_WEIGHTS: file_sha256(folder / HEAD_WEIGHTS)}})


def item_states(recommender: LLMRecommender, histories: Sequence[Sequence[int]], items: np.ndarray) -> Tensor:
    """Return hidden states behind prompt and item; each prompt is read once for all its items.

    Args:
        recommender: the model.
        histories: item rows before each question.
        items: ``(rows, items)`` int64 catalogue rows.

    Returns:
        ``(rows, items, dim)`` float32 on the CPU, of the last token of each item's SID.

    Raises:
        InputError: a model whose prompts the engine cannot share.
    """
    model = recommender.model
    reason = why_expanded(model)
    if reason is not None:
        raise InputError(
            f"reward_model: lm_head reads prompts once for all items, which this model does not allow ({reason}); use "
            "kind: sasrec"
        )
    prompts = [
        recommender.form.encode_history(recommender.tokenizer, recommender.vocab, history) for history in histories
    ]
    table = recommender.vocab.item_token_ids
    count, levels = items.shape[1], table.shape[1]
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    found: Tensor | None = None
    start, training = 0, model.training
    model.eval()
    try:
        while start < len(order):
            width = len(prompts[order[start]])
            part = order[start : start + max(1, recommender.max_tokens_per_batch // (width + count * levels))]
            start += len(part)
            rows = [prompts[number] for number in part]
            ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
            tokens = table[torch.from_numpy(items[part])].to(model.device)
            with torch.inference_mode():
                states = _behind(model, ids, mask, tokens).float().cpu()
            if found is None:
                found = torch.empty((len(prompts), count, states.shape[-1]))
            found[part] = states
    finally:
        model.train(training)
    if found is None:
        raise InputError("reward_model: there is no row to read")
    return found


def _behind(model: Any, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
    """Return ``(batch, items, dim)`` states of the last tokens of ``(batch, items, levels)``, -1 behind shorter."""
    batch, count, levels = tokens.shape
    reader: Any = read_prompts(model, ids, mask, branches=count * levels)
    parents = torch.zeros((batch, count), dtype=torch.int64, device=ids.device)
    own = torch.arange(count, device=ids.device).expand(batch, -1)
    found: Tensor | None = None
    for level in range(levels):
        newest = tokens[..., level]
        reader.advance(parents, newest.clamp(min=0))
        hidden = cast(Tensor, reader.hidden)
        found = hidden if found is None else torch.where(newest[..., None] >= 0, hidden, found)
        parents = own
    assert found is not None
    return found


def fit_head(
    settings: HeadSettings,
    inputs: PreferenceInputs,
    questions: Questions,
    folder: Path,
    *,
    write: bool = True,
) -> HeadReward:
    """Return a head that tells what users took from popular items that they did not take.

    A tenth of the rows is kept back, and the log says how often the target wins there.

    Args:
        settings: of the training.
        inputs: with the policy that the run starts from.
        questions: training rows, as many as ``settings.examples`` says.
        folder: where it is kept, and read from where it fits.
        write: whether this process writes the folder.

    Raises:
        InputError: rows with too few candidates, or a model that the engine cannot read.
    """
    recommender = inputs.recommender
    said: dict[str, Any] = {
        "kind": "lm_head",
        "settings": {entry.name: getattr(settings, entry.name) for entry in fields(settings)},
        "model": recommender.fingerprint,
        "rows": len(questions),
        "seed": inputs.seed,
    }
    if (folder / HEAD_FILE).is_file():
        before = read_json(folder / HEAD_FILE, "description of the reward model")
        weights = folder / HEAD_WEIGHTS
        same = all(before.get(name) == value for name, value in said.items())
        if same and weights.is_file() and file_sha256(weights) == before["files"][HEAD_WEIGHTS]:
            logger.info("reward model: the one in %s", folder)
            return HeadReward(recommender, load_file(weights)["weight"])
    negatives = popularity_negatives(inputs=inputs)(questions, count=settings.negatives)
    items = np.concatenate([questions.targets[:, None], negatives], axis=1)
    states = item_states(recommender, questions.histories, items)
    held_out = questions.numbers % 10 == 0
    learned = states[torch.from_numpy(~held_out)] if (~held_out).any() else states
    weight = train_head(learned, settings)
    head = HeadReward(recommender, weight)
    if held_out.any():
        scores = states[torch.from_numpy(held_out)] @ weight
        said["accuracy"] = float((scores[:, :1] > scores[:, 1:]).float().mean())
        logger.info(
            "reward model: on %d rows kept back the target beats a popular item in %.1f %%",
            int(held_out.sum()), 100 * said["accuracy"],
        )  # fmt: skip
    if write:
        head.save(folder, said)
    return head


def train_head(states: Tensor, settings: HeadSettings) -> Tensor:
    """Return the ``(dim,)`` weights that put the first item of each row before the others.

    Args:
        states: ``(rows, items, dim)`` float32, the target first.
        settings: loss, penalty and steps.
    """
    gaps = states[:, :1] - states[:, 1:]
    scale = gaps.flatten(0, 1).std(dim=0).clamp(min=1e-6)
    gaps = gaps / scale
    weight = torch.zeros(states.shape[-1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=settings.steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        wins = gaps @ weight
        if settings.loss == "bpr":
            loss = -logsigmoid(wins).mean()
        else:
            loss = torch.cat([torch.zeros_like(wins[:, :1]), -wins], dim=1).logsumexp(dim=1).mean()
        loss = loss + settings.l2 * weight.square().sum()
        loss.backward()
        return loss

    cast(Any, optimizer).step(closure)
    return (weight / scale).detach()
