"""Fixtures shared by all tests: synthetic datasets, tiny tokenizers and models, and the folder of real data."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that LLMREC_REAL_DATA names; tests that ask for it are skipped where it is not set."""
    name = os.environ.get("LLMREC_REAL_DATA")
    if not name:
        pytest.skip("LLMREC_REAL_DATA is not set")
    path = Path(name)
    assert path.is_dir(), f"LLMREC_REAL_DATA={name} is no folder"
    return path
