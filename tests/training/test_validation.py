"""Validation while training: a seeded sample, the same numbers as the evaluator."""

import pytest
from accelerate import Accelerator

from llmrec.decoding.recommender import LLMRecommender
from llmrec.evaluation.evaluator import evaluate
from llmrec.tasks.prompt import PromptForm
from llmrec.training.validation import Validation

FORM = PromptForm("plain", "pens", max_history=20)


@pytest.fixture
def make_validation(dataset, tokenizer, vocab):
    def make(users: int, seed: int = 0) -> Validation:
        rows = dataset.split("leave_one_out").valid
        return Validation(
            rows, users=users, tokenizer=tokenizer, vocab=vocab, form=FORM, ks=[2, 5], num_beams=8, seed=seed
        )

    return make


def test_the_sample_is_seeded_and_in_order(make_validation, dataset) -> None:
    rows = dataset.split("leave_one_out").valid
    assert make_validation(0).rows == list(rows)
    sample = make_validation(10).rows
    assert len(sample) == 10
    assert [row.user for row in sample] == sorted(row.user for row in sample)
    assert make_validation(10).rows == sample
    assert make_validation(10, seed=1).rows != sample


def test_metrics_are_the_evaluators(make_model, make_validation, tokenizer, vocab) -> None:
    model, validation = make_model(), make_validation(30)
    found = validation.metrics(model, Accelerator(cpu=True))
    recommender = LLMRecommender(model, tokenizer, vocab, FORM, num_beams=8)
    expected = evaluate(recommender, validation.rows, items=30, ks=[2, 5], progress=False).metrics
    assert found == {f"eval_{name}@{k}": expected[f"{name}@{k}"] for k in (2, 5) for name in ("recall", "ndcg")}
    row = validation.row(model, Accelerator(cpu=True), dataset="steps", protocol="leave_one_out")
    assert row["metrics"]["ndcg@5"] == expected["ndcg@5"]
    assert (row["split"], row["users"], row["num_beams"]) == ("valid", 30, 8)
