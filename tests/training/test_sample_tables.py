"""Samples as tables: the whole text by hand, a row a candidate in parquet, and no user anywhere."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from llmrec.errors import InputError
from llmrec.training.rollout_group import Group
from llmrec.training.sample_tables import SampleTables
from llmrec.vocab import SIDVocab

ROWS = [
    {"prompt": "..", "history": [4, 5, 6], "target": 2, "user_row": 987654},
    {"prompt": "..", "history": [], "target": 9, "user_row": 987655},
]
REWARDS = torch.tensor([[[0.0, 0.5], [1.0, 0.25], [0.0, 0.0]], [[0.0, 0.5], [0.0, torch.nan], [0.0, 0.0]]])
TITLES = [f"Pen {row}" for row in range(29)] + ["x" * 200]

TEXT = """# Samples at step 40

## Prompt 1: Pen 2 (place 3 of 3)

1 earlier items, then:

2. Pen 5
3. Pen 6

| rank | candidate | log-prob | reward exact\\_match | reward novelty | reward | advantage |
|---:|---|---:|---:|---:|---:|---:|
| 1 | Pipe \\| \\*pen\\* `SID0` | -0.500 | 0.000 | 0.500 | 1.000 | 1.000 |
| 2 | Pen 1 `SID1` | -1.000 | 1.000 | 0.250 | 1.500 | 0.000 |
| 3 | **Pen 2 `SID2`** | -1.500 | 0.000 | 0.000 | 0.000 | -1.000 |

## Prompt 2: Pen 9 (not among 3)

No history.

| rank | candidate | log-prob | reward exact\\_match | reward novelty | reward | advantage |
|---:|---|---:|---:|---:|---:|---:|
| 1 | Pen 3 `SID3` | -0.500 | 0.000 | 0.500 | 1.000 | 0.000 |
| 2 | Pen 4 `SID4` | -1.000 | 0.000 |  | 0.000 | 0.000 |
"""


def group(vocab: SIDVocab) -> Group:
    rows = torch.tensor([[0, 1, 2], [3, 4, 5]])
    return Group(
        token_ids=vocab.item_token_ids[rows], rows=rows, ranks=torch.arange(3).repeat(2, 1),
        log_probs=torch.tensor([[-0.5, -1.0, -1.5]] * 2), leaves=rows, target_places=torch.tensor([2, -1]),
        added=torch.zeros(2, dtype=torch.bool),
    )  # fmt: skip


def write(tables: SampleTables, vocab: SIDVocab, step: int = 40) -> str:
    advantages = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    return tables.write(
        step, ROWS, group(vocab), REWARDS, names=["exact_match", "novelty"], weights=[1.0, 2.0], advantages=advantages
    )


def test_the_text_by_hand(vocab: SIDVocab, tmp_path: Path):
    titles = ["Pipe | *pen*", *TITLES[1:]]
    tables = SampleTables(tmp_path, vocab=vocab, titles=titles, every=20, candidates=2, history=2)
    text = write(tables, vocab)
    expected = TEXT
    for row in range(5):
        expected = expected.replace(f"SID{row}", vocab.tokens(row))
    assert text.strip() == expected.strip()
    assert (tmp_path / "samples" / "step-000040.md").read_text() == text


def test_every_candidate_has_a_row_and_no_user_is_named(vocab: SIDVocab, tmp_path: Path):
    tables = SampleTables(tmp_path, vocab=vocab, titles=TITLES, prompts=1)
    text = write(tables, vocab, step=0)
    table = pq.read_table(tmp_path / "samples" / "step-000000.parquet")
    assert table.num_rows == 3  # one prompt is shown
    rows = table.to_pylist()
    assert rows[2] | {"sid": ""} == {
        "prompt": 0, "history": ["Pen 4", "Pen 5", "Pen 6"], "target": "Pen 2", "rank": 3, "title": "Pen 2", "sid": "",
        "is_target": True, "log_prob": -1.5, "reward exact_match": 0.0, "reward novelty": 0.0, "reward": 0.0,
        "advantage": -1.0,
    }  # fmt: skip
    assert "98765" not in text + str(rows)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-000000.md", "step-000000.parquet"]


def test_items_without_titles_show_their_ids_and_long_titles_are_cut(vocab: SIDVocab, tmp_path: Path):
    assert SampleTables(tmp_path, vocab=vocab, titles=None).title(3) == "i3"
    tables = SampleTables(tmp_path, vocab=vocab, titles=["", "two\n lines\there", *TITLES[2:]])
    assert tables.title(0) == "i0"
    assert tables.title(1) == "two lines here"
    assert tables.title(29) == "x" * 79 + "…"


def test_when_a_table_is_due(vocab: SIDVocab, tmp_path: Path):
    tables = SampleTables(tmp_path, vocab=vocab, titles=None, every=50)
    assert [step for step in range(120) if tables.due(step, since=step - 1)] == [0, 50, 100]
    # candidates are drawn every third step
    assert [step for step in range(0, 120, 3) if tables.due(step, since=step - 3)] == [0, 51, 102]
    assert not SampleTables(tmp_path, vocab=vocab, titles=None, every=0).due(0, since=-1)
    with pytest.raises(InputError, match="samples: prompts 0: at least 1"):
        SampleTables(tmp_path, vocab=vocab, titles=None, prompts=0)
