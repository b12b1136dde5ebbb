"""A GRPO training of a few steps on fixed candidates, by TRL as it stands or with groups from one row a prompt.

    python -m torch.distributed.run --nproc_per_node 2 tests/grpo_kit.py FOLDER --side groups --out groups.safetensors

FOLDER holds a model and its tokenizer, and ``candidates.json``: token ids of each prompt's group.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils import set_seed
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from llmrec.training.adapters import let_trl_read_wrapped_heads
from llmrec.training.group_softmax import GroupSoftmax
from llmrec.training.shared_prefix import add_group_forward, groups_of_rows

GROUP, STEPS = 4, 2


class FixedTrainer(GRPOTrainer):
    """TRL's trainer, whose candidates are those of a file."""

    candidates: dict[str, list[list[int]]]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        found, seen = [], {}
        for prompt in prompt_ids:
            key = " ".join(map(str, prompt))
            seen[key] = seen.get(key, -1) + 1
            found.append(self.candidates[key][seen[key] % GROUP])
        return found, None

    def loss_of(self, inputs: dict[str, Any]) -> Tensor:
        """Return the loss of a batch."""
        return self._compute_loss(self.model, inputs)


class GroupTrainer(FixedTrainer):
    """The same with log-probabilities from one row a prompt."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for model in (self.model, self.ref_model):
            if model is not None:
                base = model.get_base_model() if hasattr(model, "peft_config") else model
                add_group_forward(base, GroupSoftmax("full", self.temperature))

    def _get_per_token_logps_and_entropies(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int,
        batch_size: int | None = None, compute_entropy: bool = False, **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, None]:  # fmt: skip
        batch = groups_of_rows(
            input_ids, attention_mask, completion_length=logits_to_keep, num_generations=self.num_generations
        )
        output = model(**batch, entropy="grad" if compute_entropy else False)
        entropies = None if output.entropies is None else output.entropies.flatten(0, 1)
        return output.log_probs.flatten(0, 1), entropies, None


class KeepGradients(TrainerCallback):
    """Keeps the gradients of each step."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Copy them."""
        for name, value in model.named_parameters():
            if value.grad is not None:
                self.found[f"{state.global_step}/{name.removeprefix('module.')}"] = value.grad.clone()


def reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A number for each candidate, by its tokens."""
    return [sum((place + 2) * token % 7 for place, token in enumerate(ids)) / 7 for ids in completion_ids]


def make_trainer(folder: Path, side: str, *, lora: bool, batch: int, **settings: Any) -> FixedTrainer:
    """Return a trainer of a folder's model on its candidates."""
    let_trl_read_wrapped_heads()
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    listed = json.loads((folder / "candidates.json").read_text())
    arguments = GRPOConfig(
        output_dir=str(folder / "out"), per_device_train_batch_size=batch, num_generations=GROUP, max_steps=STEPS,
        max_completion_length=4, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False,
        disable_tqdm=True, gradient_checkpointing=False, shuffle_dataset=False, learning_rate=1e-3,
        **{"beta": 0.1, "temperature": 0.8, "loss_type": "grpo", **settings},
    )  # fmt: skip
    peft = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear") if lora else None
    trainer = (GroupTrainer if side == "groups" else FixedTrainer)(
        model=str(folder), reward_funcs=reward, args=arguments, processing_class=tokenizer, peft_config=peft,
        train_dataset=Dataset.from_list([{"prompt": text} for text in listed]),
    )  # fmt: skip
    trainer.candidates = {" ".join(map(str, tokenizer(text)["input_ids"])): ids for text, ids in listed.items()}
    return trainer


def train(folder: Path, side: str, *, lora: bool, batch: int) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train, and return the gradients and logs of each step."""
    trainer, keep = make_trainer(folder, side, lora=lora, batch=batch), KeepGradients()
    trainer.add_callback(keep)
    # TRL shuffles the rows of a batch; groups stay together.
    with patch("trl.trainer.grpo_trainer.shuffle_sequence_dict", lambda rows: rows):
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return keep.found, [{name: entry[name] for name in ("loss", "grad_norm", "kl", "entropy")} for entry in logs]


def main(argv: Sequence[str] | None = None) -> None:
    """Train one process of several, and let the first write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", choices=("trl", "groups"), required=True)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    gradients, logs = train(args.folder, args.side, lora=args.lora, batch=GROUP)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    save_file(gradients, args.out.with_suffix(f".{rank}.safetensors"))
    if rank == 0:
        args.out.with_suffix(".json").write_text(json.dumps(logs))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
