"""What a model answers: items as the recommender finds them, lists and texts as slow twins write them."""

import copy

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, T5Config, T5ForConditionalGeneration

from llmrec.data.splits import History
from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.evaluation.task_answers import TaskModel
from llmrec.sids.table import SIDTable, pad_codes
from llmrec.tasks.example import Example
from llmrec.tasks.next_item import next_item
from llmrec.tasks.prompt import PromptForm
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

ITEMS = 24
TITLES = tuple(f"pen number {row} in blue" for row in range(ITEMS))
FORM = PromptForm("plain", "pens", {}, 20)


@pytest.fixture(scope="module")
def setting() -> tuple[PreTrainedModel, object, SIDVocab]:
    tokenizer = train_tokenizer(TITLES, vocab_size=300)
    codes = [[row // 8, row // 2 % 4, row % 2] for row in range(ITEMS)]
    table = SIDTable(tuple(f"i{row}" for row in range(ITEMS)), pad_codes(codes, 3), (3, 4, 2))
    add_sid_tokens(tokenizer, table)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=48, head_dim=16, max_position_embeddings=96, initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(1)
        model = Qwen3ForCausalLM(config).eval()
    return model, tokenizer, SIDVocab(tokenizer, table)


def rows(count: int = 9) -> list[History]:
    rng = np.random.default_rng(0)
    return [History(user, tuple(rng.integers(0, ITEMS, user % 5 + 1).tolist()), user) for user in range(count)]


def test_items_are_those_that_the_recommender_finds(setting) -> None:
    model, tokenizer, vocab = setting
    examples = list(next_item(None, vocab, rows(), None))
    found = TaskModel(model, tokenizer, vocab, FORM, num_beams=6, max_tokens_per_batch=64).items(examples, 5)
    recommender = LLMRecommender(model, tokenizer, vocab, FORM, num_beams=6)
    assert found.tolist() == recommender.recommend([row.items for row in rows()], 5).tolist()


@torch.no_grad()
def slow_list(model, tokenizer, vocab: SIDVocab, prompt: str, length: int) -> list[int]:
    """Walk the SIDs of the items left, one token at a time, without a cache."""
    ids, taken = FORM.encode(tokenizer, prompt, "next_session"), []
    for _ in range(length):
        left = [row for row in range(ITEMS) if row not in taken]
        for level in range(3):
            logits = model(torch.tensor([ids])).logits[0, -1]
            best = max({vocab.token_ids(row)[level] for row in left}, key=lambda token: float(logits[token]))
            left = [row for row in left if vocab.token_ids(row)[level] == best]
            ids = [*ids, best]
        taken.extend(left)
    return taken


def test_lists_are_written_item_by_item_without_repeats(setting) -> None:
    model, tokenizer, vocab = setting
    examples = [Example(f"After {vocab.tokens(row)}:", "x", row, "next_session", targets=(row,)) for row in range(5)]
    found = TaskModel(model, tokenizer, vocab, FORM, max_tokens_per_batch=100).lists(examples, 4)
    assert found.tolist() == [slow_list(model, tokenizer, vocab, example.prompt, 4) for example in examples]


@torch.no_grad()
def slow_text(model, tokenizer, prompt: str, longest: int) -> str:
    ids = FORM.encode(tokenizer, prompt, "say")
    written: list[int] = []
    while len(written) < longest:
        token = int(model(torch.tensor([ids + written])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        written.append(token)
    return " ".join(tokenizer.decode(written, skip_special_tokens=True).split())


def test_texts_are_greedy_whatever_the_checkpoint_ships_with(setting) -> None:
    model, tokenizer, vocab = setting
    model = copy.deepcopy(model)
    model.generation_config.repetition_penalty = 1.7
    model.generation_config.do_sample = True
    prompts = [f"Say {word}:" for word in ("pen", "blue number", "12", "a longer prompt in blue", "pen")]
    examples = [Example(prompt, " pen number 3", None, "say") for prompt in prompts]
    asked = TaskModel(model, tokenizer, vocab, FORM, max_tokens_per_batch=120)
    longest = len(tokenizer.encode(" pen number 3")) + 16
    assert asked.texts(examples) == [slow_text(model, tokenizer, prompt, longest) for prompt in prompts]
    assert model.generation_config.repetition_penalty == 1.7
    short = TaskModel(model, tokenizer, vocab, FORM, max_text_tokens=2).texts(examples[:1])
    assert short == [slow_text(model, tokenizer, prompts[0], 2)]


def test_a_long_prompt_loses_its_oldest_items(setting) -> None:
    model, tokenizer, vocab = setting
    parts = tuple(vocab.tokens(row) for row in range(8))
    example = Example(f"After {''.join(parts)}:", "x", 0, "mine", history=parts)
    asked = TaskModel(model, tokenizer, vocab, FORM)
    whole = asked.encode(example, 1000)
    assert asked.encode(example, len(whole) - 1) == FORM.encode(tokenizer, f"After {''.join(parts[1:])}:", "mine")
    with pytest.raises(
        InputError, match=r"task 'mine': a prompt of \d+ tokens, and the model's context has room for 5"
    ):
        asked.encode(example, 5)


def test_an_encoder_decoder_answers_items_and_texts_and_no_lists(setting) -> None:
    _, tokenizer, vocab = setting
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, initializer_factor=3.0,
        decoder_start_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(2)
        model = T5ForConditionalGeneration(config).eval()
    asked = TaskModel(model, tokenizer, vocab, FORM, num_beams=4)
    examples = list(next_item(None, vocab, rows(3), None))
    assert asked.items(examples, 4).tolist() == LLMRecommender(model, tokenizer, vocab, FORM, num_beams=4).recommend(
        [row.items for row in rows(3)], 4
    ).tolist()  # fmt: skip
    say = [Example("Say pen:", " pen", None, "say"), Example("Say blue and pen:", " pen", None, "say")]
    assert asked.texts(say) == [answer for example in say for answer in asked.texts([example])]
    with pytest.raises(InputError, match="lists of an encoder-decoder model"):
        asked.lists(examples, 2)
