"""Few rows equal PEFT's own forward: values, gradients, and every state that an adapter can be in."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.trainable_tokens import TrainableTokensLayer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from llmrec.training.adapters import attach_adapter
from llmrec.training.forward import add_labelled_forward
from llmrec.training.objectives.cross_entropy import negative_log_likelihood
from llmrec.training.sid_rows import FewRowsLayer, multiply_few_rows, sid_rows_of

MakeModel = Callable[..., PreTrainedModel]
ROWS = list(range(300, 320))  # of 640: text before and behind them


def wrap(model: nn.Module, *, rows: list[int] | None = None, tied: bool = True, name: str = "default") -> PeftModel:
    tables = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    settings = {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": dict.fromkeys(tables, rows or ROWS)}
    return get_peft_model(model, LoraConfig(**settings), adapter_name=name)


def shake(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name or "lora_B" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)


def token_ids(module: nn.Module) -> list[int]:
    found = sid_rows_of(module).token_ids
    assert found is not None
    return found.tolist()


def ids() -> torch.Tensor:
    """Text and SID tokens, SID tokens more than once, and the rows beside the first and the last."""
    return torch.tensor([[3, 300, 301, 319, 299, 320, 7], [639, 305, 305, 300, 0, 311, 318]])


@pytest.fixture
def pair(make_model: MakeModel) -> Callable[..., tuple[PeftModel, PeftModel]]:
    """Make PEFT's own model and ours, of equal parameters."""

    def make(
        *, tied: bool = True, rows: list[int] | None = None, dtype: Any = torch.float32
    ) -> tuple[PeftModel, PeftModel]:
        base: Any = make_model("qwen3", tied=tied)
        slow = wrap(base.to(dtype), tied=tied, rows=rows)
        shake(slow)
        fast = copy.deepcopy(slow)
        assert multiply_few_rows(fast) == 2
        assert multiply_few_rows(fast) == 0, "once is enough"
        return slow, fast

    return make


def loss_and_gradients(model: PeftModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(ids()).logits
    cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids()[:, 1:].flatten()).backward()
    trained = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), trained


@pytest.mark.parametrize("rows", [ROWS, [310, 7, 639, 300, 305]], ids=["in one run", "scattered, out of order"])
@pytest.mark.parametrize("tied", [True, False])
def test_values_and_gradients_are_those_of_peft(pair, tied: bool, rows: list[int]) -> None:
    slow, fast = pair(tied=tied, rows=rows)
    slow.train()
    fast.train()
    expected, wanted = loss_and_gradients(slow)
    logits, found = loss_and_gradients(fast)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert found.keys() == wanted.keys()
    assert sum("trainable_tokens_delta" in name for name in found) == (1 if tied else 2)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_rounds_as_peft_does(pair, tied: bool) -> None:
    """PEFT keeps the rows in float32 over a table in bfloat16; both round them where they are used."""
    slow, fast = pair(tied=tied, dtype=torch.bfloat16)
    expected, wanted = loss_and_gradients(slow)
    logits, found = loss_and_gradients(fast)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits, expected, atol=2**-6, rtol=2**-6)
    for name, gradient in found.items():
        if "trainable_tokens_delta" in name:
            assert gradient.dtype == torch.float32
            # Gradients of table rows add up in bfloat16: 8 bits, twice over for the tied table.
            torch.testing.assert_close(gradient, wanted[name], atol=0.02 * float(wanted[name].abs().max()), rtol=0.05)


def test_autocast_multiplies_in_its_dtype(pair) -> None:
    slow, fast = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, wanted = loss_and_gradients(slow)
        logits, found = loss_and_gradients(fast)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits, expected, atol=2**-6, rtol=2**-6)
    delta = next(name for name in found if "trainable_tokens_delta" in name)
    torch.testing.assert_close(found[delta], wanted[delta], atol=0.02 * float(wanted[delta].abs().max()), rtol=0.05)


@pytest.mark.parametrize("tied", [True, False])
def test_no_table_is_built(pair, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast = pair(tied=tied)
    monkeypatch.setattr(TrainableTokensLayer, "get_merged_weights", lambda *_: pytest.fail("a whole table was built"))
    loss_and_gradients(fast)
    base = fast.get_base_model()
    assert base.get_input_embeddings().original_module.weight.grad is None
    assert base.get_output_embeddings().original_module.weight.grad is None


def test_gradient_checkpointing(pair) -> None:
    slow, fast = pair()
    expected, wanted = loss_and_gradients(slow.train())
    fast.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    fast.enable_input_require_grads()
    logits, found = loss_and_gradients(fast)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_switched_off_is_the_base(pair, make_model: MakeModel, tied: bool) -> None:
    _, fast = pair(tied=tied)
    with torch.no_grad():
        on = fast(ids()).logits
        with fast.disable_adapter():
            off = fast(ids()).logits
            assert sid_rows_of(fast.get_input_embeddings()).rows is None
        again = fast(ids()).logits
        base = make_model("qwen3", tied=tied)(ids()).logits
    assert torch.equal(off, base)
    assert torch.equal(on, again)
    assert (on - off).abs().max() > 0.1


@pytest.mark.parametrize("tied", [True, False])
def test_merged_and_unmerged(pair, tied: bool) -> None:
    _, fast = pair(tied=tied)
    with torch.no_grad():
        attached = fast(ids()).logits
        fast.merge_adapter()
        assert sid_rows_of(fast.get_output_embeddings()).rows is None
        torch.testing.assert_close(fast(ids()).logits, attached, atol=1e-5, rtol=0)
        fast.unmerge_adapter()
        torch.testing.assert_close(fast(ids()).logits, attached, atol=1e-5, rtol=0)
        merged = fast.merge_and_unload()
        torch.testing.assert_close(merged(ids()).logits, attached, atol=1e-5, rtol=0)
    assert type(merged.get_input_embeddings()) is nn.Embedding


def test_a_second_adapter_has_its_own_rows(pair) -> None:
    slow, fast = pair()
    other = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [5, 302]})
    for model in (slow, fast):
        model.add_adapter("other", other)
        model.set_adapter("other")
    shake(slow)
    fast.load_state_dict(slow.state_dict())  # LoRA matrices start at random
    assert token_ids(fast.get_input_embeddings()) == [5, 302]
    for name in ("other", "default"):
        with torch.no_grad():
            slow.set_adapter(name)
            fast.set_adapter(name)
            torch.testing.assert_close(fast(ids()).logits, slow(ids()).logits, atol=1e-5, rtol=0)
    with torch.no_grad():
        mixed = {"adapter_names": ["other", "__base__"]}
        torch.testing.assert_close(
            fast.eval()(ids(), **mixed).logits, slow.eval()(ids(), **mixed).logits, atol=1e-5, rtol=0
        )


