"""recipes/sft.py on a bundle that goes on: drift that only new interactions show, and what replay is for."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec.artifacts import read_json
from llmrec.data.folder import DatasetFolder, load_dataset, write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.errors import InputError
from llmrec.hub import load_bundle

main = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "sft.py"))["main"]


@pytest.fixture
def drifting(catalog: Catalog, tmp_path: Path) -> Callable[[str, int, int], DatasetFolder]:
    """Users who step by 1; from user 100 on by 7: ``drifting(name, users, length)``."""

    def make(name: str, users: int, length: int) -> DatasetFolder:
        rng = np.random.default_rng(0)
        starts = rng.integers(0, 30, 200)[:users]
        steps = np.where(np.arange(users) < 100, 1, 7)
        items = (starts[:, None] + steps[:, None] * np.arange(length)) % 30
        interactions = Interactions.sort(
            tuple(f"u{user:03d}" for user in range(users)),
            users=np.repeat(np.arange(users), length),
            items=items.reshape(-1),
            timestamps=np.tile(np.arange(length), users),
        )
        manifest = {"name": name, "domain": "pens", "source": "made up", "licence": "CC0-1.0", "times": "seconds"}
        write_dataset(tmp_path / name, catalog=catalog, interactions=interactions, manifest=manifest)
        return load_dataset(tmp_path / name)

    return make


def flags(out: Path, **settings: Any) -> list[str]:
    defaults = {
        "output_dir": out, "model": "tiny-qwen3", "text_vocab_size": 320, "per_device_train_batch_size": 8,
        "learning_rate": 3e-3, "lr_scheduler_type": "constant", "gradient_checkpointing": False, "logging_steps": 50,
        "eval_strategy": "steps", "eval_steps": 200, "save_strategy": "no", "eval_beams": 10, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return [text for key, value in {**defaults, **settings}.items() for text in (f"--{key}", str(value))]


@pytest.mark.slow
def test_a_bundle_learns_what_is_new_and_replay_keeps_what_it_knew(drifting, sid_folder: Path, tmp_path: Path) -> None:
    old, new = drifting("old", 100, 8), drifting("new", 200, 8)
    first = tmp_path / "first"
    main(flags(first, dataset=old.path, sids=sid_folder, max_steps=200))
    found = {}
    for name, replay in (("replay", 1.0), ("none", 0.0)):
        out = tmp_path / name
        main(
            flags(
                out, dataset=new.path, old_dataset=old.path, sids=sid_folder, start_from=first, replay=replay,
                max_steps=150, eval_steps=150,
            )
        )  # fmt: skip
        found[name] = read_json(out / "incremental.json", "comparison")["groups"]
        assert load_bundle(out).info["increment"] == found[name]
    for groups in found.values():
        assert groups["old users"]["users"] == 100
        gained = groups["new users"]["recall@5"]
        assert gained["after"] > gained["before"] + 0.3
    kept = {name: groups["old users"]["ndcg@5"]["after"] for name, groups in found.items()}
    assert kept["replay"] > kept["none"] + 0.1, "what is not replayed is forgotten"
    assert kept["replay"] > 0.8 * found["replay"]["old users"]["ndcg@5"]["before"]


def test_a_short_run_goes_on_with_its_bundle_s_tokens(drifting, sid_folder: Path, tmp_path: Path) -> None:
    old, new = drifting("old", 100, 8), drifting("new", 110, 8)
    first, out = tmp_path / "first", tmp_path / "second"
    main(flags(first, dataset=old.path, sids=sid_folder, max_steps=2, eval_strategy="no"))
    go_on = {"dataset": new.path, "old_dataset": old.path, "sids": sid_folder, "start_from": first}
    main(flags(out, **go_on, learning_rate=0.0, max_steps=1, eval_steps=1))
    groups = json.loads((out / "incremental.json").read_text())["groups"]
    assert {"all", "old users", "new users"} == set(groups)
    for group in groups.values():
        assert group["ndcg@10"]["before"] == group["ndcg@10"]["after"], "nothing was learned, so nothing changed"
    assert (out / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    with pytest.raises(InputError, match=r"has 880 interactions, and .* was trained on a folder of 800; name that"):
        main(flags(tmp_path / "third", **{**go_on, "old_dataset": new.path}, max_steps=1))
