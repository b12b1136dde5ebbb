"""From a name to a model ready to train."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from llmrec.errors import InputError
from llmrec.training.config import RecipeArguments
from llmrec.training.model import prepare_model
from llmrec.training.tokenizer import train_tokenizer


def arguments(**settings) -> RecipeArguments:
    return RecipeArguments(dataset="x", sids="y", **settings)


def test_a_built_model(table, catalog) -> None:
    prepared = prepare_model(arguments(model="tiny-qwen3", text_vocab_size=320), table, catalog, seed=0)
    assert isinstance(prepared.model, Qwen3ForCausalLM)
    assert prepared.vocab_rows == len(prepared.tokenizer) == prepared.model.get_input_embeddings().weight.shape[0]
    assert prepared.model.config.tie_word_embeddings
    assert prepared.vocab.rows(prepared.vocab.token_ids(4)) == (4,)


def test_built_model_takes_overrides(table, catalog) -> None:
    prepared = prepare_model(
        arguments(model="tiny-qwen3", model_config={"num_hidden_layers": 1, "hidden_size": 32}), table, catalog, seed=0
    )
    assert prepared.model.config.num_hidden_layers == 1
    untied = arguments(model="tiny-qwen3", model_config={"tie_word_embeddings": False})
    assert not prepare_model(untied, table, catalog, seed=0).model.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("model_config", "message"),
    [
        ({"layers": 1}, "model_config: Qwen3Config has no field 'layers'"),
        ({"vocab_size": 9}, "model_config: 'vocab_size' follows from the tokenizer"),
        ({"hidden_size": "abc"}, "model_config: no model can be built"),
    ],
)
def test_unfit_overrides(table, catalog, model_config: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_model(arguments(model="tiny-qwen3", model_config=model_config), table, catalog, seed=0)


@pytest.fixture
def saved(make_model, catalog, tmp_path: Path) -> str:
    """A pretrained model in a folder, with a padded table and a tokenizer without SIDs."""
    path = tmp_path / "pretrained"
    make_model(rows=640).save_pretrained(path)
    train_tokenizer(catalog.titles, vocab_size=320).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("method", ["full", "lora", "new_rows"])
def test_a_saved_model(saved: str, table, catalog, method: str) -> None:
    prepared = prepare_model(arguments(model=saved, method=method), table, catalog, seed=0)
    assert prepared.vocab_rows == 640, "the padded table is not cut"
    trained = {name for name, parameter in prepared.model.named_parameters() if parameter.requires_grad}
    if method == "new_rows":
        assert len(trained) == 1
        assert "trainable_tokens_delta" in next(iter(trained))
    elif method == "lora":
        assert any("trainable_tokens_delta" in name for name in trained)
        assert any("lora_A" in name for name in trained)


def test_dtype_of_a_saved_model(saved: str, table, catalog) -> None:
    prepared = prepare_model(arguments(model=saved, dtype="bfloat16"), table, catalog, seed=0)
    assert prepared.model.dtype == torch.bfloat16


def test_refusals(saved: str, table, catalog, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="method: lora adapts pretrained weights, and tiny-qwen3 has none"):
        prepare_model(arguments(model="tiny-qwen3", method="lora"), table, catalog, seed=0)
    with pytest.raises(InputError, match="attn_implementation and model_revision are for pretrained models"):
        prepare_model(arguments(model="tiny-qwen3", attn_implementation="eager"), table, catalog, seed=0)
    with pytest.raises(InputError, match="model_config: it is for models that are built"):
        prepare_model(arguments(model=saved, model_config={"hidden_size": 8}), table, catalog, seed=0)
    wrong = arguments(model=saved, method="lora", lora_target_modules=["nowhere"])
    with pytest.raises(InputError, match=r"lora_\*: PEFT refuses these settings"):
        prepare_model(wrong, table, catalog, seed=0)
    with pytest.raises(InputError, match="has no tokenizer that can be loaded"):
        prepare_model(arguments(model=str(tmp_path / "nowhere")), table, catalog, seed=0)
    with pytest.raises(InputError, match="dtype: 'float99'; choose one of float32, bfloat16, float16"):
        arguments(model=saved, dtype="float99")
    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.add_tokens(["<a_0>"])
    tokenizer.save_pretrained(saved)
    with pytest.raises(InputError, match="it holds '<a_0>' already"):
        prepare_model(arguments(model=saved), table, catalog, seed=0)
