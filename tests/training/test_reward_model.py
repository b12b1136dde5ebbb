"""Reward models: SASRec's log-probabilities, a head on the language model, and the pairs that they make of beams."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.baselines.sasrec import SASRec
from llmrec.data.folder import DatasetFolder
from llmrec.data.splits import Splits
from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.tasks.prompt import PromptForm
from llmrec.training.preferences import PreferenceInputs, Questions, choose_questions
from llmrec.training.preferences.scored import best_and_worst, check_pairs, scored_pairs
from llmrec.training.reward_head import HeadSettings, fit_head, item_states, train_head
from llmrec.training.reward_model import SASRecReward, fit_sasrec, mean_over_list, parse_reward_model
from llmrec.vocab import SIDVocab
from tests.reference.slow_rl import slow_best_and_worst
from tests.rl_kit import make_t5

TINY = {"kind": "sasrec", "dim": 8, "blocks": 1, "epochs": 2}


@pytest.fixture
def splits(dataset: DatasetFolder) -> Splits:
    return dataset.split("leave_one_out", max_history=6)


@pytest.fixture
def questions(splits: Splits) -> Questions:
    return choose_questions(splits.train, prompts=24, seed=1)


@pytest.fixture
def recommender(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, vocab: SIDVocab
) -> LLMRecommender:
    return LLMRecommender(make_model(), tokenizer, vocab, PromptForm(max_history=6), max_tokens_per_batch=256)


class LowerIsBetter:
    """A reward that is minus the item's number."""

    def scores(self, questions: Questions, items: np.ndarray) -> np.ndarray:
        return -items.astype(np.float32)


# SASRec


def test_sasrec_gives_log_probabilities_of_the_catalogue(splits: Splits, questions: Questions, tmp_path: Path):
    baseline = fit_sasrec(TINY, splits, tmp_path / "reward", items=30)
    items = np.random.default_rng(0).integers(0, 30, (len(questions), 5))
    found = SASRecReward(baseline).scores(questions, items)
    for row, history in enumerate(questions.histories):
        scores = baseline.scores([history])[0].double()
        total = torch.exp(scores).sum().log()
        assert found[row] == pytest.approx([(scores[item] - total).item() for item in items[row].tolist()], abs=1e-5)


def test_a_fitted_sasrec_is_kept_and_read_again(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "reward"
    before = fit_sasrec(TINY, splits, folder, items=30)
    assert not (tmp_path / "reward-fit").exists()
    with monkeypatch.context() as patched:
        patched.setattr(SASRec, "fit", lambda *_, **__: pytest.fail("fitted again"))
        again = fit_sasrec(TINY, splits, folder, items=30)
        assert (again.item_vectors() == before.item_vectors()).all()
        named = fit_sasrec({"kind": "sasrec", "path": str(folder)}, splits, tmp_path / "other", items=30)
        assert (named.item_vectors() == before.item_vectors()).all()
    other = fit_sasrec({**TINY, "dim": 4}, splits, folder, items=30)
    assert other.item_vectors().shape == (30, 4)
    fewer = replace(splits, sequences=splits.sequences[:50])
    with pytest.raises(InputError, match="was fitted on other interactions than the training part here"):
        fit_sasrec({"kind": "sasrec", "path": str(folder)}, fewer, folder, items=30)


def test_validation_does_not_reach_the_reward(splits: Splits, tmp_path: Path):
    before = fit_sasrec(TINY, splits, tmp_path / "a", items=30)
    bent = replace(splits, valid=[replace(row, target=0) for row in splits.valid])
    after = fit_sasrec(TINY, bent, tmp_path / "b", items=30)
    assert (after.item_vectors() == before.item_vectors()).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bm25", "give a kind, one of sasrec, lm_head"),
        ({"dim": 8}, "give a kind"),
        ({"kind": "sasrec", "width": 8}, "no setting 'width'"),
        ({"kind": "sasrec", "path": "x", "dim": 8}, "path beside dim"),
        ({"kind": "lm_head", "loss": "hinge"}, "loss 'hinge'; choose one of cross_entropy, bpr"),
        ({"kind": "lm_head", "depth": 2}, "kind lm_head has no setting 'depth'"),
        ({"kind": "lm_head", "negatives": 0}, "negatives 0; a whole number, at least 1"),
    ],
)
def test_reward_models_that_cannot_be_are_told(spec: Any, message: str):
    with pytest.raises(InputError, match=message):
        parse_reward_model(spec)


