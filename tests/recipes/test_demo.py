import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from llmrec.errors import InputError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "demo.py"
# Any connection ends the demo, one within this machine too.
NO_NETWORK = f"""
import runpy, socket, sys
def refuse(self, address):
    raise SystemExit(f"the demo connected to {{address}}")
socket.socket.connect = socket.socket.connect_ex = refuse
sys.argv = ["recipes/demo.py", *sys.argv[1:]]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def demo() -> dict:
    return runpy.run_path(str(SCRIPT))


def test_the_commands_are_one_chain(demo: dict):
    lines = demo["commands"](data="D", out="R", users=2500, epochs=8)
    assert [line[0] for line in lines] == [
        "data_prep/synthetic.py", "data_prep/embed_items.py", "data_prep/learn_sids.py", "data_prep/learn_sids.py",
        "recipes/sft.py", "recipes/sft.py", "recipes/sft.py", "recipes/grpo.py", "recipes/evaluate.py",
        "recipes/evaluate.py", "recipes/evaluate.py", "recipes/evaluate.py",
    ]  # fmt: skip
    # The control differs from the model in its SIDs and its folder, and in nothing else.
    model, control = lines[4], lines[5]
    assert [pair for pair in zip(model, control, strict=True) if pair[0] != pair[1]] == [
        ("D/sids", "D/sids-random"),
        ("R", "R-random"),
    ]
    learned, drawn = lines[2], lines[3]
    assert [*learned[:-2], "--method", "random", "--out", f"{learned[-1]}-random"] == drawn


def test_table_by_hand(demo: dict):
    row = {"recall@5": 0.1, "ndcg@5": 0.05, "recall@10": 0.25, "ndcg@10": 1.0, "mrr@5": 0.3}
    assert demo["table"]({"popularity": row}).splitlines() == [
        "                       recall@5     ndcg@5  recall@10    ndcg@10",
        "popularity               0.1000     0.0500     0.2500     1.0000",
    ]


def test_only_generated_data_is_deleted(demo: dict, tmp_path: Path):
    remove = demo["remove_old_data"]
    remove(tmp_path / "missing")
    mine = tmp_path / "mine"
    mine.mkdir()
    remove(mine)
    (mine / "notes.txt").write_text("keep me")
    with pytest.raises(InputError, match=r"mine: holds something else than generated data; .* choose another --data"):
        remove(mine)
    imported = tmp_path / "imported"
    imported.mkdir()
    (imported / "manifest.json").write_text(json.dumps({"name": "office"}))
    with pytest.raises(InputError, match="it is not deleted"):
        remove(imported)
    assert (imported / "manifest.json").exists()
    (imported / "manifest.json").write_text(json.dumps({"name": "synthetic", "process": {}}))
    remove(imported)
    assert not imported.exists()


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-c", NO_NETWORK, *flags]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.slow
def test_a_small_demo_end_to_end_twice(tmp_path: Path):
    flags = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "runs"), "--users", "120", "--epochs", "1"]
    for _ in range(2):  # the second replaces what the first left
        done = run(*flags)
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(re.findall(r"^\$ python (?:data_prep|recipes)/", done.stdout, re.MULTILINE)) == 12
        models = ("model, random SIDs", "model, early", r"model, early \+ GRPO", "model")
        systems = ("popularity", "item-knn", "transitions", *models, "ceiling")
        last = done.stdout[done.stdout.index("120 test users") :]
        values = {name: re.search(rf"^{name}((?: +\d\.\d{{4}}){{4}})$", last, re.MULTILINE) for name in systems}
        assert all(values.values())
        manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
        assert values["ceiling"][1].split()[2] == f"{manifest['ceiling']['recall@10']:.4f}"
        results = json.loads((tmp_path / "runs-results" / "model.json").read_text())["results"]
        assert values["model"][1].split()[0] == f"{results[-1]['metrics']['recall@5']:.4f}"
        # 1.96 * sqrt(p * (1 - p) / 120) with p = .4456 is .089
        assert re.search(r"by up to 0\.0[89]\d either way", last)
        assert (tmp_path / "runs" / "llmrec.json").is_file()
        assert "accelerate launch --config_file accelerate_configs/cpu.yaml recipes/sft.py" in last


@pytest.mark.slow
def test_a_folder_of_yours_stops_the_demo(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("keep me")
    done = run("--data", str(tmp_path / "data"), "--out", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert (tmp_path / "data" / "notes.txt").read_text() == "keep me"
