"""The output folder of a run of rounds: who may write there, and the bundle that is the run's in the end."""

import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from llmrec.artifacts import read_json, whole_file, write_json
from llmrec.errors import InputError
from llmrec.hub import push_to_hub, save_card
from llmrec.hub.info import CARD_FILE, INFO_FILE, is_bundle_file
from llmrec.training.run_folder import RUN_FILE, check_run_folder, claim_run_folder

logger = logging.getLogger(__name__)

BUNDLE_FOLDER, ROUNDS_FILE = "bundle", "rounds.json"


@dataclass
class RoundsFolder:
    """The output folder of a run of rounds.

    Args:
        path: the folder.
        identity: what says that a run there is this one; each round's folder says more.
        overwrite: whether another run there may be deleted.
        keep: ``last``, or ``best`` by ``metric``.
        metric: of the validation rows in the rounds' manifests.
        push: keyword arguments of `push_to_hub` with ``repo_id``; None pushes nothing.
    """

    path: Path
    identity: dict[str, Any]
    overwrite: bool = False
    keep: str = "last"
    metric: str = "ndcg@10"
    push: dict[str, Any] | None = field(default=None, repr=False)
    unclaimed: bool = field(default=True, repr=False)

    @classmethod
    def of(cls, arguments: Any, training: Any) -> "RoundsFolder":
        """Return the folder of a run.

        Args:
            arguments: of the run.
            training: of the run.
        """
        push = None
        if training.push_to_hub:
            private, token = training.hub_private_repo or False, training.hub_token
            push = {"repo_id": training.hub_model_id, "private": private, "token": token}
        metric = (training.metric_for_best_model or f"ndcg@{max(arguments.eval_ks)}").removeprefix("eval_")
        if metric == "loss":
            metric = f"ndcg@{max(arguments.eval_ks)}"
        identity = {"rounds_of": arguments.model, "dataset": str(arguments.dataset), "seed": training.seed}
        path = Path(str(training.output_dir))
        return cls(path, identity, arguments.overwrite_output_dir, arguments.keep_round, metric, push)

    def round(self, number: int) -> Path:
        """Return the folder of a round."""
        return self.path / f"round-{number}"

    def check(self) -> None:
        """Check that the run may write here, and find whether it goes on; nothing is written.

        Raises:
            InputError: the folder holds another run, a finished one, or other files.
        """
        check_run_folder(self.path, self.identity, overwrite=self.overwrite, finished=CARD_FILE)
        self.unclaimed = self.overwrite or not (self.path / RUN_FILE).is_file()
        PartialState().wait_for_everyone()

    def claim(self) -> None:
        """Make the folder the run's own, once, as `check` allowed; every process must call."""
        if not self.unclaimed:
            return
        self.unclaimed = False
        state = PartialState()
        if state.is_main_process:
            claim_run_folder(self.path, self.identity, checkpoint=None)
        state.wait_for_everyone()

    def finish(self, count: int) -> None:
        """Put the bundle of the last or best round into the folder itself, and push it where that was asked for.

        Args:
            count: rounds that were run.

        Raises:
            InputError: the best is asked for, and a round was not scored.
        """
        told = [self._told(number) for number in range(1, count + 1)]
        kept = count
        if self.keep == "best":
            scores = {entry["round"]: entry["metrics"].get(self.metric) for entry in told}
            missing = [number for number, score in scores.items() if score is None]
            if missing:
                raise InputError(
                    f"keep_round: best: round {missing[0]} has no {self.metric} on validation; set eval_strategy, or "
                    "keep_round: last"
                )
            kept = max(scores, key=lambda number: (scores[number], -number))
        for entry in told:
            logger.info(
                "round %d: %s%s", entry["round"],
                ", ".join(f"{name} {value:.4f}" for name, value in entry["metrics"].items()) or "not scored",
                "; it is the run's bundle" if entry["round"] == kept else "",
            )  # fmt: skip
        source = self.round(kept) / BUNDLE_FOLDER
        info = read_json(source / INFO_FILE, "manifest of the round's bundle")
        (self.path / INFO_FILE).unlink(missing_ok=True)
        for file in sorted(source.iterdir()):
            if file.is_file() and is_bundle_file(file.name) and file.name not in (INFO_FILE, CARD_FILE):
                _link(file, self.path / file.name)
        write_json(self.path / ROUNDS_FILE, {"kept": kept, "by": self.keep, "metric": self.metric, "rounds": told})
        info["start_from"] = self.identity["rounds_of"]
        info["rounds"] = told
        write_json(self.path / INFO_FILE, info)
        save_card(self.path)
        if self.push is not None:
            settings = dict(self.push)
            push_to_hub(self.path, settings.pop("repo_id"), **settings)

    def _told(self, number: int) -> dict[str, Any]:
        """Return what a round's manifests say of it."""
        folder = self.round(number)
        pairs = read_json(folder / "pairs.json", "description of pairs")
        info = read_json(folder / BUNDLE_FOLDER / INFO_FILE, "manifest of the round's bundle")
        rows = [row for row in info.get("metrics", []) if row.get("split") == "valid"]
        return {
            "round": number, "pairs": pairs["rows"], "sha256": pairs["sha256"],
            "metrics": dict(rows[-1]["metrics"]) if rows else {},
        }  # fmt: skip


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has none; files are replaced, never written into."""
    with whole_file(target) as part:
        part.unlink()
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)
