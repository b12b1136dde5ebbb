"""Weights between the start's and the last ones: which they are, which are kept, and what is refused."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from llmrec.errors import InputError
from llmrec.training.interpolate import Interpolation, check_shares
from llmrec.training.rl_finish import start_interpolation


def tied() -> nn.ModuleDict:
    model = nn.ModuleDict({"table": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    nn.init.normal_(model["table"].weight, generator=torch.Generator().manual_seed(0))
    model["head"].weight = model["table"].weight
    return model


def trained(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)).to(parameter)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_best_share_is_kept(dtype: torch.dtype):
    """A measure that is highest at 0.4 of the way finds the nearest share, and the weights are the means by hand."""
    model = tied().to(dtype)
    start = model["table"].weight.detach().clone()
    between = Interpolation(model, [1.0, 0.5, 0.25])
    end = trained(model)["table"].weight.detach().clone()
    seen = []

    def measure() -> float:
        seen.append(model["table"].weight.detach().clone())
        share = float(((seen[-1] - start).double() / (end - start).double()).median())
        return -abs(share - 0.4)

    found = between.choose(model, measure)
    assert found["share"] == 0.5
    assert list(found["values"]) == ["0", "0.25", "0.5", "1"]
    assert max(found["values"].values()) == found["values"]["0.5"]
    assert torch.equal(seen[0], start)
    assert torch.equal(seen[3], end)
    expected = [[(1 - 0.5) * a + 0.5 * b for a, b in zip(*rows, strict=True)] for rows in zip(start, end, strict=True)]
    assert torch.allclose(
        model["table"].weight, torch.tensor(expected).to(dtype), atol=1e-6 if dtype == torch.float32 else 8e-3
    )
    assert model["head"].weight is model["table"].weight


def test_of_equals_the_nearest_to_the_start(caplog: pytest.LogCaptureFixture):
    model = tied()
    start = model["table"].weight.detach().clone()
    between = Interpolation(model, [0.5])
    trained(model)
    with caplog.at_level(logging.WARNING):
        assert between.choose(model, lambda: 0.3) == {"share": 0.0, "values": {"0": 0.3, "0.5": 0.3}}
    assert torch.equal(model["table"].weight, start)
    assert "the weights are those of the start" in caplog.text


def test_parameters_that_came_are_refused():
    model = tied()
    between = Interpolation(model, [0.5])
    model["more"] = nn.Linear(2, 2, bias=False)
    with pytest.raises(InputError, match=r"parameters changed while the model trained: more\.weight"):
        between.choose(model, lambda: 0.0)


@pytest.mark.parametrize("shares", [[], [0], [0.5, 0.5], [1.5], ["half"], 0.5, [True], [float("nan")]])
def test_shares_that_are_none(shares: object):
    with pytest.raises(InputError, match=r"interpolate: .*; a list of different shares of the way from the start"):
        check_shares(shares)


@pytest.mark.parametrize(
    ("rows", "sharded", "message"),
    [
        ([], False, "without validation rows to choose by"),
        ([1], True, r"in pieces over processes \(FSDP, DeepSpeed\)"),
    ],
)
def test_runs_that_cannot_choose_are_refused(rows: list[int], sharded: bool, message: str):
    start: Any = SimpleNamespace(
        method="full", inputs=SimpleNamespace(splits=SimpleNamespace(rows={"valid": rows}.__getitem__))
    )
    trainer = SimpleNamespace(is_fsdp_enabled=sharded, is_deepspeed_enabled=False)
    arguments: Any = SimpleNamespace(interpolate=[0.5])
    with pytest.raises(InputError, match=message):
        start_interpolation(arguments, trainer, start=start)


def test_shares_come_in_their_order():
    assert check_shares([1, 0.25]) == [0.25, 1.0]
