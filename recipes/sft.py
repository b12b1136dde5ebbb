"""Supervised fine-tuning: a dataset folder and its SIDs in, a bundle out.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/sft.py \
    --config recipes/configs/office/sft_small-qwen3_full.yaml

Two processes on a CPU need torchrun (``accelerate launch --cpu --num_processes 2`` would start one):

torchrun --nproc_per_node 2 recipes/sft.py --config recipes/configs/office/sft_small-qwen3_full.yaml

Every key of the YAML is a flag too. A killed run goes on from its last checkpoint when it is started again.
"""

import logging
from collections.abc import Sequence
from functools import partial

from accelerate import PartialState
from transformers import set_seed

from llmrec.errors import run_command
from llmrec.hub import push_to_hub, save_card, save_sidecars
from llmrec.hub.info import CARD_FILE
from llmrec.launch import check_launch
from llmrec.tasks.inputs import TaskInputs
from llmrec.tasks.mixture import held_out_rows, mix_tasks
from llmrec.tasks.spec import parse_tasks
from llmrec.training.config import RecipeArguments, SFTRecipeConfig
from llmrec.training.dry_run import dry_run, leave_no_trace
from llmrec.training.examples import encode_examples, to_dataset, training_rows
from llmrec.training.finish import describe_run, run_identity
from llmrec.training.incremental import tell
from llmrec.training.inputs import load_inputs
from llmrec.training.language import language_guards
from llmrec.training.model import prepare_model
from llmrec.training.objectives.methods import objective_of
from llmrec.training.parser import parse_recipe
from llmrec.training.run_folder import check_run_folder, claim_run_folder
from llmrec.training.seq2seq import trainer_class
from llmrec.training.stages import Stage, run_stages, stages_of
from llmrec.training.task_sampler import sampler_of
from llmrec.training.task_validation import task_measures
from llmrec.training.validation import Validation
from llmrec.training.walks import walks_for


def main(argv: Sequence[str] | None = None) -> None:
    """Train in one stage or in several; the last one's bundle is the run's."""
    check_launch()
    arguments, training = parse_recipe(argv, RecipeArguments, SFTRecipeConfig)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_stages(stages_of(arguments, training), train_stage)


def train_stage(stage: Stage) -> None:
    """Train, keep the checkpoint that is best on validation, and write the bundle."""
    arguments, training = stage.settings()
    set_seed(training.seed)
    if arguments.dry_run:
        training = leave_no_trace(training)

    inputs = load_inputs(arguments)
    dataset, splits, table, popularity, form = inputs.values()

    # The output folder is checked before the work and touched after all else is known to be sound
    training.check(arguments, items=len(dataset.catalog))
    identity = run_identity(arguments, training, **inputs.described)
    if stage.is_over(identity):
        return
    overwrite = arguments.overwrite_output_dir
    checkpoint = check_run_folder(training.output_dir, identity, overwrite=overwrite, finished=CARD_FILE)
    training.resume_from_checkpoint = checkpoint or training.resume_from_checkpoint
    state = PartialState()
    state.wait_for_everyone()

    # Model
    prepared = prepare_model(
        arguments, table, dataset.catalog, seed=training.seed, popularity=popularity,
        trust_remote_code=training.trust_remote_code, protocol=splits.protocol,
    )  # fmt: skip
    tokenizer, vocab = prepared.tokenizer, prepared.vocab

    # Examples
    encode = {"tokenizer": tokenizer, "form": form, "max_length": training.max_length}
    known = {"catalog": dataset.catalog, "vocab": vocab, "seed": training.seed}
    walks = walks_for(arguments, splits, dataset.catalog, seed=training.seed, progress=state.is_main_process)
    train = training_rows(
        splits, tasks=arguments.tasks, supervise=arguments.supervise, **known,
        stride=arguments.history_stride, temperature=arguments.task_temperature,
        inputs=TaskInputs.of(dataset, splits), walks=walks, increment=inputs.increment,
        progress=state.is_main_process, **encode,
        without=held_out_rows(len(dataset.catalog), arguments.hold_out_items, training.seed),
    )  # fmt: skip
    validation = Validation(
        splits.rows("valid"), users=arguments.eval_users, tokenizer=tokenizer, vocab=vocab, form=form,
        ks=arguments.eval_ks, num_beams=arguments.eval_beams, seed=training.seed, score=arguments.eval_score,
    )  # fmt: skip
    held_out = mix_tasks({"next_item": 1.0}, histories=validation.rows, **known)

    # Trainer; it would push whatever lies in its folder: the bundle is pushed when it is whole
    info = describe_run(arguments, training, prepared=prepared, **inputs.described)
    guards = language_guards(arguments, training, prepared.model, tokenizer=tokenizer, form=form, info=info)
    push, training.push_to_hub = training.push_to_hub, False
    sidecars = partial(
        save_sidecars, tokenizer=tokenizer, table=table, info=info, titles=dataset.catalog.titles,
        popularity=popularity, sids=arguments.sids,
    )  # fmt: skip
    trainer = trainer_class(prepared.model)(
        model=prepared.model,
        args=training,
        train_dataset=train,
        eval_dataset=to_dataset(encode_examples(held_out, **encode), what="validation"),
        processing_class=tokenizer,
        validation=validation,
        save_sidecars=sidecars,
        manifest=info,
        find_batch_size=arguments.find_batch_size,
        vocab=vocab,
        objective=objective_of(arguments, vocab, tokenizer, device=training.device, protocol=splits.protocol),
        parts=prepared.parts,
        task_names=[*arguments.tasks, *(["walks"] if walks else [])],
        sampler=sampler_of(parse_tasks(arguments.tasks), train["task"], training, processes=state.num_processes),
        measures=[*task_measures(arguments, inputs, tokenizer=tokenizer, vocab=vocab, seed=training.seed), *guards],
        callbacks=guards,
    )
    if arguments.dry_run:
        report = dry_run(trainer, task_names=trainer.task_names, path=arguments.dry_run_json)
        return print(report.table()) if state.is_main_process else None
    if state.is_main_process:
        claim_run_folder(training.output_dir, identity, checkpoint=checkpoint)
    state.wait_for_everyone()
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)

    # The bundle: the weights first, then what validation says of them, and the card, which marks it as finished
    trainer.save_model(training.output_dir)
    if training.eval_strategy != "no":
        model = trainer.accelerator.unwrap_model(trainer.model)
        found = validation.row(model, trainer.accelerator, dataset=dataset.name, protocol=splits.protocol)
        info["metrics"] = [found]
        if inputs.increment and state.is_main_process:
            info["increment"] = tell(inputs.increment, arguments, model, validation, training.output_dir)
    if state.is_main_process:
        sidecars(training.output_dir)
        save_card(training.output_dir)
        if push:
            private = training.hub_private_repo or False
            push_to_hub(training.output_dir, training.hub_model_id, private=private, token=training.hub_token)


if __name__ == "__main__":
    run_command(main)
