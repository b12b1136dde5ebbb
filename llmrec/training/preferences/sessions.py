"""Lists as the unit of preference, for models that were trained with ``next_session``."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.decoding.beam import constrained_beam_search
from llmrec.decoding.filters import ItemFilter
from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.tasks.history_text import sid_texts
from llmrec.tasks.next_session import next_session
from llmrec.training.preferences.candidates import Candidates
from llmrec.training.preferences.draws import uniforms
from llmrec.training.preferences.inputs import NegativeSource
from llmrec.training.preferences.questions import Questions
from llmrec.vocab import SIDVocab

TASK = "next_session"
LISTS = ("drawn", "perturbed", "own")
"""How rejected lists are made: of rejected items alone, by putting some into the real list, or by the policy."""
_SWAP_SEED = 104_729
"""Added to the seed where places are drawn, so that they do not follow the draws of items."""


@dataclass(frozen=True)
class Sessions:
    """Training rows with the list that came next.

    Args:
        questions: the rows; the target is the first item of the list.
        lists: ``(rows, n)`` int64 items in order, all ``n``.
        prompts: the ``next_session`` prompt of each row, as the task words it.
    """

    questions: Questions
    lists: np.ndarray = field(repr=False)
    prompts: Sequence[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.lists)

    def take(self, places: np.ndarray) -> "Sessions":
        """Return the sessions at some places."""
        chosen = np.asarray(places, dtype=np.int64)
        return Sessions(self.questions.take(chosen), self.lists[chosen], [self.prompts[int(n)] for n in chosen])


def find_sessions(
    rows: Sequence[History], *, vocab: SIDVocab, catalog: Catalog, items: int = 5, prompts: int = 0, seed: int = 0,
    start: int = 0, wordings: int | None = None,
) -> Sessions:  # fmt: skip
    """Find the training rows after which a user took ``items`` further distinct things, and draw some of them.

    Args:
        rows: all training rows, each user's oldest first.
        vocab: the SIDs.
        catalog: the items.
        items: length of a list, at least 2.
        prompts: how many rows are drawn; 0 takes all.
        seed: of the draw and of the prompts' wordings.
        start: how many rows were taken before, so that the next call takes others.
        wordings: how many wordings are drawn from; None takes all.

    Raises:
        InputError: no such row.
    """
    given = list(next_session(catalog, vocab, rows, random.Random(seed), items=items, least=items, wordings=wordings))
    # The task leaves rows out and keeps the order, so its examples are found again one after another.
    numbers, position, sids = [], 0, sid_texts(vocab)
    for example in given:
        while example.target != rows[position].target or example.history != tuple(
            sids[item] for item in rows[position].items
        ):
            position += 1
        numbers.append(position)
        position += 1
    codes = vocab.item_token_ids.numpy()
    lists = np.array([example.targets for example in given], dtype=np.int64).reshape(-1, items)
    usable = [
        place
        for place, targets in enumerate(lists)
        if len(np.unique(codes[targets], axis=0)) == items and not np.asarray(vocab.retired)[targets].any()
    ]
    if not usable:
        raise InputError(
            f"preferences: no training row is followed by {items} further distinct items; ask for shorter lists"
        )
    if 0 < prompts < len(usable):
        order = np.random.default_rng(seed).permutation(usable)
        usable = np.sort(np.take(order, np.arange(start, start + prompts), mode="wrap")).tolist()
    chosen = [numbers[place] for place in usable]
    questions = Questions.of([rows[number] for number in chosen], numbers=np.array(chosen))
    return Sessions(questions, lists[usable], [str(given[place].prompt) for place in usable])


def drawn_lists(sessions: Sessions, source: NegativeSource, *, count: int) -> np.ndarray:
    """Return ``(rows, count, n)`` int64 lists of rejected items alone; no item twice in a row.

    Args:
        sessions: the rows; items of the real lists are not drawn.
        source: where items come from; it must not fall short.
        count: lists a row.
    """
    length = sessions.lists.shape[1]
    found = _full(source, sessions, count * length)
    return found.reshape(len(sessions), count, length)


def perturbed_lists(
    sessions: Sessions, source: NegativeSource, *, count: int, swaps: int, seed: int = 0
) -> np.ndarray:
    """Return ``(rows, count, n)`` int64 real lists with ``swaps`` items replaced, at places that are drawn.

    Args:
        sessions: the rows.
        source: where the items come from; it must not fall short.
        count: lists a row.
        swaps: items replaced in a list, 1 to ``n``.
        seed: of the places.

    Raises:
        InputError: ``swaps`` out of range.
    """
    length = sessions.lists.shape[1]
    if not 1 <= swaps <= length:
        raise InputError(f"swaps {swaps}: of lists of {length} items from 1 to {length} can be replaced")
    items = _full(source, sessions, count * swaps).reshape(len(sessions), count, swaps)
    noise = uniforms(seed + _SWAP_SEED, sessions.questions.numbers, np.arange(count * length))
    places = np.argsort(noise.reshape(len(sessions), count, length), axis=2, kind="stable")[..., :swaps]
    found = np.repeat(sessions.lists[:, None], count, axis=1)
    np.put_along_axis(found, places, items, axis=2)
    return found


def own_lists(
    sessions: Sessions,
    recommender: LLMRecommender,
    candidates: Candidates,
    *,
    count: int,
    beams: int = 20,
    exclude_history: bool = True,
) -> np.ndarray:
    """Return ``(rows, count, n)`` int64 lists that the policy writes, in the order of their first items.

    The first items are the policy's best ``count``, and each list goes on, token by token, with the best next item
    that it does not hold yet. So lists differ in their first item.

    Args:
        sessions: the rows; their real lists are not kept out.
        recommender: the policy.
        candidates: the SIDs.
        count: lists a row.
        beams: of the search of first items; ``count`` when that is more.
        exclude_history: leave items of the history out.

    Raises:
        InputError: too few SIDs.
    """
    length = sessions.lists.shape[1]
    form, tokenizer, vocab = recommender.form, recommender.tokenizer, recommender.vocab
    prompts = [form.encode(tokenizer, prompt, TASK) for prompt in sessions.prompts]
    shares = items_of_sids(candidates)
    seen = [set(history) if exclude_history else set[int]() for history in sessions.questions.histories]
    without = [sorted(set(itertools.chain.from_iterable(shares(item) for item in items))) for items in seen]
    found = np.full((len(sessions), count, length), -1, dtype=np.int64)
    found[:, :, 0] = _search(recommender, prompts, without, beams=max(beams, count), count=count)
    written = [
        [*prompt, *vocab.token_ids(first)]
        for prompt, firsts in zip(prompts, found[:, :, 0].tolist(), strict=True)
        for first in firsts
    ]
    gone = [list(rows) for rows in without for _ in range(count)]
    flat = found.reshape(-1, length)
    for place in range(1, length):
        for rows, before in zip(gone, flat[:, place - 1].tolist(), strict=True):
            rows.extend(shares(before))
        flat[:, place] = _search(recommender, written, gone, beams=1, count=1)[:, 0]
        written = [
            [*tokens, *vocab.token_ids(item)] for tokens, item in zip(written, flat[:, place].tolist(), strict=True)
        ]
    return found


def same_lists(candidates: Candidates, lists: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return ``(rows, lists)`` bool: which of ``(rows, lists, n)`` items have the SIDs of ``(rows, n)`` real ones."""
    return (candidates.sid_of[lists] == candidates.sid_of[real][:, None]).all(axis=2)


