"""A model with SIDs as a recommender: histories in, the best items out."""

import copy
import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.decoding.beam import SCORES, BeamResult, constrained_beam_search
from llmrec.decoding.filters import ItemFilter
from llmrec.decoding.given_lists import histories_of, one_a_request
from llmrec.decoding.item_rows import item_rows
from llmrec.decoding.leaf_items import items_of_leaves
from llmrec.decoding.prompts import why_expanded
from llmrec.decoding.request_filters import RequestFilters, RowsOrLists
from llmrec.decoding.trie import SIDTrie
from llmrec.errors import InputError
from llmrec.hub import Bundle, load_bundle
from llmrec.launch import checked_device
from llmrec.tasks.prompt import PromptForm, end_token_id
from llmrec.vocab import SIDVocab

logger = logging.getLogger(__name__)

ALIGNMENT = 64
"""Bytes that torch aligns its own tensors to."""

SHARE_OF_CATALOGUE = 100
"""An ``allow`` that all requests share and that names a hundredth of the catalogue or more becomes the trie itself."""

MAX_LOGITS = 2**27
"""Most logits, candidates or mask cells that stand in memory at a time: half a gigabyte in float32."""


@dataclass(frozen=True)
class _Call:
    """What one call asks for, and the trie of what all its requests may get, on the CPU and beside the model."""

    k: int
    beams: int
    names: Sequence[str]
    filters: Sequence[ItemFilter] | None
    trie: SIDTrie
    device_trie: SIDTrie