def layer(base: nn.Module, rows: list[int]) -> FewRowsLayer:
    made = FewRowsLayer(base, "default")
    made.update_layer("default", token_indices=rows)
    shake(made)
    return made


def test_a_head_keeps_its_bias() -> None:
    head = nn.Linear(4, 9)
    few = layer(head, [2, 7])
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    weight = head.weight.detach().clone()
    weight[[2, 7]] = few.trainable_tokens_delta["default"].detach()
    torch.testing.assert_close(few(x), x @ weight.T + head.bias)


def test_a_scaled_embedding_scales_the_rows() -> None:
    few = layer(Gemma3TextScaledWordEmbedding(9, 4, padding_idx=0, embed_scale=2.0), [2, 7])
    x = torch.tensor([[1, 2, 7]])
    expected = 2.0 * few.get_merged_weights(["default"])[x]
    torch.testing.assert_close(few(x), expected)


def test_an_embedding_that_renormalises_goes_the_way_of_peft() -> None:
    few = layer(nn.Embedding(9, 4, max_norm=0.5), [2, 7])
    assert few(torch.tensor([2])).norm() <= 0.5 + 1e-6


def test_attached_adapters_multiply_few_rows(make_model: MakeModel, vocab) -> None:
    model = attach_adapter(make_model(), vocab, method="lora", rank=4)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert type(module.token_adapter) is FewRowsLayer
        table = sid_rows_of(module)
        assert table.weight is module.original_module.weight
        assert table.rows is model.get_input_embeddings().token_adapter.trainable_tokens_delta["default"]
        assert token_ids(module) == vocab.trainable_token_indices


def test_a_copy_of_a_model_trains_its_own_rows(pair) -> None:
    _, fast = pair()
    other = copy.deepcopy(fast)
    with torch.no_grad():
        before = fast(ids()).logits
        other.get_input_embeddings().token_adapter.trainable_tokens_delta["default"].zero_()
        assert torch.equal(fast(ids()).logits, before)
        assert not torch.equal(other(ids()).logits, before)


def build(tied: bool) -> PeftModel:
    torch.random.default_generator.manual_seed(0)
    config = Qwen3Config(
        vocab_size=640, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=64, head_dim=16, tie_word_embeddings=tied, initializer_range=0.2,
    )  # fmt: skip
    model = wrap(Qwen3ForCausalLM(config), tied=tied)
    shake(model)
    multiply_few_rows(model)
    add_labelled_forward(model.get_base_model(), negative_log_likelihood)  # type: ignore[arg-type]
    return model


def labelled_loss(model: nn.Module, rows: torch.Tensor, count: int) -> torch.Tensor:
    places = torch.arange(rows.numel()).view(rows.shape)[:, :-1].flatten()
    targets = rows[:, 1:].flatten()
    batch = {"input_ids": rows, "places": places, "targets": targets, "tasks": torch.zeros_like(targets)}
    return model(**batch).losses.sum() / count


def in_process(rank: int, store: str, kind: str, tied: bool) -> None:
    """Two optimiser steps of one of two processes, each with one of the two rows."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = build(tied)
    if kind == "fsdp2":
        mesh = init_device_mesh("cpu", (2,))
        for block in model.get_base_model().model.layers:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh)
        wrapped: Any = fully_shard(model, mesh=mesh)
    else:
        wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    for _ in range(2):
        (2 * labelled_loss(wrapped, ids()[rank : rank + 1], 12)).backward()  # both average over processes
        optimizer.step()
        optimizer.zero_grad()
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    trained = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in trained.items()}
    if rank == 0:
        save_file({name: value.contiguous() for name, value in trained.items()}, f"{store}.safetensors")
    del wrapped, model, optimizer, trained  # before their group is: gloo waits for ever otherwise
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_the_rows_of_one(kind: str, tied: bool, tmp_path: Path) -> None:
    model = build(tied)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    start = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    for _ in range(2):
        labelled_loss(model, ids(), 12).backward()
        optimizer.step()
        optimizer.zero_grad()
    store = tmp_path / "store"
    torch.multiprocessing.spawn(in_process, args=(str(store), kind, tied), nprocs=2)
    found = load_file(tmp_path / "store.safetensors")
    moved = 0
    for name, value in model.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(found[name], value.detach(), atol=1e-6, rtol=1e-5, msg=name)
            moved += "trainable_tokens_delta" in name and not torch.equal(start[name], found[name])
    assert moved == (1 if tied else 2)
