"""Text to vectors with any Hugging Face encoder or causal language model."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from llmrec.artifacts import file_sha256
from llmrec.embeddings.cache import RowCache, row_key
from llmrec.embeddings.store import check_vectors
from llmrec.errors import InputError

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FINGERPRINT_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja"}
TOKENIZE_ROWS = 1024


def pool_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average ``(batch, length, dim)`` hidden states over the tokens that ``(batch, length)`` ``mask`` holds."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def pool_cls(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the first token of ``(batch, length, dim)`` hidden states padded on the right."""
    return hidden[:, 0]


def pool_last(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the last token that ``mask`` holds of ``(batch, length, dim)`` hidden states padded on the right."""
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": pool_mean, "cls": pool_cls, "last": pool_last}


def folder_fingerprint(path: str | Path) -> str:
    """Return the revision of a model in a local folder: a SHA-256 over the contents of its own model files.

    Config, tokenizer and weights count (JSON, safetensors, text); a README does not, nor does the folder's name.
    """
    files = sorted(file for file in Path(path).iterdir() if file.suffix in FINGERPRINT_SUFFIXES and file.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}={file_sha256(file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


@dataclass(frozen=True)
class TextEncoder:
    """A model, its tokenizer, and how hidden states become one vector a text. Made by `load_encoder`.

    Args:
        model: gives ``last_hidden_state`` of ``input_ids`` and ``attention_mask``.
        tokenizer: its tokenizer.
        name: hub name or folder.
        revision: commit of the hub, or the `folder_fingerprint` of a local folder.
        pooling: a key of `POOLINGS`.
        normalize: scale vectors to length 1.
        max_length: most tokens of a text, special ones included; the rest is cut off at the right.
        dtype: of the forward pass; vectors are float32 always.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str
    pooling: str = "mean"
    normalize: bool = True
    max_length: int = 256
    dtype: str = "float32"

    @property
    def settings(self) -> dict[str, Any]:
        """What the manifest holds of the encoder."""
        return {
            "encoder": self.name,
            "revision": self.revision,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_length": self.max_length,
            "dtype": self.dtype,
        }

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.model.parameters()).device

    @property
    def identity(self) -> str:
        """Everything that changes a vector but the text; a local model is known by its contents, not by its path."""
        name = "" if self.revision.startswith("sha256:") else self.name
        return "|".join(
            [name, self.revision, self.pooling, str(self.normalize), str(self.max_length), self.dtype]
        )  # fmt: skip

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, cut to ``max_length`` at the right.

        Raises:
            InputError: a text of which the tokenizer makes no token.
        """
        rows: list[list[int]] = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, padding=False, verbose=False
        )["input_ids"]  # pyright: ignore[reportAssignmentType]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise InputError(
                    f"{self.name}: its tokenizer makes no token of the text {text!r}; give the item a title"
                )
        return rows

    @torch.inference_mode()
    def encode_batch(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Return ``(batch, dim)`` float32 vectors of token ids, padded on the right here."""
        length = max(len(row) for row in token_ids)
        # Any id will do for padding: the mask hides it, and the tokens to its left do not look right or are masked.
        ids = torch.zeros((len(token_ids), length), dtype=torch.long)
        mask = torch.zeros((len(token_ids), length), dtype=torch.long)
        for index, row in enumerate(token_ids):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        vectors = POOLINGS[self.pooling](hidden, mask)
        if self.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu().numpy()


