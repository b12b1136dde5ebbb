"""Weights between the start's and those that training ended with, of which validation keeps the best."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmrec.errors import InputError

logger = logging.getLogger(__name__)


class Interpolation:
    """The way from a model's weights as they are now to those that training will leave.

    Reinforcement learning from a finished model forgets while it learns; some way back, much of what it learned is
    still there, and what it forgot is there again.

    Args:
        model: before it trains; its parameters are copied to the CPU.
        shares: of the way, each above 0 and at most 1; 0, the start, is always among them.

    Raises:
        InputError: a share out of range or twice, or none.

    Paper: WiSE-FT (Wortsman et al., 2021, arXiv:2109.01903); for rewards, the interpolation towards the
    initialisation of WARP (Ramé et al., 2024, arXiv:2406.16768). How we differ: the share is chosen on validation, and
    nothing is merged over several runs.
    """

    def __init__(self, model: nn.Module, shares: Sequence[float]) -> None:
        self.shares = check_shares(shares)
        self._start = {name: value.detach().to("cpu", copy=True) for name, value in model.named_parameters()}

    def choose(self, model: nn.Module, measure: Callable[[], float]) -> dict[str, Any]:
        """Leave a model with the weights at the share that measures best; of equals the nearest to the start.

        Every process must call.

        Args:
            model: the same one, after its training.
            measure: returns what is to be high of the model as it then is, the same in all processes.

        Returns:
            ``share``, and ``values``, what was measured by share.

        Raises:
            InputError: the model has other parameters than it had.
        """
        parameters = dict(model.named_parameters())
        changed = parameters.keys() ^ self._start.keys()
        if changed:
            raise InputError(f"interpolate: parameters changed while the model trained: {', '.join(sorted(changed))}")
        end = {name: value.detach().to("cpu", copy=True) for name, value in parameters.items()}
        values: dict[float, float] = {}
        for share in (0.0, *self.shares):
            self._set(parameters, end, share)
            values[share] = measure()
            logger.info("%g of the way from the start: %.4f", share, values[share])
        best = max(values, key=lambda share: (values[share], -share))
        self._set(parameters, end, best)
        if not best:
            logger.warning("no share of the way was better than the start: the weights are those of the start")
        return {"share": best, "values": {f"{share:g}": value for share, value in values.items()}}

    @torch.no_grad()
    def _set(self, parameters: dict[str, nn.Parameter], end: dict[str, Tensor], share: float) -> None:
        for name, parameter in parameters.items():
            between = self._start[name] if share == 0 else end[name]
            if 0 < share < 1:
                between = torch.lerp(self._start[name].float(), between.float(), share)
            parameter.copy_(between)


def check_shares(shares: object) -> list[float]:
    """Return shares in their order.

    Raises:
        InputError: no list of different numbers, each above 0 and at most 1.
    """
    numbers = isinstance(shares, list | tuple) and all(
        isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1 for share in shares
    )
    if not numbers or not shares or len(set(shares)) < len(shares):  # pyright: ignore[reportArgumentType]
        raise InputError(
            f"interpolate: {shares!r}; a list of different shares of the way from the start, above 0 and at most 1, "
            "such as [0.25, 0.5, 0.75, 1.0]"
        )
    return sorted(float(share) for share in shares)  # pyright: ignore[reportGeneralTypeIssues]
