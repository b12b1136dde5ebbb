"""Worked examples with titles: what a user took, what came next, and what each system said. Chosen by seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llmrec.data.folder import DatasetFolder
from llmrec.errors import InputError
from llmrec.evaluation.lists import lists_path, read_lists
from llmrec.evaluation.metrics import per_user, ranks_of
from llmrec.evaluation.report_html import Markup, element, section
from llmrec.evaluation.runs import Run

EXAMPLES = 10
SHOWN_HISTORY = 10
SHOWN_PLACES = 10
AT_RANDOM = "at random"
DIFFERING = "where systems differ most"
TITLE_LENGTH = 120
MOST_ACROSS = 4
"""Columns of an example that a page has room for; more of them stand in a row that scrolls."""


@dataclass(frozen=True)
class Example:
    """A row of the split as a person reads it.

    Args:
        row: its number in the split.
        chosen: `AT_RANDOM` or `DIFFERING`.
        history: item rows, oldest first.
        target: item row; one below 0 is outside the catalogue.
        lists: ``(places,)`` item rows a system, best first, -1 in an empty place; by its name.
        ranks: of the target in the system's whole list, -1 for a miss; by its name.
    """

    row: int
    chosen: str
    history: tuple[int, ...]
    target: int
    lists: dict[str, np.ndarray] = field(repr=False)
    ranks: dict[str, int] = field(repr=False)


def choose_rows(ranks: np.ndarray, *, metric: str, examples: int = EXAMPLES, seed: int = 0) -> list[tuple[int, str]]:
    """Choose rows to show: half of them at random, half where systems differ most, none by success.

    Rows differ by the spread (standard deviation) of the metric between systems; among equals chance decides. A row
    where no two systems differ is not shown as one where they do.

    Args:
        ranks: ``(systems, users)`` int64 ranks, -1 for a miss.
        metric: whose spread is taken, such as ``ndcg@10``.
        examples: how many rows; the odd one is a random one.
        seed: of the choice.

    Returns:
        Row and reason, `AT_RANDOM` or `DIFFERING`, random ones first; fewer where there are fewer rows.
    """
    order = np.random.default_rng(seed).permutation(ranks.shape[1])
    by_chance = order[: (examples + 1) // 2]
    rest = order[len(by_chance) :]
    spread = np.std([per_user(metric, of_system) for of_system in ranks], axis=0)[rest]
    differing = rest[np.argsort(-spread, kind="stable")[: examples // 2]]
    differing = [row for row in differing.tolist() if np.ptp([per_user(metric, one[[row]])[0] for one in ranks]) > 0]
    return [(row, AT_RANDOM) for row in by_chance.tolist()] + [(row, DIFFERING) for row in differing]


def examples_of(
    runs: Sequence[Run], dataset: DatasetFolder, *, metric: str, examples: int = EXAMPLES, seed: int = 0
) -> tuple[list[Example], list[str]]:
    """Return worked examples of runs on a dataset folder.

    Args:
        runs: scored alike; those without a file of lists beside their results are left out.
        dataset: the folder that they were scored on.
        metric: by whose spread half of the rows are chosen.
        examples: how many rows.
        seed: of their choice.

    Returns:
        The examples, and the names of the runs that have no lists. No examples where none has.

    Raises:
        InputError: a dataset of another name or catalogue, lists of other rows, or lists that do not fit the ranks.
    """
    kept, without = [], []
    for run in runs:
        (kept if lists_path(run.source).is_file() else without).append(run)
    if not kept:
        return [], [run.name for run in without]
    split, protocol = kept[0].fact("split"), kept[0].fact("protocol")
    for run in kept:
        for key, here in (("dataset", dataset.name), ("catalog", dataset.catalog.hash)):
            said = run.fact(key)
            if said is not None and said != here:
                raise InputError(
                    f"--dataset {dataset.path}: its {key} is {here!r}, and {run.source} was scored on {said!r}; give "
                    "the folder that was scored"
                )
    if split is None:
        raise InputError(f"{kept[0].source}: it does not say its split, so no examples can be shown; evaluate again")
    rows = dataset.split(protocol).rows(split)
    users = len(kept[0].ranks)
    if users > len(rows):
        raise InputError(
            f"--dataset {dataset.path}: its {split} split has {len(rows)} rows, and {kept[0].source} scored {users}; "
            "give the folder that was scored"
        )
    chosen = choose_rows(np.stack([run.ranks for run in kept]), metric=metric, examples=examples, seed=seed)
    numbers = np.array([row for row, _ in chosen], dtype=np.int64)
    lists = {}
    for run in kept:
        found = read_lists(f"{lists_path(run.source)}:{run.system}")
        if len(found) != users:
            raise InputError(f"{lists_path(run.source)}: {len(found)} lists for {users} ranks; evaluate again")
        lists[run.name] = found[numbers]
        targets = np.array([rows[row].target for row in numbers.tolist()])
        again = ranks_of(lists[run.name], targets)
        if (again != run.ranks[numbers]).any():
            raise InputError(
                f"{lists_path(run.source)}: lists of {run.system!r} do not hold the targets of {dataset.path} where "
                f"{run.source} ranked them; give the dataset folder that was scored, or evaluate again"
            )
    found = [
        Example(
            row,
            reason,
            tuple(rows[row].items),
            rows[row].target,
            {name: of_run[place] for name, of_run in lists.items()},
            {run.name: int(run.ranks[row]) for run in kept},
        )
        for place, (row, reason) in enumerate(chosen)
    ]
    return found, [run.name for run in without]


def examples_section(
    examples: Sequence[Example], titles: Sequence[str], *, seed: int, metric: str, without: Sequence[str] = ()
) -> Markup | None:
    """Return the examples side by side, hits marked.

    Args:
        examples: as `examples_of` gives them.
        titles: of the catalogue's items.
        seed: that chose them.
        metric: by whose spread half of them were chosen.
        without: names of systems that have no lists.
    """
    if not examples:
        return None
    said = (
        f"Rows were chosen by seed {seed} and not by success: the first ones at random, the others where the systems' "
        f"{metric} differs most (which shows extremes, not what is usual). Up to {SHOWN_PLACES} places and the last "
        f"{SHOWN_HISTORY} items of a history; the target is marked."
    )
    left = f"Without lists beside their results, so not shown: {', '.join(without)}." if without else None
    return section(
        "Worked examples",
        element("p", said),
        None if left is None else element("p", left, class_="small"),
        *(_example(number, example, titles) for number, example in enumerate(examples, 1)),
        id_="examples",
    )


def _example(number: int, example: Example, titles: Sequence[str]) -> Markup:
    shown = example.history[-SHOWN_HISTORY:]
    earlier = len(example.history) - len(shown)
    history = [element("li", _title(item, titles)) for item in shown]
    blocks = [
        element(
            "div",
            element("h4", f"History, oldest first{f' ({earlier} before)' if earlier else ''}"),
            element("ul", *history) if history else element("p", "empty"),
            element("h4", "What came next"),
            element("p", element("span", _title(example.target, titles), class_="hit")),
        )
    ]
    for name, places in example.lists.items():
        rank = example.ranks[name]
        where = f"place {rank + 1}" if rank >= 0 else "not in the list"
        lines = [
            element("li", _title(int(item), titles), " (hit)", class_="hit")
            if item == example.target
            else element("li", _title(int(item), titles))
            for item in places[:SHOWN_PLACES]
            if item >= 0
        ]
        listing = element("ol", *lines) if lines else element("p", "an empty list")
        blocks.append(element("div", element("h4", name), element("p", where, class_="small"), listing))
    head = element("h3", f"{number}. Row {example.row}, chosen {example.chosen}")
    if len(blocks) <= MOST_ACROSS:
        return element("article", head, element("div", *blocks, class_="lists"), class_="example")
    # In lines of four, a system would stand below the others and no longer beside them.
    across = f"grid-template-columns: repeat({len(blocks)}, minmax(11rem, 1fr))"
    row = element("div", *blocks, class_="lists", style=across)
    said = f"Example {number}"
    scrolled = element("div", row, class_="scroll", tabindex="0", role="region", aria_label=said)
    return element("article", head, scrolled, class_="example")


def _title(item: int, titles: Sequence[str]) -> str:
    if item < 0:
        return "an item outside the catalogue"
    if item >= len(titles):
        return "an item that only the model knows"
    title = titles[item]
    return title if len(title) <= TITLE_LENGTH else title[: TITLE_LENGTH - 1] + "\u2026"
