"""Bad input of a training run: each is said in one line, before work is lost, and this line is read here."""

import json
import logging
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec.errors import InputError
from llmrec.sids.table import SIDTable
from llmrec.tasks.example import Example
from llmrec.tasks.prompt import PromptForm
from llmrec.training.examples import encode_examples, to_dataset
from llmrec.training.guard import NotFinite
from llmrec.training.run_folder import check_resume
from llmrec.training.tokenizer import train_tokenizer

RECIPE = Path(__file__).parents[2] / "recipes" / "sft.py"


def run(dataset: Any, sids: Path, out: Path, **settings: Any) -> None:
    defaults = {
        "dataset": dataset.path, "sids": sids, "output_dir": out, "model": "tiny-qwen3", "text_vocab_size": 320,
        "max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 8, "eval_strategy": "no", "logging_steps": 1,
        "gradient_checkpointing": False, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    main = runpy.run_path(str(RECIPE))["main"]
    main([text for key, value in {**defaults, **settings}.items() for text in (f"--{key}", str(value))])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": '{"next_item": 1, "rating": 1}'}, r"rating.*a column 'rating' in interactions\.parquet.*next_item"),
        ({"tasks": '{"next_item": 0}'}, "tasks: next_item has weight 0; a weight is above 0, leave the task out"),
        ({"tasks": '{"next_item": -0.5}'}, "tasks: next_item has weight -0.5; a weight is above 0"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: it starts again with a smaller effective batch"),
        ({"resume_from_checkpoint": "nowhere"}, r"resume_from_checkpoint: 'nowhere' holds no trainer_state\.json"),
    ],
)  # fmt: skip
def test_refused_before_the_folder_is_touched(
    dataset, sid_folder: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        run(dataset, sid_folder, tmp_path / "run", **settings)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_base_without_a_chat_template(dataset, catalog, sid_folder: Path, make_model, tmp_path: Path) -> None:
    make_model(rows=640).save_pretrained(tmp_path / "base")
    base = train_tokenizer(catalog.titles, vocab_size=320)
    base.chat_template = None
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=r"the tokenizer of .*base has no chat template; use prompt: plain, or the"):
        run(dataset, sid_folder, tmp_path / "run", model=tmp_path / "base", prompt="chat", supervise="row")
    assert not (tmp_path / "run" / "run.json").exists()


def test_examples_longer_than_the_context_lose_their_oldest_items_and_are_counted(
    tokenizer, vocab, caplog: pytest.LogCaptureFixture
) -> None:
    """Start token, two SIDs of three tokens before and one behind are 10; within 9 the older SID has to go."""
    sids = [vocab.tokens(row) for row in (4, 7, 9)]
    examples = [Example(sids[0] + sids[1], sids[2], 9, "next_item", history=(sids[0], sids[1]))] * 2
    with caplog.at_level(logging.WARNING):
        rows = list(encode_examples(examples, tokenizer=tokenizer, form=PromptForm("plain", "pens"), max_length=9))
    assert [tokenizer.decode(row["input_ids"][1:]) for row in rows] == [sids[1] + sids[2]] * 2
    assert "task next_item: 2 examples lost the oldest items of a history to max_length 9" in caplog.text


def test_labels_that_are_all_masked() -> None:
    with pytest.raises(InputError, match="training rows: none has a label to learn; the dataset needs users with 2"):
        to_dataset([{"input_ids": [1, 2], "labels": [-100, -100], "task": 0}], what="training")


def test_a_checkpoint_of_other_sids_or_another_base_is_refused(
    dataset, sid_folder: Path, table: SIDTable, tmp_path: Path
) -> None:
    run(dataset, sid_folder, tmp_path / "run", max_steps=1)
    checkpoint = tmp_path / "run" / "checkpoint-1"
    other = SIDTable(
        table.item_ids, np.roll(table.codes, 1, axis=0), table.codebook_sizes, "by_hand", {"seed": 1}, table.quality
    )
    other.save(tmp_path / "other")
    (tmp_path / "other" / "quantizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"checkpoint-1 was trained with another SID table \('.*' there, '.*' here\)"):
        run(dataset, tmp_path / "other", tmp_path / "run-2", resume_from_checkpoint=checkpoint)
    manifest = json.loads((checkpoint / "llmrec.json").read_text())
    check_resume(str(checkpoint), manifest)
    for change, message in (
        ({"base_model": "Qwen/Qwen3-0.6B"}, r"another base model \('tiny-qwen3' there, 'Qwen/Qwen3-0.6B' here\)"),
        ({"method": "lora"}, "another method .*; give --method as it was, or start anew without it"),
        ({"vocab_rows": 7}, "another number of token rows"),
        ({"protocol": "temporal"}, "'leave_one_out', and this run's is 'temporal': it has trained on rows that are h"),
    ):
        with pytest.raises(InputError, match=message):
            check_resume(str(checkpoint), {**manifest, **change})
    # The folder of the run itself tells by its run.json.
    (tmp_path / "run" / "README.md").unlink()
    with pytest.raises(InputError, match=r"holds another run \(sid_hash is '"):
        run(dataset, tmp_path / "other", tmp_path / "run", max_steps=1)


def test_a_loss_that_is_no_number_stops_the_run(dataset, sid_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(NotFinite) as caught:
        run(dataset, sid_folder, out, max_steps=20, learning_rate=1e30, max_grad_norm=0)
    message = str(caught.value)
    step = int(message.split()[1].rstrip(":"))
    assert re.search(r"8 rows of the training set \(numbers [\d, ]+; tasks: next_item 8; the longest is row", message)
    assert f"The last good checkpoint is {out}/checkpoint-{step - 1}. Lower learning_rate (now 1e+30)" in message
    assert (out / f"checkpoint-{step - 1}" / "model.safetensors").is_file()
    assert not (out / f"checkpoint-{step}").exists()
    assert not (out / "README.md").exists(), "not a finished run"
