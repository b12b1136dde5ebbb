"""Freezing, slower lower layers, and SID rows at a rate of their own, against optimisers written out by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from llmrec.errors import InputError
from llmrec.training.adapters import attach_adapter
from llmrec.training.layers import TrainedParts, named_parts

MakeModel = Callable[..., PreTrainedModel]
SIDS = [300, 301, 302, 310]
IDS = torch.tensor([[3, 300, 301, 302, 7, 310, 300], [9, 302, 310, 310, 0, 301, 5]])


def optimizer_of(model: nn.Module, parts: TrainedParts, *, lr: float = 1e-3, **settings: Any) -> AdamW:
    """Two groups, as the trainer of transformers makes them."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in trained if one.ndim > 1], "weight_decay": 0.1},
        {"params": [one for one in trained if one.ndim < 2], "weight_decay": 0.0},
    ]
    made = AdamW(groups, lr=lr, **settings)
    parts.set_rates(made, model)
    return made


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        logits = model(IDS).logits
        cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
        optimizer.step()
        model.zero_grad()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
def test_sid_rows_of_a_whole_table_move_at_their_own_rate(make_model: MakeModel, tied: bool) -> None:
    """A twin with one AdamW a rate: the first's rows are read at SID tokens, the second's elsewhere."""
    model, slow, fast = (make_model(tied=tied) for _ in range(3))
    train(model, optimizer_of(model, TrainedParts(model, SIDS, sid_learning_rate=1e-2)))
    found = weights(model)
    # Trajectories depend on all rates at once, so the twin takes its gradients from a common model.
    twin = slow
    pair = [
        AdamW([{"params": list(one.parameters()), "weight_decay": 0.0}], lr=lr)
        for one, lr in ((slow, 1e-3), (fast, 1e-2))
    ]
    decay = {name: 0.1 if value.ndim > 1 else 0.0 for name, value in weights(twin).items()}
    for optimizer, one in zip(pair, (slow, fast), strict=True):
        optimizer.param_groups[:] = [
            {**optimizer.param_groups[0], "params": [value], "weight_decay": decay[name]}
            for name, value in one.named_parameters()
        ]
    tables = ["model.embed_tokens.weight"] if tied else ["model.embed_tokens.weight", "lm_head.weight"]
    for _ in range(3):
        logits = twin(IDS).logits
        cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
        for one, other in zip(slow.parameters(), fast.parameters(), strict=True):
            other.grad = None if one.grad is None else one.grad.clone()
        for optimizer in pair:
            optimizer.step()
        with torch.no_grad():
            for name, value in slow.named_parameters():
                other = fast.get_parameter(name)
                if name in tables:
                    value[SIDS] = other[SIDS]
                other.copy_(value)
        slow.zero_grad()
        fast.zero_grad()
    for name, value in weights(twin).items():
        torch.testing.assert_close(found[name], value, atol=1e-7, rtol=1e-6, msg=name)
    start = weights(make_model(tied=tied))[tables[0]]
    moved = (found[tables[0]] - start).abs()
    # Three steps of AdamW are at most three times the rate each, decay aside (.1 of the rate times weights below 1).
    assert 1e-2 < float(moved[SIDS].max()) <= 3.3e-2
    others = [row for row in range(640) if row not in SIDS]
    assert float(moved[others].max()) <= 3.3e-3


def test_a_schedule_moves_both_rates(make_model: MakeModel) -> None:
    model = make_model()
    optimizer = optimizer_of(model, TrainedParts(model, SIDS, sid_learning_rate=1e-2))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    assert schedule.get_last_lr()[0] == 1e-3, "the log shows the common rate"
    optimizer.step()
    schedule.step()
    assert sorted(set(schedule.get_last_lr())) == [5e-4, 5e-3]


def test_sid_rows_of_an_adapter_have_their_own_rate(make_model: MakeModel, vocab) -> None:
    model = attach_adapter(make_model(tied=False), vocab, method="lora", rank=4)
    optimizer = optimizer_of(
        model, TrainedParts(model, vocab.trainable_token_indices, sid_learning_rate=1e-2), lr=1e-3
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_rate = {group["lr"]: {names[one] for one in group["params"]} for group in optimizer.param_groups}
    assert set(by_rate) == {1e-3, 1e-2}
    assert all("trainable_tokens_delta" in name for name in by_rate[1e-2])
    assert len(by_rate[1e-2]) == 2
    assert all("lora_" in name for name in by_rate[1e-3])


def test_lower_layers_are_slower(make_model: MakeModel) -> None:
    """Two layers: head and last norm 1, layer 1 a half, layer 0 a quarter, embeddings an eighth."""
    model = make_model(tied=False)
    optimizer = optimizer_of(model, TrainedParts(model, SIDS, layer_decay=0.5), lr=0.08)
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names.get(one, "rows"): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    assert rates["lm_head.weight"] == rates["model.norm.weight"] == 0.08
    assert rates["model.layers.1.mlp.up_proj.weight"] == rates["model.layers.1.input_layernorm.weight"] == 0.04
    assert rates["model.layers.0.self_attn.q_proj.weight"] == 0.02
    assert rates["model.embed_tokens.weight"] == 0.01
    assert rates["rows"] == 0.08, "SID rows are new: they keep the common rate"


def test_stacks_of_an_encoder_decoder_decay_each(make_model: MakeModel) -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2))
    optimizer = optimizer_of(model, TrainedParts(model, [30, 31], layer_decay=0.5), lr=0.08)
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names.get(one, "rows"): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    for stack in ("encoder", "decoder"):
        assert rates[f"{stack}.block.1.layer.0.SelfAttention.q.weight"] == 0.04
        assert rates[f"{stack}.block.0.layer.0.SelfAttention.q.weight"] == 0.02
    assert rates["shared.weight"] == 0.01


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("table", ["embed_tokens", "lm_head"])
def test_a_frozen_table_lets_its_sid_rows_train(make_model: MakeModel, tied: bool, table: str) -> None:
    model = make_model(tied=tied)
    start = weights(model)
    parts = TrainedParts(model, SIDS, freeze=[table, "layers.0-0"])
    optimizer = optimizer_of(model, parts)
    train(model, optimizer)
    name = "lm_head.weight" if table == "lm_head" and not tied else "model.embed_tokens.weight"
    others = [row for row in range(640) if row not in SIDS]
    for one, value in weights(model).items():
        moved = (value - start[one]).abs()
        if one == name:
            assert float(moved[others].max()) == 0.0, "no gradient, and no weight decay either"
            assert float(moved[SIDS].amax(dim=1).min()) > 0.0
        else:
            assert bool(moved.max() > 0) is not one.startswith("model.layers.0."), one


