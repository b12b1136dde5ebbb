"""GRPO with constrained candidates: a bundle and its dataset in, a better bundle out.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo.py \
    --config recipes/configs/office/grpo_small-qwen3-2l_exact.yaml

Two processes on a CPU need torchrun (``accelerate launch --cpu --num_processes 2`` would start one):

torchrun --nproc_per_node 2 recipes/grpo.py --config recipes/configs/office/grpo_small-qwen3-2l_exact.yaml

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
from llmrec.rewards.build import build_rewards
from llmrec.rewards.inputs import RewardInputs
from llmrec.tasks.prompt import end_token_id
from llmrec.training.group_softmax import GroupSoftmax
from llmrec.training.grpo import RecommenderGRPOTrainer
from llmrec.training.grpo_config import GRPOArguments, GRPORecipeConfig
from llmrec.training.hard_prompts import HardPromptSettings
from llmrec.training.parser import parse_recipe
from llmrec.training.policy import load_policy, prompt_rows, read_start
from llmrec.training.policy_losses.base import PolicyLoss
from llmrec.training.policy_losses.methods import resolve_policy_loss
from llmrec.training.reference_policy import load_reference
from llmrec.training.rl_finish import describe_rl_run, finish_rl_run, rl_identity, start_interpolation
from llmrec.training.rollouts import Rollouts
from llmrec.training.run_folder import check_run_folder, claim_run_folder
from llmrec.training.sample_tables import SampleTables
from llmrec.training.validation import Validation


def main(argv: Sequence[str] | None = None) -> None:
    """Draw candidates, reward them, learn from the groups; keep what is best on validation, the start included."""
    check_launch()
    arguments, training = parse_recipe(argv, GRPOArguments, GRPORecipeConfig)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    set_seed(training.seed)

    # The bundle but for its weights, and its data
    start = read_start(arguments)
    dataset, splits, table, popularity, form = start.inputs.values()

    # The output folder is checked before the work and touched after all else is known to be sound
    training.check(arguments, items=len(dataset.catalog))
    identity = rl_identity(arguments, training, start)
    overwrite = arguments.overwrite_output_dir
    checkpoint = check_run_folder(training.output_dir, identity, overwrite=overwrite, finished=CARD_FILE)
    training.resume_from_checkpoint = checkpoint or training.resume_from_checkpoint
    state = PartialState()
    state.wait_for_everyone()

    # Policy and reference
    policy = load_policy(arguments, start)
    tokenizer, vocab = policy.tokenizer, policy.vocab
    reference = load_reference(arguments, start, policy) if training.beta else None

    # Candidates, and what they are worth
    trie = SIDTrie.from_vocab(vocab)
    end = end_token_id(tokenizer, form.kind)
    hard_prompts = HardPromptSettings.parse(arguments.hard_prompts)
    rollouts = Rollouts(
        arguments.rollouts, training.num_generations, trie=trie, vocab=vocab, score=arguments.rollout_score,
        temperature=training.temperature, end_token_id=end, add_ground_truth=arguments.add_ground_truth,
        exclude_seen=arguments.exclude_seen, look_beyond=hard_prompts.look_beyond,
        max_tokens_per_batch=arguments.rollout_tokens,
    )  # fmt: skip
    softmax = GroupSoftmax(arguments.softmax, training.temperature, trie, end)
    inputs = RewardInputs(
        training.num_generations, catalog=dataset.catalog, popularity=popularity, sequences=splits.sequences,
        folder=dataset.path, seed=training.seed, tokenizer=tokenizer,
    )  # fmt: skip
    rewards = build_rewards(arguments.rewards, vocab, inputs)
    named = resolve_policy_loss(arguments.policy_loss, arguments.policy_loss_args)
    prompts = prompt_rows(start.inputs, arguments, vocab, seed=training.seed)

    # Trainer; it would push whatever lies in its folder: the bundle is pushed when it is whole
    validation = Validation(
        splits.rows("valid"), users=arguments.eval_users, tokenizer=tokenizer, vocab=vocab, form=form,
        ks=arguments.eval_ks, num_beams=arguments.eval_beams, seed=training.seed, score=arguments.eval_score,
    )  # fmt: skip
    info = describe_rl_run(
        arguments, training, start=start, policy=policy, stage="grpo",
        more={"rollouts": rollouts.describe(), "softmax": {"kind": softmax.kind, "temperature": softmax.temperature}},
    )  # fmt: skip
    logging.getLogger(__name__).info("rollouts %s; softmax %s", info["rollouts"], info["softmax"])
    push, training.push_to_hub = training.push_to_hub, False
    titles = dataset.catalog.titles
    sidecars = partial(
        save_sidecars, tokenizer=tokenizer, table=table, info=info, titles=titles, popularity=popularity,
        sids=start.path,
    )  # fmt: skip
    trainer = RecommenderGRPOTrainer(
        policy,
        training,
        prompts=prompts,
        rollouts=rollouts,
        rewards=rewards,
        softmax=softmax,
        policy_loss=named if isinstance(named, PolicyLoss) else None,
        reference=reference,
        hard_prompts=hard_prompts,
        samples=SampleTables(training.output_dir, vocab=vocab, titles=titles, every=arguments.sample_steps),
        manifest=info,
        validation=validation,
        save_sidecars=sidecars,
    )
    between = start_interpolation(arguments, trainer, start=start)
    if state.is_main_process:
        claim_run_folder(training.output_dir, identity, checkpoint=checkpoint)
    state.wait_for_everyone()
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    finish_rl_run(
        trainer, arguments, start=start, between=between, validation=validation, info=info, sidecars=sidecars,
        push=push,
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
