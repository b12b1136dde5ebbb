"""From preference rows to token rows, and from token rows to batches of one prompt and its completions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from llmrec.errors import InputError
from llmrec.tasks.prompt import PromptForm
from llmrec.training.collator import IGNORED
from llmrec.vocab import SIDVocab

PreferenceRow = Mapping[str, Any]
"""``prompt``, ``chosen``, ``rejected`` and optionally ``margins``.

``chosen`` is an item row and ``rejected`` a list of them; or ``chosen`` is a list of item rows, one session, and
``rejected`` a list of such lists.
"""

COLUMNS = ("input_ids", "labels", "completions", "margins")
"""Of a token row: the prompt, one label (`IGNORED` where the row only fills a batch), completions with the chosen one
first, and the margins of the others, which are empty where no row has any."""


def encode_preferences(
    rows: Iterable[PreferenceRow] | Dataset,
    *,
    tokenizer: PreTrainedTokenizerBase,
    form: PromptForm,
    vocab: SIDVocab,
    max_length: int | None = None,
    what: str = "preferences",
    progress: bool = False,
) -> Dataset:
    """Return token rows of preferences: a completion is the SID of an item, or those of a session one after another.

    No end token stands behind a completion, and none is scored. The prompts of items are those of ``next_item``, those
    of sessions of ``next_session``.

    Args:
        rows: preferences.
        tokenizer: with the SID tokens.
        form: how prompts are written.
        vocab: the SIDs.
        max_length: most tokens of a prompt with its longest completion; None allows any.
        what: whose rows they are, for error messages.
        progress: show a bar.

    Raises:
        InputError: no row, a row without rejected items, a chosen item that is also rejected, items outside the
            catalogue, margins that are not one to a rejected item, margins in some rows alone, or a row that is too
            long.
    """
    found: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for number, given in enumerate(tqdm(rows, what, disable=not progress)):
        row = cast(PreferenceRow, given)
        where = f"{what}: row {number}"
        completions = _completions(row, vocab, where=where)
        task = "next_item" if isinstance(row["chosen"], int) else "next_session"
        prompt = form.encode(tokenizer, row["prompt"], task)
        length = len(prompt) + max(map(len, completions))
        if max_length is not None and length > max_length:
            raise InputError(
                f"{where}: has {length} tokens, max_length is {max_length}; raise it, or make prompts of fewer items "
                "with a lower max_history"
            )
        for name, value in zip(COLUMNS, (prompt, [0], completions, _margins(row, where=where)), strict=True):
            found[name].append(value)
    if not found["labels"]:
        raise InputError(f"{what}: there is no row; give prompts with chosen and rejected items")
    with_margins = [bool(margins) for margins in found["margins"]]
    if any(with_margins) and not all(with_margins):
        raise InputError(
            f"{what}: row {with_margins.index(False)}: has no margins, and other rows have; give them to all or none"
        )
    return Dataset.from_dict(found)


def _completions(row: PreferenceRow, vocab: SIDVocab, *, where: str) -> list[list[int]]:
    for name in ("prompt", "chosen", "rejected"):
        if row.get(name) is None:
            raise InputError(f"{where}: has no {name!r}; a row has prompt, chosen and rejected")
    chosen, rejected = row["chosen"], list(row["rejected"])
    if not rejected:
        raise InputError(f"{where}: rejects no item; give at least one, or leave the row out")
    session = not isinstance(chosen, int)
    if any(isinstance(other, int) == session for other in rejected):
        raise InputError(f"{where}: compares items with lists; chosen and rejected are item rows, or lists of them")
    lists = [list(one) if session else [one] for one in (chosen, *rejected)]
    for items in lists:
        if not items:
            raise InputError(f"{where}: holds an empty list; a session has at least one item")
        for item in items:
            if not isinstance(item, int) or not 0 <= item < len(vocab):
                raise InputError(
                    f"{where}: item {item!r} is not in the catalogue of {len(vocab)} items, rows 0 to "
                    f"{len(vocab) - 1}; make the preferences of this dataset"
                )
    completions = [[token for item in items for token in vocab.token_ids(item)] for items in lists]
    for items, completion in zip(lists[1:], completions[1:], strict=True):
        if completion == completions[0]:
            name = items if session else items[0]
            also = "" if items == lists[0] else f", which has the SID of {lists[0] if session else lists[0][0]}"
            raise InputError(f"{where}: {name} is chosen and also rejected{also}; leave it out of rejected")
    return completions


def _margins(row: PreferenceRow, *, where: str) -> list[float]:
    margins = row.get("margins")
    if margins is None:
        return []
    count = len(row["rejected"])
    if len(margins) != count or not all(-1e9 < float(margin) < 1e9 for margin in margins):
        raise InputError(f"{where}: margins {list(margins)!r}; give {count} finite numbers, one to a rejected item")
    return [float(margin) for margin in margins]


class PreferenceCollator:
    """Lays token rows out as a batch: a prompt a row, and its completions beside it.

    Args:
        pad_token_id: fills prompts on the left and completions on the right.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Return a batch.

        Args:
            rows: of `encode_preferences`, with a column ``reference`` where it was computed.

        Returns:
            ``input_ids`` and ``attention_mask`` ``(batch, length)``, ``completions`` and ``completion_mask``
            ``(batch, beams, levels)``, ``present`` ``(batch, beams)``, ``real`` ``(batch,)`` whether a row counts;
            where rows have them, ``reference`` ``(batch, beams)`` and ``margins`` ``(batch, beams - 1)``.
        """
        width = max(len(row["input_ids"]) for row in rows)
        beams = max(len(row["completions"]) for row in rows)
        depth = max(len(one) for row in rows for one in row["completions"])
        tokens = torch.full((len(rows), width), self.pad_token_id)
        completions = torch.full((len(rows), beams, depth), self.pad_token_id)
        batch = {"input_ids": tokens, "attention_mask": torch.zeros_like(tokens), "completions": completions}
        batch["completion_mask"] = torch.zeros_like(completions)
        batch["present"] = torch.zeros(len(rows), beams, dtype=torch.bool)
        for place, row in enumerate(rows):
            prompt = torch.tensor(row["input_ids"])
            tokens[place, width - len(prompt) :] = prompt
            batch["attention_mask"][place, width - len(prompt) :] = 1
            for beam, completion in enumerate(row["completions"]):
                completions[place, beam, : len(completion)] = torch.tensor(completion)
                batch["completion_mask"][place, beam, : len(completion)] = 1
            batch["present"][place, : len(row["completions"])] = True
        batch["real"] = torch.tensor([row["labels"][0] != IGNORED for row in rows])
        if "reference" in rows[0]:
            batch["reference"] = _padded([row["reference"] for row in rows], beams)
        if rows[0]["margins"]:
            batch["margins"] = _padded([row["margins"] for row in rows], beams - 1)
        return batch


def _padded(values: Sequence[Sequence[float]], width: int) -> Tensor:
    # A row that only fills a batch was cut, and may have a number too many.
    return torch.tensor([[*row[:width], *[0.0] * (width - len(row))] for row in values])


def hold_out(rows: Dataset, *, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """Divide rows into those to train on and a seeded sample of held-out ones, each in the order of the whole.

    Args:
        rows: preferences.
        count: held-out rows; at most a tenth of all are, and at least one.
        seed: of the sample.

    Raises:
        InputError: fewer than two rows.
    """
    if len(rows) < 2:
        raise InputError(
            f"preferences: {len(rows)} row, and one is held out to be measured; give more, or set eval_strategy: no"
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    held = max(1, min(count, len(rows) // 10))
    return rows.select(sorted(order[held:].tolist())), rows.select(sorted(order[:held].tolist()))


def row_lengths(rows: Dataset) -> list[int]:
    """Return the tokens that each row's forward pass reads: the prompt, and all completions."""
    columns = cast(
        Iterator[tuple[list[int], list[list[int]]]], zip(rows["input_ids"], rows["completions"], strict=True)
    )
    return [len(prompt) + sum(map(len, completions)) for prompt, completions in columns]
