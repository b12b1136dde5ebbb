"""A watch on a model's language: the perplexity of a held-out text before, while and after it learns SIDs."""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from llmrec.artifacts import file_sha256
from llmrec.errors import InputError
from llmrec.tasks.chat_data import read_conversations, turns
from llmrec.tasks.example import Example
from llmrec.tasks.prompt import PromptForm, end_token_id, start_token_id
from llmrec.training.config import RecipeArguments, SFTRecipeConfig
from llmrec.training.examples import IGNORED, encode_examples
from llmrec.training.labelled import Head

logger = logging.getLogger(__name__)

MOST_TOKENS = 1024
"""Longest row where the run sets no ``max_length``."""
BATCH_TOKENS = 8192

Row = tuple[list[int], list[int]]
"""Token ids and labels of a row."""


class LanguageGuard(TrainerCallback):
    """Measures the perplexity of held-out rows: before training, at each evaluation, and of the model that is kept.

    It is a callback and a measure of the trainer at once. What it found stands under ``language`` in the manifest.

    Args:
        rows: token ids and labels; where a label stands, its probability counts.
        source: the file, for manifest and messages.
        info: the bundle's manifest, written to.
        max_ratio: perplexity over that before training, above which ``stop`` or a warning follows; None never.
        stop: whether training ends there.
        autocast: dtype in which the forward runs; None runs in the weights' own.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        source: Path,
        info: dict[str, Any],
        max_ratio: float | None = None,
        stop: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._rows = sorted(rows, key=lambda row: -len(row[0]))
        self._max_ratio, self._stop, self._autocast = max_ratio, stop, autocast
        self._must_stop = False
        self.before: float | None = None
        labels = sum(label != IGNORED for _, row in rows for label in row[1:])
        self.found = info["language"] = {
            "file": source.name, "sha256": file_sha256(source), "rows": len(rows), "tokens": labels,
            "max_perplexity_ratio": max_ratio,
        }  # fmt: skip

    def perplexity(self, model: PreTrainedModel | PeftModel) -> float:
        """Return the perplexity of the rows under a model, whose processes share the rows.

        Args:
            model: a causal model, with its adapter or without; training mode is restored.
        """
        state = PartialState()
        was_training = model.training
        model.eval()
        try:
            own = [
                self._loss(model, batch) for batch in _batches(self._rows[state.process_index :: state.num_processes])
            ]
        finally:
            model.train(was_training)
        sums = gather_object([(sum(loss for loss, _ in own), sum(count for _, count in own))])
        return math.exp(min(sum(loss for loss, _ in sums) / sum(count for _, count in sums), 700.0))

    def __call__(
        self, model: PreTrainedModel | PeftModel, accelerator: Any, *, prefix: str = "eval"
    ) -> dict[str, float]:
        """Return ``{prefix}_perplexity``, and its ratio to that before training, as a measure of the trainer."""
        found = self._measure(model)
        return {f"{prefix}_perplexity": found["perplexity"], f"{prefix}_perplexity_ratio": found["ratio"]}

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the model before it trains; a run that goes on measures the same model again."""
        self.before = self.perplexity(kwargs["model"])
        self.found["perplexity_before"] = self.before
        logger.info("language: perplexity %.2f on %s before training", self.before, self.found["file"])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End training where a measure said so; the trainer logs behind each."""
        if self._must_stop:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the model that is kept: the best one, where that is loaded at the end."""
        self._measure(kwargs["model"])

    @torch.inference_mode()
    def _loss(self, model: PreTrainedModel | PeftModel, batch: Sequence[Row]) -> tuple[float, int]:
        """Return the summed negative log-probability of a batch's labels, and their number."""
        base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
        length = max(len(ids) for ids, _ in batch)
        ids = torch.zeros(len(batch), length, dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        mask = torch.zeros_like(ids)
        for number, (row, own) in enumerate(batch):
            ids[number, : len(row)] = torch.tensor(row)
            labels[number, : len(row)] = torch.tensor(own)
            mask[number, : len(row)] = 1
        device = base.device
        with torch.autocast(device.type, dtype=self._autocast, enabled=self._autocast is not None):
            body = cast(Any, base.base_model)
            hidden: Tensor = body(
                input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
            ).last_hidden_state
            targets = labels[:, 1:].to(device)
            there = targets != IGNORED
            log_probs = Head.of(base).log_probs(hidden[:, :-1][there], targets[there])
        return -float(log_probs.double().sum()), int(there.sum())

    def _measure(self, model: PreTrainedModel | PeftModel) -> dict[str, float]:
        if self.before is None:
            raise RuntimeError("language guard: hand it to the trainer's callbacks, so that it sees the model first")
        found = self.perplexity(model)
        ratio = found / self.before
        self.found.update(perplexity=found, ratio=ratio)
        if self._max_ratio is not None and ratio > self._max_ratio:
            logger.warning(
                "language: perplexity %.2f on %s is %.2f times that before training (%.2f), above "
                "max_perplexity_ratio %s; %s",
                found, self.found["file"], ratio, self.before, self._max_ratio,
                "training stops" if self._stop else "mix in more chat_data, train for less, or at a lower rate",
            )  # fmt: skip
            self._must_stop = self._must_stop or self._stop
        return {"perplexity": found, "ratio": ratio}


def language_guards(
    arguments: RecipeArguments,
    training: SFTRecipeConfig,
    model: PreTrainedModel | PeftModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    form: PromptForm,
    info: dict[str, Any],
) -> list[LanguageGuard]:
    """Return the guard that a recipe asks for by ``language_guard``: none where it is off, and in a dry run.

    Args:
        arguments: the file, the ratio and what follows.
        training: its ``max_length`` cuts texts.
        model: what trains.
        tokenizer: with the SID tokens.
        form: how conversations are written.
        info: the bundle's manifest.

    Raises:
        InputError: a model that does not write from left to right, or a file without text.
    """
    if arguments.language_guard is None or arguments.dry_run:
        return []
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(
            f"language_guard: {arguments.language_guard}; perplexity is measured of causal models, and this one has "
            "an encoder; leave it out"
        )
    path = Path(arguments.language_guard)
    rows = guard_rows(path, tokenizer=tokenizer, form=form, max_length=training.max_length or MOST_TOKENS)
    return [
        LanguageGuard(
            rows,
            source=path,
            info=info,
            max_ratio=arguments.max_perplexity_ratio,
            stop=arguments.perplexity_action == "stop",
            autocast=torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None,
        )
    ]


def guard_rows(path: Path, *, tokenizer: PreTrainedTokenizerBase, form: PromptForm, max_length: int) -> list[Row]:
    """Return the token rows of a held-out file.

    Of a ``.txt`` file every paragraph (blank lines divide them) is a row, and all its tokens count, the end token too;
    what is longer than ``max_length`` is cut. Of conversations (``.jsonl``, ``.parquet``) every answer is a row, and
    its tokens count; what is longer is left out.

    Args:
        path: the file.
        tokenizer: with the SID tokens.
        form: how conversations are written.
        max_length: most tokens of a row.

    Raises:
        InputError: no such file, one that is neither, or no row in it.
    """
    if path.suffix == ".txt":
        if not path.is_file():
            raise InputError(f"language_guard: {path}: no such file; give a .txt, .jsonl or .parquet file")
        paragraphs = path.read_text(encoding="utf-8").split("\n\n")
        start, end = start_token_id(tokenizer), end_token_id(tokenizer, "plain")
        texts = [" ".join(text.split()) for text in paragraphs if text.strip()]
        encoded = [[start, *tokenizer.encode(text, add_special_tokens=False), end][:max_length] for text in texts]
        rows: list[Row] = [(ids, [IGNORED, *ids[1:]]) for ids in encoded]
    else:
        conversations = read_conversations(path)
        examples = [
            Example(prompt, answer, None, "chat_data")
            for messages in conversations
            for prompt, answer in turns(messages)
        ]
        encoded_rows = encode_examples(examples, tokenizer=tokenizer, form=form, max_length=None)
        whole: list[Row] = [(cast(list, row["input_ids"]), cast(list, row["labels"])) for row in encoded_rows]
        rows = [row for row in whole if len(row[0]) <= max_length]
        if len(rows) < len(whole):
            logger.info("language: %d answers of %s are longer than max_length", len(whole) - len(rows), path.name)
    if not rows:
        raise InputError(f"language_guard: {path} has no text of at most {max_length} tokens; give a longer file")
    return rows


def _batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yield rows, longest first, in batches of at most `BATCH_TOKENS`, padding included."""
    start = 0
    while start < len(rows):
        size = max(1, BATCH_TOKENS // len(rows[start][0]))
        yield rows[start : start + size]
        start += size
