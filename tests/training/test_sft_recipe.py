"""recipes/sft.py end to end on tiny data: bundles, resuming, adapters, processes."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate
from llmrec.hub import load_bundle
from llmrec.sids.table import SIDTable
from llmrec.training.tokenizer import train_tokenizer

RECIPE = str(Path(__file__).parents[2] / "recipes" / "sft.py")
main = runpy.run_path(RECIPE)["main"]


def flags(dataset, sid_folder: Path, out: Path, **settings: Any) -> list[str]:
    defaults = {
        "dataset": dataset.path, "sids": sid_folder, "output_dir": out, "model": "tiny-qwen3", "text_vocab_size": 320,
        "max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "gradient_checkpointing": False, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2,
        "save_steps": 2,
        "load_best_model_at_end": True, "metric_for_best_model": "ndcg@10", "eval_beams": 10, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return [text for key, value in {**defaults, **settings}.items() for text in (f"--{key}", str(value))]


def losses(path: Path, name: str = "loss") -> list[float]:
    history = json.loads((path / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def test_a_run_writes_a_bundle_that_learned(dataset, sid_folder: Path, table: SIDTable, tmp_path: Path) -> None:
    out = tmp_path / "run"
    main(
        flags(
            dataset, sid_folder, out, max_steps=320, eval_steps=160, save_steps=160, learning_rate=3e-3,
            tasks='{"next_item": 1.0, "title_to_sid": 0.5}',
        )
    )  # fmt: skip
    bundle = load_bundle(out)
    assert bundle.titles == dataset.catalog.titles
    assert bundle.info["tasks"] == {"next_item": 1.0, "title_to_sid": 0.5}
    assert bundle.info["metrics"][0]["split"] == "valid"
    counts = np.bincount(np.concatenate([items[:-2] for items in dataset.interactions.sequences()]), minlength=30)
    assert bundle.vocab.popularity.tolist() == counts.tolist(), "training interactions alone"
    # Items step by one or two, so both successors fill the list of a model that learned; chance is 2 of 30. (Seeds 0
    # to 2 give 0.62 to 0.74; half the steps give anything from 0.05 to 0.56.)
    found = evaluate(
        LLMRecommender.from_pretrained(out), dataset.split("leave_one_out").test, items=30, ks=[2], progress=False
    )
    assert found.metrics["recall@2"] > 0.4
    state = json.loads((out / "checkpoint-320" / "trainer_state.json").read_text())
    evaluations = [entry for entry in state["log_history"] if "eval_ndcg@10" in entry]
    assert [entry["step"] for entry in evaluations] == [160, 320]
    assert state["best_metric"] == pytest.approx(max(entry["eval_ndcg@10"] for entry in evaluations))
    for folder in (out, out / "checkpoint-320"):
        assert SIDTable.load(folder).hash == table.hash
        assert (folder / "llmrec.json").is_file()
        assert (folder / "tokenizer.json").is_file()
        assert (folder / "quantizer.json").read_text() == "{}"
    card = (out / "README.md").read_text()
    assert f"{bundle.info['metrics'][0]['metrics']['ndcg@10']:.4f}" in card
    assert not (out / "training_args.bin").exists()
    with pytest.raises(InputError, match="holds this very run, finished"):
        main(flags(dataset, sid_folder, out, max_steps=320, eval_steps=160, save_steps=160, learning_rate=3e-3,
                   tasks='{"next_item": 1.0, "title_to_sid": 0.5}'))  # fmt: skip


def test_resumed_equals_uninterrupted(dataset, sid_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    argv = flags(dataset, sid_folder, out, residual_dropout=0.2)
    main(argv)
    whole, weights = losses(out / "checkpoint-4"), load_file(out / "checkpoint-4" / "model.safetensors")
    assert len(whole) == 4
    shutil.rmtree(out / "checkpoint-4")  # as if it had been killed after step 2
    (out / "README.md").unlink()
    main(argv)
    assert losses(out / "checkpoint-4") == pytest.approx(whole, abs=1e-6)
    for name, tensor in load_file(out / "checkpoint-4" / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-6, rtol=0)


def test_a_killed_run_that_began_with_another_ones_checkpoint_goes_on_from_its_own(
    dataset, sid_folder: Path, tmp_path: Path
) -> None:
    settings = {"save_steps": 1, "eval_strategy": "no", "load_best_model_at_end": False}
    main(flags(dataset, sid_folder, tmp_path / "first", max_steps=1, **settings))
    out = tmp_path / "run"
    argv = flags(dataset, sid_folder, out, resume_from_checkpoint=tmp_path / "first" / "checkpoint-1", **settings)
    main(argv)
    assert not (out / "checkpoint-1").exists(), "it began with the other one's"
    whole = (out / "checkpoint-4" / "model.safetensors").read_bytes()
    shutil.rmtree(out / "checkpoint-4")  # as if it had been killed after step 3
    (out / "README.md").unlink()
    shutil.rmtree(tmp_path / "first")
    before = (out / "checkpoint-2" / "trainer_state.json").stat().st_mtime_ns
    main(argv)
    assert (out / "checkpoint-2" / "trainer_state.json").stat().st_mtime_ns == before, "steps 2 and 3 are not repeated"
    assert (out / "checkpoint-4" / "model.safetensors").read_bytes() == whole


@pytest.fixture
def pretrained(make_model, catalog, tmp_path: Path) -> Path:
    path = tmp_path / "pretrained"
    make_model("qwen3", rows=640, hidden=64).save_pretrained(path)
    train_tokenizer(catalog.titles, vocab_size=320).save_pretrained(path)
    return path


@pytest.mark.parametrize("method", ["lora", "qlora", "new_rows"])
def test_adapters_through_the_trainer(
    dataset, sid_folder: Path, vocab, pretrained: Path, tmp_path: Path, method: str
) -> None:
    """Tied Qwen: TRL's fused head reads the wrapped head, and the best checkpoint is loaded with its rows."""
    out = tmp_path / "run"
    main(flags(dataset, sid_folder, out, model=pretrained, method=method, supervise="row", prompt="chat"))
    adapter = load_file(out / "adapter_model.safetensors")
    assert max(value.shape[0] for value in adapter.values()) < 640, "rows and matrices, no whole table"
    delta = next(value for name, value in adapter.items() if "trainable_tokens_delta" in name)
    assert delta.shape[0] == len(vocab.trainable_token_indices)
    bundle = load_bundle(out)
    again = load_bundle(out / "checkpoint-4")
    assert bundle.info["method"] == method
    assert bundle.info["prompt"]["kind"] == "chat"
    ids = bundle.vocab.item_token_ids.reshape(1, -1)[:, :9]
    with torch.no_grad():
        assert torch.isfinite(again.model(ids).logits).all()
    if method != "qlora":
        # What was saved is what was validated: the best checkpoint came back with its rows.
        recommender = LLMRecommender.from_pretrained(out, num_beams=10)
        rows = dataset.split("leave_one_out", max_history=20).valid
        found = evaluate(recommender, rows, items=30, ks=[5, 10], progress=False).metrics
        said = bundle.info["metrics"][0]["metrics"]
        assert {name: found[name] for name in said} == pytest.approx(said, abs=1e-9)
    assert LLMRecommender.from_pretrained(out).recommend([[0, 1], [5]], 10).shape == (2, 10)


