"""Groups read from one row a prompt train as TRL does: loss, KL, entropy and gradients, in one process and in two."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_kit import GROUP, STEPS, make_trainer, train
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

KIT = str(Path(__file__).parents[1] / "grpo_kit.py")


@pytest.fixture(scope="module")
def folder(tokenizer: Any, vocab: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and groups of SIDs behind prompts of other lengths; one SID is cut short."""
    path = tmp_path_factory.mktemp("grpo")
    tokenizer.save_pretrained(path)
    texts = ["red pen", "a blue pen, no. 7, and a green one, no. 22", "black", f"{vocab.tokens(3)}{vocab.tokens(8)}"]
    items = [[4, 9, 14, 20], [0, 1, 2, 3], [29, 11, 7, 5], [8, 3, 17, 24]]
    groups = [[vocab.token_ids(row) for row in rows] for rows in items]
    groups[1][2] = groups[1][2][:2]
    (path / "candidates.json").write_text(json.dumps(dict(zip(texts, groups, strict=True))))
    return path


@pytest.fixture(scope="module")
def model_folder(folder: Path, tokenizer: Any) -> Path:
    set_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, initializer_range=0.2, tie_word_embeddings=True,
        max_position_embeddings=128,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def compare(
    found: tuple[dict[str, Tensor], list[dict[str, float]]], wanted: tuple[dict[str, Tensor], list[dict[str, float]]]
) -> None:
    assert len(found[1]) == len(wanted[1]) == STEPS
    for ours, theirs in zip(found[1], wanted[1], strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, abs=1e-5), name
    assert wanted[1][0]["kl"] == pytest.approx(0.0, abs=1e-7)
    assert wanted[1][1]["kl"] > 1e-6
    assert wanted[1][0]["entropy"] > 1
    assert found[0].keys() == wanted[0].keys()
    for step in range(STEPS):
        names = [name for name in wanted[0] if name.startswith(f"{step}/")]
        largest = max(float(wanted[0][name].abs().max()) for name in names)
        assert largest > 0.01
        for name in names:
            torch.testing.assert_close(found[0][name], wanted[0][name], atol=1e-5 * largest, rtol=0, msg=name)


@pytest.mark.parametrize("lora", [False, True])
def test_one_process(model_folder: Path, lora: bool) -> None:
    """Two steps with a KL term: log-probabilities of policy and reference, and what TRL makes of them."""
    compare(
        train(model_folder, "groups", lora=lora, batch=2 * GROUP),
        train(model_folder, "trl", lora=lora, batch=2 * GROUP),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "dapo", "entropy_coef": 0.1},  # differentiates the entropy
        {"loss_type": "bnpo", "top_entropy_quantile": 0.5},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.0},
    ],
)
def test_losses_of_trl(model_folder: Path, vocab: Any, settings: dict[str, Any]) -> None:
    """One batch of two groups, with old and reference log-probabilities that are not those of the policy."""
    generator = torch.Generator().manual_seed(0)
    rows = [vocab.token_ids(row) for row in (4, 9, 14, 20, 0, 1, 2, 3)]
    mask = torch.ones(8, 3, dtype=torch.long)
    mask[5, 2] = 0
    noise = [0.2 * torch.randn(8, 3, generator=generator) for _ in range(2)]
    found = []
    for side in ("groups", "trl"):
        trainer = make_trainer(model_folder, side, lora=False, batch=2 * GROUP, **settings)
        trainer.current_gradient_accumulation_steps = 1
        batch = {
            "prompt_ids": torch.tensor([[0, 0, 9, 8]] * 4 + [[5, 6, 7, 8]] * 4),
            "prompt_mask": torch.tensor([[0, 0, 1, 1]] * 4 + [[1, 1, 1, 1]] * 4),
            "completion_ids": torch.tensor(rows) * mask,
            "completion_mask": mask,
            "advantages": torch.tensor([1.0, -0.5, 0.3, -0.8, 0.0, 1.2, -0.7, -0.5]),
            "num_items_in_batch": mask.sum(),
        }
        with torch.no_grad():
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
            seen = torch.cat([batch["prompt_mask"], mask], dim=1)
            before = trainer._get_per_token_logps_and_entropies(trainer.model, ids, seen, 3)[0]
        batch |= {"old_per_token_logps": before + noise[0], "ref_per_token_logps": before + noise[1]}
        trainer.model.train()
        loss = trainer.loss_of(batch)
        loss.backward()
        gradients = {name: value.grad for name, value in trainer.model.named_parameters()}
        found.append((loss.item(), gradients))
    (ours, gradients), (theirs, wanted) = found
    assert ours == pytest.approx(theirs, abs=1e-5)
    largest = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, atol=1e-5 * largest, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_two_processes(model_folder: Path, tmp_path: Path, lora: bool) -> None:
    """Each with one of two groups: TRL in two processes, and in one."""
    for side in ("groups", "trl"):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", KIT,
            str(model_folder), "--side", side, "--out", str(tmp_path / side), *(["--lora"] if lora else []),
        ]  # fmt: skip
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    runs = {
        side: (load_file(tmp_path / f"{side}.0.safetensors"), json.loads((tmp_path / f"{side}.json").read_text()))
        for side in ("groups", "trl")
    }
    compare(runs["groups"], runs["trl"])
    compare(runs["groups"], train(model_folder, "trl", lora=lora, batch=2 * GROUP))
    other = load_file(tmp_path / "groups.1.safetensors")
    for name, value in runs["groups"][0].items():
        assert torch.equal(other[name], value), f"{name}: gradients are averaged over processes"