def items_of_sids(candidates: Candidates) -> Callable[[int], Sequence[int]]:
    """Return a function from an item to all items with its SID."""
    order = np.argsort(candidates.sid_of, kind="stable")
    starts = np.searchsorted(candidates.sid_of[order], np.arange(candidates.count + 1))

    def of(item: int) -> Sequence[int]:
        sid = candidates.sid_of[item]
        return order[starts[sid] : starts[sid + 1]].tolist()

    return of


def _full(source: NegativeSource, sessions: Sessions, count: int) -> np.ndarray:
    found = source(sessions.questions, count=count, taken=sessions.lists)
    if (found < 0).any():
        raise InputError(
            "lists: this source has too few items for some rows; draw lists from popularity, uniform or nearest"
        )
    return found


def _search(
    recommender: LLMRecommender,
    prompts: Sequence[Sequence[int]],
    without: Sequence[Sequence[int]],
    *,
    beams: int,
    count: int,
) -> np.ndarray:
    """Return ``(prompts, count)`` items: the most popular one of each SID found, in batches that fit."""
    model, trie = recommender.model, recommender.trie
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    found = np.empty((len(prompts), count), dtype=np.int64)
    training = model.training
    model.eval()
    start = 0
    try:
        while start < len(order):
            positions = len(prompts[order[start]]) + beams * (trie.levels - 1)
            part = order[start : start + max(1, recommender.max_tokens_per_batch // positions)]
            start += len(part)
            width = len(prompts[part[0]])
            rows = [list(prompts[number]) for number in part]
            ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
            with torch.inference_mode():
                result = constrained_beam_search(
                    model, ids, mask, trie=trie, num_beams=beams, score="allowed",
                    filters=[ItemFilter(exclude=without[number]) for number in part],
                )  # fmt: skip
            leaves = result.leaves[:, :count]
            if leaves.shape[1] < count or bool((leaves < 0).any()):
                raise InputError(f"lists: a row has fewer than {count} SIDs left; ask for fewer lists")
            first = trie.first_item[leaves].long()
            found[part] = trie.rows[first].long().cpu().numpy()
    finally:
        model.train(training)
    return found