# Head


@pytest.mark.parametrize("shape", ["qwen3", "t5"])
def test_states_are_those_of_a_plain_forward_pass(
    shape: str,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    vocab: SIDVocab,
    questions: Questions,
):
    model: Any = (make_t5(tokenizer) if shape == "t5" else make_model()).eval()
    policy = LLMRecommender(model, tokenizer, vocab, PromptForm(max_history=6), max_tokens_per_batch=128)
    items = np.random.default_rng(0).integers(0, 30, (len(questions), 3))
    found = item_states(policy, questions.histories, items)
    for row, history in enumerate(questions.histories):
        prompt = torch.tensor([policy.form.encode_history(tokenizer, vocab, history)])
        for place, item in enumerate(items[row].tolist()):
            sid = torch.tensor([vocab.token_ids(item)])
            with torch.no_grad():
                if shape == "t5":
                    start = torch.full((1, 1), model.config.decoder_start_token_id)
                    output = model(
                        input_ids=prompt, decoder_input_ids=torch.cat([start, sid], 1), output_hidden_states=True
                    )
                    expected = output.decoder_hidden_states[-1][0, -1]
                else:
                    expected = model.model(input_ids=torch.cat([prompt, sid], 1)).last_hidden_state[0, -1]
            torch.testing.assert_close(found[row, place], expected, atol=2e-5, rtol=1e-4)


def test_a_model_whose_prompts_cannot_be_shared_is_refused(recommender: LLMRecommender, questions: Questions):
    recommender.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match=r"lm_head reads prompts once .* use kind: sasrec"):
        item_states(recommender, questions.histories, np.zeros((len(questions), 1), dtype=np.int64))


