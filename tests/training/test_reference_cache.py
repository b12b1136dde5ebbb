"""A reference's log-probabilities on disk: made once, read again, and never those of something else."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors import safe_open

from llmrec.errors import InputError
from llmrec.training.adapters import attach_adapter
from llmrec.training.reference_cache import reference_log_probs, rows_hash, weights_hash
from tests.bundle_kit import spread_weights

KEY = {
    "weights": "a", "sid_hash": "b", "softmax": "full", "temperature": 1.0, "dtype": "torch.float32",
}  # fmt: skip
SIZES = [2, 4, 3, 2, 3]


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_dict({
        "input_ids": [list(range(3 + row)) for row in range(5)],
        "completions": [[[row, 10 + place] for place in range(size)] for row, size in enumerate(SIZES)],
    })  # fmt: skip


class Asked:
    """Answers as a model would, rows padded to the widest of their batch, and remembers what it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> torch.Tensor:
        self.batches.append(list(numbers))
        found = torch.full((len(numbers), max(SIZES[row] for row in numbers)), 99.0)
        for place, row in enumerate(numbers):
            found[place, : SIZES[row]] = torch.tensor([-1.0 * row - 0.1 * beam for beam in range(SIZES[row])])
        return found


@pytest.fixture
def ask(rows, tmp_path: Path) -> Callable[..., tuple[list[list[float]], Asked]]:
    def call(given: Dataset = rows, **settings) -> tuple[list[list[float]], Asked]:
        asked = Asked()
        key = {**KEY, **settings.pop("key", {})}
        found = reference_log_probs(
            given, key, asked, accelerator=Accelerator(cpu=True), folder=tmp_path, batch_size=2, **settings
        )
        return found, asked

    return call


def expected() -> list[list[Any]]:
    return [[pytest.approx(-row - 0.1 * beam) for beam in range(size)] for row, size in enumerate(SIZES)]


def test_a_second_run_asks_nothing(ask, tmp_path: Path) -> None:
    first, asked = ask()
    assert first == expected()
    assert asked.batches == [[0, 1], [2, 3], [4]]
    assert len(list(tmp_path.iterdir())) == 1
    second, asked = ask()
    assert second == first
    assert asked.batches == []


def test_rows_of_like_lengths_are_asked_together(ask) -> None:
    found, asked = ask(lengths=[5, 1, 4, 2, 3])
    assert asked.batches == [[1, 3], [4, 2], [0]]
    assert found == expected()


@pytest.mark.parametrize("name", KEY)
def test_whatever_it_depends_on_makes_another_file(ask, tmp_path: Path, name: str) -> None:
    ask()
    _, asked = ask(key={name: 2.0 if name == "temperature" else "other"})
    assert asked.batches
    assert len(list(tmp_path.iterdir())) == 2


def test_other_rows_make_another_file(ask, rows, tmp_path: Path) -> None:
    ask()
    swapped = rows.map(lambda row: {"completions": [*row["completions"][::-1]]})
    assert rows_hash(swapped) != rows_hash(rows)
    assert ask(swapped)[1].batches
    assert len(list(tmp_path.iterdir())) == 2


def test_the_file_says_what_it_is_of(ask, tmp_path: Path, rows) -> None:
    ask()
    with safe_open(str(next(tmp_path.iterdir())), "pt") as opened:
        key = json.loads(opened.metadata()["key"])
        assert key == {**KEY, "format": 1, "rows": rows_hash(rows)}
        assert opened.get_tensor("log_probs").shape == (sum(SIZES),)


def test_a_damaged_file_is_made_again(ask, tmp_path: Path, caplog) -> None:
    ask()
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-5])
    found, asked = ask()
    assert found == expected()
    assert asked.batches
    assert "is damaged, and is made again" in caplog.text
    assert not ask()[1].batches


def test_a_run_that_is_cut_off_leaves_nothing(ask, rows, tmp_path: Path) -> None:
    def stop(numbers: Sequence[int]) -> torch.Tensor:
        if 2 in numbers:
            raise KeyboardInterrupt
        return Asked()(numbers)

    with pytest.raises(KeyboardInterrupt):
        reference_log_probs(
            rows, KEY, stop, accelerator=Accelerator(cpu=True), folder=tmp_path / "reference", batch_size=2
        )
    assert not (tmp_path / "reference").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights", "was made from other weights"),
        ("sid_hash", "was made with other SIDs"),
        ("softmax", "was made under another softmax"),
        ("dtype", "was made in another precision"),
    ],
)
def test_a_file_that_is_named_is_of_this_reference(ask, tmp_path: Path, name: str, message: str) -> None:
    file = tmp_path / "mine.safetensors"
    first, _ = ask(file=file)
    again, asked = ask(file=file)
    assert (again, asked.batches) == (first, [])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]
    with pytest.raises(InputError, match=message):
        ask(file=file, key={name: "other"})


def test_a_file_that_is_named_and_damaged_is_refused(ask, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_text("not a tensor")
    with pytest.raises(InputError, match=r"mine.safetensors cannot be read .* delete it"):
        ask(file=file)


def test_a_hash_follows_what_a_model_computes_with(make_model, vocab) -> None:
    assert weights_hash(make_model()) == weights_hash(make_model())
    changed = make_model()
    with torch.no_grad():
        next(changed.parameters())[0, 0] += 1e-3
    assert weights_hash(changed) != weights_hash(make_model())

    fresh = [attach_adapter(make_model(), vocab, method="lora", rank=4) for _ in range(2)]
    first, second = (next(value for name, value in model.named_parameters() if "lora_A" in name) for model in fresh)
    assert not torch.equal(first, second), "drawn at random"
    assert weights_hash(fresh[0]) == weights_hash(fresh[1]), "and multiplied with nothing but zeros"
    before = weights_hash(fresh[0])
    fresh[1].add_adapter("other", fresh[1].peft_config["default"])
    fresh[1].set_adapter("default")
    assert weights_hash(fresh[1]) == before, "an adapter that is not used"

    spread_weights(fresh[0])
    trained = weights_hash(fresh[0])
    assert trained != before
    with torch.no_grad():
        for name, value in fresh[0].named_parameters():
            if "trainable_tokens_delta" in name:
                value[0, 0] += 1e-3
    assert weights_hash(fresh[0]) != trained, "the SID rows count"
