"""The table of SID tokenizers, and loading one without knowing its class."""

from pathlib import Path

from llmrec.artifacts import read_json
from llmrec.errors import InputError
from llmrec.registry import resolve
from llmrec.sids.base import SIDTokenizer
from llmrec.sids.quantizer import CONFIG_NAME
from llmrec.sids.random_codes import RandomCodes
from llmrec.sids.residual_kmeans import ResidualKMeans

SID_TOKENIZERS: dict[str, type[SIDTokenizer]] = {
    "residual_kmeans": ResidualKMeans,
    "random": RandomCodes,
}


def load_sid_tokenizer(path: str | Path) -> SIDTokenizer:
    """Load a fitted SID tokenizer, whichever method made it.

    Args:
        path: a folder with ``quantizer.json``, whose ``method`` is a key of `SID_TOKENIZERS` or
            ``package.module:attribute``.

    Raises:
        InputError: a missing or unreadable file, or an unknown method.
    """
    config = read_json(Path(path) / CONFIG_NAME, "quantizer config")
    if not isinstance(config, dict) or not isinstance(config.get("method"), str):
        raise InputError(f"{Path(path) / CONFIG_NAME}: no 'method'; learn the SIDs again")
    return resolve(config["method"], SID_TOKENIZERS, "SID tokenizer").from_pretrained(path)
