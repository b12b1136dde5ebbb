"""General conversation, mixed in so that a model keeps its language."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.tasks.example import Example
from llmrec.tasks.option_checks import check_least
from llmrec.vocab import SIDVocab

ROLES = ("system", "user", "assistant")
Messages = Sequence[Mapping[str, str]]


def chat_data(
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    rng: random.Random,
    *,
    path: str | None = None,
    limit: int | None = None,
    max_characters: int = 2000,
) -> Iterator[Example]:
    """Yield one example an answer of a conversation: what was said before in the prompt, the answer as the completion.

    The prompt of a conversation of one question is the question on a line; longer ones name who speaks. In the chat
    form all of it is the user's turn. An example of more than ``max_characters`` is left out, not cut.

    Args:
        catalog: not read.
        vocab: not read.
        histories: not read.
        rng: draws which conversations are taken under a limit.
        path: a ``.jsonl`` or ``.parquet`` file; a row has ``messages``, each of a ``role`` (system, user or assistant)
            and ``content``.
        limit: most conversations, a seeded sample; None takes all.
        max_characters: most characters of prompt and answer together.

    Raises:
        InputError: no path, or a file that does not hold conversations.

    Paper: OpenOneRec (2025), general text in the mixture of its training.
    """
    check_least("chat_data", max_characters=max_characters)
    if path is None:
        raise InputError(
            "task 'chat_data': no path; write tasks: {chat_data: {weight: 1.0, path: FILE}} with a .jsonl or .parquet "
            "file of messages"
        )
    conversations = read_conversations(path)
    if limit is not None:
        check_least("chat_data", limit=limit)
        conversations = rng.sample(conversations, min(limit, len(conversations)))
    for messages in conversations:
        for prompt, answer in turns(messages):
            if len(prompt) + len(answer) <= max_characters:
                yield Example(prompt, answer, None, "chat_data")


def turns(messages: Messages) -> Iterator[tuple[str, str]]:
    """Yield what was said before each answer, rendered without a template, and the answer.

    Args:
        messages: a conversation that `read_conversations` checked.
    """
    for place, message in enumerate(messages):
        if message["role"] != "assistant" or not message["content"].strip():
            continue
        before = [part for part in messages[:place] if part["content"].strip()]
        spoken = [part for part in before if part["role"] != "system"]
        if not spoken:
            continue
        lines = [part["content"].strip() for part in before if part["role"] == "system"]
        if len(spoken) == 1:
            lines.append(spoken[0]["content"].strip())
        else:
            lines += [f"{part['role'].capitalize()}: {part['content'].strip()}" for part in spoken]
            lines.append("Assistant:")
        yield "\n".join(lines) + "\n", message["content"].strip()


def read_conversations(path: str | Path) -> list[Messages]:
    """Read and check a file of conversations.

    Args:
        path: a ``.jsonl`` file with an object a line, or a ``.parquet`` file; either has ``messages``, a list of
            ``role`` and ``content``.

    Raises:
        InputError: no such file, another ending, no messages, an unknown role, or content that is no text.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected conversations, .jsonl or .parquet with messages")
    if path.suffix == ".jsonl":
        rows = _read_lines(path)
    elif path.suffix == ".parquet":
        rows = _read_parquet(path)
    else:
        raise InputError(f"{path}: ends in {path.suffix!r}; expected conversations in .jsonl or .parquet")
    if not rows:
        raise InputError(f"{path}: it holds no conversations; expected one a row")
    for number, messages in enumerate(rows):
        _check_messages(messages, f"{path}: row {number}")
    return rows


def _read_lines(path: Path) -> list[Any]:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise InputError(f"{path}: line {number + 1} is no JSON ({error}); write one object a line") from error
            rows.append(row.get("messages") if isinstance(row, dict) else row)
    return rows


def _read_parquet(path: Path) -> list[Any]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error})") from error
    with file:
        if "messages" not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise InputError(f"{path}: no column 'messages'; it has {names}")
        return file.read(columns=["messages"]).column("messages").to_pylist()


def _check_messages(messages: Any, place: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{place}: messages is {messages!r:.60}; expected a list of role and content")
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise InputError(f"{place}: a message has role {role!r}; expected one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise InputError(f"{place}: a message of {role} has content {message.get('content')!r:.60}; expected text")
