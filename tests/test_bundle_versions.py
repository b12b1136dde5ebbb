"""Bundles of every format version still load, and still give the answers they gave when they were saved.

A new version gets a fixture beside the old ones, never in their place. That of version 1 was made by

cd tests && HF_HUB_OFFLINE=1 python -c "
from pathlib import Path
from bundle_kit import PLAIN, exact_top, write_bundle
made = write_bundle(Path('fixtures/bundle_v1'), PLAIN)
print(exact_top(made.model, PLAIN.encode_history(made.tokenizer, made.vocab, [5, 12]), made.vocab, 3))"
"""

from pathlib import Path

import pytest
from bundle_kit import ITEMS, TITLES, exact_top

from llmrec.hub import INFO_FILE, load_bundle
from llmrec.hub.info import FORMAT_VERSION
from llmrec.tasks.prompt import PromptForm

FIXTURES = Path(__file__).parent / "fixtures"
TOP = {1: ['i"0', 'i"35', 'i"16']}


def test_every_version_has_a_fixture_and_an_answer():
    assert list(TOP) == list(range(1, FORMAT_VERSION + 1))
    for version in TOP:
        files = list((FIXTURES / f"bundle_v{version}").iterdir())
        assert sum(file.stat().st_size for file in files) < 200_000
        assert INFO_FILE in {file.name for file in files}


@pytest.mark.parametrize("version", TOP)
def test_a_bundle_gives_the_answer_it_gave(version: int):
    bundle = load_bundle(FIXTURES / f"bundle_v{version}")
    assert bundle.info["format_version"] == version
    assert (len(bundle.table), bundle.titles) == (ITEMS, TITLES)
    form = PromptForm(**bundle.info["prompt"])
    history = [bundle.table.item_ids.index(item_id) for item_id in ('i"5', 'i"12')]
    prompt = form.encode_history(bundle.tokenizer, bundle.vocab, history)
    assert exact_top(bundle.model, prompt, bundle.vocab, 3) == TOP[version]
