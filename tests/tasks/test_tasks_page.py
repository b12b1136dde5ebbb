"""docs/tasks.md: every task stands on it with its own options, and what it shows runs."""

import re
from pathlib import Path

import pytest
import yaml
from golden_tasks import CATALOG, ROWS, make_vocab

from llmrec.tasks.mixture import TASKS, check_tasks, mix_tasks, task_options

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
TABLE = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \|(.*)\|(.*)\|(.*)\|(.*)\|(.*)\|$", PAGE, re.MULTILINE)}


def test_the_tables_list_every_task():
    assert set(TABLE) == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_options_are_those_of_the_function(name: str):
    said = dict(re.findall(r"`(\w+)(?:: ([\w.]+))?`", TABLE[name][3]))
    options = {option: default for option, default in task_options(name).items() if option != "wordings"}
    assert set(said) == set(options)
    for option, default in said.items():
        if default:
            assert yaml.safe_load(default) == options[option], f"{option}: the page says {default}"


def test_the_example_of_a_mixture_is_one():
    block = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0]
    specs = check_tasks(yaml.safe_load(block)["tasks"])
    assert specs["sid_to_title"].weight == 0.5
    assert specs["similar_items"].options["neighbours"] == 3


def test_the_example_of_a_task_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    [block] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_tasks_of_the_page.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    task = {"my_tasks_of_the_page:brand_to_sid": {"weight": 1.0, "column": "brand"}}
    examples = mix_tasks(task, catalog=CATALOG, vocab=make_vocab(), histories=ROWS, seed=0)
    assert sorted((example.prompt, example.completion) for example in examples) == [
        ("An item of Boîte:", "<a_0><b_0><c_1>"),
        ("An item of Müller & Söhne:", "<a_0><b_0><c_0>"),
        ("An item of Müller & Söhne:", "<a_1><b_0><c_0>"),
    ]
