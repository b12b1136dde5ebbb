"""Texts written by a model: what it sees, how it answers, and shards that survive a kill."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_kit import spread_weights
from text_kit import CATALOG, CUT, HELD_OUT, ITEM_IDS, SEQUENCES, TRAINING, write_folder
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from llmrec.artifacts import read_json
from llmrec.data.folder import DatasetFolder, load_dataset
from llmrec.errors import InputError
from llmrec.tasks.inputs import TaskInputs
from llmrec.tasks.prompt import chat_text
from llmrec.tasks.writing import TEMPLATES, Shards, WritingRequest, clean_answer, generate_texts, writing_requests
from llmrec.training.tokenizer import train_tokenizer

SCRIPT = Path(__file__).parents[2] / "data_prep" / "write_texts.py"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    return write_folder(tmp_path_factory.mktemp("sets") / "desk")


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerBase, Path]:
    tokenizer = train_tokenizer(["a customer took these items, oldest first"] * 3, vocab_size=300)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    spread_weights(model, scale=0.3)
    folder = tmp_path_factory.mktemp("models") / "writer"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer, folder


@pytest.mark.parametrize("kind", list(TEMPLATES))
def test_a_request_shows_training_interactions_alone(dataset: DatasetFolder, kind: str):
    requests = writing_requests(dataset, dataset.split(), kind, per_user=0)
    titles = dict(zip(ITEM_IDS, CATALOG.titles, strict=True))
    titles["s"] = "- s"  # its title is its id: "s" alone stands in every sentence
    for request in requests:
        items = SEQUENCES[request.user_id]
        assert HELD_OUT not in request.prompt
        about = items[request.position] if kind != "preferences" else None
        assert request.item_id == about
        shown = items[: request.position] + (about or "")
        assert len(shown) <= CUT[request.user_id]
        assert {item for item, title in titles.items() if title in request.prompt} == set(shown)
    places = [(request.user_id, request.position) for request in requests]
    if kind == "preferences":
        # Each moment with a history, and each user's end of training.
        assert places == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("c", 1)]
    else:
        assert places == [("a", 1), ("a", 2), ("b", 1)]


def test_requests_by_hand(dataset: DatasetFolder):
    request = writing_requests(dataset, dataset.split(), "explanations", per_user=0, history=1)[2]
    assert request == WritingRequest("b", "t", 1, (
        "A customer took these items, oldest first:\n- Crème pen; 'soft', 日本\nThen they took: Ink, 50% off\n"
        "What they said of it: stains, badly\nIn one sentence, explain why this item fits the customer."
    ))  # fmt: skip
    asked = writing_requests(dataset, dataset.split(), "preferences", per_user=0, template="{history}?")
    assert asked[-1] == WritingRequest("c", None, 1, "\n- Étui?")


def test_requests_are_a_seeded_sample(dataset: DatasetFolder):
    def places(seed: int, **options: Any) -> list[tuple[str, int]]:
        requests = writing_requests(dataset, dataset.split(), "intentions", seed=seed, **options)
        return [(request.user_id, request.position) for request in requests]

    assert places(0, per_user=1) == places(0, per_user=1)
    assert {tuple(places(seed, per_user=1)) for seed in range(9)} == {(("a", 1), ("b", 1)), (("a", 2), ("b", 1))}
    assert len(places(0, per_user=0, limit=2)) == 2
    assert len({tuple(places(seed, per_user=0, limit=2)) for seed in range(9)}) == 3


BAD_TEMPLATES = [
    ("intentions", "{item}", r"template of intentions: its fields are {item}; use {history}, and no others than"),
    (
        "preferences",
        "{history} {item}",
        r"its fields are {history}, {item}; use {history}, and no others than {history}",
    ),
    ("intentions", "{history} {name}", r"its fields are {history}, {name}"),
    ("intentions", "{history", "expected '}' before end of string; write a brace of its own twice"),
]


@pytest.mark.parametrize(("kind", "template", "message"), BAD_TEMPLATES)
def test_bad_templates(dataset: DatasetFolder, kind: str, template: str, message: str):
    with pytest.raises(InputError, match=message):
        writing_requests(dataset, dataset.split(), kind, template=template)


def test_answers_of_a_batch_are_those_one_by_one(writer):
    model, tokenizer, _ = writer
    prompts = ["items, oldest first", "took", "a customer took these items " * 5, "oldest"]
    together = generate_texts(model, tokenizer, prompts, batch_size=3, max_new_tokens=12)
    assert together == [generate_texts(model, tokenizer, [prompt], max_new_tokens=12)[0] for prompt in prompts]
    assert len(set(together)) > 1
    # By hand, for one prompt: the likeliest token, again and again, until the end token.
    ids = tokenizer.encode(chat_text(tokenizer, prompts[0]), add_special_tokens=False)
    answer: list[int] = []
    for _ in range(12):
        token = int(model(torch.tensor([ids + answer])).logits[0, -1].argmax())
        if tokenizer.convert_ids_to_tokens(token) in ("<|im_end|>", "<|endoftext|>"):
            break
        answer.append(token)
    assert together[0] == clean_answer(str(tokenizer.decode(answer, skip_special_tokens=True)), 300)


def test_answers_are_cleaned():
    assert clean_answer('<think>they\nlike</think>\n "Some  pen,\n blue" ', 300) == "Some pen, blue"
    assert clean_answer("<think>and on and on", 300) == ""
    assert clean_answer('"', 300) == '"'
    assert clean_answer("one two three", 9) == "one two"


def test_shards_go_on_after_a_kill(tmp_path: Path):
    requests = [WritingRequest("a", None, place, f"prompt {place}") for place in range(1, 6)]
    asked: list[str] = []

    def answer(prompts: Sequence[str]) -> list[str]:
        if len(asked) >= 4:
            raise KeyboardInterrupt
        asked.extend(prompts)
        return [f"to {prompt}" if prompt != "prompt 2" else "" for prompt in prompts]

    settings = {"identity": {"model": "m", "seed": 0}, "size": 2}
    shards = Shards.open(tmp_path, "preferences", requests, **settings)
    with pytest.raises(KeyboardInterrupt):
        shards.write(answer, progress=False)
    assert asked == [f"prompt {place}" for place in range(1, 5)]
    assert not (tmp_path / "preferences.parquet").exists()
    asked.clear()
    again = Shards.open(tmp_path, "preferences", requests, **settings)
    assert again.write(answer, progress=False) == 1
    assert asked == ["prompt 5"]
    path, count = again.join("preferences", {"model": "m"})
    assert (path, count) == (tmp_path / "preferences.parquet", 4)
    assert read_json(tmp_path / "preferences.json", "manifest")["blank"] == 1
    assert not (tmp_path / "preferences.shards").exists()


def test_shards_of_another_request_are_refused(tmp_path: Path):
    requests = [WritingRequest("a", None, 1, "prompt")]
    Shards.open(tmp_path, "preferences", requests, identity={"model": "m", "seed": 0}, size=2)
    with pytest.raises(
        InputError, match=r"preferences.shards: holds shards of another request \(other model\); .*anew"
    ):
        Shards.open(tmp_path, "preferences", requests, identity={"model": "n", "seed": 0}, size=2)
    other = [WritingRequest("a", None, 1, "another")]
    with pytest.raises(InputError, match=r"\(other requests\)"):
        Shards.open(tmp_path, "preferences", other, identity={"model": "m", "seed": 0}, size=2)
    anew = Shards.open(tmp_path, "preferences", other, identity={"model": "m", "seed": 0}, size=2, overwrite=True)
    anew.write(lambda prompts: [" "], progress=False)
    with pytest.raises(InputError, match="every text is blank; give more --max_new_tokens"):
        anew.join("preferences", {})


def run(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_command(writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    folder = tmp_path / "desk"
    write_folder(folder)
    flags = ["--dataset", str(folder), "--model", str(writer[2]), "--max_new_tokens", "8", "--device", "cpu"]
    for kind in TEMPLATES:
        run(monkeypatch, *flags, "--kind", kind, "--per_user", "0")
    assert "0 blank and left out" in capsys.readouterr().out
    manifest = read_json(folder / "intentions.json", "manifest")
    assert manifest["model"] == str(writer[2])
    assert manifest["revision"].startswith("sha256:")
    assert manifest["template"] == TEMPLATES["intentions"]
    assert (manifest["seed"], manifest["protocol"], manifest["texts"], manifest["blank"]) == (0, "leave_one_out", 3, 0)
    dataset = load_dataset(folder)
    inputs = TaskInputs.of(dataset, dataset.split())
    assert len(list(inputs.written("intentions"))) == sum(len(items) - 1 for items in TRAINING.values())
    assert len(list(inputs.written("preferences"))) == 3
    # Those of the end of training serve validation.
    valid = TaskInputs.of(dataset, dataset.split(), split="valid")
    assert [moment.user for moment, _ in valid.written("preferences")] == [0, 1, 2]

    with pytest.raises(SystemExit):
        run(monkeypatch, *flags, "--kind", "intentions")
    assert "intentions.parquet: is there already; give --overwrite" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, *flags, "--kind", "intentions", "--overwrite", "--batch_size", "0")
    assert "--batch_size 0: at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, *flags[:2], "--kind", "intentions", "--overwrite", "--model", str(tmp_path / "none"))
    assert "not a causal language model that can be loaded" in capsys.readouterr().err
