"""data_prep/cut_layers.py: the first layers of a model, all else as it was."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    T5Config,
    set_seed,
)

from llmrec.errors import InputError
from llmrec.training.tokenizer import train_tokenizer

script = runpy.run_path(str(Path(__file__).parents[2] / "data_prep" / "cut_layers.py"))
main, cut_config = script["main"], script["cut_config"]
HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    set_seed(0)
    path = tmp_path / "whole"
    tokenizer = train_tokenizer(["red pen", "blue pen"], vocab_size=300)
    config = LlamaConfig(
        **HEADS,
        hidden_size=16,
        intermediate_size=32,
        vocab_size=len(tokenizer),
        num_hidden_layers=4,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_what_is_left_computes_what_the_first_layers_did(saved: Path, tmp_path: Path):
    main(["--model", str(saved), "--layers", "2", "--out", str(tmp_path / "cut")])
    whole = AutoModelForCausalLM.from_pretrained(saved)
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert (cut.config.num_hidden_layers, len(cut.model.layers)) == (2, 2)
    ids = torch.tensor([[5, 7, 9, 11]])
    with torch.no_grad():
        # By hand: the residual stream behind the second layer, through the final norm and the tied head
        stream = whole(ids, output_hidden_states=True).hidden_states[2]
        expected = whole.model.norm(stream) @ whole.model.embed_tokens.weight.T
        assert torch.allclose(cut(ids).logits, expected, atol=1e-6)
    names = {name for name in whole.state_dict() if not name.startswith(("model.layers.2.", "model.layers.3."))}
    assert set(cut.state_dict()) == names
    text = "blue pen"
    assert AutoTokenizer.from_pretrained(tmp_path / "cut")(text) == AutoTokenizer.from_pretrained(saved)(text)


def test_what_a_config_says_of_each_layer_is_cut_too():
    config = cut_config(Qwen3Config(num_hidden_layers=3, use_sliding_window=True, max_window_layers=1), 2)
    assert config.layer_types == ["full_attention", "sliding_attention"]


def test_refusals(saved: Path, tmp_path: Path):
    for layers in (0, 4):
        with pytest.raises(InputError, match=rf"--layers {layers}: the model has 4; keep at least 1 and leave out"):
            main(["--model", str(saved), "--layers", str(layers), "--out", str(tmp_path / "cut")])
    with pytest.raises(InputError, match="t5 is an encoder-decoder; a causal model can be cut"):
        cut_config(T5Config(), 2)
    with pytest.raises(InputError, match=r"nowhere: cannot be loaded as a causal model"):
        main(["--model", str(tmp_path / "nowhere"), "--layers", "2", "--out", str(tmp_path / "cut")])
    with pytest.raises(InputError, match=r"whole: is there already; choose another folder"):
        main(["--model", str(saved), "--layers", "2", "--out", str(saved)])
    assert not (tmp_path / "cut").exists()
