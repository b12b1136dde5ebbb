"""The head where labels stand, against torch's log-softmax over all logits."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from llmrec.errors import InputError
from llmrec.training.adapters import attach_adapter
from llmrec.training.labelled import BLOCK, Head, sid_numbers

IDS = (1, 2, 3, 7)


def parts(
    labels: int, vocab: int, dim: int, *, bias: bool, rows: bool, frozen: bool, kind: torch.dtype = torch.float64
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(labels + 10 * vocab + 100 * dim)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(kind)

    ids = torch.tensor([token for token in IDS if token < vocab])
    return {
        "hidden": draw(labels, dim).requires_grad_(),
        "weight": draw(vocab, dim).requires_grad_(not frozen),
        "bias": draw(vocab).requires_grad_(not frozen) if bias else None,
        "rows": draw(len(ids), dim).requires_grad_() if rows else None,
        "ids": ids if rows else None,
        "targets": torch.randint(0, vocab, (labels,), generator=generator),
        "grad": draw(labels),
    }


def plain(made: dict[str, Any], softcap: float | None) -> Tensor:
    """All logits at once."""
    table = made["weight"] if made["rows"] is None else made["weight"].index_copy(0, made["ids"], made["rows"])
    logits = made["hidden"] @ table.T
    if made["bias"] is not None:
        logits = logits + made["bias"]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(1, made["targets"][:, None])[:, 0]


def leaves(made: dict[str, Any]) -> list[Tensor]:
    found = [made[name] for name in ("hidden", "weight", "bias", "rows")]
    return [tensor for tensor in found if tensor is not None and tensor.requires_grad]


@settings(deadline=None, max_examples=60)
@given(
    labels=st.integers(0, 9), vocab=st.integers(2, 30), dim=st.integers(1, 6), chunk=st.integers(1, 400),
    bias=st.booleans(), rows=st.booleans(), frozen=st.booleans(), equal=st.booleans(),
    softcap=st.sampled_from([None, 2.0]),
)  # fmt: skip
def test_values_and_gradients_of_the_plain_way(
    labels: int, vocab: int, dim: int, chunk: int, bias: bool, rows: bool, frozen: bool, equal: bool,
    softcap: float | None,
) -> None:  # fmt: skip
    made = parts(labels, vocab, dim, bias=bias, rows=rows, frozen=frozen)
    if equal:
        made["grad"] = torch.full_like(made["grad"], -0.3)
    head = Head(made["weight"], made["bias"], made["rows"], made["ids"], softcap=softcap, chunk=chunk)
    found, wanted = head.log_probs(made["hidden"], made["targets"], equal=equal), plain(made, softcap)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    for mine, other in zip(
        torch.autograd.grad((found * made["grad"]).sum(), leaves(made)),
        torch.autograd.grad((wanted * made["grad"]).sum(), leaves(made)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk", [11, 10**6])
def test_gradcheck(frozen: bool, chunk: int) -> None:
    made = parts(4, 11, 3, bias=not frozen, rows=True, frozen=frozen)

    def forward(*tensors: Tensor) -> Tensor:
        return Head(made["weight"], made["bias"], made["rows"], made["ids"], chunk=chunk).log_probs(
            made["hidden"], made["targets"]
        )

    assert torch.autograd.gradcheck(forward, tuple(leaves(made)), nondet_tol=1e-12)


def test_more_labels_than_a_block() -> None:
    made = parts(BLOCK + 3, 5, 2, bias=True, rows=True, frozen=False)
    made["grad"][10:] = 0.0
    head = Head(made["weight"], made["bias"], made["rows"], made["ids"])
    found, wanted = head.log_probs(made["hidden"], made["targets"]), plain(made, None)
    torch.testing.assert_close(found, wanted)
    for mine, other in zip(
        torch.autograd.grad((found * made["grad"]).sum(), leaves(made)),
        torch.autograd.grad((wanted * made["grad"]).sum(), leaves(made)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_hits_are_the_argmax() -> None:
    made = parts(50, 3, 2, bias=True, rows=True, frozen=False)
    table = made["weight"].index_copy(0, made["ids"], made["rows"])
    likeliest = (made["hidden"] @ table.T + made["bias"]).argmax(-1)
    for chunk in (7, 10**6):
        head = Head(made["weight"], made["bias"], made["rows"], made["ids"], chunk=chunk)
        head.log_probs(made["hidden"], made["targets"])
        assert head.hits[0].tolist() == (likeliest == made["targets"]).tolist()


def test_unequal_weights_break_the_promise() -> None:
    made = parts(4, 20, 3, bias=False, rows=False, frozen=False)
    found = Head(made["weight"], chunk=10).log_probs(made["hidden"], made["targets"], equal=True)
    with pytest.raises(RuntimeError):
        (found * torch.arange(4)).sum().backward()


class Largest(TorchDispatchMode):
    """The largest tensor that is made, those of given shapes left out."""

    def __init__(self, *known: tuple[int, ...]) -> None:
        super().__init__()
        self.known, self.numel = set(known), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor) and tuple(tensor.shape) not in self.known:
                self.numel = max(self.numel, tensor.numel())
        return made


@pytest.mark.parametrize(("frozen", "rows", "equal"), [(0, 0, 0), (0, 0, 1), (1, 1, 0), (0, 1, 0)])
def test_no_tensor_larger_than_a_chunk(frozen: int, rows: int, equal: int) -> None:
    labels, vocab, dim, chunk = 64, 5000, 4, 10_000
    made = parts(labels, vocab, dim, bias=False, rows=bool(rows), frozen=bool(frozen), kind=torch.float32)
    head = Head(made["weight"], None, made["rows"], made["ids"], chunk=chunk)
    # The table's own gradient is (vocab, dim), which no chunking avoids.
    with Largest((vocab, dim), (dim, vocab)) as seen:
        head.log_probs(made["hidden"], made["targets"], equal=bool(equal)).sum().backward()
    assert seen.numel <= chunk
    with Largest((vocab, dim), (dim, vocab)) as all_logits:
        plain(made, None).sum().backward()
    assert all_logits.numel == labels * vocab


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_bfloat16_is_near(autocast: bool, frozen: bool) -> None:
    made = parts(40, 300, 16, bias=True, rows=True, frozen=frozen, kind=torch.float32)
    for chunk in (1000, 10**6):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            given = made if autocast else {
                name: value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value
                for name, value in made.items()
            }  # fmt: skip
            head = Head(given["weight"], given["bias"], given["rows"], given["ids"], chunk=chunk)
            found = head.log_probs(given["hidden"], given["targets"])
        assert found.dtype == torch.float32
        wanted = plain(made, None)
        torch.testing.assert_close(found, wanted, atol=0.1, rtol=0.02)
        for mine, other in zip(
            torch.autograd.grad((found * made["grad"]).sum(), leaves(made)),
            torch.autograd.grad((wanted * made["grad"]).sum(), leaves(made)),
            strict=True,
        ):
            assert mine.dtype == other.dtype == torch.float32
            assert torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("rows", [False, True])
def test_logits_of_a_few_tokens(rows: bool) -> None:
    made = parts(5, 12, 3, bias=True, rows=rows, frozen=False)
    tokens = torch.tensor([7, 0, 3, 3])
    head = Head(made["weight"], made["bias"], made["rows"], made["ids"], scale=0.5, softcap=2.0)
    table = made["weight"] if not rows else made["weight"].index_copy(0, made["ids"], made["rows"])
    wanted = 2.0 * torch.tanh((made["hidden"] * 0.5 @ table.T + made["bias"])[:, tokens] / 2.0)
    found = head.logits(made["hidden"], tokens)
    torch.testing.assert_close(found, wanted)
    for mine, other in zip(
        torch.autograd.grad(found.sum(), leaves(made)), torch.autograd.grad(wanted.sum(), leaves(made)), strict=True
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_head_of_a_model(make_model, vocab, tied: bool, method: str) -> None:
    model = make_model(tied=tied)
    if method == "lora":
        wrapped = attach_adapter(model, vocab, method="lora")
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "delta" in name:
                    parameter += 0.1
    tokens = torch.tensor([[5, *vocab.token_ids(3), *vocab.token_ids(7)]])
    with torch.no_grad():
        wanted = model(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
        hidden = model.base_model(tokens).last_hidden_state[0, :-1]
        found = Head.of(model).log_probs(hidden, tokens[0, 1:])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_the_gradient_of_a_few_rows(make_model, tied: bool, passes: int) -> None:
    """Of a table that is read and multiplied, rows come with a sparse gradient; the sum is dense and whole."""
    model = make_model(tied=tied)
    tokens, few = torch.tensor([[5, 9, 3, 9]]), torch.tensor([9, 2, 40, 2])

    def gradients(rows) -> list[Tensor]:
        model.zero_grad()
        for _ in range(passes):
            hidden = model.base_model(tokens).last_hidden_state[0]
            (hidden @ rows().T).logsumexp(-1).sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    head = Head.of(model)
    assert head.tied is tied
    found = gradients(lambda: head.few_rows(few, torch.float32).table)
    assert all(grad.layout == torch.strided for grad in found)
    for one, other in zip(found, gradients(lambda: model.get_output_embeddings().weight[few]), strict=True):
        torch.testing.assert_close(one, other)


def test_a_frozen_table_has_no_gradient_of_rows(make_model) -> None:
    model = make_model(tied=True)
    model.get_input_embeddings().weight.requires_grad_(False)
    tokens = torch.tensor([[5, 9, 3]])
    table = Head.of(model).few_rows(torch.tensor([9, 2]), torch.float32).table
    (model.base_model(tokens).last_hidden_state[0] @ table.T).sum().backward()
    assert model.get_input_embeddings().weight.grad is None


@pytest.mark.parametrize(
    ("config", "kind", "special"),
    [
        (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}),
        (CohereConfig, CohereForCausalLM, {"logit_scale": 0.3}),
        (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 4.0}),
    ],
)
def test_models_that_bend_their_logits(config: Any, kind: Any, special: dict[str, Any]) -> None:
    sizes = {
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
        "num_key_value_heads": 2, "intermediate_size": 16, "initializer_range": 0.5, "pad_token_id": 0,
    }  # fmt: skip
    model = kind(config(**sizes, **special)).eval()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        wanted = model(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
        found = Head.of(model).log_probs(model.base_model(tokens).last_hidden_state[0, :-1], tokens[0, 1:])
    torch.testing.assert_close(found, wanted)


def test_a_wrapped_head_is_refused(make_model) -> None:
    model = make_model(tied=False)
    get_peft_model(model, LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(InputError, match="its output layer is quantized or wrapped"):
        Head.of(model)


def test_running_numbers_of_sids() -> None:
    # Two SIDs side by side, text, then one whose first code carries no label, then a gap inside a SID
    levels = torch.tensor([0, 1, 2, 0, 1, 2, -1, -1, 1, 2, 0, 1])
    places = torch.tensor([4, 5, 6, 7, 8, 9, 10, 11, 20, 21, 30, 32])
    assert sid_numbers(levels, places).tolist() == [0, 0, 0, 1, 1, 1, -1, -1, 2, 2, 3, 4]
    assert sid_numbers(levels[:0], places[:0]).tolist() == []