@pytest.mark.parametrize("method", ["lora", "qlora", "new_rows"])
def test_resumed_adapters_equal_uninterrupted_ones(
    dataset, sid_folder: Path, pretrained: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "run"
    settings = {"model": pretrained, "method": method, "lora_dropout": 0.1}
    if method == "qlora":
        # bitsandbytes repacks 4-bit weights on a CPU when a model is first evaluated, and rounds otherwise after it.
        settings |= {"eval_strategy": "no", "load_best_model_at_end": False}
    argv = flags(dataset, sid_folder, out, **settings)
    main(argv)
    whole, weights = losses(out / "checkpoint-4"), load_file(out / "checkpoint-4" / "adapter_model.safetensors")
    shutil.rmtree(out / "checkpoint-4")
    (out / "README.md").unlink()
    main(argv)
    assert losses(out / "checkpoint-4") == pytest.approx(whole, abs=1e-6)
    for name, tensor in load_file(out / "checkpoint-4" / "adapter_model.safetensors").items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, weights[name], atol=1e-6, rtol=0)


def test_bad_input_leaves_the_folder_as_it_was(dataset, sid_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for settings in ({"model": "tiny-qwen"}, {"eval_ks": 31, "eval_beams": 31}, {"metric_for_best_model": "ndcg@7"}):
        with pytest.raises(InputError):
            main(flags(dataset, sid_folder, out, **settings))
        assert not out.exists()
    main(flags(dataset, sid_folder, out, eval_strategy="no", load_best_model_at_end=False, max_steps=1))
    before = (out / "model.safetensors").read_bytes()
    assert load_bundle(out).info["metrics"] == [], "eval_strategy: no measures nothing at all"
    with pytest.raises(InputError, match="'tiny-qwen'"):
        main(flags(dataset, sid_folder, out, overwrite_output_dir=True, model="tiny-qwen"))
    assert (out / "model.safetensors").read_bytes() == before


def test_sids_of_another_dataset_are_refused(dataset, table: SIDTable, tmp_path: Path) -> None:
    other = SIDTable(tuple(f"other{row}" for row in range(len(table))), table.codes, table.codebook_sizes)
    other.save(tmp_path / "sids")
    with pytest.raises(InputError, match="the SID table was made for another catalogue"):
        main(flags(dataset, tmp_path / "sids", tmp_path / "run"))
    assert not (tmp_path / "run").exists(), "refused before anything is written"


@pytest.mark.slow
def test_two_processes_equal_one(dataset, sid_folder: Path, tmp_path: Path) -> None:
    """The same global batch of 8: once from one process, once 4 from each of two."""
    settings = {"max_steps": 4, "eval_steps": 4, "save_steps": 4, "tasks": '{"next_item": 1.0, "title_to_sid": 2.0}'}
    one, two = tmp_path / "one", tmp_path / "two"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = [sys.executable, RECIPE, *flags(dataset, sid_folder, one, **settings)]
    subprocess.run(alone, check=True, env=environment)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    pair = [*launcher, RECIPE, *flags(dataset, sid_folder, two, per_device_train_batch_size=4, **settings)]
    subprocess.run(pair, check=True, env=environment)
    for name in ("loss", "loss/next_item", "loss/title_to_sid", "num_tokens"):
        assert losses(two / "checkpoint-4", name) == pytest.approx(losses(one / "checkpoint-4", name), abs=1e-4)
    for name, tensor in load_file(two / "model.safetensors").items():
        torch.testing.assert_close(tensor, load_file(one / "model.safetensors")[name], atol=2e-3, rtol=0)
    metrics = [load_bundle(path).info["metrics"][0]["metrics"] for path in (one, two)]
    assert metrics[1] == pytest.approx(metrics[0], abs=0.03)


def test_walks_are_trained_on_and_their_loss_is_logged(dataset, sid_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    walks = '{"baseline": "transitions", "alone": 300, "items": 3, "temperature": 1.0, "top": 4}'
    main(flags(dataset, sid_folder, out, max_steps=40, save_steps=40, eval_steps=40, walks=walks))
    history = json.loads((out / "checkpoint-40" / "trainer_state.json").read_text())["log_history"]
    found = [entry["loss/walks"] for entry in history if "loss/walks" in entry]
    assert len(found) > 30
    assert sum(found[-5:]) < 0.8 * sum(found[:5]), "it learns them"
    assert load_bundle(out).info["settings"]["walks"]["alone"] == 300
