"""What each task needs of a dataset beyond titles and histories, said before any work is done."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from llmrec.data.items import Catalog
from llmrec.errors import InputError
from llmrec.tasks.attributes import attribute_columns
from llmrec.tasks.inputs import TaskInputs


@dataclass(frozen=True)
class Needs:
    """What a task needs; what stands empty is not needed.

    Columns, texts, written texts, files and options are alternatives: one of all that are named is enough.

    Args:
        columns: text columns of the catalogue that hold text.
        texts: text columns of the interactions.
        written: kinds of texts that `TaskInputs.written` reads from files of the dataset folder.
        files: other files of the dataset folder.
        options: options of the task that name the place themselves.
        attributes: whether the catalogue must have a short column besides the title.
        ratings: whether interactions must have ratings.
    """

    columns: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    attributes: bool = False
    ratings: bool = False

    def missing(self, catalog: Catalog, inputs: TaskInputs | None, options: Collection[str] = ()) -> str | None:
        """Return what a dataset lacks for the task, in words, or None when it has all.

        Args:
            catalog: the items.
            inputs: what lies beside them; None stands for a dataset without ratings, texts and files.
            options: names of the options that the task is given.
        """
        if self.ratings and (inputs is None or inputs.interactions.ratings is None):
            return "a column 'rating' in interactions.parquet"
        if self.attributes and not attribute_columns(catalog):
            return "a short text column in items.parquet besides the title (brand, categories, ..)"
        places = {
            **{f"a column {name!r} with text in items.parquet": any(catalog.columns.get(name, ()))
               for name in self.columns},
            **{f"a column {name!r} in interactions.parquet": inputs is not None and name in inputs.interactions.texts
               for name in self.texts},
            **{f"{kind}.parquet in the dataset folder (data_prep/write_texts.py)": inputs is not None
               and inputs.has_file(kind) for kind in self.written},
            **{f"{name} in the dataset folder": inputs is not None and inputs.folder is not None
               and (inputs.folder / name).is_file() for name in self.files},
            **{f"its option {name!r}": name in options for name in self.options},
        }  # fmt: skip
        return None if any(places.values()) or not places else ", or ".join(places)


NEEDS: dict[str, Needs] = {
    "next_item": Needs(),
    "next_session": Needs(),
    "history_title_to_sid": Needs(),
    "sid_history_to_title": Needs(),
    "sid_history_to_description": Needs(columns=("description",), options=("column",)),
    "sid_to_title": Needs(),
    "title_to_sid": Needs(),
    "description_to_sid": Needs(columns=("description",), options=("column",)),
    "attributes_to_sid": Needs(attributes=True),
    "sid_to_category": Needs(columns=("categories", "genres")),
    "prefix_to_category": Needs(columns=("categories", "genres")),
    "similar_items": Needs(files=("embeddings.safetensors",), options=("embeddings",)),
    "query_to_sid": Needs(),
    "intention_to_sid": Needs(written=("intentions",)),
    "preference_to_sid": Needs(written=("preferences",)),
    "review_to_sid": Needs(texts=("review",), options=("column",)),
    "rating": Needs(ratings=True),
    "explanation": Needs(texts=("explanation", "review"), written=("explanations",), options=("column",)),
    "denoise": Needs(),
    "user_profile": Needs(columns=("categories", "genres", "brand")),
    "profile_to_sid": Needs(columns=("categories", "genres", "brand")),
    "reasoning": Needs(texts=("rationale",), written=("rationales",)),
    "chat_data": Needs(options=("path",)),
}


def runnable_tasks(catalog: Catalog, inputs: TaskInputs | None) -> list[str]:
    """Return the tasks that a dataset has all columns, files and ratings for, in the order of `NEEDS`.

    Args:
        catalog: the items.
        inputs: what lies beside them.
    """
    return [name for name, needs in NEEDS.items() if needs.missing(catalog, inputs) is None]


def check_needs(
    names: Iterable[str],
    catalog: Catalog,
    inputs: TaskInputs | None,
    *,
    options: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Check that a dataset has what tasks need; tasks that are not in `NEEDS` check themselves.

    Args:
        names: of the tasks.
        catalog: the items.
        inputs: what lies beside them; None stands for a dataset without ratings, texts and files.
        options: by task, the names of the options that it is given; some name a file or a column of their own.

    Raises:
        InputError: something is missing; it names the task, what it needs, and the tasks that can run.
    """
    for name in names:
        if name not in NEEDS:
            continue
        missing = NEEDS[name].missing(catalog, inputs, (options or {}).get(name, ()))
        if missing is not None:
            raise InputError(
                f"tasks: {name} needs {missing}; the dataset has item columns {', '.join(sorted(catalog.columns))}. "
                f"Tasks that can run on it: {', '.join(runnable_tasks(catalog, inputs))}"
            )
