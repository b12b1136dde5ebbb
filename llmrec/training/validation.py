"""Recall and NDCG on validation rows while a model trains."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.data.splits import History
from llmrec.decoding.recommender import LLMRecommender
from llmrec.evaluation.evaluator import evaluate
from llmrec.evaluation.metrics import ndcg_at, recall_at
from llmrec.tasks.prompt import PromptForm
from llmrec.vocab import SIDVocab


class Validation:
    """Ranks the targets of validation rows over the whole catalogue with constrained beam search.

    Args:
        rows: validation rows.
        users: most rows to score, a seeded sample; 0 scores all.
        tokenizer: with the SID tokens.
        vocab: the SIDs.
        form: how prompts are written.
        ks: cut-offs.
        num_beams: beams; at least the largest cut-off.
        seed: of the sample.
        score: what log-probabilities are taken over: ``full``, ``sids`` or ``allowed``.
    """

    def __init__(
        self,
        rows: Sequence[History],
        *,
        users: int,
        tokenizer: PreTrainedTokenizerBase,
        vocab: SIDVocab,
        form: PromptForm,
        ks: Sequence[int],
        num_beams: int,
        seed: int,
        score: str = "full",
    ) -> None:
        if 0 < users < len(rows):
            rows = [rows[place] for place in sorted(random.Random(seed).sample(range(len(rows)), users))]
        self.rows = list(rows)
        self.tokenizer, self.vocab, self.form = tokenizer, vocab, form
        self.ks, self.num_beams, self.score = list(ks), num_beams, score

    def metrics(
        self, model: PreTrainedModel | PeftModel, accelerator: Accelerator, *, prefix: str = "eval"
    ) -> dict[str, float]:
        """Return ``{prefix}_recall@k`` and ``{prefix}_ndcg@k``; processes share the rows and get the same numbers."""
        share = self.rows[accelerator.process_index :: accelerator.num_processes]
        recommender = LLMRecommender(
            model,
            self.tokenizer,
            self.vocab,
            self.form,
            num_beams=self.num_beams,
            score=self.score,
        )
        own: list[int] = []
        if share:
            found = evaluate(
                recommender, share, items=len(self.vocab), ks=self.ks, progress=accelerator.is_main_process
            )
            own = found.ranks.tolist()
        ranks = np.asarray(gather_object(own))
        metrics = {}
        for k in self.ks:
            metrics[f"{prefix}_recall@{k}"] = float(recall_at(ranks, k).mean())
            metrics[f"{prefix}_ndcg@{k}"] = float(ndcg_at(ranks, k).mean())
        return metrics

    def row(
        self,
        model: PreTrainedModel | PeftModel,
        accelerator: Accelerator,
        *,
        dataset: str,
        protocol: str,
        found: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Return the validation metrics as a row of the bundle's manifest.

        Args:
            model: scored, unless its metrics are there.
            accelerator: whose processes share the rows.
            dataset: its name.
            protocol: of the split.
            found: what `metrics` returned of these weights; None measures.
        """
        found = self.metrics(model, accelerator) if found is None else found
        return {
            "dataset": dataset,
            "split": "valid",
            "protocol": protocol,
            "exclude_seen": False,
            "score": self.score,
            "num_beams": self.num_beams,
            "users": len(self.rows),
            "metrics": {name.removeprefix("eval_"): value for name, value in found.items()},
        }
