"""Nine items: one SID that two share, two that are shorter, and a retired item."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from llmrec.data.items import Catalog
from llmrec.rewards.inputs import RewardInputs
from llmrec.sids.table import SIDTable
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

CODES = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1), (2, -1, -1), (3, 0, 0), (3, 0, 0), (3, 1, -1)]
POPULARITY = [10, 5, 1, 3, 2, 4, 1, 6, 0]


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    ids = tuple(f"i{row}" for row in range(len(CODES)))
    return Catalog(ids, {"title": tuple(f"red pen no. {row}" for row in range(len(CODES)))})


@pytest.fixture(scope="session")
def table(catalog: Catalog) -> SIDTable:
    retired = np.arange(len(CODES)) == 4
    return SIDTable(catalog.item_ids, np.array(CODES), (4, 2, 2), retired=retired)


@pytest.fixture(scope="session")
def tokenizer(catalog: Catalog, table: SIDTable) -> PreTrainedTokenizerBase:
    made = train_tokenizer(catalog.titles, vocab_size=320)
    add_sid_tokens(made, table)
    return made


@pytest.fixture(scope="session")
def vocab(tokenizer: PreTrainedTokenizerBase, table: SIDTable) -> SIDVocab:
    return SIDVocab(tokenizer, table, popularity=POPULARITY)


@pytest.fixture(scope="session")
def inputs(catalog: Catalog, tokenizer: PreTrainedTokenizerBase) -> RewardInputs:
    return RewardInputs(4, catalog=catalog, popularity=np.array(POPULARITY), tokenizer=tokenizer)
