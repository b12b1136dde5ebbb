"""From the ``negatives`` of a YAML to a dataset of preferences."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from llmrec.errors import InputError
from llmrec.registry import resolve
from llmrec.tasks.prompt import history_text
from llmrec.training.preferences import NEGATIVES
from llmrec.training.preferences.inputs import NegativeFactory, NegativeSource, PreferenceInputs
from llmrec.training.preferences.questions import Questions
from llmrec.vocab import SIDVocab

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NegativeSpec:
    """One source of a YAML.

    Args:
        name: in `NEGATIVES`, or ``package.module:attribute``.
        count: rejected items a row, at least 1.
        options: of the source.
    """

    name: str
    count: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def factory(self) -> NegativeFactory:
        """What builds it."""
        return resolve(self.name, NEGATIVES, "source of negatives")


def parse_negatives(spec: Any) -> list[NegativeSpec]:
    """Return the sources that a YAML names, in its order.

    Args:
        spec: by name a number of rejected items, or a mapping of ``count`` (default 1) and the source's options:
            ``{popularity: 4, self_hard: {count: 4, beams: 20}}``; a name alone is one item of it.

    Raises:
        InputError: no source, an unknown one, an unknown option or one that is missing, or a number below 1.
    """
    given = {spec: 1} if isinstance(spec, str) else spec
    if not isinstance(given, Mapping) or not given:
        raise InputError(f"negatives: {spec!r}; name sources with their numbers, such as popularity: 8")
    return [_parse(name, value) for name, value in given.items()]


def _parse(name: str, value: Any) -> NegativeSpec:
    options = dict(value) if isinstance(value, Mapping) else {"count": value}
    count = options.pop("count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"negatives: {name}: {count!r} items a row; a whole number, at least 1")
    found = NegativeSpec(name, count, options)
    known = {
        parameter.name: parameter.default is parameter.empty
        for parameter in inspect.signature(found.factory).parameters.values()
        if parameter.name != "inputs"
    }
    for option in options:
        if option not in known:
            raise InputError(
                f"negatives: {name}: no option {option!r}; it has {', '.join(known) or 'none'}, beside count"
            )
    for option, needed in known.items():
        if needed and option not in options:
            raise InputError(f"negatives: {name}: it needs {option}, as in {name}: {{count: {count}, {option}: ..}}")
    return found


def draw_negatives(spec: Any, questions: Questions, inputs: PreferenceInputs) -> tuple[Questions, np.ndarray]:
    """Find the rejected items of training rows, from one source after another.

    Args:
        spec: see `parse_negatives`.
        questions: the rows.
        inputs: what sources see.

    Returns:
        The rows that have as many as were asked for, and ``(rows, m)`` int64 items, distinct within a row and never
        the target.

    Raises:
        InputError: a row with too few candidates; or, of sources that the data limits, none with enough.
    """
    specs = parse_negatives(spec)
    # All are built before one of them works: a missing file is told at once.
    sources: list[NegativeSource] = [entry.factory(**entry.options, inputs=inputs) for entry in specs]
    taken = np.empty((len(questions), 0), dtype=np.int64)
    for entry, source in zip(specs, sources, strict=True):
        found = source(questions, count=entry.count, taken=taken)
        taken = np.concatenate([taken, found], axis=1)
        whole = np.asarray((found >= 0).all(axis=1))
        if whole.all():
            continue
        if not source.may_fall_short or not whole.any():
            raise InputError(
                f"negatives: {entry.name}: {int(whole.sum())} of {len(whole)} training rows have {entry.count} "
                "rejected items; ask for fewer, or take another source"
            )
        logger.info("negatives: %s: %d of %d rows have too few and are left out", entry.name, int((~whole).sum()),
                    len(whole))  # fmt: skip
        questions, taken = questions.take(np.flatnonzero(whole)), taken[whole]
    return questions, taken


def preference_dataset(
    questions: Questions,
    rejected: np.ndarray,
    vocab: SIDVocab,
    *,
    prompts: Sequence[str] | None = None,
    chosen: np.ndarray | None = None,
    margins: np.ndarray | None = None,
) -> Dataset:
    """Return preferences as the trainer reads them.

    Args:
        questions: the rows.
        rejected: ``(rows, m)`` items, or ``(rows, m, n)`` lists of them; -1 behind shorter lists.
        vocab: the SIDs.
        prompts: of the rows, where they are not the SIDs of the histories.
        chosen: ``(rows,)`` items, or ``(rows, n)`` lists; None takes the targets.
        margins: ``(rows, m)`` by how much the chosen is to win; None leaves them out.

    Returns:
        Columns ``prompt``, ``history``, ``chosen`` (a row, or a list of rows), ``rejected`` (a list of either), and
        ``margins`` where given.
    """
    texts = [history_text(vocab, history) for history in questions.histories] if prompts is None else list(prompts)
    columns: dict[str, pa.Array] = {
        "prompt": pa.array(texts, pa.string()),
        "history": pa.array([list(history) for history in questions.histories], pa.list_(pa.int64())),
        "chosen": _nested(questions.targets if chosen is None else chosen),
        "rejected": _nested(rejected),
    }
    if margins is not None:
        columns["margins"] = _nested(np.asarray(margins, dtype=np.float64))
    return Dataset(pa.table(columns))


def _nested(values: np.ndarray) -> pa.Array:
    """Return an array as nested lists; -1 ends the innermost list of a three-dimensional one or of lists chosen."""
    values = np.asarray(values)
    if values.ndim == 1:
        return pa.array(values)
    if values.ndim == 2:
        real = values >= 0 if values.dtype.kind == "i" else np.ones(values.shape, dtype=bool)
        starts = np.concatenate([[0], np.cumsum(real.sum(axis=1))]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(starts), pa.array(values[real]))
    starts = np.arange(0, values.shape[0] * values.shape[1] + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(starts), _nested(values.reshape(-1, values.shape[2])))
