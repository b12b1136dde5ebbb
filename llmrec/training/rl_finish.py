"""What a run that started from a bundle says of itself, its identity and its manifest; and how it ends."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmrec.artifacts import file_sha256, git_commit, versions
from llmrec.errors import InputError
from llmrec.evaluation.bundle_row import trained_as
from llmrec.hub import push_to_hub, save_card
from llmrec.training.finish import ALSO_TO_GO_ON, CUTS, OPTIMISATION
from llmrec.training.interpolate import Interpolation
from llmrec.training.model import QUANTIZATION
from llmrec.training.policy import Policy, Start
from llmrec.training.rl_config import RLArguments
from llmrec.training.validation import Validation

NOT_SETTINGS = (
    "dataset", "model", "model_revision", "reference", "method", "dtype", "overwrite_output_dir", "sample_steps",
    "rollout_tokens",
)  # fmt: skip
"""Arguments that do not decide the weights, or are told apart by hashes or keys of their own."""


def _optimisation(training: Any, *more: str) -> dict[str, Any]:
    names = [name for name in (*OPTIMISATION, *training.decides, *more) if hasattr(training, name)]
    values = {name: getattr(training, name) for name in names}
    return {name: getattr(value, "value", value) for name, value in values.items()}


def _settings(arguments: RLArguments) -> dict[str, Any]:
    """Return the recipe's own arguments that decide the weights."""
    return {
        name: value
        for name, value in asdict(arguments).items()
        if name not in NOT_SETTINGS and not name.startswith("eval_")
    }


def start_weights(start: Start) -> dict[str, str]:
    """Return the hashes of the files that a run's first weights came from."""
    return {file.name: file_sha256(file) for file in sorted(start.path.glob("*.safetensors"))}


def rl_identity(arguments: RLArguments, training: Any, start: Start) -> dict[str, Any]:
    """Return what must be equal for a killed run to go on in its folder; of the batch, its size over all processes.

    Args:
        arguments: the recipe's own.
        training: how it is optimised, with ``decides`` naming its own fields that decide the weights.
        start: what it starts from.
    """
    inputs = start.inputs
    return {
        "dataset": inputs.dataset.name,
        "files": dict(inputs.dataset.manifest.get("files", {})),
        "sid_hash": inputs.table.hash,
        "start": start_weights(start),
        "method": start.method,
        "dtype": start.info.get("dtype") if arguments.dtype is None else arguments.dtype,
        "base_model": start.base_model,
        "reference": arguments.reference,
        **_settings(arguments),
        "protocol": inputs.splits.protocol,
        **{
            name: value
            for name, value in _optimisation(training, *ALSO_TO_GO_ON).items()
            if name not in CUTS or name == "steps_per_generation"
        },
        **{name: value for name, value in asdict(arguments).items() if name.startswith("eval_")},
        "global_batch": training.train_batch_size * training.gradient_accumulation_steps * training.world_size,
    }


