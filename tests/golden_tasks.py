"""A small catalogue with everything that hurts, and files of the examples that tasks make of it, to be read by eye.

``tests/tasks/golden/TASK.json`` holds what each task yields on it. When a wording changes on purpose, delete the file,
run the test once (it writes the file and fails), and read what it wrote before it is committed.
"""

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.sids.table import SIDTable, pad_codes
from llmrec.tasks.example import Example
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

FOLDER = Path(__file__).parent / "tasks" / "golden"

# Quotes, commas, braces, non-ASCII, a title that is cut, an item (p2) without any text, blanks in every other column.
ITEMS = [
    ("p0", 'Paper, A4 "white" {500}', "Müller & Söhne", "Office > Paper > Copy paper", 'Bright, "wood-free"; 80 g/m²'),
    ("p1", "Crème pen; 'soft', 日本", "", "Office > Pens > Fountain pens", ""),
    ("p2", "p2", "", "", ""),
    ("p3", "Filing box with lid, blue, for A4 and letter", "Boîte", "Office > Boxes", "Sturdy. " * 9),
    ("p4", "Pen & ink set", "Müller & Söhne", "Office > Pens > Fountain pens", "Ein Füller,\tdrei Farben."),
    ("p5", "Ruler 30 cm", "", "Office > Rulers", "   "),
    ("p6", "Пенал", "", "Office > Pens", "Для ручек"),
]
NAMES = ("title", "brand", "categories", "description")
CATALOG = Catalog(
    tuple(item[0] for item in ITEMS),
    {name: tuple(item[place + 1] for item in ITEMS) for place, name in enumerate(NAMES)},
)
# p2 has a shorter SID, p1 and p4 share one.
CODES = [[0, 0, 0], [1, 0, 0], [0, 1], [0, 0, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
TABLE = SIDTable(CATALOG.item_ids, pad_codes(CODES, 3), (2, 2, 2))
# User 0's rows continue one another, user 2's do not.
ROWS = [
    History(0, (0,), 1), History(0, (0, 1), 2), History(0, (0, 1, 2), 3), History(1, (4,), 5), History(2, (6, 3), 0),
    History(2, (5,), 4),
]  # fmt: skip
# Nearest by cosine: 0 and 3, 1 and 4, 5 and 6; p2 has no vector.
VECTORS = np.array([[1, 0], [0, 1], [0, 0], [1, 0.1], [0.1, 1], [-1, 0], [-1, 0.2]], dtype=np.float32)


def make_vocab() -> SIDVocab:
    """The SIDs of the catalogue on a tokenizer of their own."""
    tokenizer = train_tokenizer([*CATALOG.titles, *CATALOG.columns["description"]], vocab_size=300)
    add_sid_tokens(tokenizer, TABLE)
    return SIDVocab(tokenizer, TABLE)


def as_json(example: Example) -> dict[str, Any]:
    """What a golden file holds of an example: its fields, those that stand empty left out."""
    values = {field.name: getattr(example, field.name) for field in fields(example) if field.name != "task"}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value not in (None, ())
    }


def pages(found: list[dict[str, Any]]) -> str:
    """JSON with one field a line."""
    blocks = [
        ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in example.items())
        for example in found
    ]
    return "[\n" + ",\n".join(f" {{\n{block}\n }}" for block in blocks) + "\n]\n"


def check_golden(name: str, examples: Iterable[Example]) -> None:
    """Compare the examples of a task with its file, and each with what every example must hold."""
    examples = list(examples)
    for example in examples:
        assert example.task == name
        assert "".join(example.history) in example.prompt
        assert not example.targets or example.targets[0] == example.target
    found = [as_json(example) for example in examples]
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        path.write_text(pages(found), encoding="utf-8")
        raise AssertionError(f"{path} was not there and is written now: read it, then run again")
    assert found == json.loads(path.read_text(encoding="utf-8"))
