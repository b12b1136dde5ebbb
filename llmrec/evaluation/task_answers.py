"""What a model answers to the prompts of tasks: items by constrained beam search, lists of items, text."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from llmrec.decoding.beam import constrained_beam_search
from llmrec.decoding.filters import ItemFilter
from llmrec.decoding.leaf_items import items_of_leaves
from llmrec.decoding.prompts import why_expanded
from llmrec.decoding.trie import SIDTrie
from llmrec.errors import InputError
from llmrec.tasks.example import Example
from llmrec.tasks.prompt import PromptForm, end_token_id
from llmrec.vocab import SIDVocab

MAX_TEXT_TOKENS = 96
"""Most tokens of a text answer."""
MAX_LOGITS = 2**26
"""Most logits of the whole vocabulary that stand in memory at a time: a quarter of a gigabyte in float32."""


class TaskModel:
    """A model that answers examples of tasks, each from its own prompt.

    A prompt that exceeds the context loses the oldest items of its history.

    Args:
        model: a language model whose vocabulary holds the SID tokens.
        tokenizer: its tokenizer.
        vocab: the SIDs of the catalogue.
        form: the prompt form that it was trained with.
        num_beams: SIDs that are kept a step; a longer list takes as many beams as it is long.
        max_tokens_per_batch: most positions in a batch.
        max_text_tokens: most tokens of a text answer.
        progress: show a progress bar.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        vocab: SIDVocab,
        form: PromptForm,
        *,
        num_beams: int = 20,
        max_tokens_per_batch: int = 8192,
        max_text_tokens: int = MAX_TEXT_TOKENS,
        progress: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.vocab, self.form = model, tokenizer, vocab, form
        self.num_beams, self.progress = num_beams, progress
        self.max_tokens_per_batch, self.max_text_tokens = max_tokens_per_batch, max_text_tokens
        self._cpu_trie = SIDTrie.from_vocab(vocab)
        self._trie = self._cpu_trie.to(model.device)

    def items(self, examples: Sequence[Example], k: int) -> np.ndarray:
        """Return ``(examples, k)`` item rows, best first: constrained beam search over the whole catalogue.

        Args:
            examples: whose prompts are answered.
            k: length of the lists; at most the number of items.
        """
        beams = min(max(self.num_beams, k), self._cpu_trie.items)
        found = np.full((len(examples), k), -1)
        with self._evaluating():
            for places, prompts in self._batches(examples, room=self.vocab.levels, rows=beams):
                found[places] = self._search(prompts, beams, k, None)
        return found

    def lists(self, examples: Sequence[Example], length: int) -> np.ndarray:
        """Return ``(examples, length)`` item rows in the order in which the model writes them, each once.

        Each SID is the best by greedy steps among those of the items that the list does not hold yet, and stands in
        the prompt of the next.

        Args:
            examples: whose prompts are answered.
            length: items of a list.

        Raises:
            InputError: an encoder-decoder model, whose answer cannot be made a part of its prompt.
        """
        if self.model.config.is_encoder_decoder:
            raise InputError("lists of an encoder-decoder model cannot be searched item by item; leave the task out")
        found = np.full((len(examples), length), -1)
        with self._evaluating():
            for places, prompts in self._batches(examples, room=self.vocab.levels * length, rows=1):
                for place in range(length):
                    filters = [ItemFilter(exclude=found[row, :place].tolist()) for row in places]
                    taken = self._search(prompts, 1, 1, filters)[:, 0]
                    found[places, place] = taken
                    prompts = [
                        [*prompt, *self.vocab.token_ids(item)]
                        for prompt, item in zip(prompts, taken.tolist(), strict=True)
                    ]
        return found

    def texts(self, examples: Sequence[Example]) -> list[str]:
        """Return text answers, greedily, up to the end token or ``max_text_tokens``; equal prompts are asked once.

        Args:
            examples: whose prompts are answered. Answers go on for at most 16 tokens beyond the longest expected one.
        """
        asked = list({(example.task, example.prompt): example for example in examples}.values())
        expected = max(
            len(self.tokenizer.encode(example.completion, add_special_tokens=False)) for example in examples
        )
        longest = min(self.max_text_tokens, expected + 16)
        answers: dict[tuple[str, str], str] = {}
        with self._evaluating():
            for places, prompts in self._batches(asked, room=longest, rows=1):
                for place, answer in zip(places, self._generate(prompts, longest), strict=True):
                    answers[asked[place].task, asked[place].prompt] = answer
        return [answers[example.task, example.prompt] for example in examples]

    def _search(
        self, prompts: Sequence[Sequence[int]], beams: int, k: int, filters: Sequence[ItemFilter] | None
    ) -> np.ndarray:
        ids, mask = self._padded(prompts)
        found = constrained_beam_search(self.model, ids, mask, trie=self._trie, num_beams=beams, filters=filters)
        return items_of_leaves(found, k, trie=self._cpu_trie, filters=filters)[0].numpy()

    def _generate(self, prompts: Sequence[Sequence[int]], longest: int) -> list[str]:
        ids, mask = self._padded(prompts)
        model: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        config = model.config
        end = end_token_id(self.tokenizer, self.form.kind)
        greedy = GenerationConfig(
            max_new_tokens=longest, do_sample=False, num_beams=1, eos_token_id=end, pad_token_id=end,
            decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
        )  # fmt: skip
        # What a checkpoint ships with, such as a penalty on repetition, would fill the fields that are not set here.
        kept, model.generation_config = model.generation_config, greedy
        try:
            written: Tensor = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)
        finally:
            model.generation_config = kept
        start = 1 if config.is_encoder_decoder else ids.shape[1]
        answers = []
        for tokens in written[:, start:].tolist():
            own = tokens[: tokens.index(end)] if end in tokens else tokens
            answers.append(" ".join(str(self.tokenizer.decode(own, skip_special_tokens=True)).split()))
        return answers

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        length, device = max(map(len, prompts)), self.model.device
        ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return ids.to(device), mask.to(device)

    def _batches(
        self, examples: Sequence[Example], *, room: int, rows: int
    ) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Yield places and prompts, longest first; ``room`` tokens may follow, in ``rows`` branches."""
        config = self.model.config
        limit = getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        limit = limit if config.is_encoder_decoder else limit - room
        prompts = [self.encode(example, limit) for example in examples]
        order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
        expanded = why_expanded(self.model) is not None
        bar = tqdm(total=len(order), desc="task answers", unit="example", disable=not self.progress)
        start = 0
        with bar:
            while start < len(order):
                length = len(prompts[order[start]])
                positions = (length + room) * rows if expanded else length + room * rows
                logits = config.get_text_config().vocab_size * (rows if expanded else 1)
                count = max(1, min(self.max_tokens_per_batch // positions, MAX_LOGITS // logits))
                places = order[start : start + count]
                yield places, [prompts[place] for place in places]
                bar.update(len(places))
                start += count

    def encode(self, example: Example, limit: int) -> list[int]:
        """Return the token ids of an example's prompt; one of over ``limit`` tokens loses its oldest items.

        Args:
            example: whose prompt it is.
            limit: most tokens.

        Raises:
            InputError: a prompt that is too long with one item, or without a history.
        """
        parts = len(example.history)
        while True:
            ids = self.form.encode(self.tokenizer, example.prompt, example.task)
            if len(ids) <= limit:
                return ids
            if parts <= 1:
                raise InputError(
                    f"task {example.task!r}: a prompt of {len(ids)} tokens, and the model's context has room for "
                    f"{limit}; shorten it by the task's options, or take a model with a longer context"
                )
            parts -= 1
            example = example.recent(parts)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(training)
