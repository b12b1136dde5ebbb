"""What each task is scored on: examples of held-out rows and items, in the task's canonical wording."""

import inspect
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmrec.data.folder import DatasetFolder
from llmrec.data.items import Catalog
from llmrec.data.splits import History, Splits
from llmrec.errors import InputError
from llmrec.registry import resolve
from llmrec.tasks.categories import category_of
from llmrec.tasks.example import Example
from llmrec.tasks.history_text import sid_texts
from llmrec.tasks.inputs import TaskInputs
from llmrec.tasks.mixture import TASKS, check_tasks, task_options
from llmrec.tasks.needs import check_needs
from llmrec.tasks.spec import TaskSpec
from llmrec.tasks.wordings import wordings_of
from llmrec.vocab import SIDVocab

KINDS = ("item", "items", "number", "text")
KIND_OF = {"next_session": "items", "rating": "number"}
"""What a task answers, where its examples do not say: where the completion is a SID one item, else text."""
OF_CATALOGUE = (
    "sid_to_title", "title_to_sid", "description_to_sid", "attributes_to_sid", "sid_to_category", "prefix_to_category",
    "similar_items", "query_to_sid",
)  # fmt: skip
"""Tasks whose examples come from the catalogue alone, so that only items can be held out of them."""
OF_HISTORIES = ("reasoning",)
"""Tasks whose examples tell words of an item and are answered from the history all the same."""
NOT_SCORED = ("chat_data",)
"""Tasks that `language_guard` measures by their perplexity."""


@dataclass(frozen=True)
class TaskExamples:
    """Examples that a task is scored on.

    Args:
        name: of the task.
        kind: ``item`` (a SID), ``items`` (a list of SIDs), ``number`` or ``text``.
        examples: prompts with the answers expected.
        trained: whether training saw these very examples, or may have: tasks of the catalogue without held-out items.
        length: items of a list that is asked for, under the kind ``items``.
    """

    name: str
    kind: str
    examples: list[Example] = field(repr=False)
    trained: bool = False
    length: int = 0


def examples_to_score(
    tasks: Mapping[str, Any],
    *,
    dataset: DatasetFolder,
    splits: Splits,
    split: str,
    vocab: SIDVocab,
    seed: int,
    limit: int | None = None,
    held_out: Collection[int] = (),
) -> dict[str, TaskExamples]:
    """Return the examples that each task is scored on, in the task's first wording.

    Tasks of histories get the rows of the split, tasks of ratings and texts what the split holds. Tasks that tell
    words of one item (``Example.item``) are scored on held-out items alone: what was seen can be learned by heart,
    with any SIDs. Where no items are held out, tasks of the catalogue are scored on items that training saw, which
    `TaskExamples.trained` says. ``reasoning`` is asked for the direct answer, over all rows.

    Args:
        tasks: as for `parse_tasks`; ``chat_data`` is left out.
        dataset: the dataset folder, whose catalogue has the order of ``vocab``.
        splits: its rows, with histories as long as the model's prompts.
        split: ``valid`` or ``test``.
        vocab: the SIDs.
        seed: of the tasks' choices and of the sample.
        limit: most examples a task, a seeded sample; None takes all.
        held_out: item rows that training left out (``hold_out_items``).

    Raises:
        InputError: a task that the dataset lacks something for, or without examples.
    """
    specs = {name: spec for name, spec in check_tasks(tasks).items() if name not in NOT_SCORED}
    inputs = TaskInputs.of(dataset, splits, split=split)
    check_needs(specs, dataset.catalog, inputs, options={name: spec.options for name, spec in specs.items()})
    histories, found = splits.rows(split), {}
    for name, spec in specs.items():
        rng = random.Random(f"{seed}/{name}/scored")
        examples = _make(spec, dataset.catalog, vocab, histories, rng, inputs)
        if held_out and name not in OF_HISTORIES and any(example.item is not None for example in examples):
            examples = [example for example in examples if example.item in held_out]
        if not examples:
            raise InputError(f"tasks: {name} gives no examples to score on the {split} split; leave it out")
        if limit is not None and limit < len(examples):
            examples = [examples[place] for place in sorted(rng.sample(range(len(examples)), limit))]
        kind = kind_of(name, examples, vocab)
        length = scored_options(spec).get("items", max(len(example.targets) for example in examples))
        seen = name in OF_CATALOGUE and not held_out
        found[name] = TaskExamples(name, kind, examples, seen, length if kind == "items" else 0)
    return found


def kind_of(name: str, examples: Sequence[Example], vocab: SIDVocab) -> str:
    """Return what kind of answer a task's examples have, one of `KINDS`: an item where each completion is a SID.

    Args:
        name: of the task.
        examples: of it.
        vocab: the SIDs.
    """
    if name in KIND_OF:
        return KIND_OF[name]
    if any(len(example.targets) > 1 for example in examples):
        return "items"
    named = [example.target is not None and example.completion == vocab.tokens(example.target) for example in examples]
    return "item" if all(named) else "text"


def _make(
    spec: TaskSpec,
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    inputs: TaskInputs,
) -> list[Example]:
    options = scored_options(spec)
    if spec.name == "next_session":
        return _sessions(vocab, histories, items=options["items"])
    if spec.name == "prefix_to_category":
        return _prefixes(catalog, vocab, options)
    function = resolve(spec.name, TASKS, "task")
    beside = {"inputs": inputs} if "inputs" in inspect.signature(function).parameters else {}
    return list(function(catalog, vocab, histories, rng, **options, **beside))


def scored_options(spec: TaskSpec) -> dict[str, Any]:
    """Return a task's options as it is scored: its canonical wording, and the direct answer of ``reasoning``."""
    known = task_options(spec.name)
    fixed = {name: value for name, value in (("wordings", 1), ("direct", 1.0)) if name in known}
    return {**{name: known[name] for name in ("items",) if name in known}, **spec.options, **fixed}


def _sessions(vocab: SIDVocab, histories: Sequence[History], *, items: int) -> list[Example]:
    """Ask each row for a list of ``items``, of which its target must be one.

    The task's own examples need the targets that follow, which a user has too few of where one is held out.
    """
    sids, form = sid_texts(vocab), wordings_of("next_session", first=1)[0]
    found = []
    for row in histories:
        parts = tuple(sids[item] for item in row.items)
        prompt = form.format(history="".join(parts), items=items)
        target = row.target
        found.append(Example(prompt, sids[target], target, "next_session", history=parts, targets=(target,)))
    return found


def _prefixes(catalog: Catalog, vocab: SIDVocab, options: Mapping[str, Any]) -> list[Example]:
    """Ask for the category of each item's prefix, and expect the item's own: prefixes could be learned by heart."""
    known = {**task_options("prefix_to_category"), **options}
    form, levels = wordings_of("prefix_to_category", first=1)[0], known["levels"]
    found = []
    for row, category in enumerate(category_of(catalog, min_items=known["min_items"])):
        tokens = vocab.table.tokens(row)
        if category and len(tokens) > levels:
            prompt = form.format(prefix="".join(tokens[:levels]))
            found.append(Example(prompt, f" {category}", None, "prefix_to_category", item=row))
    return found
