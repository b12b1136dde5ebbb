"""DPO and its kin: a bundle and its dataset in, preferences made of them, a better bundle out.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/dpo.py \
    --config recipes/configs/demo/dpo_tiny-qwen3_s-dpo.yaml

Two processes on a CPU need torchrun (``accelerate launch --cpu --num_processes 2`` would start one):

torchrun --nproc_per_node 2 recipes/dpo.py --config recipes/configs/demo/dpo_tiny-qwen3_s-dpo.yaml

Every key of the YAML is a flag too. A killed run goes on from its last checkpoint when it is started again.
"""

import logging
from collections.abc import Sequence
from functools import partial

from accelerate import PartialState
from transformers import set_seed

from llmrec.decoding.trie import SIDTrie
from llmrec.errors import run_command
from llmrec.hub import save_sidecars
from llmrec.hub.info import CARD_FILE
from llmrec.launch import check_launch
from llmrec.tasks.prompt import end_token_id
from llmrec.training.dpo import PreferenceTrainer
from llmrec.training.dpo_config import DPOArguments, DPORecipeConfig
from llmrec.training.group_softmax import GroupSoftmax
from llmrec.training.parser import parse_recipe
from llmrec.training.policy import load_policy, read_start
from llmrec.training.preference_rows import encode_preferences, hold_out
from llmrec.training.reference_policy import load_reference
from llmrec.training.rl_finish import describe_rl_run, finish_rl_run, rl_identity, start_interpolation
from llmrec.training.rounds import Round, rounds_of, run_rounds
from llmrec.training.run_folder import check_run_folder, claim_run_folder
from llmrec.training.validation import Validation


def main(argv: Sequence[str] | None = None) -> None:
    """Train once, or in rounds, each on preferences of the policy before it."""
    check_launch()
    arguments, training = parse_recipe(argv, DPOArguments, DPORecipeConfig)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_rounds(rounds_of(arguments, training), train_round)


def train_round(one: Round) -> None:
    """Learn what is preferred; keep what is best on validation, the start included; write the bundle."""
    arguments, training = one.settings()
    set_seed(training.seed)

    # The bundle but for its weights, and its data
    start = read_start(arguments)
    dataset, splits, table, popularity, form = start.inputs.values()

    # The output folder is checked before the work and touched after all else is known to be sound
    training.check(arguments, items=len(dataset.catalog))
    identity = rl_identity(arguments, training, start)
    if one.is_over(identity):
        return
    overwrite = arguments.overwrite_output_dir
    checkpoint = check_run_folder(training.output_dir, identity, overwrite=overwrite, finished=CARD_FILE)
    training.resume_from_checkpoint = checkpoint or training.resume_from_checkpoint
    state = PartialState()
    state.wait_for_everyone()

    # Preferences, some of them by beams of the bundle, and then the policy
    preferences = one.preferences(start.inputs, start.path)
    train, held_out = preferences, None
    if training.evaluates:
        train, held_out = hold_out(preferences, count=arguments.eval_preferences, seed=training.seed)
    set_seed(training.seed)
    policy = load_policy(arguments, start)
    tokenizer, vocab = policy.tokenizer, policy.vocab
    reference = load_reference(arguments, start, policy) if arguments.reference else None
    softmax = GroupSoftmax(arguments.softmax, 1.0, SIDTrie.from_vocab(vocab), end_token_id(tokenizer, form.kind))
    encode = partial(
        encode_preferences, tokenizer=tokenizer, form=form, vocab=vocab, max_length=training.max_length,
        progress=state.is_main_process,
    )  # fmt: skip

    # Trainer; it would push whatever lies in its folder: the bundle is pushed when it is whole
    validation = Validation(
        splits.rows("valid"), users=arguments.eval_users, tokenizer=tokenizer, vocab=vocab, form=form,
        ks=arguments.eval_ks, num_beams=arguments.eval_beams, seed=training.seed, score=arguments.eval_score,
    )  # fmt: skip
    info = describe_rl_run(
        arguments, training, start=start, policy=policy, stage="dpo",
        more={"preferences": len(train), "softmax": {"kind": softmax.kind, "temperature": softmax.temperature}},
    )  # fmt: skip
    push, training.push_to_hub = training.push_to_hub, False
    sidecars = partial(
        save_sidecars, tokenizer=tokenizer, table=table, info=info, titles=dataset.catalog.titles,
        popularity=popularity, sids=start.path,
    )  # fmt: skip
    trainer = PreferenceTrainer(
        policy.model,
        training,
        softmax=softmax,
        vocab=vocab,
        reference=reference,
        reference_dir=training.reference_folder,
        reference_file=training.reference_log_probs,
        train_dataset=encode(train),
        eval_dataset=None if held_out is None else encode(held_out, what="held-out preferences"),
        processing_class=tokenizer,
        validation=validation,
        save_sidecars=sidecars,
        manifest=info,
    )
    between = start_interpolation(arguments, trainer, start=start)
    if state.is_main_process:
        claim_run_folder(training.output_dir, identity, checkpoint=checkpoint)
    state.wait_for_everyone()
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    finish_rl_run(
        trainer, arguments, start=start, between=between, validation=validation, info=info, sidecars=sidecars,
        push=push, measure=training.evaluates or between is not None,
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
