"""The order of the rooms: a module imports from its own room and from rooms above it, and nothing goes round."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "errors", "launch", "registry", "artifacts", "data", "embeddings", "sids", "vocab", "hub", "tasks", "decoding",
    "evaluation", "baselines", "rewards", "training",
)  # fmt: skip


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def own_imports(source: str, modules: set[str]) -> set[str]:
    """Modules of ``modules`` that a source imports, at any depth, for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            # `from llmrec import vocab` names a module, `from llmrec.vocab import SIDVocab` something in one.
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {name for name in names if name in modules and name != "llmrec"}
    return found


def graph(root: Path) -> dict[str, set[str]]:
    files = {module_name(file, root): file for file in sorted((root / "llmrec").rglob("*.py"))}
    return {name: own_imports(file.read_text(encoding="utf-8"), set(files)) for name, file in files.items()}


def room(module: str) -> str:
    return module.split(".")[1]


def wrong_ways(imports: dict[str, set[str]]) -> list[str]:
    order = {name: place for place, name in enumerate(ROOMS)}
    return [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in sorted(others)
        if module == "llmrec" or order[room(other)] > order[room(module)]
    ]


def cycle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, directly or not; empty when there are none."""
    left = {module: others - {module} for module, others in imports.items()}
    while left:
        free = [module for module, others in left.items() if not others & left.keys()]
        if not free:
            return sorted(left)
        for module in free:
            del left[module]
    return []


def test_every_module_belongs_to_a_room():
    unknown = {room(module) for module in graph(ROOT) if module != "llmrec"} - set(ROOMS)
    assert not unknown, "add the room to ROOMS and to docs/design.md, at its place"


def test_modules_import_from_rooms_above():
    assert wrong_ways(graph(ROOT)) == []


def test_no_module_imports_itself_round_a_corner():
    assert cycle(graph(ROOT)) == []


def test_the_checks_can_fail():
    upward = {"llmrec.data.items": {"llmrec.vocab"}, "llmrec.vocab": set()}
    assert wrong_ways(upward) == ["llmrec.data.items imports llmrec.vocab"]
    assert cycle({"llmrec.a": {"llmrec.b"}, "llmrec.b": {"llmrec.a"}, "llmrec.c": set()}) == ["llmrec.a", "llmrec.b"]
    modules = {"llmrec", "llmrec.vocab", "llmrec.data", "llmrec.data.items"}
    source = "def f():\n    from llmrec import vocab\n    from llmrec.data.items import Catalog\nimport torch"
    assert own_imports(source, modules) == {"llmrec.vocab", "llmrec.data.items"}


def test_the_design_lists_the_rooms_in_this_order():
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    listing = design.split("```\nllmrec/\n")[1].split("```")[0]
    listed = [
        line.split()[0].removesuffix(".py").removesuffix("/") for line in listing.splitlines() if line[:2] == "  "
    ]
    assert [name for name in listed if name] == list(ROOMS)


@pytest.mark.parametrize("folder", ["data_prep", "recipes"])
def test_scripts_lean_on_the_package_alone(folder: str):
    scripts = {path.stem for path in (*ROOT.glob("data_prep/*.py"), *ROOT.glob("recipes/*.py"))}
    scripts |= {"data_prep", "recipes", "tests"}
    for path in ROOT.glob(f"{folder}/*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {module.split(".")[0] for module in modules} & scripts, path


def run_python(code: str, folder: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path):
    code = "import sys, llmrec, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    loaded = run_python(code, tmp_path)
    assert not {"torch", "transformers", "trl", "peft", "numpy", "sklearn", "accelerate"} & set(loaded)


IMPORT_ALL = """
import json, logging, random, importlib, os, sys, warnings
import numpy, torch, transformers
UPSTREAM  # what others change when they are imported is theirs
def state():
    return [
        [repr(handler) for handler in logging.getLogger().handlers], logging.getLogger().level, random.getstate(),
        repr(numpy.random.get_state()), torch.get_rng_state().tolist(), str(torch.get_default_dtype()),
        torch.get_num_threads(), os.getcwd(), transformers.logging.get_verbosity(),
        torch.are_deterministic_algorithms_enabled(),
    ]
before = state()
for module in MODULES:
    importlib.import_module(module)
after = state()
print(json.dumps([str(b)[:80] + " -> " + str(a)[:80] for b, a in zip(before, after) if a != b]))
"""


def upstream_imports(root: Path) -> str:
    """The import statements of all modules but those of our own."""
    found = set()
    for file in (root / "llmrec").rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            statement = ast.unparse(node)
            if isinstance(node, ast.Import | ast.ImportFrom) and "llmrec" not in statement:
                found.add(statement)
    return "\n".join(sorted(found))


@pytest.mark.slow
def test_importing_every_module_changes_nothing(tmp_path: Path):
    code = IMPORT_ALL.replace("UPSTREAM", upstream_imports(ROOT)).replace("MODULES", repr(sorted(graph(ROOT))))
    changed = run_python(code, tmp_path)
    assert changed == []
    assert not list(tmp_path.iterdir())