def load_encoder(
    name: str,
    *,
    revision: str | None = None,
    pooling: str = "mean",
    normalize: bool = True,
    max_length: int = 256,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
) -> TextEncoder:
    """Load an encoder or causal language model by hub name or folder; of an encoder-decoder the encoder is taken.

    Args:
        name: hub name or folder; weights in safetensors.
        revision: branch, tag or commit on the hub.
        pooling: ``mean``, ``cls`` (first token) or ``last`` (last token, for causal models).
        normalize: scale vectors to length 1.
        max_length: most tokens of a text.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: where the model runs.
        trust_remote_code: run code that the model's repository brings along.

    Raises:
        InputError: the model cannot be loaded, an unknown pooling or dtype, or a ``max_length`` that it cannot take.
    """
    if pooling not in POOLINGS:
        raise InputError(f"pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    local = Path(name).is_dir()
    options: dict[str, Any] = {"revision": None if local else revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model: Any = AutoModel.from_pretrained(name, dtype=DTYPES[dtype], use_safetensors=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"encoder {name!r} cannot be loaded ({str(error).strip().splitlines()[0]}); give a hub name or a folder "
            "with config.json, tokenizer and safetensors weights, or 'tfidf'"
        ) from error
    fewest = tokenizer.num_special_tokens_to_add() + 1
    most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 10**9)
    if not fewest <= max_length <= most:
        raise InputError(
            f"max_length {max_length}: encoder {name!r} takes {fewest} to {most} tokens; set --max_length"
        )
    tokenizer.truncation_side = "right"
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    found = folder_fingerprint(name) if local else getattr(model.config, "_commit_hash", None)
    return TextEncoder(
        model.eval().to(device), tokenizer, name, found or revision or "unknown", pooling, normalize, max_length, dtype
    )


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group rows of like length, longest first.

    Args:
        lengths: tokens of each row.
        max_tokens: most tokens of a batch, padding included; a longer row is a batch of its own.

    Returns:
        Row numbers, each once. Equal lengths keep their order.
    """
    batches: list[list[int]] = []
    width = 0
    for row in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if not batches or (len(batches[-1]) + 1) * width > max_tokens:
            batches.append([])
            width = lengths[row]
        batches[-1].append(row)
    return batches


def encode_texts(
    encoder: TextEncoder,
    texts: Sequence[str],
    *,
    cache: RowCache,
    max_tokens: int = 4096,
    process: int = 0,
    processes: int = 1,
) -> None:
    """Encode this process's share of the texts that the cache lacks, into the cache.

    Equal texts are encoded once. Batches are made of all texts and dealt to the processes in turn, so that two
    processes, or a run that was killed and started again, give the very numbers of one uninterrupted process.
    When every process is done, ``cache.gather`` of the texts' `row_key` gives the vectors.

    Args:
        encoder: what encodes.
        texts: one an item.
        cache: where finished rows go.
        max_tokens: most tokens of a batch, padding included.
        process: number of this process, from 0.
        processes: how many there are.

    Raises:
        InputError: ``max_tokens`` below 1, a text without tokens, or a vector with NaN or infinite values.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens {max_tokens}: a batch holds at least 1 token")
    key_of = {text: row_key(text, encoder.identity) for text in texts}
    done = cache.keys()
    distinct = list(key_of)
    if all(key in done for key in key_of.values()):
        logger.info("all %d distinct texts are in %s", len(distinct), cache.folder)
        return
    quiet = process != 0
    tokens: list[list[int]] = []
    for start in tqdm(range(0, len(distinct), TOKENIZE_ROWS), desc="tokenise", unit="k", disable=quiet, leave=False):
        tokens.extend(encoder.tokenize(distinct[start : start + TOKENIZE_ROWS]))
    batches = length_batches([len(row) for row in tokens], max_tokens)[process::processes]
    share = sum(len(batch) for batch in batches)
    try:
        with tqdm(total=share, desc="encode", unit="text", disable=quiet) as progress:
            for batch in batches:
                rows = [row for row in batch if key_of[distinct[row]] not in done]
                if rows:
                    vectors = encoder.encode_batch([tokens[row] for row in rows])
                    check_vectors(vectors, source=f"encoder {encoder.name!r} in {encoder.dtype}")
                    cache.add([key_of[distinct[row]] for row in rows], vectors)
                progress.update(len(batch))
    finally:
        cache.flush()
