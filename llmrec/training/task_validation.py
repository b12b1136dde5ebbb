"""How well a model does its tasks while it trains."""

from collections.abc import Callable, Mapping
from typing import cast

from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.evaluation.task_answers import TaskModel
from llmrec.evaluation.task_examples import TaskExamples, examples_to_score
from llmrec.evaluation.task_scores import score_task
from llmrec.tasks.mixture import held_out_rows
from llmrec.tasks.prompt import PromptForm
from llmrec.training.config import TASK_METRICS, RecipeArguments
from llmrec.training.inputs import RecipeInputs
from llmrec.vocab import SIDVocab


class TaskValidation:
    """Scores the tasks of a run on held-out examples (`llmrec.evaluation.task_examples.examples_to_score`).

    Args:
        tasks: what is asked, by task.
        tokenizer: with the SID tokens.
        vocab: the SIDs.
        form: how prompts are written.
        num_beams: SIDs that are kept a step.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskExamples],
        *,
        tokenizer: PreTrainedTokenizerBase,
        vocab: SIDVocab,
        form: PromptForm,
        num_beams: int,
    ) -> None:
        self.tasks = dict(tasks)
        self.tokenizer, self.vocab, self.form, self.num_beams = tokenizer, vocab, form, num_beams

    def metrics(
        self, model: PreTrainedModel | PeftModel, accelerator: Accelerator, *, prefix: str = "eval"
    ) -> dict[str, float]:
        """Return ``{prefix}_{task}_{metric}``; processes share the tasks and get the same numbers."""
        asked = TaskModel(model, self.tokenizer, self.vocab, self.form, num_beams=self.num_beams)
        own: list[tuple[str, float]] = []
        for name in list(self.tasks)[accelerator.process_index :: accelerator.num_processes]:
            if self.tasks[name].kind == "items" and model.config.is_encoder_decoder:
                continue  # it writes no list item by item
            score = score_task(asked, self.tasks[name])
            for metric in dict.fromkeys((score.main, *TASK_METRICS)):
                if metric in score.metrics:
                    own.append((f"{prefix}_{name.rpartition(':')[2]}_{metric}", score.metrics[metric]))
        return dict(sorted(gather_object(own)))


def task_measures(
    arguments: RecipeArguments,
    inputs: RecipeInputs,
    *,
    tokenizer: PreTrainedTokenizerBase,
    vocab: SIDVocab,
    seed: int,
) -> list[Callable[..., Mapping[str, float]]]:
    """Return what a trainer measures at each evaluation for ``eval_tasks``: nothing where it is off.

    Args:
        arguments: the tasks, how many examples of each, and the beams.
        inputs: what they name.
        tokenizer: with the SID tokens.
        vocab: the SIDs.
        seed: of the run.

    Raises:
        InputError: as `examples_to_score`.
    """
    if not arguments.eval_tasks:
        return []
    asked = examples_to_score(
        cast(dict, arguments.tasks),
        dataset=inputs.dataset,
        splits=inputs.splits,
        split="valid",
        vocab=vocab,
        seed=seed,
        limit=arguments.eval_task_examples,
        held_out=held_out_rows(len(vocab), arguments.hold_out_items, seed),
    )
    found = TaskValidation(asked, tokenizer=tokenizer, vocab=vocab, form=inputs.form, num_beams=arguments.eval_beams)
    return [found.metrics]
