"""Let a chat model write texts about users: what it is asked, about which moments, and shards that survive a kill."""

import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from llmrec.artifacts import read_json, text_sha256, whole_file, write_json
from llmrec.data.folder import DatasetFolder
from llmrec.data.splits import Splits
from llmrec.data.written_texts import KINDS, save_written_texts, written_path
from llmrec.errors import InputError
from llmrec.tasks.history_text import HISTORY_TITLE_CHARACTERS
from llmrec.tasks.inputs import Moment, TaskInputs
from llmrec.tasks.prompt import chat_text, end_token_id
from llmrec.tasks.short_text import DESCRIPTION_CHARACTERS, short_column, short_text, short_titles

TEMPLATES = {
    "intentions": (
        "A customer took these items, oldest first:{history}\nThen they took: {item}{review}\nIn one sentence, as the "
        "customer would say it before, write what they were looking for. Do not name the item."
    ),
    "preferences": (
        "A customer took these items, oldest first:{history}\nIn one or two sentences, write what this customer likes "
        "and is likely to need next."
    ),
    "explanations": (
        "A customer took these items, oldest first:{history}\nThen they took: {item}{review}\nIn one sentence, "
        "explain why this item fits the customer."
    ),
    "rationales": (
        "A customer took these items, oldest first:{history}\nThen they took: {item}\nIn one or two sentences, reason "
        "from the earlier items to what the customer needs next. Do not name the item."
    ),
}
"""By kind: what the model is asked; fields ``{history}``, ``{item}`` and ``{review}`` (blank where there is none)."""

FIELDS = ("history", "item", "review")
THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True)
class WritingRequest:
    """One text to be written.

    Args:
        user_id: whom it is about.
        item_id: the item taken at the position; None for a preference.
        position: the number of the user's interactions that the text may know, the item's own not counted.
        prompt: what the model is asked.
    """

    user_id: str
    item_id: str | None
    position: int
    prompt: str


def writing_requests(
    dataset: DatasetFolder,
    splits: Splits,
    kind: str,
    *,
    template: str | None = None,
    per_user: int = 2,
    limit: int | None = None,
    history: int = 10,
    seed: int = 0,
) -> list[WritingRequest]:
    """Return what a model is asked to write; nothing but training interactions stands in it.

    The moments are a seeded sample of each user's training interactions that have a history. Preferences are written
    at the end of each user's training interactions too, where they may serve validation and test.

    Args:
        dataset: the dataset folder.
        splits: its rows.
        kind: a kind of written texts.
        template: what the model is asked; None takes that of `TEMPLATES`.
        per_user: most moments of a user; 0 takes all.
        limit: most texts in all, a seeded sample; None takes all.
        history: most recent items that the model is told.
        seed: of the samples.

    Raises:
        InputError: another kind, a template with other fields or without the history, or nothing to write about.
    """
    if kind not in KINDS:
        raise InputError(f"kind {kind!r} of written texts: choose one of {', '.join(KINDS)}")
    template = check_template(TEMPLATES[kind] if template is None else template, kind)
    inputs = TaskInputs.of(dataset, splits)
    lines = [f"\n- {title}" for title in short_titles(dataset.catalog, HISTORY_TITLE_CHARACTERS)]
    names = _item_texts(dataset)
    reviews = inputs.texts("review") if "review" in inputs.interactions.texts else None
    user_ids, item_ids = dataset.interactions.user_ids, dataset.catalog.item_ids

    def request(moment: Moment, shown: Sequence[int], position: int, *, about: bool) -> WritingRequest:
        review = short_text(reviews[moment.row], DESCRIPTION_CHARACTERS) if reviews and about else ""
        values = {
            "history": "".join(lines[item] for item in shown[-history:]),
            "item": names[moment.item] if about else "",
            "review": f"\nWhat they said of it: {review}" if review else "",
        }
        item_id = item_ids[moment.item] if about else None
        return WritingRequest(user_ids[moment.user], item_id, position, template.format(**values))

    requests = []
    for moments in _by_user(inputs):
        rng = random.Random(f"{seed}/{user_ids[moments[0].user]}")
        places = [place for place, moment in enumerate(moments) if moment.history]
        if per_user:
            places = sorted(rng.sample(places, min(per_user, len(places))))
        about = kind != "preferences"
        requests += [
            request(moments[place], moments[place].history, moments[place].position, about=about) for place in places
        ]
        if not about:
            last = moments[-1]
            requests.append(request(last, (*last.history, last.item), last.position + 1, about=False))
    if limit is not None:
        chosen = random.Random(seed).sample(range(len(requests)), min(limit, len(requests)))
        requests = [requests[place] for place in sorted(chosen)]
    if not requests:
        raise InputError(f"{dataset.path}: no training interaction has a history; there is nothing to write about")
    return requests


