"""The named tasks, and their mixture by weight."""

import inspect
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.registry import resolve
from llmrec.tasks.categories import prefix_to_category, sid_to_category
from llmrec.tasks.chat_data import chat_data
from llmrec.tasks.denoise import denoise
from llmrec.tasks.example import Example
from llmrec.tasks.history_text import history_title_to_sid, sid_history_to_description, sid_history_to_title
from llmrec.tasks.inputs import TaskInputs
from llmrec.tasks.item_text import attributes_to_sid, description_to_sid, sid_to_title, title_to_sid
from llmrec.tasks.needs import check_needs
from llmrec.tasks.next_item import next_item
from llmrec.tasks.next_session import next_session
from llmrec.tasks.preference import intention_to_sid, preference_to_sid
from llmrec.tasks.profile import profile_to_sid, user_profile
from llmrec.tasks.reasoning import reasoning
from llmrec.tasks.reviews import explanation, rating, review_to_sid
from llmrec.tasks.search import query_to_sid
from llmrec.tasks.similar_items import similar_items
from llmrec.tasks.spec import TaskSpec, parse_tasks
from llmrec.vocab import SIDVocab

TASKS: dict[str, Callable[..., Iterator[Example]]] = {
    "next_item": next_item,
    "next_session": next_session,
    "history_title_to_sid": history_title_to_sid,
    "sid_history_to_title": sid_history_to_title,
    "sid_history_to_description": sid_history_to_description,
    "sid_to_title": sid_to_title,
    "title_to_sid": title_to_sid,
    "description_to_sid": description_to_sid,
    "attributes_to_sid": attributes_to_sid,
    "sid_to_category": sid_to_category,
    "prefix_to_category": prefix_to_category,
    "similar_items": similar_items,
    "query_to_sid": query_to_sid,
    "intention_to_sid": intention_to_sid,
    "preference_to_sid": preference_to_sid,
    "review_to_sid": review_to_sid,
    "rating": rating,
    "explanation": explanation,
    "denoise": denoise,
    "user_profile": user_profile,
    "profile_to_sid": profile_to_sid,
    "reasoning": reasoning,
    "chat_data": chat_data,
}


def task_options(name: str) -> dict[str, Any]:
    """Return the options of a task with their defaults: the keyword-only parameters of its function.

    Args:
        name: in `TASKS`, or ``package.module:function``.

    Raises:
        InputError: no such task.
    """
    parameters = inspect.signature(resolve(name, TASKS, "task")).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "inputs"
    }


def check_tasks(tasks: Mapping[str, Any]) -> dict[str, TaskSpec]:
    """Return `parse_tasks`'s specs, once each task is known to exist and to take its options.

    Args:
        tasks: as for `parse_tasks`.

    Raises:
        InputError: an unknown task or option, or what `parse_tasks` refuses.
    """
    specs = parse_tasks(tasks)
    for name, spec in specs.items():
        known = task_options(name)
        for option in spec.options:
            if option not in known:
                own = f"its options are {', '.join(known)}" if known else "it has no options"
                raise InputError(f"tasks: {name} has no option {option!r}; {own} (beside weight, start and stop)")
        missing = [option for option, default in known.items() if default is inspect.Parameter.empty]
        for option in missing:
            if option not in spec.options:
                raise InputError(f"tasks: {name} needs its option {option!r}; write {name}: {{{option}: ...}}")
    return specs


@dataclass
class TaskDraw:
    """The examples of one task, each once, and the generator that its sampling goes on with.

    Args:
        spec: the task.
        examples: what it yields on a dataset.
        rng: seeded by the run's seed and the task's name alone, so that no draw depends on which other tasks run.
    """

    spec: TaskSpec
    examples: list[Example] = field(repr=False)
    rng: random.Random = field(repr=False)

    def take(self, weight: float) -> list[Example]:
        """Return the examples as often as a weight says."""
        return repeat_by_weight(self.examples, weight, self.rng)


def task_rng(seed: int, name: str) -> random.Random:
    """Return the generator of a task's choices: a string seed, so that it depends on no other task."""
    return random.Random(f"{seed}/{name}")


def held_out_rows(items: int, share: float, seed: int) -> frozenset[int]:
    """Return the item rows whose words are left out of training (``hold_out_items``).

    Args:
        items: size of the catalogue.
        share: of them, in [0, 1).
        seed: of the draw: the run's.
    """
    drawn = random.Random(f"{seed}/hold_out_items").sample(range(items), round(share * items))
    return frozenset(drawn)