class LLMRecommender:
    """Recommend items by constrained beam search.

    A history longer than the prompt form's ``max_history``, or than the model's context has room for, loses its oldest
    items; an empty one is answered from the start of the prompt alone.

    Args:
        model: a language model whose vocabulary holds the SID tokens.
        tokenizer: its tokenizer.
        vocab: SIDs and popularity of the catalogue's items. Retired ones may stand in histories and never come out.
        form: the prompt form that the model was trained with.
        num_beams: SIDs that are kept a step; a call with a larger ``k`` takes ``k``.
        score: ``full``, ``sids`` or ``allowed``, as in `constrained_beam_search`.
        max_tokens_per_batch: most positions that the cache holds at a time: requests times the tokens of the longest
            prompt and of all beams behind it. Lower it when memory runs out; no result depends on it beyond float
            error. A GPU that runs out of memory all the same gets half as much, and the work goes on.
        max_per_first_code: diverse lists: most beams that share a first code; None sets no limit.
        titles: titles in catalogue order, for `recommend_ids`.
        info: what the bundle's ``llmrec.json`` holds.
        progress: show a progress bar over users.
        across_processes: share the batches out to the processes of the launch, each of which must make the same calls;
            all get the whole answer, the same as one process gives.

    Raises:
        InputError: an unknown score, a number below 1, or a prompt form whose bare text exceeds the model's context.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        vocab: SIDVocab,
        form: PromptForm,
        *,
        num_beams: int = 20,
        score: str = "full",
        max_tokens_per_batch: int = 16384,
        max_per_first_code: int | None = None,
        titles: Sequence[str] | None = None,
        info: Mapping[str, Any] | None = None,
        progress: bool = False,
        across_processes: bool = False,
    ) -> None:
        if score not in SCORES:
            raise InputError(f"score {score!r}: choose one of {', '.join(SCORES)}")
        numbers = {
            "num_beams": num_beams,
            "max_tokens_per_batch": max_tokens_per_batch,
            "max_per_first_code": max_per_first_code,
        }
        for name, value in numbers.items():
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not whole and not (value is None and name == "max_per_first_code"):
                raise InputError(f"{name} {value!r}: at least 1, a whole number")
        self.model = model
        self.tokenizer = tokenizer
        self.vocab = vocab
        self.form = form
        self.num_beams = num_beams
        self.score = score
        self.max_tokens_per_batch = max_tokens_per_batch
        self.max_per_first_code = max_per_first_code
        self.titles = titles
        self.info = dict(info or {})
        self.progress = progress
        self.truncated = 0
        """Histories of the last call whose oldest items the model's context had no room for."""
        self._cpu_trie = SIDTrie.from_vocab(vocab)
        self.trie = self._cpu_trie.to(model.device)
        self._filters = RequestFilters(vocab, self._cpu_trie)
        self._allowed: tuple[np.ndarray, SIDTrie, SIDTrie] | None = None
        self.row_of = {item_id: row for row, item_id in enumerate(vocab.table.item_ids)}
        """Item row by item id."""
        self._processes = PartialState() if across_processes else None
        self._most_positions = sys.maxsize  # falls when a GPU runs out of memory

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        **settings: Any,
    ) -> Self:
        """Load a bundle from a folder or the hub.

        Args:
            path: the bundle's folder, or its name on the hub.
            revision: branch, tag or commit on the hub.
            device: where the model goes; None takes the GPU where there is one.
            settings: ``num_beams``, ``score``, ``max_tokens_per_batch``, ``max_per_first_code``, ``progress`` or
                ``across_processes`` of the class.

        Raises:
            InputError: what is there is no bundle, or no such device.
        """
        return cls.from_bundle(load_bundle(path, revision=revision, device=checked_device(device)), **settings)

    @classmethod
    def from_bundle(cls, bundle: Bundle, **settings: Any) -> Self:
        """Wrap a bundle in memory.

        Args:
            bundle: its model is where it is to stay; weights on the CPU are moved to aligned memory.
            settings: as for `from_pretrained`.
        """
        _align(bundle.model)
        form = PromptForm(**bundle.info["prompt"])
        return cls(
            bundle.model, bundle.tokenizer, bundle.vocab, form, titles=bundle.titles, info=bundle.info, **settings
        )

    @property
    def items(self) -> int:
        """Size of the catalogue, retired items included."""
        return len(self.vocab)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the model (of values spread over all its weights), its SIDs and its prompt form."""
        digest = hashlib.sha256(repr((self.form.to_dict(), self.vocab.table.hash)).encode())
        digest.update(self._cpu_trie.rows.numpy().tobytes())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().flatten()
            some = flat[:: max(1, len(flat) // 4096)].cpu().contiguous()
            digest.update(some.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def alone(self) -> Self:
        """Return the same recommender for calls of this process alone, without a progress bar; weights are shared."""
        found = copy.copy(self)
        found.progress, found._processes = False, None
        return found

    def recommend(
        self,
        histories: Sequence[Sequence[int]],
        k: int,
        *,
        exclude_seen: bool = False,
        allow: RowsOrLists = None,
        exclude: RowsOrLists = None,
        prefix: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
    ) -> Tensor:
        """Return the best items after each history.

        Args:
            histories: item rows, oldest first; an empty one is answered from the start of the prompt alone.
            k: length of the lists.
            exclude_seen: keep the items of a history, of its part that the prompt cuts off too, out of its list.
            allow: the only item rows that may come out: one list for all requests, or one a request (None in it allows
                all). One list for all is compiled once.
            exclude: item rows that must not come out: one list for all requests, or one a request.
            prefix: codes that each SID starts with, ``[12]`` for the first code 12: for all requests, or a list a
                request.

        Returns:
            ``(users, k)`` int64 item rows on the CPU, best first, distinct within a list.

        Raises:
            InputError: ``k`` below 1 or above the number of items that may come out (the message says which filter
                takes how many), a row outside the catalogue, a prefix that no SID has, or lists of another number than
                the requests; a prompt that exceeds the context without any item; logits that are NaN; or lists that
                ``max_per_first_code`` keeps short.
        """
        return self.rank(histories, k, exclude_seen=exclude_seen, allow=allow, exclude=exclude, prefix=prefix)[0]

    def rank(
        self,
        histories: Sequence[Sequence[int]],
        k: int,
        *,
        exclude_seen: bool = False,
        allow: RowsOrLists = None,
        exclude: RowsOrLists = None,
        prefix: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
        names: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return `recommend`'s rows and their scores, ``(users, k)`` float32 sums of log-probabilities.

        Args:
            histories: as for `recommend`, and so the further ones.
            k: length of the lists.
            exclude_seen: keep the items of a history out of its list.
            allow: the only rows that may come out.
            exclude: rows that must not.
            prefix: codes that each SID starts with.
            names: what the errors call the requests; None says ``request 0`` and so on.
        """
        histories = histories_of(histories, int)
        filters = self.check(
            histories, k, exclude_seen=exclude_seen, allow=allow, exclude=exclude, prefix=prefix, names=names
        )
        names = names or [f"request {number}" for number in range(len(histories))]
        rows = torch.zeros((len(histories), k), dtype=torch.int64)
        scores = torch.zeros((len(histories), k))
        prompts, lengths = self._prompts(histories)
        filters, trie, device_trie = self._allowed_trie(filters)
        beams = min(max(self.num_beams, k), trie.items)
        call = _Call(k, beams, names, filters, trie, device_trie)
        training = self.model.training
        self.model.eval()
        try:
            with (
                torch.inference_mode(),
                tqdm(total=len(histories), desc="recommend", unit="user", disable=not self.progress) as bar,
            ):
                for number, users in enumerate(self._batches(lengths, beams)):
                    if number % self._num_processes == self._process_index:
                        for part in self._fitting(users, lengths, beams):
                            self._answer(call, part, prompts, histories, rows, scores)
                    bar.update(len(users))
        finally:
            self.model.train(training)
        # Each row was filled by one process and is zero in the others, so that the sum is exact.
        return self._sum(rows), self._sum(scores)

    def recommend_ids(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude_seen: bool = False,
        allow: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
        exclude: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
        prefix: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
        unknown: str = "error",
    ) -> list[list[dict[str, Any]]]:
        """Return the best items after histories of item ids.

        Args:
            histories: item ids, oldest first; an empty one is answered from the start of the prompt alone.
            k: length of the lists.
            exclude_seen: keep the items of a history out of its list.
            allow: the only item ids that may come out: one list for all requests, or one a request.
            exclude: item ids that must not come out: one list for all requests, or one a request.
            prefix: codes that each SID starts with: for all requests, or a list a request.
            unknown: what an item id that the bundle does not know is: an ``error``, or left out with ``skip``.

        Returns:
            For each history ``k`` dicts of ``item_id``, ``title`` (None where the bundle has none), ``score`` and
            ``sid``, best first.

        Raises:
            InputError: an unknown id, or what `recommend` raises.
        """
        given = self.rows_of(histories, unknown=unknown)
        rows, scores = self.rank(
            given,
            k,
            exclude_seen=exclude_seen,
            allow=self._filter_rows(allow, len(given), unknown, "allow"),
            exclude=self._filter_rows(exclude, len(given), unknown, "exclude"),
            prefix=prefix,
        )
        return [
            [
                {
                    "item_id": self.vocab.table.item_ids[row],
                    "title": None if self.titles is None else self.titles[row],
                    "score": score,
                    "sid": self.vocab.tokens(row),
                }
                for row, score in zip(user_rows, user_scores, strict=True)
            ]
            for user_rows, user_scores in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def rows_of(
        self, histories: Sequence[Sequence[str]], *, unknown: str = "error", what: str = "history"
    ) -> list[list[int]]:
        """Return lists of item ids as item rows.

        Args:
            histories: item ids, oldest first.
            unknown: ``error``, or ``skip`` to leave unknown ids out (how many is logged).
            what: what the errors call a list.

        Raises:
            InputError: an unknown id without ``skip``, or another word for ``unknown``.
        """
        return item_rows(self.row_of, histories, unknown=unknown, what=what)

    def check(
        self,
        histories: Sequence[Sequence[int]],
        k: int,
        *,
        exclude_seen: bool = False,
        allow: RowsOrLists = None,
        exclude: RowsOrLists = None,
        prefix: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
        names: Sequence[str] | None = None,
    ) -> list[ItemFilter] | None:
        """Look for requests that cannot be answered, before any work; arguments and errors are those of `rank`.

        Returns:
            What each request may get, as the search takes it; None where every one may get all.
        """
        histories = histories_of(histories, int)
        return self._filters.compile(
            histories,
            k,
            exclude_seen=exclude_seen,
            allow=allow,
            exclude=exclude,
            prefix=prefix,
            names=names,
        )

    def _filter_rows(self, value: Any, requests: int, unknown: str, what: str) -> list[list[int] | None] | None:
        """Return lists of ids that filter as rows, one a request; one object in stays one object out."""
        if value is None:
            return None
        lists = one_a_request(value, requests, what)
        found: dict[int, list[int]] = {}
        for ids in lists:
            if ids is not None and id(ids) not in found:
                found[id(ids)] = self.rows_of([ids], unknown=unknown, what=what)[0]
        return [None if ids is None else found[id(ids)] for ids in lists]

    @property
    def _num_processes(self) -> int:
        return 1 if self._processes is None else self._processes.num_processes

    @property
    def _process_index(self) -> int:
        return 0 if self._processes is None else self._processes.process_index

    def _sum(self, values: Tensor) -> Tensor:
        if self._num_processes == 1:
            return values
        assert self._processes is not None
        moved = values.to(self._processes.device)
        torch.distributed.all_reduce(moved)
        return moved.cpu()

    def _prompts(self, histories: Sequence[Sequence[int]]) -> tuple[dict[int, list[int]], list[int]]:
        """Return the prompts that this process encoded, by user, and the lengths of all of them."""
        room = self._room()
        empty = len(self.form.encode_history(self.tokenizer, self.vocab, [])) if room is not None else 0
        if room is not None and empty > room:
            raise InputError(
                f"prompt form: its text alone takes {empty} tokens, and the model's context has room for {room} "
                "beside the SID; shorten the template, or take a model with a longer context"
            )
        prompts: dict[int, list[int]] = {}
        lengths = torch.zeros(len(histories), dtype=torch.int64)
        cut = torch.zeros(1, dtype=torch.int64)
        for user in range(self._process_index, len(histories), self._num_processes):
            prompts[user], dropped = self._encode(histories[user], room)
            lengths[user] = len(prompts[user])
            cut += dropped > 0
        self.truncated = int(self._sum(cut))
        if self.truncated:
            logger.warning(
                "%d of %d histories lost their oldest items: their prompts exceed the %d tokens that the model's "
                "context has room for",
                self.truncated, len(histories), room,
            )  # fmt: skip
        return prompts, self._sum(lengths).tolist()

    def _room(self) -> int | None:
        """Return the most tokens that a prompt may have; None where the model sets no limit."""
        config = self.model.config
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        if limit is None:
            return None
        return limit if config.is_encoder_decoder else limit - self.vocab.levels

    def _encode(self, history: Sequence[int], room: int | None) -> tuple[list[int], int]:
        """Return a prompt that fits, and how many of the items that the form keeps were dropped for it."""
        recent = list(history[-self.form.max_history :])
        dropped = 0
        while True:
            prompt = self.form.encode_history(self.tokenizer, self.vocab, recent[dropped:])
            if room is None or len(prompt) <= room:
                return prompt, dropped
            gone = 0
            while gone < len(prompt) - room and dropped < len(recent):
                gone += len(self.vocab.token_ids(recent[dropped]))
                dropped += 1

    def _batches(self, lengths: Sequence[int], beams: int) -> Iterator[list[int]]:
        """Yield user numbers, longest prompts first: batches are even, and lack of memory shows at once."""
        order = sorted(range(len(lengths)), key=lambda user: -lengths[user])
        start = 0
        while start < len(order):
            stop = start + self._requests_that_fit(lengths[order[start]], beams, self.max_tokens_per_batch)
            yield order[start:stop]
            start = stop

    def _requests_that_fit(self, length: int, beams: int, most_positions: int) -> int:
        if self._expanded:  # logits of the whole vocabulary
            held = beams * self.model.config.get_text_config().vocab_size
        else:  # candidates of a step, or cells of its attention mask
            candidates = max(*self._cpu_trie.widest, len(self._cpu_trie.sid_token_ids))
            held = beams * max(candidates, self._positions(length, beams))
        return max(1, min(most_positions // self._positions(length, beams), MAX_LOGITS // held))

    def _positions(self, length: int, beams: int) -> int:
        """Return how many positions the cache holds for a prompt of so many tokens."""
        levels = self._cpu_trie.levels
        return beams * (length + levels) if self._expanded else length + beams * (levels - 1)

    @property
    def _expanded(self) -> bool:
        return why_expanded(self.model) is not None

    def _fitting(self, users: Sequence[int], lengths: Sequence[int], beams: int) -> Iterator[Sequence[int]]:
        """Yield a batch in parts that fit what the GPU has been found to hold."""
        start = 0
        while start < len(users):
            stop = start + self._requests_that_fit(
                lengths[users[start]], beams, min(self.max_tokens_per_batch, self._most_positions)
            )
            yield users[start:stop]
            start = stop

    def _allowed_trie(
        self, filters: Sequence[ItemFilter] | None
    ) -> tuple[Sequence[ItemFilter] | None, SIDTrie, SIDTrie]:
        """Return filters and tries for a call: an ``allow`` that all requests share becomes the trie itself.

        It is kept for the next call, so that a shop's stock is not compiled again for each chunk of requests.
        """
        allow = None if not filters else filters[0].allow
        if filters is None or allow is None or any(item_filter.allow is not allow for item_filter in filters):
            return filters, self._cpu_trie, self.trie
        rows = np.asarray(allow)
        if len(rows) * SHARE_OF_CATALOGUE < self.items:  # less work as a filter than as arrays over the catalogue
            return filters, self._cpu_trie, self.trie
        if self._allowed is None or not np.array_equal(self._allowed[0], rows):
            trie = SIDTrie.from_token_ids(
                self.vocab.item_token_ids.numpy(),
                popularity=self.vocab.popularity,
                sid_token_ids=self._cpu_trie.sid_token_ids.numpy(),
                rows=rows[self._cpu_trie.place.numpy()[rows] >= 0],
            )
            self._allowed = (rows, trie, trie.to(self.model.device))
        return [replace(item_filter, allow=None) for item_filter in filters], *self._allowed[1:]

    def _answer(
        self,
        call: _Call,
        users: Sequence[int],
        prompts: dict[int, list[int]],
        histories: Sequence[Sequence[int]],
        rows: Tensor,
        scores: Tensor,
    ) -> None:
        """Fill the rows and scores of some users; on a GPU without memory for all of them, half by half."""
        room = self._room()
        encoded = [prompts.pop(user) if user in prompts else self._encode(histories[user], room)[0] for user in users]
        filters = None if call.filters is None else [call.filters[user] for user in users]
        try:
            found = self._search(encoded, call.beams, filters, call.device_trie)
        except torch.OutOfMemoryError as error:
            if len(users) == 1:
                raise InputError(
                    f"{call.names[users[0]]}: the GPU has no memory for one request of {len(encoded[0])} tokens and "
                    f"{call.beams} beams; lower num_beams, or take a smaller dtype"
                ) from error
            found = None
        if found is not None:
            rows[users], scores[users] = items_of_leaves(found, call.k, trie=call.trie, filters=filters)
            self._refuse_short(call, users, rows)
            return
        torch.cuda.empty_cache()
        half = len(users) // 2
        positions = half * self._positions(max(map(len, encoded)), call.beams)
        if positions < self._most_positions:
            if self._most_positions == sys.maxsize:
                logger.warning(
                    "the GPU ran out of memory with %d requests at a time; going on with fewer. Lower "
                    "max_tokens_per_batch (%d now) to %d",
                    len(users), self.max_tokens_per_batch, positions,
                )  # fmt: skip
            self._most_positions = positions
        prompts.update(zip(users, encoded, strict=True))
        for part in (users[:half], users[half:]):
            self._answer(call, part, prompts, histories, rows, scores)

    def _refuse_short(self, call: _Call, users: Sequence[int], rows: Tensor) -> None:
        filled = (rows[users] >= 0).sum(dim=1)
        if int(filled.min()) == call.k:
            return
        name = call.names[users[int(filled.argmin())]]
        if self.max_per_first_code is not None:
            raise InputError(
                f"{name}: max_per_first_code {self.max_per_first_code} leaves {int(filled.min())} of k {call.k} "
                f"items; raise max_per_first_code or num_beams ({self.num_beams})"
            )
        raise InputError(
            f"{name}: model: its log-probabilities are infinite for legal SIDs, so a list stays short; train it again"
        )

    def _search(
        self, prompts: Sequence[Sequence[int]], beams: int, filters: Sequence[ItemFilter] | None, trie: SIDTrie
    ) -> BeamResult:
        length = max(len(prompt) for prompt in prompts)
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        padded = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
        device = self.model.device
        return constrained_beam_search(
            self.model,
            padded.to(device),
            mask.to(device),
            trie=trie,
            num_beams=beams,
            score=self.score,
            end_token_id=end_token_id(self.tokenizer, self.form.kind) if self.score == "sids" else None,
            filters=filters,
            max_per_first_code=self.max_per_first_code,
        )


def _align(model: torch.nn.Module) -> None:
    """Move weights on the CPU to where torch would have put them.

    Those of a file lie where the file has them, not at the same place in every process, and a product with one row
    rounds by where its matrix lies.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()
