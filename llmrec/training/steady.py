"""What every trainer of ours does alike: the order of rows, going on after a stop, and what to do when things fail."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyarrow.compute as pc
import torch
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from llmrec.artifacts import read_json
from llmrec.errors import InputError
from llmrec.hub.info import INFO_FILE
from llmrec.training.guard import FiniteGuard, any_process, describe_rows
from llmrec.training.memory import (
    LESS_MEMORY,
    BatchSizes,
    Halving,
    RehearsalFailed,
    heaviest_batch,
    out_of_memory,
)
from llmrec.training.order import IGNORED, EpochOrder, WholeRounds, rows_of_step, with_idle_rows
from llmrec.training.run_folder import check_resume

logger = logging.getLogger(__name__)


class SteadyTrainer(Trainer):
    """The base of our trainers; stands before the trainer of TRL or transformers whose loss it uses.

    Rows come in an order of seed and epoch alone, so that a run goes on with another number of processes; a loss that
    is not finite stops the run; and with ``find_batch_size`` a batch that does not fit is halved.

    Args:
        *args: as the other trainer takes them.
        sampler: gives the row numbers of an epoch, in the order of the whole (not one process's); None shuffles as
            ``train_sampling_strategy`` says.
        find_batch_size: whether to halve the rows a device, and double the accumulation, when memory ends.
        manifest: what checkpoints say of the run (``llmrec.json``); other batch sizes are entered into it.
        **kwargs: as the other trainer takes them.

    Raises:
        InputError: ``resume_from_checkpoint`` names a checkpoint of other SIDs or another base.
    """

    def __init__(
        self,
        *args: Any,
        sampler: Sampler[int] | None = None,
        find_batch_size: bool = False,
        manifest: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.halvings: list[Halving] = []
        self.rehearsing = False
        self._find_batch_size = find_batch_size
        self._given_order = sampler
        self._order: Sampler[int] | None = None
        self._manifest = manifest if manifest is not None else {}
        self._phase = "between"
        self._first_step = 0
        self._resumed: str | None = None
        self._guard = FiniteGuard(self.accelerator, describe_step=self._describe_step)
        self.add_callback(self._guard)
        self.add_callback(_Steps(self))
        check_resume(self.args.resume_from_checkpoint, self._manifest)

    # Order

    @property
    def global_batch(self) -> int:
        """Rows of an optimiser step, over all processes."""
        return self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    @property
    def order(self) -> Sampler[int]:
        """The order of the training rows, without idle ones."""
        if self._order is None:
            self._order = self._given_order or EpochOrder(
                self.lengths,
                strategy=str(getattr(self.args.train_sampling_strategy, "value", self.args.train_sampling_strategy)),
                batch=self.global_batch,
                seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            )
        return self._order

    @property
    def lengths(self) -> list[int]:
        """Tokens of each training row, prompt and answer."""
        rows = self.train_dataset
        assert isinstance(rows, Dataset)
        # With the format, unlike with the table beneath it, a selection of rows counts.
        return pc.call_function("list_value_length", [rows.with_format("arrow")[:]["input_ids"]]).to_pylist()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(rows, Dataset):
            return super()._get_train_sampler(train_dataset)
        if self.args.world_size == 1:
            return self.order
        return WholeRounds(self.order, size=self._train_batch_size * self.args.world_size, idle=len(rows) - 1)

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches of this process; with several processes the last ones are filled with idle rows."""
        rows = self.train_dataset
        if self.args.world_size == 1 or not isinstance(rows, Dataset):
            return super().get_train_dataloader()
        _ = self.order  # made from the rows alone, before the idle one joins them
        self.train_dataset = with_idle_rows(rows)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = rows

    # Going on

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore random states; where the run had another number of processes, start them anew for this step."""
        rank, world = self.args.process_index, self.args.world_size
        name = "rng_state.pth" if world == 1 else f"rng_state_{rank}.pth"
        if checkpoint is None or (Path(checkpoint) / name).is_file():
            super()._load_rng_state(checkpoint)
            return
        logger.info("%s has no random state for process %d of %d; dropout draws anew", checkpoint, rank, world)
        set_seed(self.args.seed + 1_000_003 * self.state.global_step + rank)

    def _scale_learning_rate(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Take the learning rate of the arguments where the checkpoint was written with another one."""
        path = Path(self._resumed or "") / INFO_FILE
        if self._resumed is None or not path.is_file():
            return
        before = read_json(path, "bundle manifest").get("training", {}).get("learning_rate")
        if not before or before == self.args.learning_rate:
            return
        factor = self.args.learning_rate / before
        logger.info("learning rate: %g in %s, %g from here on", before, self._resumed, self.args.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] *= factor
            if "initial_lr" in group:
                group["initial_lr"] *= factor
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
        scheduler._last_lr = [rate * factor for rate in scheduler.get_last_lr()]  # what the log says of the next step

    # Standing firm

    def any_process(self, flag: bool) -> bool:
        """Return whether the flag is set on any process; all of them ask at the same point."""
        return any_process(flag, self.accelerator)

    def _describe_step(self, step: int) -> str:
        rows = rows_of_step(self.order, step, batch=self.global_batch)
        lengths, names = self.lengths, list(getattr(self, "task_names", None) or [])
        dataset = self.train_dataset
        assert isinstance(dataset, Dataset)
        tasks = dataset["task"] if "task" in dataset.column_names else None
        told = [names[tasks[row]] if tasks is not None and names else "?" for row in rows]
        return describe_rows(rows, tasks=told, lengths=[lengths[row] for row in rows])

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return a micro-batch's loss, and let the guard see it."""
        self._phase = "batch"
        loss = super().training_step(*args, **kwargs)
        self._guard.watch(loss)
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._guard.check_weights(model, self.args, self.state)
        super()._save_checkpoint(model, trial)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, and start again with a smaller cut of the same global batch where memory ends.

        Args:
            resume_from_checkpoint: folder of a checkpoint, or None.
            *args: as `Trainer` takes them.
            **kwargs: as `Trainer` takes them.

        Raises:
            InputError: memory ended and cannot be helped: ``find_batch_size`` is off, one row does not fit, it was
                not in a batch (the optimiser's state, an evaluation), or one of several processes met it.
            NotFinite: loss, gradient or weights are not finite.
        """
        while True:
            self._resumed = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
            self._phase = "between"
            random_state = torch.random.get_rng_state()
            try:
                return super().train(resume_from_checkpoint, *args, **kwargs)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._refuse_hopeless(error)
                error.__traceback__ = None  # it holds the tensors of the step that failed
            kept = self._keep_state()
            if kept:
                resume_from_checkpoint = kept
            else:
                torch.random.set_rng_state(random_state)
            self._cut_smaller()

    def _refuse_hopeless(self, error: BaseException) -> None:
        step = self.state.global_step + 1
        sizes = BatchSizes(self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps)
        if self._phase == "between" and not isinstance(error, RehearsalFailed):
            raise InputError(
                f"after step {step - 1}: out of memory outside a training step; in an evaluation, lower "
                f"per_device_eval_batch_size (now {self.args.per_device_eval_batch_size}) or eval_beams; where the "
                "model itself does not fit, use method: lora, or accelerate_configs/fsdp2.yaml on several GPUs"
            ) from error
        if self._phase == "optimiser":
            raise InputError(
                f"step {step}: out of memory while the optimiser made its state, which no batch size changes; use "
                "method: lora, optim: adamw_8bit, or accelerate_configs/zero2.yaml with several GPUs"
            ) from error
        smaller = sizes.smaller()
        if not self._find_batch_size:
            raise InputError(
                f"step {step}: out of memory with {sizes}; set find_batch_size: true, or {smaller} (the same "
                f"effective batch), or {LESS_MEMORY}; the same command then goes on from the last checkpoint"
            ) from error
        cut = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if (self.args.world_size > 1 or cut) and not isinstance(error, RehearsalFailed):
            raise InputError(
                f"step {step}: process {self.args.process_index} of {self.args.world_size} is out of memory with "
                f"{sizes}, and the others wait for it; start the same command again with {smaller}: it goes on from "
                "the last checkpoint with the same effective batch"
            ) from error

    def _keep_state(self) -> str | None:
        """Save where the run stands, between two steps; None where nothing has been learned yet."""
        step = self.state.global_step
        if step == self._first_step:
            return self._resumed
        path = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        model = self.model_wrapped
        assert model is not None
        model.zero_grad(set_to_none=True)
        clear_device_cache(garbage_collection=True)
        if not (path / TRAINER_STATE_NAME).is_file():
            self._save_checkpoint(model, None)
        return str(path)

    def _cut_smaller(self) -> None:
        before = BatchSizes(self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps)
        after = before.smaller()
        logger.warning("out of memory after step %d with %s; going on with %s", self.state.global_step, before, after)
        self.halvings.append(Halving(self.state.global_step, before, after))
        self._manifest["halvings"] = [halving.to_dict() for halving in self.halvings]
        if "training" in self._manifest:
            self._manifest["training"] |= {
                "per_device_train_batch_size": after.rows,
                "gradient_accumulation_steps": after.accumulation,
            }
        self.args.per_device_train_batch_size = after.rows
        self.args.gradient_accumulation_steps = after.accumulation
        self._train_batch_size = self.args.train_batch_size
        self.optimizer = self.lr_scheduler = None
        if self.model is not None:
            self.model.zero_grad(set_to_none=True)
        self.model_wrapped = self.model
        clear_device_cache(garbage_collection=True)

    def _begin(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Look at what a checkpoint brought, and at the memory, before the first step."""
        self._first_step = self.state.global_step
        self._scale_learning_rate(optimizer, scheduler)
        if self._find_batch_size:
            self.rehearse()

    def _begin_epoch(self) -> None:
        if hasattr(self.order, "set_epoch"):
            steps = max(math.ceil(len(self.order) / self.global_batch), 1)  # type: ignore[arg-type]
            # accelerate does not reach the sampler of several processes in an epoch that a checkpoint lies in.
            self.order.set_epoch(self.state.global_step // steps)  # type: ignore[attr-defined]

    @contextmanager
    def rows_in_order(self, order: Sampler[int]) -> Iterator[None]:
        """Let the rows of the training set come in another order for a while."""
        before, self._order = self.order, order
        try:
            yield
        finally:
            self._order = before

    def loss_of(self, rows: Sequence[dict[str, Any]]) -> Tensor:
        """Return the loss of some rows as one batch of this process; nothing is logged, and no random number drawn.

        Args:
            rows: token rows.
        """
        self.rehearsing = True
        try:
            with torch.random.fork_rng(devices=[self.args.device] if self.args.device.type == "cuda" else []):
                inputs = self._prepare_inputs(self.data_collator(list(rows)))
                labels = sum(label != IGNORED for row in rows for label in row["labels"])
                with self.compute_loss_context_manager():
                    count = torch.tensor(labels, device=self.args.device)
                    return cast(
                        Tensor, self.compute_loss(cast(nn.Module, self.model), inputs, num_items_in_batch=count)
                    )
        finally:
            self.rehearsing = False

    def rehearse(self) -> None:
        """Run the heaviest batch of the coming epoch forward and backward, without a step.

        Raises:
            RehearsalFailed: it does not fit into some process's memory.
        """
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            logger.info("find_batch_size: no rehearsal where the weights are cut over processes")
            return
        dataset, model = self.train_dataset, self.model
        assert isinstance(dataset, Dataset)
        assert model is not None
        rows = heaviest_batch(list(self.order), self.lengths, rows=self.args.per_device_train_batch_size)
        # AdamW keeps two numbers a parameter from its first step on.
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        later = 2 * trained if self.args.device.type == "cuda" and self._first_step == 0 else 0
        failed = False
        try:
            held = torch.empty(later, device=self.args.device)
            model.train()
            self.accelerator.backward(self.loss_of([dataset[row] for row in rows]))
            del held
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            error.__traceback__ = None
            failed = True
        finally:
            model.zero_grad(set_to_none=True)
            clear_device_cache(garbage_collection=True)
        if self.any_process(failed):
            raise RehearsalFailed


class _Steps(TrainerCallback):
    """Tells a `SteadyTrainer` where its loop stands."""

    def __init__(self, trainer: SteadyTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._begin(kwargs["optimizer"], kwargs["lr_scheduler"])

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._begin_epoch()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._phase = "optimiser"

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._phase = "between"
