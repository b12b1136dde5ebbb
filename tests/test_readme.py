"""The README's commands name scripts, flags and files that exist, and CI runs its test command."""

import ast
import importlib
import random
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from llmrec.baselines import ALL_BASELINES
from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.evaluation.evaluator import evaluate
from llmrec.registry import resolve
from llmrec.rewards.build import build_rewards
from llmrec.rewards.inputs import RewardInputs
from llmrec.sids.learn import make_sid_tokenizer
from llmrec.sids.methods import load_sid_tokenizer
from llmrec.sids.table import SIDTable
from llmrec.tasks.mixture import TASKS
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LAUNCHERS = ("accelerate launch", "torchrun")


def blocks(language: str, page: str = README) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def command_lines(text: str) -> list[list[str]]:
    lines = (line.split("#")[0].strip() for line in text.replace("\\\n", " ").splitlines())
    return [shlex.split(line) for line in lines if line and not line.startswith(". ")]


COMMANDS = [line for block in blocks("") for line in command_lines(block)]
SCRIPTED = [line for line in COMMANDS if line[0] in ("python", "accelerate", "torchrun")]


def script_of(line: list[str]) -> int:
    return next(place for place, word in enumerate(line) if word.endswith(".py"))


def flags(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if word.startswith("--")}


def known_flags(script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> set[str]:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert not stopped.value.code
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", capsys.readouterr().out))


def unknown(line: list[str], known: set[str]) -> set[str]:
    return flags(line[script_of(line) + 1 :]) - known


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_readme_holds_the_two_commands_and_every_step():
    assert ["make", "demo"] in COMMANDS
    assert ["make", "test"] in COMMANDS
    scripts = {line[script_of(line)] for line in SCRIPTED}
    for name in ("lcrec", "sequences", "minionerec", "recbole", "embed_items", "learn_sids"):
        assert f"data_prep/{name}.py" in scripts
    for name in ("sft", "grpo", "dpo", "baselines", "evaluate"):
        assert f"recipes/{name}.py" in scripts


@pytest.mark.parametrize("script", sorted({line[script_of(line)] for line in SCRIPTED}))
def test_every_flag_exists(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert (ROOT / script).is_file()
    known = known_flags(ROOT / script, monkeypatch, capsys)
    if script in ("recipes/sft.py", "recipes/grpo.py", "recipes/dpo.py"):
        known.add("--config")  # TRL's parser takes it and does not list it
    for line in SCRIPTED:
        if line[script_of(line)] == script:
            assert unknown(line, known) == set()


def test_a_wrong_flag_is_found():
    line = shlex.split("python recipes/evaluate.py --model x --beams 3")
    assert unknown(line, {"--model", "--num_beams"}) == {"--beams"}


def test_configs_in_commands_exist():
    words = [word for line in SCRIPTED for word in line if word.endswith(".yaml")]
    assert len(words) >= 2
    assert [word for word in words if not (ROOT / word).is_file()] == []


def test_targets_of_make_exist():
    made = {word for line in COMMANDS if line[0] == "make" for word in line[1:]} | set(
        re.findall(r"`make ([\w-]+)`", README)
    )
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert made <= set(phony[1].split())


def test_links_and_named_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    missing += [
        path for path in re.findall(r"`((?:llmrec|recipes|docs|data_prep|accelerate_configs)/[\w/.-]*)`", README)
        if not (ROOT / path).exists()
    ]  # fmt: skip
    assert missing == []


def test_python_blocks_import_what_exists():
    for block in blocks("python"):
        for node in ast.parse(block).body:
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_ci_calls_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    found = re.search(r'^test_command="\$\((.*)\)"$', script, re.MULTILINE)
    assert found is not None
    command = subprocess.run(
        ["bash", "-c", found[1]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert command == "make test"
    assert shlex.split(command) in COMMANDS
    assert "step test $test_command\n" in script


def test_the_demo_ends_with_commands_of_the_readme():
    following = runpy.run_path(str(ROOT / "recipes" / "demo.py"))["NEXT"]
    lines = [line for line in command_lines(following) if line[0] in ("python", "accelerate")]
    assert len(lines) == 7
    assert [line for line in lines if line not in COMMANDS] == []


OWN_SIDS = (ROOT / "docs" / "sids.md").read_text(encoding="utf-8").partition("## A method of your own")[2]
PARTS = [block for block in blocks("python") if "push_to_hub" not in block] + blocks("python", OWN_SIDS)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The blocks of "Plug in your own", and of the page of SIDs, as the module that the text makes of them."""
    (tmp_path / "my_parts.py").write_text("\n".join(PARTS), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    return importlib.import_module("my_parts")


def test_your_own_parts_take_ten_lines_each():
    assert len(PARTS) == 4
    assert max(len([line for line in block.splitlines() if line]) for block in PARTS) <= 10


def test_your_own_sid_tokenizer_works(parts: ModuleType, tmp_path: Path):
    near = torch.nn.functional.normalize(torch.randn(1, 32, generator=torch.Generator().manual_seed(1)))
    others = torch.randn(400, 32, generator=torch.Generator().manual_seed(2))
    embeddings = torch.cat([near, near + 1e-6, others])
    tokenizer = make_sid_tokenizer("my_parts:Projections", levels=3, codebook_size=[16], method_args={}, seed=0)
    assert isinstance(tokenizer, parts.Projections)
    codes = tokenizer.fit_encode(embeddings)
    assert codes[0].tolist() == codes[1].tolist()
    assert (codes.shape, int(codes.min()), int(codes.max())) == ((402, 3), 0, 15)
    assert min(torch.bincount(codes[:, level], minlength=16).min() for level in range(3)) > 5  # 25 where all are even
    tokenizer.save_pretrained(tmp_path / "fit")
    assert torch.equal(load_sid_tokenizer(tmp_path / "fit").encode(embeddings), codes)


def test_your_own_task_works(parts: ModuleType):
    catalog = Catalog(("a", "b", "c"), {"title": ("x", "y", "z"), "brand": ("Alder", "", "Birch")})
    vocab = type("Vocab", (), {"tokens": lambda _, row: f"<{row}>"})()
    task = resolve("my_parts:brand_to_sid", TASKS, "task")
    found = list(task(catalog, vocab, (), random.Random(0)))
    assert [(example.prompt, example.completion, example.target) for example in found] == [
        ("A product of Alder:", "<0>", 0),
        ("A product of Birch:", "<2>", 2),
    ]


def test_your_own_reward_works(parts: ModuleType):
    catalog = Catalog(("a", "b", "c"), {"title": ("x", "y", "z"), "price": ("3.5", "20", "4")})
    table = SIDTable(catalog.item_ids, np.array([[0], [1], [2]]), (3,))
    tokenizer = train_tokenizer(catalog.titles, vocab_size=300)
    add_sid_tokens(tokenizer, table)
    vocab = SIDVocab(tokenizer, table)
    inputs = RewardInputs(num_generations=3, catalog=catalog)
    found = build_rewards({"exact_match": 1.0, "my_parts:cheap": {"weight": 0.1, "limit": 4.0}}, vocab, inputs)
    assert found.weights == [1.0, 0.1]
    ids = [vocab.token_ids(row) for row in range(3)]
    assert found.functions[1](prompts=["p"] * 3, completions=["c"] * 3, completion_ids=ids) == [1, 0, 1]


def test_your_own_baseline_works(parts: ModuleType):
    fitted = resolve("my_parts:Again", ALL_BASELINES, "baseline")().fit([(0, 1, 1), (1, 2), (3,)], items=5)
    # Counts are 1, 3, 1, 1, 0, so the popular order is 1, 0, 2, 3, 4
    assert fitted.recommend([(2, 0), ()], 3).tolist() == [[0, 2, 1], [1, 0, 2]]
    assert fitted.recommend([(2, 0), ()], 3, exclude_seen=True).tolist() == [[1, 3, 4], [1, 0, 2]]
    rows = [History(0, (2, 0), 2), History(1, (3,), 4)]
    assert evaluate(fitted, rows, items=5, ks=[3], name="again").ranks.tolist() == [1, -1]