def make_examples(
    specs: Mapping[str, Any],
    *,
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    seed: int,
    inputs: TaskInputs | None = None,
    without: Collection[int] = (),
) -> dict[str, TaskDraw]:
    """Return each task's examples once.

    Args:
        specs: as for `parse_tasks`.
        catalog: the items.
        vocab: their SIDs.
        histories: training rows.
        seed: of the tasks' own choices.
        inputs: what lies beside catalogue and rows (`TaskInputs`), for tasks that take it.
        without: item rows held out: tasks see no text of theirs, and examples about one of them (``Example.item``) are
            left out.

    Raises:
        InputError: an unknown task or option, something that a task needs and the dataset lacks, or a task without
            examples.
    """
    checked = check_tasks(specs)
    check_needs(checked, catalog, inputs, options={name: spec.options for name, spec in checked.items()})
    made = {}
    held_out = frozenset(without)
    catalog = catalog.without_text(held_out)
    for name, spec in checked.items():
        function, rng = resolve(name, TASKS, "task"), task_rng(seed, name)
        beside = {"inputs": inputs} if "inputs" in inspect.signature(function).parameters else {}
        examples = list(function(catalog, vocab, histories, rng, **spec.options, **beside))
        if held_out:
            examples = [example for example in examples if example.item not in held_out]
        if not examples:
            raise InputError(f"tasks: {name} gives no examples on this dataset; leave it out")
        made[name] = TaskDraw(spec, examples, rng)
    return made


def mixture_weights(
    specs: Mapping[str, TaskSpec], counts: Mapping[str, int], *, temperature: float = 1.0
) -> dict[str, float]:
    """Return how often each task's examples are taken an epoch.

    A task with weight ``w`` and ``n`` examples contributes ``w * n`` of them an epoch at temperature 1. At another
    temperature ``T`` the tasks' shares become proportional to ``w * n ** (1 / T)`` while the sum over tasks stays that
    of temperature 1: the higher ``T``, the less the number of examples counts, and at infinity shares are those of
    the weights.

    Args:
        specs: the tasks.
        counts: examples (training rows) of each.
        temperature: above 0.

    Returns:
        By task the weight for `repeat_by_weight`.

    Raises:
        InputError: a temperature that is not above 0.

    Paper: temperature-scaled mixing of T5 (Raffel et al., 2020), section 3.5.2. There rates are cut off at a maximum
        first, and there are no weights; here a weight stands outside the power, so that 2.0 doubles a task's share
        over others at any temperature, and there is no maximum.
    """
    if not _above_zero(temperature):
        raise InputError(f"task_temperature {temperature!r}: above 0; 1 leaves the weights as they are")
    if temperature == 1.0:
        return {name: spec.weight for name, spec in specs.items()}
    rates = {name: spec.weight * counts[name] ** (1.0 / temperature) for name, spec in specs.items()}
    scale = sum(spec.weight * counts[name] for name, spec in specs.items()) / sum(rates.values())
    return {name: rate * scale / counts[name] for name, rate in rates.items()}


def _above_zero(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def mix_tasks(
    specs: Mapping[str, Any],
    *,
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    seed: int,
    inputs: TaskInputs | None = None,
    without: Collection[int] = (),
    temperature: float = 1.0,
) -> list[Example]:
    """Return the examples of all tasks, each task's examples as often as its weight says.

    Args:
        specs: by task name (or ``package.module:function``) a weight or a spec, see `parse_tasks`.
        catalog: the items.
        vocab: their SIDs.
        histories: training rows.
        seed: of the sampling, and of the tasks' own choices.
        inputs: what lies beside catalogue and rows, for tasks that take it.
        without: item rows held out.
        temperature: see `mixture_weights`.

    Raises:
        InputError: an unknown task or option, a weight that is not above 0, or a task without examples.
    """
    made = make_examples(
        specs, catalog=catalog, vocab=vocab, histories=histories, seed=seed, inputs=inputs, without=without
    )
    weights = mixture_weights(
        {name: draw.spec for name, draw in made.items()},
        {name: len(draw.examples) for name, draw in made.items()},
        temperature=temperature,
    )
    return [example for name, draw in made.items() for example in draw.take(weights[name])]


def repeat_by_weight(values: Sequence[Any], weight: float, rng: random.Random) -> list[Any]:
    """Return each value ``floor(weight)`` times, and the fraction that is left as a random sample without repeats."""
    whole, part = divmod(weight, 1.0)
    return [*list(values) * int(whole), *rng.sample(list(values), round(part * len(values)))]
