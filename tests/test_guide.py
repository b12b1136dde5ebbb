"""docs/guide.md: its commands name what exists, and all of them run in order, up to the hub."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
FOLDERS = ("data_prep", "recipes", "accelerate_configs")


def test_blocks_are_commands_or_python():
    assert {language for language, _ in BLOCKS} == {"", "python"}
    scripts = set(
        re.findall(r"^(?:python|accelerate launch .*?) ?((?:data_prep|recipes)/\w+\.py)", GUIDE, re.MULTILINE)
    )
    assert len(scripts) >= 10
    assert [script for script in sorted(scripts) if not (ROOT / script).is_file()] == []


def test_chapters_are_numbered_and_links_lead_somewhere():
    numbers = [int(number) for number in re.findall(r"^## (\d+)\. ", GUIDE, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", GUIDE)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    for chapter in re.findall(r"\(chapter (\d+)\)", GUIDE):
        assert int(chapter) in numbers


def test_chapters_that_must_be_there():
    titles = re.findall(r"^## \d+\. (.*)$", GUIDE, re.MULTILINE)
    for word in (
        "Import", "Look at the data", "Embed", "Semantic IDs", "Baselines", "Train", "Evaluate", "Compare", "Fuse",
        "Search", "Serve", "Publish", "catalogue changes",
    ):  # fmt: skip
        assert any(word in title for title in titles), word


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_command_runs_as_written(tmp_path: Path):
    """In a folder that holds what the commands name of the repository, with a hub on this machine."""
    for folder in FOLDERS:
        (tmp_path / folder).symlink_to(ROOT / folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with HubServer() as hub:
        environ = {**os.environ, **hub.variables(str(tmp_path / "home")), "PATH": path, "OMP_NUM_THREADS": "1"}
        for language, block in BLOCKS:
            command = [sys.executable, "-c", block] if language else ["bash", "-euc", block]
            done = subprocess.run(
                command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=900, check=False
            )
            assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        files = hub.repos["you/shop-recommender"].files
        assert hub.repos["you/shop-recommender"].commits == 2
        assert hub.repos["you/shop-recommender"].private
    assert {"model.safetensors", "llmrec.json", "README.md", "sid_table.parquet"} <= set(files)
    assert not any(word in name for name in files for word in ("orders", "customers", "interactions"))
    answers = (tmp_path / "runs" / "answers.jsonl").read_text().splitlines()
    assert len(answers) == 2
    assert '"user_id": "bob"' in answers[1]
    for name in ("shop-audit.html", "shop-sids.html", "shop-baselines.json", "shop-test.json", "shop-compare.html"):
        assert (tmp_path / "runs" / name).is_file()
