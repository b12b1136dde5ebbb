"""A model with SIDs as a recommender: histories in, the best items out."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.decoding.beam import SCORES, BeamResult, constrained_beam_search
from llmrec.decoding.trie import SIDTrie
from llmrec.errors import InputError
from llmrec.hub import load_bundle
from llmrec.tasks.prompt import PromptForm, end_token_id
from llmrec.vocab import SIDVocab

logger = logging.getLogger(__name__)

MAX_LOGITS = 2**27
"""Most logits that stand in memory at a time: half a gigabyte in float32."""


class LLMRecommender:
    """Recommend items by constrained beam search.

    Args:
        model: a language model whose vocabulary holds the SID tokens.
        tokenizer: its tokenizer.
        vocab: SIDs and popularity of the catalogue's items.
        form: the prompt form that the model was trained with.
        num_beams: SIDs that are kept a step; a call with a larger ``k`` takes ``k``.
        score: ``full``, ``sids`` or ``allowed``, as in `constrained_beam_search`.
        max_tokens_per_batch: most positions that the cache holds at a time: requests times beams times the tokens of
            the longest prompt and the SID. Lower it when memory runs out; no result depends on it beyond float error.
        titles: titles in catalogue order, for `recommend_ids`.
        info: what the bundle's ``llmrec.json`` holds.
        progress: show a progress bar over users.

    Raises:
        InputError: an unknown score, or a number below 1.
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
        titles: Sequence[str] | None = None,
        info: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> None:
        if score not in SCORES:
            raise InputError(f"score {score!r}: choose one of {', '.join(SCORES)}")
        for name, value in (("num_beams", num_beams), ("max_tokens_per_batch", max_tokens_per_batch)):
            if value < 1:
                raise InputError(f"{name} {value}: at least 1")
        self.model = model
        self.tokenizer = tokenizer
        self.vocab = vocab
        self.form = form
        self.num_beams = num_beams
        self.score = score
        self.max_tokens_per_batch = max_tokens_per_batch
        self.titles = titles
        self.info = dict(info or {})
        self.progress = progress
        self._cpu_trie = SIDTrie.from_vocab(vocab)
        self.trie = self._cpu_trie.to(model.device)
        self._row_of = {item_id: row for row, item_id in enumerate(vocab.table.item_ids)}

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
            settings: ``num_beams``, ``score``, ``max_tokens_per_batch`` or ``progress`` of the class.

        Raises:
            InputError: what is there is no bundle.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        bundle = load_bundle(path, revision=revision, device=device)
        form = PromptForm(**bundle.info["prompt"])
        return cls(
            bundle.model, bundle.tokenizer, bundle.vocab, form, titles=bundle.titles, info=bundle.info, **settings
        )

    @property
    def items(self) -> int:
        """Size of the catalogue."""
        return len(self.vocab)

    def recommend(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> Tensor:
        """Return the best items after each history.

        Args:
            histories: item rows, oldest first; an empty one is answered from the start of the prompt alone.
            k: length of the lists.
            exclude_seen: keep the items of a history, of its part that the prompt cuts off too, out of its list.

        Returns:
            ``(users, k)`` int64 item rows on the CPU, best first, distinct within a list.

        Raises:
            InputError: ``k`` below 1 or above the number of items that may come out, or a row outside the catalogue.
        """
        return self.rank(histories, k, exclude_seen=exclude_seen)[0]

    def rank(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> tuple[Tensor, Tensor]:
        """Return `recommend`'s rows and their scores, ``(users, k)`` float32 sums of log-probabilities."""
        self._check(histories, k, exclude_seen)
        rows = torch.empty((len(histories), k), dtype=torch.int64)
        scores = torch.empty((len(histories), k))
        prompts = [self.form.encode_history(self.tokenizer, self.vocab, history) for history in histories]
        beams = min(max(self.num_beams, k), self.items)
        training = self.model.training
        self.model.eval()
        try:
            with (
                torch.inference_mode(),
                tqdm(total=len(histories), desc="recommend", unit="user", disable=not self.progress) as bar,
            ):
                for users in self._batches(prompts, beams):
                    excluded = [set(histories[user]) for user in users] if exclude_seen else None
                    found = self._search([prompts[user] for user in users], beams, excluded)
                    rows[users], scores[users] = self._items(found, k, excluded)
                    bar.update(len(users))
        finally:
            self.model.train(training)
        return rows, scores

    def recommend_ids(
        self, histories: Sequence[Sequence[str]], k: int = 10, *, exclude_seen: bool = False, unknown: str = "error"
    ) -> list[list[dict[str, Any]]]:
        """Return the best items after histories of item ids.

        Args:
            histories: item ids, oldest first.
            k: length of the lists.
            exclude_seen: keep the items of a history out of its list.
            unknown: what an item id that the bundle does not know is: an ``error``, or left out with ``skip``.

        Returns:
            For each history ``k`` dicts of ``item_id``, ``title`` (None where the bundle has none), ``score`` and
            ``sid``, best first.

        Raises:
            InputError: an unknown id, or what `recommend` raises.
        """
        rows, scores = self.rank(self.rows_of(histories, unknown=unknown), k, exclude_seen=exclude_seen)
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

    def rows_of(self, histories: Sequence[Sequence[str]], *, unknown: str = "error") -> list[list[int]]:
        """Return histories of item ids as item rows.

        Args:
            histories: item ids, oldest first.
            unknown: ``error``, or ``skip`` to leave unknown ids out (how many is logged).

        Raises:
            InputError: an unknown id without ``skip``, or another word for ``unknown``.
        """
        return item_rows(self._row_of, histories, unknown=unknown)

    def _check(self, histories: Sequence[Sequence[int]], k: int, exclude_seen: bool) -> None:
        for user, history in enumerate(histories):
            for row in history:
                if not 0 <= row < self.items:
                    raise InputError(f"history {user}: item row {row} is outside the catalogue of {self.items} items")
        most_seen = max((len(set(history)) for history in histories), default=0) if exclude_seen else 0
        if not 1 <= k <= self.items - most_seen:
            seen = f", {most_seen} of them seen and excluded" if most_seen else ""
            raise InputError(
                f"k {k}: choose 1 to {self.items - most_seen}; the catalogue has {self.items} items{seen}"
            )

    def _batches(self, prompts: Sequence[Sequence[int]], beams: int) -> Iterator[list[int]]:
        """Yield user numbers, longest prompts first: batches are even, and lack of memory shows at once."""
        most = max(1, MAX_LOGITS // (beams * self.model.config.get_text_config().vocab_size))
        order = sorted(range(len(prompts)), key=lambda user: -len(prompts[user]))
        start = 0
        while start < len(order):
            positions = beams * (len(prompts[order[start]]) + self.vocab.levels)
            stop = start + min(most, max(1, self.max_tokens_per_batch // positions))
            yield order[start:stop]
            start = stop

    def _search(self, prompts: Sequence[Sequence[int]], beams: int, excluded: Sequence[set[int]] | None) -> BeamResult:
        length = max(len(prompt) for prompt in prompts)
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        padded = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
        device = self.model.device
        return constrained_beam_search(
            self.model,
            padded.to(device),
            mask.to(device),
            trie=self.trie,
            num_beams=beams,
            score=self.score,
            end_token_id=end_token_id(self.tokenizer, self.form.kind) if self.score == "sids" else None,
            excluded=None if excluded is None else [sorted(rows) for rows in excluded],
        )

    def _items(self, found: BeamResult, k: int, excluded: Sequence[set[int]] | None) -> tuple[Tensor, Tensor]:
        """Return ``(batch, k)`` rows and scores: the items of each leaf in turn, by popularity within one."""
        leaves, scores = found.leaves.cpu(), found.scores.cpu()
        trie = self._cpu_trie
        rows = torch.full((len(leaves), k), -1)
        row_scores = torch.full((len(leaves), k), -torch.inf)
        counts = torch.where(leaves >= 0, trie.first_row[leaves + 1] - trie.first_row[leaves], 0)
        flat = counts.flatten()
        beam = torch.arange(len(flat)).repeat_interleave(flat)
        within = torch.arange(len(beam)) - (flat.cumsum(0) - flat)[beam]
        items = trie.rows[trie.first_row[leaves.flatten()[beam]] + within]
        request = beam // leaves.shape[1]
        if excluded is not None:
            seen = torch.tensor([user * self.items + row for user, gone in enumerate(excluded) for row in gone])
            keep = ~torch.isin(request * self.items + items, seen.long())
            beam, items, request = beam[keep], items[keep], request[keep]
        place = torch.arange(len(items)) - torch.searchsorted(request, request)
        fits = place < k
        rows[request[fits], place[fits]] = items[fits]
        row_scores[request[fits], place[fits]] = scores.flatten()[beam[fits]]
        if (rows < 0).any():
            raise InputError(
                "model: its log-probabilities are infinite for legal SIDs, so a list stays short; train it again"
            )
        return rows, row_scores


def item_rows(
    row_of: Mapping[str, int], histories: Sequence[Sequence[str]], *, unknown: str = "error"
) -> list[list[int]]:
    """Return histories of item ids as item rows.

    Args:
        row_of: item row by item id.
        histories: item ids, oldest first.
        unknown: ``error``, or ``skip`` to leave unknown ids out (how many is logged).

    Raises:
        InputError: an unknown id without ``skip``, or another word for ``unknown``.
    """
    if unknown not in ("error", "skip"):
        raise InputError(f"unknown {unknown!r}: choose error or skip")
    missing = {item_id: None for history in histories for item_id in history if item_id not in row_of}
    if missing and unknown == "error":
        named = ", ".join(repr(item_id) for item_id in list(missing)[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(
            f"history: the bundle does not know {named}{more}; leave them out, or ask to skip unknown items"
        )
    if missing:
        count = sum(item_id in missing for history in histories for item_id in history)
        logger.warning("left out %d history items of %d ids that the bundle does not know", count, len(missing))
    return [[row_of[item_id] for item_id in history if item_id in row_of] for history in histories]
