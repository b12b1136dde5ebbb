"""docs/rewards.md: every reward and loss stands on it with its own options, and what it shows runs."""

import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from llmrec.rewards import REWARDS
from llmrec.rewards.build import build_rewards, check_rewards, reward_options
from llmrec.rewards.inputs import RewardInputs
from llmrec.training.policy_losses.methods import POLICY_LOSSES, TRL_POLICY_LOSSES, resolve_policy_loss
from llmrec.vocab import SIDVocab

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
TABLE = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", PAGE, re.MULTILINE)) | dict(
    re.findall(r"^\| `(\w+)` \|( )\|", PAGE, re.MULTILINE)
)
YAMLS = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]


def said(name: str) -> dict[str, str | None]:
    """The options of a row, with their defaults where it gives them."""
    found = re.findall(r"(\w+)(?:: (\[.*?\]|[^,]+))?(?:, |$)", TABLE[name].strip().strip("`"))
    return {option: default or None for option, default in found}


def test_the_tables_list_every_reward_and_loss():
    assert set(TABLE) == set(REWARDS) | set(POLICY_LOSSES)
    losses = PAGE[PAGE.index("## Policy losses") :]
    assert [name for name in TRL_POLICY_LOSSES if f"`{name}`" not in losses] == []


@pytest.mark.parametrize("name", [*REWARDS, *POLICY_LOSSES])
def test_options_are_those_of_the_code(name: str):
    if name in REWARDS:
        options = reward_options(REWARDS[name])
    else:
        parameters = inspect.signature(POLICY_LOSSES[name]).parameters.values()
        options = {parameter.name: parameter.default for parameter in parameters}
    assert set(said(name)) == set(options)
    for option, default in said(name).items():
        if default is None:
            assert options[option] in (None, inspect.Parameter.empty), option
        else:
            own = options[option]
            assert yaml.safe_load(default) == (list(own) if isinstance(own, tuple) else own), option


def test_the_settings_shown_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    page_module(tmp_path, monkeypatch)
    rewards = [block["rewards"] for block in YAMLS if "rewards" in block]
    assert len(rewards) == 2
    for spec in rewards:
        check_rewards(spec)
    [loss] = [block for block in YAMLS if "policy_loss" in block]
    resolve_policy_loss(loss["policy_loss"], loss["policy_loss_args"])


def page_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write the page's reward into a module ``my_rewards``, and return its lines."""
    [block] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (folder / "my_rewards.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    return block.splitlines()


def test_the_reward_in_ten_lines_runs(
    vocab: SIDVocab, inputs: RewardInputs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    lines = [line for line in page_module(tmp_path, monkeypatch) if line]
    assert len(lines) <= 10
    assert inputs.catalog is not None
    prices = tuple(str(row) for row in range(9))
    catalog = replace(inputs.catalog, columns={**inputs.catalog.columns, "price": prices})
    rewards = build_rewards(YAMLS[1]["rewards"], vocab, replace(inputs, catalog=catalog))
    assert rewards.weights == [1.0, 0.1]
    # Items 3 and 5 cost 3 and 5; items 6 and 7 share a SID, whose first item costs 7.
    found = rewards.functions[1](completion_ids=[vocab.token_ids(row) for row in (3, 5, 6, 7)], target=[3] * 4)
    assert found == [1.0, 1.0, 0.0, 0.0]
