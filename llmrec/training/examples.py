"""From examples and sequences to token rows with labels: the only tokenisation that training sees."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from llmrec.data.items import Catalog
from llmrec.data.splits import Splits
from llmrec.errors import InputError
from llmrec.tasks.example import Example
from llmrec.tasks.inputs import TaskInputs
from llmrec.tasks.mixture import check_tasks, make_examples, mixture_weights, repeat_by_weight, task_rng
from llmrec.tasks.prompt import PromptForm, end_token_id, start_token_id
from llmrec.training.collator import IGNORED
from llmrec.training.incremental import Increment
from llmrec.vocab import SIDVocab

logger = logging.getLogger(__name__)

TokenRow = dict[str, Any]
"""``input_ids``, ``labels`` and ``task``, the number of the task in the order of the configuration."""


def encode_examples(
    examples: Iterable[Example],
    *,
    tokenizer: PreTrainedTokenizerBase,
    form: PromptForm,
    max_length: int | None,
    task: int = 0,
) -> Iterator[TokenRow]:
    """Yield a token row of each example, with the loss on its completion alone.

    The end token follows every completion and is learned, save behind a ``next_item`` SID in the plain form: there the
    next SID of the history follows, and decoding never scores the end. An example that is too long loses the oldest
    items of its history; how many did is logged.

    Args:
        examples: what a task yields.
        tokenizer: with the SID tokens.
        form: how prompts are written.
        max_length: most tokens of a row; None allows any.
        task: its number.

    Raises:
        InputError: a row longer than ``max_length`` that has no history to lose.
    """
    end = end_token_id(tokenizer, form.kind)
    shortened: dict[str, int] = {}
    for example in examples:
        completion = tokenizer.encode(example.completion, add_special_tokens=False)
        if not (form.kind == "plain" and example.task == "next_item"):
            completion = [*completion, end]
        prompt = form.encode(tokenizer, example.prompt, example.task)
        if max_length is not None and len(prompt) + len(completion) > max_length:
            prompt = _shorter_prompt(example, len(completion), tokenizer=tokenizer, form=form, max_length=max_length)
            shortened[example.task] = shortened.get(example.task, 0) + 1
        yield {
            "input_ids": prompt + completion,
            "labels": [IGNORED] * len(prompt) + completion,
            "task": task,
        }
    for name, count in shortened.items():
        logger.warning(
            "task %s: %d examples lost the oldest items of a history to max_length %s", name, count, max_length
        )


def _shorter_prompt(
    example: Example, completion: int, *, tokenizer: PreTrainedTokenizerBase, form: PromptForm, max_length: int
) -> list[int]:
    """Return the prompt with as many of the most recent items as fit, found by bisection."""
    fits, too_many = 0, len(example.history)
    found: list[int] = []
    while fits + 1 < too_many:
        parts = (fits + too_many) // 2
        prompt = form.encode(tokenizer, example.recent(parts).prompt, example.task)
        if len(prompt) + completion <= max_length:
            fits, found = parts, prompt
        else:
            too_many = parts
    if not fits:
        tokens = len(form.encode(tokenizer, example.prompt, example.task)) + completion
        raise InputError(
            f"task {example.task!r}: an example has {tokens} tokens, max_length is {max_length}, and no shorter "
            "history would help; raise max_length, or set the task's option that cuts its text"
        )
    return found


def encode_sequences(
    sequences: Iterable[Sequence[int]],
    *,
    tokenizer: PreTrainedTokenizerBase,
    vocab: SIDVocab,
    max_history: int,
    stride: int | None = None,
    begins: Sequence[int] | None = None,
    task: int = 0,
) -> Iterator[TokenRow]:
    """Yield rows in which every SID after a sequence's first is a target: ``supervise: history``.

    A row is the start token and the SIDs of up to ``max_history + 1`` items. A causal model's logits at a target's
    position are those of the plain ``next_item`` prompt with the same items before it, so one pass over a user stands
    for as many passes as the user has targets. A longer sequence is cut into windows, each of which adds ``stride``
    targets; each target is supervised once. A target behind the first window sees at least
    ``max_history + 1 - stride`` items and at most ``max_history``: a stride of 1 is the row-a-target form there, with
    its cost.

    Args:
        sequences: training interactions, one sequence a user, oldest first.
        tokenizer: with the SID tokens.
        vocab: the SIDs.
        max_history: most items before a target; at least 1.
        stride: targets that each further window adds, from 1 to ``max_history``; None lets windows overlap by half
            of ``max_history``.
        begins: items at the start of each sequence that are shown and not learned; None learns all.
        task: number of ``next_item``.

    Raises:
        InputError: a stride out of its range.
    """
    if stride is not None and not 1 <= stride <= max_history:
        raise InputError(
            f"history_stride: {stride}; from 1 (every target sees its whole history) to max_history ({max_history})"
        )
    start = start_token_id(tokenizer)
    overlap = max(max_history // 2, 1) if stride is None else max_history + 1 - stride
    for sequence, begin in zip(sequences, repeat(0) if begins is None else begins, strict=False):
        supervised = max(begin, 1)
        while supervised < len(sequence):
            first = 0 if supervised == 1 else max(0, supervised - overlap)
            if supervised == begin:  # what is shown and not learned fills the window from the left
                first = max(0, min(first, len(sequence) - max_history - 1))
            window = sequence[first : first + max_history + 1]
            input_ids, labels = [start], [IGNORED]
            for place, item in enumerate(window, start=first):
                token_ids = vocab.token_ids(item)
                input_ids.extend(token_ids)
                labels.extend(token_ids if place >= supervised else [IGNORED] * len(token_ids))
            yield {"input_ids": input_ids, "labels": labels, "task": task}
            supervised = first + len(window)


def training_rows(
    splits: Splits,
    *,
    tasks: Mapping[str, Any],
    supervise: str,
    catalog: Catalog,
    tokenizer: PreTrainedTokenizerBase,
    vocab: SIDVocab,
    form: PromptForm,
    max_length: int | None,
    seed: int,
    stride: int | None = None,
    temperature: float = 1.0,
    inputs: TaskInputs | None = None,
    without: Collection[int] = (),
    walks: Sequence[Sequence[int]] = (),
    increment: Increment | None = None,
    progress: bool = True,
) -> Dataset:
    """Return the training set: the tasks mixed by weight, tokenised, numbered in the order of ``tasks``.

    Args:
        splits: training rows and sequences.
        tasks: weight or spec by task name, see `llmrec.tasks.spec.parse_tasks`.
        supervise: ``history`` makes ``next_item`` one row a sequence, ``row`` one row a target.
        catalog: the items.
        tokenizer: with the SID tokens.
        vocab: the SIDs.
        form: how prompts are written.
        max_length: most tokens of a row; None allows any.
        seed: of the mixture.
        stride: targets that a further window of a long history adds, see `encode_sequences`.
        temperature: see `llmrec.tasks.mixture.mixture_weights`.
        inputs: what lies beside catalogue and rows, for tasks that take it.
        without: item rows held out of tasks about one item's text.
        walks: further sequences whose every position is a target, whatever the weight of ``next_item``; their rows
            are numbered as one task behind the others.
        increment: makes ``next_item`` learn new targets, and old ones replayed beside them, in place of all.
        progress: whether to show a bar.

    Raises:
        InputError: as `make_examples`, `encode_examples`, `encode_sequences` and `to_dataset` say.
    """
    specs = check_tasks(tasks)
    numbers = {name: number for number, name in enumerate(specs)}
    whole = "next_item" in specs and supervise == "history"
    history = {"tokenizer": tokenizer, "vocab": vocab, "form": form, "stride": stride, "max_length": max_length}
    sequences = _sequence_rows(splits.sequences, task=numbers["next_item"], **history) if whole else []
    if increment is not None:
        rng = task_rng(seed, "increment")
        if whole:
            new = _sequence_rows(splits.sequences, begins=increment.begins, task=numbers["next_item"], **history)
            known = [sequence[:begin] for sequence, begin in zip(splits.sequences, increment.begins, strict=True)]
            old = _sequence_rows(known, task=numbers["next_item"], **history)
            learned = [sum(label != IGNORED for label in row["labels"]) for row in old]
            fresh = sum(label != IGNORED for row in new for label in row["labels"])
            sequences = [*new, *increment.draw(old, targets=learned, new_targets=fresh, rng=rng)]
        else:
            new, old = increment.rows(splits.train)
            chosen = increment.draw(old, targets=[1] * len(old), new_targets=len(new), rng=rng)
            splits = replace(splits, train=[*new, *chosen])
    others = {name: spec for name, spec in specs.items() if not (whole and name == "next_item")}
    draws = (
        make_examples(
            others, catalog=catalog, vocab=vocab, histories=splits.train, seed=seed, inputs=inputs, without=without
        )
        if others
        else {}
    )
    counts = {name: len(draws[name].examples) if name in draws else len(sequences) for name in specs}
    weights = mixture_weights(specs, counts, temperature=temperature)
    rows: list[TokenRow] = []
    for name in specs:
        rng = draws[name].rng if name in draws else task_rng(seed, name)
        chosen = repeat_by_weight(range(counts[name]), weights[name], rng)
        if name not in draws:
            rows.extend(sequences[number] for number in chosen)
            continue
        wanted = sorted(set(chosen))
        encoded = encode_examples(
            (draws[name].examples[number] for number in wanted),
            tokenizer=tokenizer, form=form, max_length=max_length, task=numbers[name],
        )  # fmt: skip
        bar = tqdm(encoded, name, len(wanted), unit="row", disable=not progress, mininterval=0.5, leave=False)
        made = dict(zip(wanted, bar, strict=True))
        rows.extend(made[number] for number in chosen)
    rows.extend(_sequence_rows(walks, task=len(specs), **history))
    return to_dataset(rows, what="training")


def _sequence_rows(
    sequences: Iterable[Sequence[int]], *, form: PromptForm, max_length: int | None, **encode: Any
) -> list[TokenRow]:
    rows = list(encode_sequences(sequences, max_history=form.max_history, **encode))
    longest = max((len(row["input_ids"]) for row in rows), default=0)
    if max_length is not None and longest > max_length:
        raise InputError(
            f"supervise: history: a row has {longest} tokens, max_length is {max_length}; raise max_length or lower "
            "max_history"
        )
    return rows


def to_dataset(rows: Iterable[TokenRow], *, what: str) -> Dataset:
    """Collect token rows into a dataset with columns ``input_ids``, ``labels`` and ``task``.

    Args:
        rows: token rows.
        what: whose rows they are, for the error message.

    Raises:
        InputError: no row has a label.
    """
    rows = list(rows)
    if not any(label != IGNORED for row in rows for label in row["labels"]):
        raise InputError(f"{what} rows: none has a label to learn; the dataset needs users with 2 training items")
    return Dataset.from_dict({name: [row[name] for row in rows] for name in ("input_ids", "labels", "task")})
