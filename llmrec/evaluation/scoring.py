"""From recommenders to a results file: every system of a table is scored alike, and its row says all of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.data.folder import DatasetFolder
from llmrec.data.splits import History, Splits
from llmrec.evaluation.evaluator import (
    Evaluation,
    Recommender,
    evaluate,
    exclusions,
    named_exclusions,
    time_requests,
)
from llmrec.evaluation.leaks import check_targets, later_than_test
from llmrec.evaluation.profile import gather_facts, profile
from llmrec.evaluation.results import result_row, write_results


class Scoring:
    """Systems scored on the same rows of a split, for one results file.

    Args:
        dataset: the dataset folder.
        splits: its splits by the protocol that is scored.
        rows: what is scored: a split of them, or its first rows.
        split: which.
        ks: cuts of the metrics.
        exclude_seen: True, False, or ``both``: each system gets a row with seen items kept and one without.
        embeddings: file of the items' vectors, for the diversity of lists; None measures none.
        sequences: training sequences that popularity is counted in; None takes those of ``splits``.
        progress: show progress bars.
        timing: time single requests of each system. Of several processes one alone should.

    Attributes:
        values: the values of ``exclude_seen``, in order.
        results: rows of the file, two a system under ``both``.
        evaluations: what was found, in the same order.
        later_than_test: share of training rows later in time than the median test target; None where there are no
            times.

    Raises:
        InputError: ``both`` where targets repeat items, a target that is trained on, or what `gather_facts` refuses.
    """

    def __init__(
        self,
        dataset: DatasetFolder,
        splits: Splits,
        rows: Sequence[History],
        *,
        split: str,
        ks: Sequence[int],
        exclude_seen: bool | str = False,
        embeddings: str | Path | None = None,
        sequences: Sequence[Sequence[int]] | None = None,
        progress: bool = True,
        timing: bool = True,
    ) -> None:
        self.values = exclusions(exclude_seen, rows)
        check_targets(dataset, splits, rows, split=split)
        self.dataset, self.splits, self.rows, self.split, self.ks = dataset, splits, rows, split, tuple(ks)
        self.exclude_seen, self.progress, self.timing = exclude_seen, progress, timing
        self.later_than_test = later_than_test(dataset, splits)
        self.facts = gather_facts(dataset, splits, rows, sequences=sequences, embeddings=embeddings)
        self.results: list[dict[str, Any]] = []
        self.evaluations: list[Evaluation] = []
        self._shared = {
            "dataset": dataset.name,
            "split": split,
            "protocol": splits.protocol,
            "catalog": dataset.catalog.hash,
            "rows": len(splits.rows(split)),
            "train": "recovered" if dataset.manifest.get("train") == "recovered" else None,
            "later_than_test": self.later_than_test,
        }

    def add(
        self,
        recommender: Recommender,
        name: str,
        *,
        only: bool | None = None,
        rows: Sequence[History] | None = None,
        items: int | None = None,
        labels: np.ndarray | None = None,
        batch_users: int = 2048,
        progress: bool | None = None,
        timed: bool = True,
        **said: Any,
    ) -> list[dict[str, Any]]:
        """Score a system, and keep its row or rows.

        Lists without seen items are searched anew: what is left of lists that were searched with them would be too
        short, and a search that knows what may come out goes other ways.

        Args:
            recommender: model or baseline.
            name: of the system; under ``both`` the row without seen items gets `EXCLUDED_SUFFIX` behind it.
            only: one of `values`, for a system that was made for it; None scores all of them.
            rows: the rows of the table, with more to their histories, such as times; None takes them as they are.
            items: size of the catalogue of its lists; None takes the dataset's.
            labels: ``(items,)`` numbers of its SIDs, see `profile`; None for a system without.
            batch_users: rows handed over at a time.
            progress: show a progress bar; None as for the table.
            timed: say how long it takes; False for one that only joins answers of others.
            said: what else the rows say, see `result_row`.

        Returns:
            The rows, as they stand in `results`.

        Raises:
            InputError: as `evaluate`.
        """
        made = []
        for exclude_seen, called in named_exclusions(name, self.exclude_seen):
            if only not in (None, exclude_seen):
                continue
            scored = self.rows if rows is None else rows
            found = evaluate(
                recommender,
                scored,
                items=items or len(self.dataset.catalog),
                ks=self.ks,
                exclude_seen=exclude_seen,
                name=called,
                batch_users=batch_users,
                progress=self.progress if progress is None else progress,
            )
            if not timed:
                found = replace(found, latency=None)
            elif self.timing and found.latency is not None:
                single = time_requests(recommender, scored, k=max(self.ks), exclude_seen=exclude_seen)
                found = replace(found, latency=found.latency.with_requests(single))
            row = result_row(found, **self._shared, exclude_seen=exclude_seen, **said)
            made.append(row | profile(found, self.facts, labels=labels))
            self.evaluations.append(found)
        self.results += made
        return made

    def notes(self) -> list[str]:
        """Return what a reader of the table should know of the split, a line each; mostly none."""
        if not self.later_than_test:
            return []
        return [
            f"{self.later_than_test:.1%} of the training rows are later in time than the median test target "
            f"({self._shared['protocol']})"
        ]

    def write(self, path: str | Path) -> None:
        """Write results, ranks and lists, see `write_results`."""
        write_results(path, self.results, self.evaluations, users=[row.user for row in self.rows])
