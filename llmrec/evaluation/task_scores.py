"""How well a model does each of its tasks: items found, words told, ratings met."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from llmrec.errors import InputError
from llmrec.evaluation.intervals import difference_interval
from llmrec.evaluation.metrics import ndcg_at, ranks_of, recall_at
from llmrec.evaluation.task_answers import TaskModel
from llmrec.evaluation.task_examples import TaskExamples
from llmrec.tasks.example import Example
from llmrec.vocab import SIDVocab

KS = (1, 5, 10)
NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)?")
EXACT_TASKS = ("sid_to_category", "prefix_to_category")
"""Tasks of a few possible texts, of which the right one counts; other texts are compared by their letters."""


@dataclass(frozen=True)
class TaskScore:
    """What a model reached on one task.

    Args:
        name: of the task.
        kind: of its answers, as in `TaskExamples`.
        main: the metric that stands for the task.
        metrics: means over examples, by name; shares and NDCG from 0 to 1, chrF from 0 to 100.
        values: ``(examples,)`` by metric, where it is a mean of values an example has.
        examples: how many.
        trained: whether training saw the examples.
        about: ``(examples,)`` the item row that each is about: its target, else the item whose words it asks for.
    """

    name: str
    kind: str
    main: str
    metrics: dict[str, float]
    values: dict[str, np.ndarray] = field(repr=False)
    examples: int = 0
    trained: bool = False
    about: tuple[int | None, ...] = field(default=(), repr=False)

    def row(self) -> dict[str, Any]:
        """Return what a results file holds of it."""
        return {
            "task": self.name,
            "kind": self.kind,
            "main": self.main,
            "examples": self.examples,
            "trained": self.trained,
            "metrics": self.metrics,
        }


def score_task(model: TaskModel, task: TaskExamples, *, ks: Sequence[int] = KS) -> TaskScore:
    """Ask a model a task's prompts and score its answers.

    ============  =====================================================================================
    kind          metrics
    ============  =====================================================================================
    ``item``      ``recall@k``, ``ndcg@k``; ``prefix_accuracy@n``: share of targets whose first n codes
                  the best beam has
    ``items``     ``recall@n``: share of targets in the list of n items that the model writes
    ``number``    ``accuracy``; ``rmse`` of the answers that are numbers, and the share ``unreadable``
    ``text``      ``exact``: share of answers that are the text; ``chrf`` of sacrebleu over all answers,
                  and ``chrf_mean`` over those of each
    ============  =====================================================================================

    Args:
        model: that answers.
        task: what it is asked.
        ks: cuts; those above the number of items are left out.

    Raises:
        InputError: sacrebleu is not installed, or what `TaskModel` raises.
    """
    examples = task.examples
    if task.kind == "item":
        cuts = [k for k in ks if k <= len(model.vocab)]
        main, metrics, values = _items(model.items(examples, max(cuts)), examples, model.vocab, cuts)
        if task.name == "denoise":
            main = f"recall@{min(cuts)}"
    elif task.kind == "items":
        main, metrics, values = _lists(model.lists(examples, task.length), examples)
    elif task.kind == "number":
        main, metrics, values = _numbers(model.texts(examples), examples)
    else:
        main, metrics, values = _texts(model.texts(examples), examples)
        main = "exact" if task.name in EXACT_TASKS else main
    metrics = {name: float(value) for name, value in metrics.items()}
    about = tuple(example.item if example.target is None else example.target for example in examples)
    return TaskScore(task.name, task.kind, main, metrics, values, len(examples), task.trained, about)


Scored = tuple[str, dict[str, float], dict[str, np.ndarray]]


def _means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(value.mean()) for name, value in values.items()}


def _items(lists: np.ndarray, examples: Sequence[Example], vocab: SIDVocab, cuts: Sequence[int]) -> Scored:
    targets = np.array([example.target for example in examples], dtype=np.int64)
    ranks = ranks_of(lists, targets)
    values = {f"recall@{k}": recall_at(ranks, k) for k in cuts} | {
        f"ndcg@{k}": ndcg_at(ranks, k) for k in cuts if k > 1
    }
    codes = vocab.table.codes
    alike = np.cumprod(codes[lists[:, 0]] == codes[targets], axis=1)
    values |= {f"prefix_accuracy@{level + 1}": alike[:, level].astype(np.float64) for level in range(vocab.levels)}
    return f"recall@{max(cuts)}", _means(values), values


def _lists(lists: np.ndarray, examples: Sequence[Example]) -> Scored:
    found = [
        len(set(listed) & set(example.targets)) / len(example.targets)
        for listed, example in zip(lists.tolist(), examples, strict=True)
    ]
    main = f"recall@{lists.shape[1]}"
    values = {main: np.array(found)}
    return main, _means(values), values


def _numbers(answers: Sequence[str], examples: Sequence[Example]) -> Scored:
    expected = np.array([float(example.completion) for example in examples])
    read = np.array([_number(answer) for answer in answers])
    known = np.isfinite(read)
    values = {"accuracy": (np.where(known, read, math.inf) == expected).astype(np.float64)}
    metrics = _means(values) | {"unreadable": float(1.0 - known.mean())}
    if known.any():
        metrics["rmse"] = float(np.sqrt(np.mean((read[known] - expected[known]) ** 2)))
    return "accuracy", metrics, values


def _number(answer: str) -> float:
    found = NUMBER.match(answer.strip())
    return float(found[0].replace(",", ".")) if found else math.nan


def _texts(answers: Sequence[str], examples: Sequence[Example]) -> Scored:
    expected = [" ".join(example.completion.split()) for example in examples]
    exact = np.array([answer == text for answer, text in zip(answers, expected, strict=True)], dtype=np.float64)
    chrf = chrf_of(answers, expected)
    single = np.array([chrf_of([answer], [text]) for answer, text in zip(answers, expected, strict=True)])
    values = {"exact": exact, "chrf_mean": single}
    return "chrf_mean", _means(values) | {"chrf": chrf}, values


def chrf_of(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Return sacrebleu's chrF, 0 to 100, over all answers together.

    Args:
        answers: texts.
        expected: as many.

    Raises:
        InputError: sacrebleu is not installed.

    Paper: Popović, chrF: character n-gram F-score for automatic MT evaluation, WMT 2015.
    """
    try:
        library = import_module("sacrebleu")
    except ImportError as error:
        raise InputError(
            f"chrF: the library sacrebleu is not there ({error}); pip install 'llmrec[evaluation]', or score no tasks "
            "of text"
        ) from error
    return float(library.corpus_chrf(list(answers), [list(expected)]).score)


def compare_scores(score: TaskScore, control: TaskScore, *, samples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Return by how much a score is above a control's on the same examples, with its 95 % interval.

    Args:
        score: of a model.
        control: of another, asked the same.
        samples: bootstrap samples.
        seed: of the samples.

    Returns:
        By metric that examples have values of: ``difference``, ``low``, ``high``.

    Raises:
        InputError: scores of different examples.
    """
    if (score.name, score.about) != (control.name, control.about):
        raise InputError(
            f"task {score.name!r} on {score.examples} examples against {control.name!r} on {control.examples} others; "
            "compare scores of the same examples"
        )
    found = {}
    for metric, own in score.values.items():
        if metric in control.values:
            interval = difference_interval(own, control.values[metric], samples=samples, seed=seed)
            found[metric] = {"difference": interval.mean, "low": interval.low, "high": interval.high}
    return found