@pytest.mark.parametrize("loss", ["cross_entropy", "bpr"])
def test_the_head_is_at_the_lowest_loss(loss: str):
    """The gradient of the loss, written out row by row, vanishes where training ends."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(40, 4, 6, generator=generator)
    found = train_head(states, HeadSettings(loss=loss, l2=0.01, steps=200)).double()
    gaps = states[:, :1] - states[:, 1:]
    scale = gaps.reshape(-1, 6).std(dim=0).double()
    weight = found.clone().requires_grad_(True)
    total = 0.01 * ((weight * scale) ** 2).sum()
    for row in states.double():
        scores = row @ weight
        if loss == "cross_entropy":
            total = total - (scores[0] - torch.exp(scores).sum().log()) / 40
        else:
            for place in range(1, 4):
                total = total - torch.log(1 / (1 + torch.exp(scores[place] - scores[0]))) / 120
    (gradient,) = torch.autograd.grad(total, weight)
    assert gradient.abs().max() < 1e-4
    assert found.abs().max() > 1e-2


def test_a_head_learns_keeps_and_is_read_again(
    recommender: LLMRecommender, vocab: SIDVocab, dataset: DatasetFolder, splits: Splits, tmp_path: Path
):
    inputs = PreferenceInputs.of(vocab, dataset, splits, policy=lambda: recommender)
    rows = choose_questions(splits.train, prompts=200)
    settings = HeadSettings(negatives=3, examples=200)
    head = fit_head(settings, inputs, rows, tmp_path / "reward")
    again = fit_head(settings, inputs, rows, tmp_path / "reward")
    assert (again.weight == head.weight).all()
    other = fit_head(replace(settings, l2=1.0), inputs, rows, tmp_path / "reward")
    assert (other.weight != head.weight).any()
    # Users step to the next item or the one after: even states of random weights say something of it.
    learned = choose_questions(splits.train, prompts=200)
    near = np.stack(
        [(np.array([row[-1] for row in learned.histories]) + step) % 30 for step in (1, 2, 15, 20)], axis=1
    )
    scores = head.scores(learned, near)
    assert (scores[:, :2].mean(axis=1) > scores[:, 2:].mean(axis=1)).mean() > 0.6


# Pairs


def test_best_and_worst_are_those_of_the_twin():
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 4, (300, 7)).astype(np.float32)  # many are equal
    places = rng.integers(-1, 7, 300)
    is_target = np.arange(7) == places[:, None]
    best, worst = best_and_worst(rewards, is_target, rejected=3)
    for row in range(300):
        target = None if places[row] < 0 else int(places[row])
        assert (int(best[row]), worst[row].tolist()) == slow_best_and_worst(rewards[row].tolist(), target, 3)


def test_beams_are_scored_and_the_best_meets_the_worst(
    recommender: LLMRecommender, vocab: SIDVocab, dataset: DatasetFolder, splits: Splits, questions: Questions
):
    candidates = PreferenceInputs.of(vocab, dataset, splits).candidates
    found = scored_pairs(recommender, LowerIsBetter(), candidates, questions, beams=12, rejected=2)
    assert len(found.questions) + found.dropped == len(questions)
    hits = 0
    everything = recommender.rank(questions.histories, 30)[0].tolist()
    for row, target in enumerate(questions.targets.tolist()):
        seen = [item for item in questions.histories[row] if item != target]
        beams = [item for item in everything[row] if item not in seen]
        # The search has 12 beams over what is permitted, and the exhaustive order is that of 30
        top = recommender.rank([questions.histories[row]], 12, exclude=[seen] if seen else None)[0][0].tolist()
        assert len(set(top) & set(beams[:14])) >= 10
        hits += target in top
        assert found.chosen[row] == min(top)
        assert found.rejected[row].tolist() == sorted((item for item in top if item != target), reverse=True)[:2]
        assert found.gaps[row].tolist() == [other - min(top) for other in found.rejected[row].tolist()]
    assert found.hits == pytest.approx(hits / len(questions))


def test_the_target_may_be_the_chosen_one(
    recommender: LLMRecommender, vocab: SIDVocab, dataset: DatasetFolder, splits: Splits, questions: Questions
):
    candidates = PreferenceInputs.of(vocab, dataset, splits).candidates
    given = {"beams": 10, "rejected": 8, "chosen": "target"}
    found = scored_pairs(recommender, LowerIsBetter(), candidates, questions, **given)
    assert (found.chosen == questions.targets).all()
    assert (found.rejected != questions.targets[:, None]).all()
    assert found.gaps.min() < 0  # the reward thinks otherwise, and the user decides


def test_one_reward_for_all_is_told(
    recommender: LLMRecommender, vocab: SIDVocab, dataset: DatasetFolder, splits: Splits, questions: Questions
):
    class Flat:
        def scores(self, questions: Questions, items: np.ndarray) -> np.ndarray:
            return np.zeros(items.shape, dtype=np.float32)

    candidates = PreferenceInputs.of(vocab, dataset, splits).candidates
    with pytest.raises(InputError, match="all 24 rows have beams of one reward"):
        scored_pairs(recommender, Flat(), candidates, questions, beams=6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 2, "rejected": 1, "chosen": "best"}, "beams 2: a whole number, at least 3"),
        ({"beams": 9, "rejected": 8, "chosen": "best"}, "rejected 8 of 9 beams; at most 7"),
        ({"beams": 9, "rejected": 1, "chosen": "worst"}, "chosen 'worst': choose one of best, target"),
    ],
)
def test_pairs_that_cannot_be_are_told(settings: dict, message: str):
    with pytest.raises(InputError, match=message):
        check_pairs(**settings)


def test_a_list_has_the_mean_reward_of_its_items(splits: Splits, questions: Questions, tmp_path: Path):
    reward = SASRecReward(fit_sasrec(TINY, splits, tmp_path / "reward", items=30))
    lists = np.random.default_rng(0).integers(0, 30, (len(questions), 2, 3))
    lists[0, 1, 2] = -1  # a shorter list
    found = mean_over_list(reward, questions, lists)
    for row, history in enumerate(questions.histories):
        for number, listed in enumerate(lists[row].tolist()):
            scores, before = [], list(history)
            for item in (item for item in listed if item >= 0):
                asked = Questions([before], np.array([0]), np.array([0]), np.array([0]))
                scores.append(float(reward.scores(asked, np.array([[item]]))[0, 0]))
                before = [*before, item]
            assert found[row, number] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
