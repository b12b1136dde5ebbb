"""random_weights: the shape and the tokenizer of a pretrained model, and none of its weights."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, set_seed

from llmrec.errors import InputError
from llmrec.training.config import RecipeArguments
from llmrec.training.model import prepare_model
from llmrec.training.tokenizer import train_tokenizer


def arguments(**settings) -> RecipeArguments:
    return RecipeArguments(dataset="x", sids="y", random_weights=True, **settings)


def test_shape_and_tokenizer_stay_and_weights_do_not(make_model, table, catalog, tmp_path: Path):
    make_model(rows=640).save_pretrained(tmp_path)
    tokenizer = train_tokenizer(catalog.titles, vocab_size=320)
    tokenizer.save_pretrained(tmp_path)

    def draw(seed: int):
        set_seed(seed)
        return prepare_model(arguments(model=str(tmp_path)), table, catalog, seed=seed)

    first, again, other = draw(1), draw(1), draw(2)  # the pretrained one was drawn by seed 0
    pretrained = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert first.vocab_rows == 640
    assert first.tokenizer("red pen").input_ids == tokenizer("red pen").input_ids
    assert all(parameter.requires_grad for parameter in first.model.parameters())
    shapes = {name: weight.shape for name, weight in pretrained.state_dict().items()}
    assert {name: weight.shape for name, weight in first.model.state_dict().items()} == shapes
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), "the seed decides"
        if weight.ndim > 1:  # norms start at one
            assert not torch.equal(weight, other.model.state_dict()[name])
            assert not torch.isclose(weight, pretrained.state_dict()[name]).float().mean() > 0.1


def test_refusals(table, catalog):
    with pytest.raises(InputError, match="random_weights: true with method: lora, which keeps the weights"):
        arguments(model="x", method="lora")
    with pytest.raises(InputError, match="random_weights: tiny-qwen3 is built with random weights anyway"):
        prepare_model(arguments(model="tiny-qwen3"), table, catalog, seed=0)
