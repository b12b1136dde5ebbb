"""From examples and sequences to token rows with labels: the only tokenisation that training sees."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from llmrec.data.items import Catalog
from llmrec.data.splits import Splits
from llmrec.errors import InputError
from llmrec.tasks.example import Example
from llmrec.tasks.mixture import mix_tasks, repeat_by_weight
from llmrec.tasks.prompt import PromptForm, end_token_id, start_token_id
from llmrec.vocab import SIDVocab

IGNORED = -100
TokenRow = dict[str, list[int]]


def encode_examples(
    examples: Iterable[Example], *, tokenizer: PreTrainedTokenizerBase, form: PromptForm, max_length: int | None
) -> Iterator[TokenRow]:
    """Yield ``input_ids`` and ``labels`` of each example, with the loss on its completion alone.

    The end token follows every completion and is learned, save behind a ``next_item`` SID in the plain form: there the
    next SID of the history follows, and decoding never scores the end.

    Args:
        examples: what the tasks yield.
        tokenizer: with the SID tokens.
        form: how prompts are written.
        max_length: most tokens of a row; None allows any.

    Raises:
        InputError: a row longer than ``max_length``.
    """
    end = end_token_id(tokenizer, form.kind)
    for example in examples:
        prompt = form.encode(tokenizer, example.prompt, example.task)
        completion = tokenizer.encode(example.completion, add_special_tokens=False)
        if not (form.kind == "plain" and example.task == "next_item"):
            completion = [*completion, end]
        if max_length is not None and len(prompt) + len(completion) > max_length:
            raise InputError(
                f"task {example.task!r}: an example has {len(prompt) + len(completion)} tokens, max_length is "
                f"{max_length}; raise max_length or lower max_history"
            )
        yield {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def encode_sequences(
    sequences: Iterable[Sequence[int]], *, tokenizer: PreTrainedTokenizerBase, vocab: SIDVocab, max_history: int
) -> Iterator[TokenRow]:
    """Yield rows in which every SID after a sequence's first is a target: ``supervise: history``.

    A row is the start token and the SIDs of up to ``max_history + 1`` items. A causal model's logits at a target's
    position are those of the plain ``next_item`` prompt with the same items before it, so one pass over a user stands
    for as many passes as the user has targets. A longer sequence is cut into windows that overlap by half of
    ``max_history``: each target is supervised once, and a target behind the first window sees between half of
    ``max_history`` and all of it.

    Args:
        sequences: training interactions, one sequence a user, oldest first.
        tokenizer: with the SID tokens.
        vocab: the SIDs.
        max_history: most items before a target; at least 1.
    """
    start = start_token_id(tokenizer)
    overlap = max(max_history // 2, 1)
    for sequence in sequences:
        supervised = 1
        while supervised < len(sequence):
            first = 0 if supervised == 1 else supervised - overlap
            window = sequence[first : first + max_history + 1]
            input_ids, labels = [start], [IGNORED]
            for place, item in enumerate(window, start=first):
                token_ids = vocab.token_ids(item)
                input_ids.extend(token_ids)
                labels.extend(token_ids if place >= supervised else [IGNORED] * len(token_ids))
            yield {"input_ids": input_ids, "labels": labels}
            supervised = first + len(window)


def training_rows(
    splits: Splits,
    *,
    tasks: Mapping[str, float],
    supervise: str,
    catalog: Catalog,
    tokenizer: PreTrainedTokenizerBase,
    vocab: SIDVocab,
    form: PromptForm,
    max_length: int | None,
    seed: int,
    progress: bool = True,
) -> Dataset:
    """Return the training set: the tasks mixed by weight, tokenised.

    Args:
        splits: training rows and sequences.
        tasks: weight by task name.
        supervise: ``history`` makes ``next_item`` one row a sequence, ``row`` one row a target.
        catalog: the items.
        tokenizer: with the SID tokens.
        vocab: the SIDs.
        form: how prompts are written.
        max_length: most tokens of a row; None allows any.
        seed: of the mixture.
        progress: whether to show a bar.

    Raises:
        InputError: as `mix_tasks`, `encode_examples` and `to_dataset` say.
    """
    rows: list[TokenRow] = []
    others = dict(tasks)
    if supervise == "history" and "next_item" in others:
        sequences = encode_sequences(splits.sequences, tokenizer=tokenizer, vocab=vocab, max_history=form.max_history)
        rows = repeat_by_weight(list(sequences), others.pop("next_item"), random.Random(f"{seed}/next_item"))
        longest = max((len(row["input_ids"]) for row in rows), default=0)
        if max_length is not None and longest > max_length:
            raise InputError(
                f"supervise: history: a row has {longest} tokens, max_length is {max_length}; raise max_length or "
                "lower max_history"
            )
    if others:
        examples = mix_tasks(others, catalog=catalog, vocab=vocab, histories=splits.train, seed=seed)
        encoded = encode_examples(examples, tokenizer=tokenizer, form=form, max_length=max_length)
        bar = tqdm(encoded, "training examples", len(examples), unit="row", disable=not progress, mininterval=0.5)
        rows.extend(bar)
    return to_dataset(rows, what="training")


def to_dataset(rows: Iterable[TokenRow], *, what: str) -> Dataset:
    """Collect token rows into a dataset with columns ``input_ids`` and ``labels``.

    Args:
        rows: token rows.
        what: whose rows they are, for the error message.

    Raises:
        InputError: no row has a label.
    """
    rows = list(rows)
    if not any(label != IGNORED for row in rows for label in row["labels"]):
        raise InputError(f"{what} rows: none has a label to learn; the dataset needs users with 2 training items")
    return Dataset.from_dict({name: [row[name] for row in rows] for name in ("input_ids", "labels")})