def check_template(template: str, kind: str) -> str:
    """Return a template whose fields are known.

    Raises:
        InputError: another field, no ``{history}``, or ``{item}`` where the kind knows none.
    """
    try:
        fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise InputError(f"template: {error}; write a brace of its own twice, {{{{") from error
    allowed = set(FIELDS) if kind != "preferences" else {"history"}
    if "history" not in fields or fields - allowed:
        found = ", ".join(f"{{{name}}}" for name in sorted(fields)) or "none"
        known = ", ".join(f"{{{name}}}" for name in FIELDS if name in allowed)
        raise InputError(f"template of {kind}: its fields are {found}; use {{history}}, and no others than {known}")
    return template


def _item_texts(dataset: DatasetFolder) -> list[str]:
    described = short_column(dataset.catalog, "description", DESCRIPTION_CHARACTERS)
    titles = short_titles(dataset.catalog)
    return [f"{title} ({text})" if text else title for title, text in zip(titles, described, strict=True)]


def _by_user(inputs: TaskInputs) -> Iterator[list[Moment]]:
    own: list[Moment] = []
    for moment in inputs.moments():
        if own and own[0].user != moment.user:
            yield own
            own = []
        own.append(moment)
    if own:
        yield own


@torch.inference_mode()
def generate_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    batch_size: int = 8,
    max_new_tokens: int = 80,
    max_characters: int = DESCRIPTION_CHARACTERS,
) -> list[str]:
    """Return what a model answers to each prompt, greedily: the same model writes the same texts.

    Prompts stand in the user's turn of the tokenizer's chat template where it has one. What a model thinks between
    ``<think>`` marks is left out; an answer that never leaves them is blank.

    Args:
        model: a causal language model; its own generation settings are set aside.
        tokenizer: its tokenizer.
        prompts: what is asked.
        batch_size: prompts in a pass, those of like length together.
        max_new_tokens: most tokens of an answer.
        max_characters: most characters of an answer, which is cut at a space.
    """
    kind = "chat" if tokenizer.chat_template is not None else "plain"
    if kind == "chat":
        encoded = [tokenizer.encode(chat_text(tokenizer, text), add_special_tokens=False) for text in prompts]
    else:
        encoded = [tokenizer.encode(f"{text}\n") for text in prompts]
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = sorted({end_token_id(tokenizer, kind), *([own] if isinstance(own, int) else own or [])})
    pad = cast(int, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0])
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=ends
    )
    answers = [""] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda place: -len(encoded[place]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        length = len(encoded[batch[0]])
        ids = torch.full((len(batch), length), pad)
        mask = torch.zeros_like(ids)
        for row, place in enumerate(batch):
            ids[row, length - len(encoded[place]) :] = torch.tensor(encoded[place])
            mask[row, length - len(encoded[place]) :] = 1
        found = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
        for place, tokens in zip(batch, found[:, length:].tolist(), strict=True):
            answers[place] = clean_answer(str(tokenizer.decode(tokens, skip_special_tokens=True)), max_characters)
    return answers


def clean_answer(text: str, max_characters: int) -> str:
    """Return an answer as one line without thoughts or quotes around it; blank where it never left its thoughts."""
    text = THOUGHT.sub("", text)
    if "<think>" in text:
        return ""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    return short_text(text, max_characters)


def check_unwritten(dataset: Path, kind: str, *, overwrite: bool = False) -> None:
    """Check, before any work is done, that a dataset folder may get the texts of a kind.

    Raises:
        InputError: it holds them already, and may not lose them.
    """
    path = written_path(dataset, kind)
    if path.exists() and not overwrite:
        raise InputError(f"{path}: is there already; give --overwrite to write it anew")


@dataclass(frozen=True)
class Shards:
    """Answers on their way, a file for each run of requests, beside the file that they end in.

    Args:
        folder: where they lie.
        requests: all that is to be written.
        size: requests of a shard.
    """

    folder: Path
    requests: Sequence[WritingRequest]
    size: int

    @classmethod
    def open(
        cls, dataset: Path, kind: str, requests: Sequence[WritingRequest], *, identity: dict[str, Any], size: int,
        overwrite: bool = False,
    ) -> "Shards":  # fmt: skip
        """Start shards, or go on with those of the same requests to the same model.

        Args:
            dataset: the dataset folder.
            kind: the kind of texts.
            requests: all that is to be written.
            identity: model, settings and whatever else decides the texts.
            size: requests of a shard.
            overwrite: whether shards of other requests may go.

        Raises:
            InputError: shards of other requests, without ``overwrite``.
        """
        folder = Path(dataset) / f"{kind}.shards"
        asked = text_sha256(*(f"{item.user_id}\n{item.position}\n{item.prompt}" for item in requests))
        identity = {**identity, "requests": asked, "shard_size": size}
        sheet = folder / "request.json"
        if folder.exists():
            there = read_json(sheet, "request of the shards") if sheet.is_file() else {}
            changed = [name for name in identity if there.get(name) != identity[name]]
            if changed and not overwrite:
                raise InputError(
                    f"{folder}: holds shards of another request (other {', '.join(changed)}); start that command "
                    "again, or give --overwrite to begin anew"
                )
            if changed:
                shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        write_json(sheet, identity)
        return cls(folder, requests, size)

    def write(self, answer: Callable[[list[str]], list[str]], *, progress: bool = True) -> int:
        """Have every shard written that is not there, and return how many texts were.

        Args:
            answer: gives the answers to prompts.
            progress: whether to show a bar.
        """
        written = 0
        with tqdm(total=len(self.requests), desc="texts", unit="text", disable=not progress, mininterval=0.5) as bar:
            for number, start in enumerate(range(0, len(self.requests), self.size)):
                prompts = [item.prompt for item in self.requests[start : start + self.size]]
                if not self._path(number).is_file():
                    texts = answer(prompts)
                    with whole_file(self._path(number)) as part:
                        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), part)
                    written += len(texts)
                bar.update(len(prompts))
        return written

    def join(self, kind: str, manifest: dict[str, Any]) -> tuple[Path, int]:
        """Join the shards into the dataset folder's file, without blank texts, and delete them.

        Args:
            kind: the kind of texts.
            manifest: what it says of who wrote them; how many were blank is added.

        Returns:
            The file, and how many texts it holds.
        """
        count = -(-len(self.requests) // self.size)
        texts = [
            text for number in range(count) for text in pq.read_table(self._path(number)).column("text").to_pylist()
        ]
        kept = [(item, text) for item, text in zip(self.requests, texts, strict=True) if text.strip()]
        if not kept:
            raise InputError(f"{self.folder}: every text is blank; give more --max_new_tokens, or another model")
        path = save_written_texts(
            self.folder.parent,
            kind,
            user_ids=[item.user_id for item, _ in kept],
            item_ids=None if kind == "preferences" else [str(item.item_id) for item, _ in kept],
            positions=[item.position for item, _ in kept],
            texts=[text for _, text in kept],
            manifest={**manifest, "blank": len(texts) - len(kept)},
        )
        shutil.rmtree(self.folder)
        return path, len(kept)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.parquet"
