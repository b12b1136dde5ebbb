"""What a run says of itself: its identity while it runs, and the manifest of its bundle."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec.artifacts import git_commit, versions
from llmrec.data.folder import DatasetFolder
from llmrec.sids.table import SIDTable
from llmrec.tasks.prompt import PromptForm
from llmrec.training.config import RecipeArguments, SFTRecipeConfig
from llmrec.training.model import Prepared


def training_popularity(sequences: Sequence[Sequence[int]], *, items: int) -> np.ndarray:
    """Return ``(items,)`` int64 counts of each item in the training interactions."""
    flat = np.fromiter((item for sequence in sequences for item in sequence), dtype=np.int64)
    return np.bincount(flat, minlength=items)


def run_identity(
    arguments: RecipeArguments, training: SFTRecipeConfig, *, dataset: DatasetFolder, table: SIDTable, protocol: str
) -> dict[str, Any]:
    """Return what must be equal for a killed run to go on in its folder."""
    return {
        "dataset": dataset.name,
        "interactions": dataset.manifest.get("files", {}).get("interactions.parquet"),
        "catalog_hash": dataset.catalog.hash,
        "sid_hash": table.hash,
        "protocol": protocol,
        "model": arguments.model,
        "model_revision": arguments.model_revision,
        "model_config": arguments.model_config,
        "method": arguments.method,
        "supervise": arguments.supervise,
        "prompt": arguments.prompt,
        "max_history": arguments.max_history,
        "tasks": arguments.tasks,
        **_optimisation(training),
    }


def _optimisation(training: SFTRecipeConfig) -> dict[str, Any]:
    """Return what of the optimisation decides the weights."""
    names = (
        "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "num_train_epochs", "max_steps",
        "per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "seed",
    )  # fmt: skip
    values = {name: getattr(training, name) for name in names}
    values["lr_scheduler_type"] = str(getattr(values["lr_scheduler_type"], "value", values["lr_scheduler_type"]))
    return values


def describe_run(
    arguments: RecipeArguments,
    training: SFTRecipeConfig,
    *,
    dataset: DatasetFolder,
    table: SIDTable,
    prepared: Prepared,
    form: PromptForm,
    protocol: str,
) -> dict[str, Any]:
    """Return the manifest of the bundle (``llmrec.json``), before there are metrics.

    Args:
        arguments: data, model and tasks.
        training: how it is optimised.
        dataset: the dataset folder.
        table: its SIDs.
        prepared: the model.
        form: the prompt form.
        protocol: the split's.
    """
    manifest = dataset.manifest
    described = {
        "name": dataset.name,
        "catalog_hash": dataset.catalog.hash,
        "licence": manifest.get("licence", "unknown"),
        "source": manifest.get("source", "unknown"),
        "counts": manifest.get("counts", {}),
    }
    if "train" in manifest:
        described["train"] = manifest["train"]
    return {
        "dataset": described,
        "protocol": protocol,
        "prompt": form.to_dict(),
        "base_model": prepared.base_model,
        "base_revision": arguments.model_revision,
        "method": arguments.method,
        "sids": {
            "method": table.method,
            "levels": table.levels,
            "codebook_sizes": list(table.codebook_sizes),
            "sid_hash": table.hash,
            "quality": dict(table.quality),
        },
        "vocab_rows": prepared.vocab_rows,
        "supervise": arguments.supervise,
        "tasks": arguments.tasks,
        "seed": training.seed,
        "training": _optimisation(training),
        "versions": versions(),
        "commit": git_commit(),
        "metrics": [],
    }