def test_frozen_rows_of_a_table_do_not_count_in_the_gradients_norm(make_model: MakeModel) -> None:
    model = make_model()
    TrainedParts(model, SIDS, freeze=["embed_tokens"])
    for _ in range(2):  # accumulated twice
        cross_entropy(model(IDS).logits.flatten(0, 1), IDS.flatten()).backward()
    plain = make_model()
    for _ in range(2):
        cross_entropy(plain(IDS).logits.flatten(0, 1), IDS.flatten()).backward()
    found, expected = (one.get_parameter("model.embed_tokens.weight").grad for one in (model, plain))
    assert found is not None
    assert expected is not None
    assert torch.equal(found[SIDS], expected[SIDS])
    assert int((found.abs().sum(dim=1) > 0).sum()) == len(SIDS)


@pytest.mark.parametrize("freeze", [["sid_rows"], ["sid_rows", "embed_tokens"]])
def test_sid_rows_stay_when_they_are_named(make_model: MakeModel, freeze: list[str]) -> None:
    model = make_model()
    start = weights(model)["model.embed_tokens.weight"]
    train(model, optimizer_of(model, TrainedParts(model, SIDS, freeze=freeze)))
    moved = (weights(model)["model.embed_tokens.weight"] - start).abs().amax(dim=1)
    assert float(moved[SIDS].max()) == 0.0
    assert bool(moved[3] > 0) is ("embed_tokens" not in freeze)


def test_layers_of_an_adapter_freeze(make_model: MakeModel, vocab) -> None:
    model = attach_adapter(make_model(), vocab, method="lora", rank=4)
    TrainedParts(model, vocab.trainable_token_indices, freeze=["layers.0", "embed_tokens"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("layers.1." in name for name in trained)
    assert not any("layers.0." in name for name in trained)
    assert any("trainable_tokens_delta" in name for name in trained), "SID rows train unless they are named"
    TrainedParts(model, vocab.trainable_token_indices, freeze=["sid_rows"])
    assert not any("delta" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_names(make_model: MakeModel, vocab) -> None:
    model = make_model()
    for one in (model, attach_adapter(make_model(), vocab, method="lora", rank=4)):
        assert len(named_parts(one, ["layers.0-1"])) == 2
        assert len(named_parts(one, ["mlp"])) == 2
        assert len(named_parts(one, ["layers.1.mlp", "norm"])) == 2
    assert named_parts(model, ["layers.0-1.mlp"]) == [layer.mlp for layer in model.model.layers]


def test_what_is_refused(make_model: MakeModel, vocab) -> None:
    expected = (
        r"freeze: 'layers.1-2' names nothing of Qwen3ForCausalLM \(there is no layers.2\); there is layers.0-1, "
        r"embed_tokens, self_attn, mlp, input_layernorm, post_attention_layernorm, norm, lm_head and sid_rows"
    )
    with pytest.raises(InputError, match=expected):
        TrainedParts(make_model(), SIDS, freeze=["layers.1-2"])
    with pytest.raises(InputError, match=expected):
        TrainedParts(attach_adapter(make_model(), vocab, method="lora", rank=4), SIDS, freeze=["layers.1-2"])
    with pytest.raises(InputError, match=r"freeze: 'layers.5-2' counts down; write 2-5"):
        TrainedParts(make_model(), SIDS, freeze=["layers.5-2"])
    with pytest.raises(InputError, match="freeze: model, sid_rows leaves nothing to train"):
        TrainedParts(make_model(), SIDS, freeze=["model", "sid_rows"])


def test_sid_rows_of_a_table_cut_over_processes_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = make_model()
        parts = TrainedParts(model, SIDS, sid_learning_rate=1e-2)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(InputError, match="method: full cannot do with a table that FSDP or ZeRO-3 cuts"):
            parts.set_rates(AdamW(model.parameters(), lr=1e-3), model)
        TrainedParts(model, SIDS).set_rates(AdamW(model.parameters(), lr=1e-3), model)
    finally:
        dist.destroy_process_group()