def describe_rl_run(
    arguments: RLArguments, training: Any, *, start: Start, policy: Policy, stage: str, more: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the manifest of the bundle (``llmrec.json``), before there are metrics.

    Args:
        arguments: the recipe's own.
        training: how it is optimised.
        start: what it started from.
        policy: what trains.
        stage: ``grpo`` or ``dpo``.
        more: what this kind of training says besides.
    """
    before, dataset = start.info, start.inputs.dataset
    described = {
        "name": dataset.name,
        "catalog_hash": dataset.catalog.hash,
        "licence": dataset.manifest.get("licence", "unknown"),
        "source": dataset.manifest.get("source", "unknown"),
        "counts": dataset.manifest.get("counts", {}),
        **({"train": dataset.manifest["train"]} if "train" in dataset.manifest else {}),
    }
    dtype = str(policy.model.dtype).removeprefix("torch.")
    return {
        "dataset": described,
        "protocol": start.inputs.splits.protocol,
        "prompt": start.inputs.form.to_dict(),
        "base_model": start.base_model,
        "base_revision": start.base_revision,
        "architecture": before.get("architecture", "causal"),
        "method": start.method,
        "dtype": before.get("dtype", dtype) if arguments.dtype is None else arguments.dtype,
        "quantization": (before.get("quantization") or dict(QUANTIZATION)) if start.method == "qlora" else None,
        "sids": dict(before.get("sids", {})),
        "vocab_rows": policy.vocab_rows,
        "supervise": before.get("supervise"),
        "tasks": before.get("tasks"),
        "stage": stage,
        "start_from": arguments.model,
        "start": {"stage": before.get("stage", "sft"), "method": before["method"], "trained_as": trained_as(before)},
        "reference": arguments.reference,
        "seed": training.seed,
        "settings": _settings(arguments),
        "training": {**_optimisation(training), "processes": training.world_size},
        **more,
        "versions": versions(),
        "commit": git_commit(),
        "metrics": [],
    }


def start_interpolation(arguments: RLArguments, trainer: Any, *, start: Start) -> Interpolation | None:
    """Return the way from the weights of a trainer as they are; None where ``interpolate`` does not ask for it.

    Args:
        arguments: the recipe's own.
        trainer: before it trains.
        start: what it starts from.

    Raises:
        InputError: weights that are an adapter's, or in pieces over processes; or no validation rows to choose by.
    """
    if arguments.interpolate is None:
        return None
    if start.method != "full":
        raise InputError(
            f"interpolate: {arguments.interpolate} with method: {start.method}; between two adapters lies no mean of "
            "what they do. Train all weights (method: full), or leave it out"
        )
    if not start.inputs.splits.rows("valid"):
        raise InputError(f"interpolate: {arguments.interpolate} without validation rows to choose by; leave it out")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise InputError(
            f"interpolate: {arguments.interpolate} where weights lie in pieces over processes (FSDP, DeepSpeed); use "
            "DDP, or leave it out"
        )
    return Interpolation(trainer.accelerator.unwrap_model(trainer.model), arguments.interpolate)


def finish_rl_run(
    trainer: Any,
    arguments: RLArguments,
    *,
    start: Start,
    between: Interpolation | None,
    validation: Validation,
    info: dict[str, Any],
    sidecars: Callable[[Path], None],
    push: bool,
    measure: bool = True,
) -> None:
    """Write the bundle: the weights, then what validation says of them, and the card, which marks it as finished.

    Args:
        trainer: after its training.
        arguments: the recipe's own.
        start: what it started from.
        between: the way from its first weights, where a share of it is to be chosen.
        validation: scores it.
        info: its manifest, which is filled here.
        sidecars: writes what belongs beside the weights, with the manifest.
        push: whether the whole bundle goes to the hub.
        measure: whether validation scores the weights that it ends with.
    """
    training, accelerator = trainer.args, trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    info["best"] = trainer.best()
    kept: dict[str, float] | None = None
    if between is not None:
        asked = str(training.metric_for_best_model).removeprefix("eval_")
        metric = asked if asked in arguments.measured else f"ndcg@{max(arguments.eval_ks)}"
        measured: list[dict[str, float]] = []

        def score() -> float:
            measured.append(validation.metrics(model, accelerator))
            return measured[-1][f"eval_{metric}"]

        found = between.choose(model, score)
        kept = max(measured, key=lambda metrics: metrics[f"eval_{metric}"])  # of equals the first, as `choose` does
        info["best"] = {"metric": metric, **found}
    trainer.save_model(training.output_dir)
    if measure and validation.rows:
        splits = start.inputs.splits
        name = start.inputs.dataset.name
        info["metrics"] = [validation.row(model, accelerator, dataset=name, protocol=splits.protocol, found=kept)]
    if accelerator.is_main_process:
        sidecars(Path(training.output_dir))
        save_card(training.output_dir)
        if push:
            private = training.hub_private_repo or False
            push_to_hub(training.output_dir, training.hub_model_id, private=private, token=training.hub_token)
