"""How long a recommender lets people wait."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

FEWEST_OF_P95 = 20
"""Requests below which the slowest 5 % are less than one of them."""


@dataclass(frozen=True)
class Latency:
    """How fast ``recommend`` answered, from the histories to the lists on the CPU, by the clock.

    A request waits for the whole call that it travels in, so what a visitor waits is measured apart, with one user a
    call (`llmrec.evaluation.evaluator.time_requests`).

    Args:
        users_per_second: requests over the seconds of all calls with many users.
        batch_users: most requests in such a call.
        calls: how many such calls it rests on.
        p50: seconds that half of the single requests took at most; None where none was timed.
        p95: seconds that 95 % of them took at most; None below `FEWEST_OF_P95` of them.
        requests: single requests that were timed.
    """

    users_per_second: float
    batch_users: int
    calls: int
    p50: float | None = None
    p95: float | None = None
    requests: int = 0

    @classmethod
    def of(cls, seconds: Sequence[float], users: Sequence[int]) -> "Latency":
        """Summarize calls.

        Args:
            seconds: of each call, at least one.
            users: requests in each call, at least 1 each.
        """
        total = max(float(np.sum(seconds)), 1e-9)
        return cls(float(np.sum(users)) / total, int(max(users)), len(users))

    def with_requests(self, seconds: Sequence[float] | np.ndarray) -> "Latency":
        """Return the same with what single requests took.

        Args:
            seconds: of each request, one user a call; at least one.
        """
        p50, p95 = np.quantile(np.asarray(seconds, dtype=np.float64), [0.5, 0.95], method="inverted_cdf")
        enough = len(seconds) >= FEWEST_OF_P95
        return replace(self, p50=float(p50), p95=float(p95) if enough else None, requests=len(seconds))
