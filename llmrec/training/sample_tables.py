"""Candidates and their rewards as tables that can be read: what the policy recommends, and what for."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from llmrec.artifacts import whole_file
from llmrec.errors import InputError
from llmrec.training.rollout_group import Group
from llmrec.vocab import SIDVocab

logger = logging.getLogger(__name__)

LONGEST = 80
"""Most characters of a title in a table."""


class SampleTables:
    """Writes some prompts of a generation batch every so many steps; titles and SIDs, never who it was.

    ``samples/step-000100.md`` holds what is to be read, ``samples/step-000100.parquet`` a row a candidate.

    Args:
        folder: the output folder; ``samples`` is made in it.
        vocab: the SIDs.
        titles: in catalogue order; None shows item ids.
        every: steps between two tables; 0 writes none.
        prompts: of a batch that are shown, at least 1.
        candidates: of a prompt that are shown, the most probable ones and the target, at least 1.
        history: most recent items of a prompt that are shown, at least 1.

    Raises:
        InputError: a number out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        vocab: SIDVocab,
        titles: Sequence[str] | None,
        every: int = 100,
        prompts: int = 4,
        candidates: int = 10,
        history: int = 10,
    ) -> None:
        for name, value, least in (
            ("every", every, 0), ("prompts", prompts, 1), ("candidates", candidates, 1), ("history", history, 1),
        ):  # fmt: skip
            if value < least:
                raise InputError(f"samples: {name} {value}: at least {least}")
        self.folder = Path(folder) / "samples"
        self.vocab, self.titles, self.every = vocab, titles, every
        self.prompts, self.candidates, self.history = prompts, candidates, history

    def due(self, step: int, *, since: int) -> bool:
        """Return whether a table is to be written at a step: one was due after step ``since``, where it last could."""
        return self.every > 0 and step // self.every > since // self.every

    def write(
        self,
        step: int,
        rows: Sequence[Mapping[str, Any]],
        group: Group,
        rewards: Tensor,
        *,
        names: Sequence[str],
        weights: Sequence[float],
        advantages: Tensor | None = None,
    ) -> str:
        """Write both files, and the table into the log.

        Args:
            step: of the run.
            rows: one a prompt, with ``history`` and ``target``.
            group: their candidates.
            rewards: ``(prompts, G, parts)``.
            names: of the rewards.
            weights: of the rewards.
            advantages: ``(prompts, G)``, where they are to be shown.

        Returns:
            The text of the Markdown file.
        """
        table = self._table(rows, group, rewards, names, weights, advantages)
        text = self._text(step, rows[: self.prompts], table)
        path = self.folder / f"step-{step:06d}.md"
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")
        with whole_file(path.with_suffix(".parquet")) as part:
            pq.write_table(pa.Table.from_pylist(table), part)
        logger.info("%s\n%s", path, text)
        return text

    def title(self, row: int) -> str:
        """Return what names an item for a reader: its title, else its id."""
        found = "" if self.titles is None else " ".join(str(self.titles[row]).split())
        found = found or self.vocab.table.item_ids[row]
        return found if len(found) <= LONGEST else found[: LONGEST - 1] + "…"

    def _table(
        self, rows: Sequence[Mapping[str, Any]], group: Group, rewards: Tensor, names: Sequence[str],
        weights: Sequence[float], advantages: Tensor | None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Return a dict a candidate of the prompts that are written."""
        found = []
        for prompt, row in enumerate(rows[: self.prompts]):
            target = self.vocab.token_ids(row["target"])
            for place in range(group.num_generations):
                item = int(group.rows[prompt, place])
                parts = {name: _number(rewards[prompt, place, part]) for part, name in enumerate(names)}
                pairs = zip(weights, parts.values(), strict=True)
                given = [weight * value for weight, value in pairs if value is not None]
                found.append(
                    {
                        "prompt": prompt,
                        "history": [self.title(seen) for seen in row["history"]],
                        "target": self.title(row["target"]),
                        "rank": int(group.ranks[prompt, place]) + 1,
                        "title": self.title(item),
                        "sid": self.vocab.tokens(item),
                        "is_target": self.vocab.token_ids(item) == target,
                        "log_prob": float(group.log_probs[prompt, place]),
                        **{f"reward {name}": value for name, value in parts.items()},
                        "reward": sum(given) if given else None,
                        **({} if advantages is None else {"advantage": float(advantages[prompt, place])}),
                    }
                )
        return found

    def _text(self, step: int, rows: Sequence[Mapping[str, Any]], table: Sequence[Mapping[str, Any]]) -> str:
        lines = [f"# Samples at step {step}", ""]
        for prompt, row in enumerate(rows):
            own = [entry for entry in table if entry["prompt"] == prompt]
            rank = next((entry["rank"] for entry in own if entry["is_target"]), None)
            among = f"place {rank} of {len(own)}" if rank else f"not among {len(own)}"
            seen = [f"{place}. {_cell(self.title(item))}" for place, item in enumerate(row["history"], 1)]
            cut = max(len(seen) - self.history, 0)
            numbers = [name for name in own[0] if name.startswith("reward ")]
            numbers += [name for name in ("reward", "advantage") if name in own[0]]
            lines += [f"## Prompt {prompt + 1}: {_cell(self.title(row['target']))} ({among})", ""]
            lines += [f"{cut} earlier items, then:", ""] if cut else []
            lines += [*(seen[cut:] or ["No history."]), ""]
            lines.append(f"| rank | candidate | log-prob | {' | '.join(_cell(name) for name in numbers)} |")
            lines.append("|---:|---|---:|" + "---:|" * len(numbers))
            shown = [entry for entry in own if entry["rank"] <= self.candidates or entry["is_target"]]
            for entry in shown:
                title = _cell(entry["title"]) + f" `{entry['sid']}`"
                cells = [entry["rank"], f"**{title}**" if entry["is_target"] else title, f"{entry['log_prob']:.3f}"]
                cells += ["" if entry[name] is None else f"{entry[name]:.3f}" for name in numbers]
                lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
            lines.append("")
        return "\n".join(lines)


def _number(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)


def _cell(text: str) -> str:
    """Return text that stands in a cell or a heading as it is."""
    for sign in "\\|*_`<>[]#":
        text = text.replace(sign, "\\" + sign)
    return text
