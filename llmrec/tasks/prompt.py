"""Prompt forms: how an example's prompt becomes token ids, the same in training, evaluation and serving."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from llmrec.errors import InputError
from llmrec.vocab import SIDVocab

KINDS = ("plain", "chat")
CHAT_TEMPLATES = {
    "next_item": "A customer took these {domain}, oldest first: {prompt}\nWhich one comes next? Answer with its ID.",
    "next_session": "{prompt}\nAnswer with their IDs, one after the other.",
    "history_title_to_sid": "{prompt}\nAnswer with the ID alone.",
    "sid_to_title": "{prompt}\nAnswer with the title alone.",
    "title_to_sid": "{prompt}\nAnswer with the ID alone.",
    "sid_history_to_title": "{prompt}\nAnswer with the title alone.",
    "description_to_sid": "{prompt}\nAnswer with the ID alone.",
    "attributes_to_sid": "{prompt}\nAnswer with the ID alone.",
    "sid_to_category": "{prompt}\nAnswer with the category alone.",
    "prefix_to_category": "{prompt}\nAnswer with the category alone.",
    "similar_items": "{prompt}\nAnswer with the ID alone.",
    "query_to_sid": "{prompt}\nAnswer with the ID alone.",
    "intention_to_sid": "{prompt}\nAnswer with the ID alone.",
    "preference_to_sid": "{prompt}\nAnswer with the ID alone.",
    "review_to_sid": "{prompt}\nAnswer with the ID alone.",
    "denoise": "{prompt}\nAnswer with the ID alone.",
    "profile_to_sid": "{prompt}\nAnswer with the ID alone.",
    "rating": "{prompt}\nAnswer with the number alone.",
}
"""What a chat model is told around a prompt, by task; a bundle keeps the templates that it was trained with."""


@dataclass(frozen=True)
class PromptForm:
    """How prompts are written.

    ``plain``: a start token, then the prompt as it is; a ``next_item`` prompt is the SIDs of the history one after
    another, so that one row of a user's whole history supervises every position with the same conditionals.
    ``chat``: the prompt, wrapped by its task's template, is the user's turn of the tokenizer's chat template.

    Args:
        kind: ``plain`` or ``chat``.
        domain: the dataset's phrase for its items ("office products").
        templates: by task, text with ``{prompt}`` and optionally ``{domain}``; a task without one is not wrapped.
        max_history: most recent items that a prompt keeps.

    Raises:
        InputError: another kind, a template without ``{prompt}``, or ``max_history`` below 1.
    """

    kind: str = "plain"
    domain: str = "items"
    templates: Mapping[str, str] = field(default_factory=dict)
    max_history: int = 20

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"prompt form {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.max_history < 1:
            raise InputError(f"max_history {self.max_history}: a prompt keeps at least 1 item")
        for task, template in self.templates.items():
            if "{prompt}" not in template:
                raise InputError(f"prompt template of task {task!r}: no {{prompt}} in {template!r}")

    @classmethod
    def named(cls, kind: str, *, domain: str, max_history: int) -> "PromptForm":
        """Return the form ``plain``, without templates, or ``chat``, with this package's."""
        return cls(kind, domain, CHAT_TEMPLATES if kind == "chat" else {}, max_history)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``llmrec.json`` holds of it."""
        return {**asdict(self), "templates": dict(self.templates)}

    def content(self, prompt: str, task: str) -> str:
        """Return the prompt inside its task's template."""
        template = self.templates.get(task, "{prompt}")
        return template.replace("{domain}", self.domain).replace("{prompt}", prompt)

    def encode(self, tokenizer: PreTrainedTokenizerBase, prompt: str, task: str) -> list[int]:
        """Return the token ids of a whole prompt, ready for the first token of the completion."""
        content = self.content(prompt, task)
        if self.kind == "plain":
            return [start_token_id(tokenizer), *tokenizer.encode(content, add_special_tokens=False)]
        return tokenizer.encode(chat_text(tokenizer, content), add_special_tokens=False)

    def encode_history(self, tokenizer: PreTrainedTokenizerBase, vocab: SIDVocab, history: Sequence[int]) -> list[int]:
        """Return the ``next_item`` prompt of a history of item rows; equal to `encode` of its SIDs' text."""
        recent = history[-self.max_history :]
        if self.kind == "plain" and "next_item" not in self.templates:
            return [start_token_id(tokenizer), *(token for row in recent for token in vocab.token_ids(row))]
        return self.encode(tokenizer, history_text(vocab, recent), "next_item")


def history_text(vocab: SIDVocab, history: Sequence[int]) -> str:
    """Return the SIDs of a history, oldest first, without anything between them."""
    return "".join(vocab.tokens(row) for row in history)


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that opens a plain prompt: the tokenizer's BOS, else EOS, else padding.

    Raises:
        InputError: the tokenizer has none of them.
    """
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token_id is not None:
            return cast(int, token_id)
    raise InputError("tokenizer: it has no BOS, EOS or padding token; set one of them before training")


def chat_text(tokenizer: PreTrainedTokenizerBase, content: str) -> str:
    """Return the chat template around one user turn, up to where the answer starts.

    Raises:
        InputError: the tokenizer has no chat template.
    """
    _check_chat(tokenizer)
    messages = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return str(text)


def end_token_id(tokenizer: PreTrainedTokenizerBase, kind: str) -> int:
    """Return the token that ends an answer: EOS in the plain form, the template's end of turn in the chat form."""
    if kind == "chat":
        _check_chat(tokenizer)
        mark = "ANSWER"
        messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": mark}]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False))
        # White space that a template puts before its mark ends nothing.
        after = tokenizer.encode(text[text.rindex(mark) + len(mark) :].lstrip(), add_special_tokens=False)
        if after:
            return after[0]
    if tokenizer.eos_token_id is None:
        raise InputError("tokenizer: it has no EOS token; set one before training")
    return cast(int, tokenizer.eos_token_id)


def _check_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.chat_template is None:
        raise InputError("tokenizer: it has no chat template; use prompt form 'plain', or an instruct model")
