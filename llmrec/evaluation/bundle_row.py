"""What a results row says of a bundle: how it was searched, what it was trained as, and what may have leaked."""

import json
from collections.abc import Mapping
from typing import Any

from llmrec.artifacts import text_sha256
from llmrec.data.folder import DatasetFolder
from llmrec.data.splits import Splits
from llmrec.decoding.recommender import LLMRecommender
from llmrec.evaluation.leaks import bundle_leaks

CHANCE = ("seed", "data_seed")
"""What tells two runs of one configuration apart."""

OUTSIDE = (
    "output_dir", "logging_dir", "run_name", "overwrite_output_dir", "report_to", "push_to_hub", "hub_model_id",
    "start_from", "reference",
)  # fmt: skip
"""Where a run writes, what it is called, and where what it starts from lies (``start`` says how that was made)."""

ABOUT = ("metrics", "best", "rounds", "versions", "commit", "format_version", "llmrec_version", "sids")
"""What a bundle says that decides no weight, or tells what chance drew (the pairs of ``rounds``); its SIDs stand for
themselves by ``sid_hash``."""

DESCRIBED = ("name", "catalog_hash", "train")
"""What counts of the dataset, beside the words and counts about it."""


LATER: dict[str, Any] = {
    "architecture": "causal", "freeze": None, "interpolate": None, "language_guard": None,
    "layer_learning_rate_decay": 1.0, "max_perplexity_ratio": None, "old_dataset": None, "perplexity_action": "warn",
    "random_weights": False, "replay": 1.0, "sid_learning_rate": None, "stages": None, "start_from": None,
}  # fmt: skip
"""What bundles say only since their trainer knows it, with the value that means what was done before: at that value it
counts as little as where nothing is said, so that seeds of one configuration stay together over versions."""


def trained_as(info: Mapping[str, Any]) -> str | None:
    """Return 16 hex digits that are equal for bundles of one configuration, whatever their seeds.

    They hash all that a bundle says of its making (dataset, protocol, prompt, base model, method, tasks, settings and
    optimisation, later updates) and its SID table, but for seeds, paths of output, versions and what it measured. What
    a trainer adds to the manifest counts as well, so bundles that were made in two ways never share them.

    Args:
        info: what the bundle's ``llmrec.json`` holds.

    Returns:
        None where it does not say how it was trained.
    """
    if not info.get("training") or not info.get("sid_hash"):
        return None
    said = {key: value for key, value in info.items() if key not in ABOUT}
    dataset = said.get("dataset")
    if isinstance(dataset, Mapping):
        said["dataset"] = {key: value for key, value in dataset.items() if key in DESCRIBED}
    return text_sha256(json.dumps(_lasting(said), sort_keys=True, default=str))[:16]


def _lasting(value: Any) -> Any:
    """Return a JSON value without seeds, paths of output and what goes without saying, at any depth."""
    if isinstance(value, Mapping):
        return {
            str(key): _lasting(held)
            for key, held in value.items()
            if key not in (*CHANCE, *OUTSIDE) and not (key in LATER and held == LATER[key])
        }
    if isinstance(value, list | tuple):
        return [_lasting(held) for held in value]
    return value


def bundle_said(
    model: LLMRecommender,
    *,
    source: str,
    k: int,
    unknown_items: str,
    dataset: DatasetFolder,
    splits: Splits,
    revision: str | None = None,
) -> dict[str, Any]:
    """Return what a results row says of a bundle, see `result_row`; what may have leaked is warned of too.

    Args:
        model: the bundle as it is scored.
        source: its folder or hub id.
        k: length of the lists that are asked of it; so many beams are searched at least.
        unknown_items: ``error`` or ``skip``, as for `CatalogBridge.check`.
        dataset: that it is scored on.
        splits: of the dataset.
        revision: branch, tag or commit of a hub bundle.
    """
    return {
        "score": model.score,
        "num_beams": max(model.num_beams, k),
        "seed": model.info.get("seed"),
        "trained_as": trained_as(model.info),
        "model": source,
        "revision": revision,
        "max_history": model.form.max_history,
        "unknown_items": unknown_items,
        "leaks": bundle_leaks(
            model.info, model.vocab.table, protocol=splits.protocol, dataset=dataset, splits=splits
        ),
    }  # fmt: skip
