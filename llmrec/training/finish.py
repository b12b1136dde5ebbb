"""What a run says of itself: its identity while it runs, and the manifest of its bundle."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmrec.artifacts import git_commit, versions
from llmrec.data.folder import DatasetFolder
from llmrec.sids.table import SIDTable
from llmrec.tasks.prompt import PromptForm
from llmrec.training.config import RecipeArguments, SFTRecipeConfig
from llmrec.training.model import QUANTIZATION, Prepared

OPTIMISATION = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "adam_beta1", "adam_beta2",
    "adam_epsilon", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "max_grad_norm", "max_length", "train_sampling_strategy", "bf16", "fp16", "seed", "data_seed",
)  # fmt: skip
"""Fields of `SFTRecipeConfig` that decide the weights."""

ALSO_TO_GO_ON = (
    "lr_scheduler_kwargs", "optim_args", "neftune_noise_alpha", "dataloader_drop_last", "metric_for_best_model",
    "greater_is_better", "load_best_model_at_end", "eval_steps", "eval_strategy",
)  # fmt: skip
"""Further fields that a killed run must find as they were, beside the recipe's ``eval_*``: they decide the optimiser,
the noise, and which checkpoint is the best. Bundles do not tell them, and are compared without them."""

CUTS = ("per_device_train_batch_size", "gradient_accumulation_steps")
"""How a global batch is cut: a run may go on with another cut, and another number of processes."""

NOT_SETTINGS = (
    "dataset", "sids", "domain", "overwrite_output_dir", "find_batch_size", "dry_run", "dry_run_json",
)  # fmt: skip
"""Fields of `RecipeArguments` that do not decide the weights, or are told apart by hashes."""


def _optimisation(training: SFTRecipeConfig, names: Sequence[str] = OPTIMISATION) -> dict[str, Any]:
    values = {name: getattr(training, name) for name in names}
    # An enum in some versions, a plain name in others.
    return {name: getattr(value, "value", value) for name, value in values.items()}


def _settings(arguments: RecipeArguments) -> dict[str, Any]:
    """Return the recipe's own arguments that decide the weights; data and SIDs are told apart by their hashes."""
    return {
        name: value
        for name, value in asdict(arguments).items()
        if name not in NOT_SETTINGS and not name.startswith("eval_")
    }


def run_identity(
    arguments: RecipeArguments,
    training: SFTRecipeConfig,
    *,
    dataset: DatasetFolder,
    table: SIDTable,
    form: PromptForm,
    protocol: str,
) -> dict[str, Any]:
    """Return what must be equal for a killed run to go on in its folder; of the batch, its size over all processes."""
    optimisation = {name: value for name, value in _optimisation(training).items() if name not in CUTS}
    measured = {name: value for name, value in asdict(arguments).items() if name.startswith("eval_")}
    batch = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    return {
        "dataset": dataset.name,
        "files": dict(dataset.manifest.get("files", {})),
        "sid_hash": table.hash,
        # Each stage has a folder and its own settings: what a later one does is no matter to it.
        **{name: value for name, value in _settings(arguments).items() if name != "stages"},
        "protocol": protocol,
        "domain": form.domain,
        **optimisation,
        **_optimisation(training, ALSO_TO_GO_ON),
        **measured,
        "global_batch": batch,
    }


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
        "base_model": arguments.model,
        "base_revision": arguments.model_revision,
        "architecture": "seq2seq" if prepared.model.config.is_encoder_decoder else "causal",  # type: ignore[union-attr]
        "method": arguments.method,
        "dtype": arguments.dtype,
        "quantization": dict(QUANTIZATION) if arguments.method == "qlora" else None,
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
        "settings": _settings(arguments),
        "training": {**_optimisation(training), "processes": training.world_size},
        "versions": versions(),
        "commit": git_commit(),
        "metrics": [],
    }
