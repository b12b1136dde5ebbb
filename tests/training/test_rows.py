"""New SID rows: tables grow and never shrink, every row starts apart from the others, by token id."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from llmrec.data.items import Catalog
from llmrec.errors import InputError
from llmrec.training.adapters import attach_adapter
from llmrec.training.rows import add_residual_dropout, grow_rows, init_sid_rows, is_tied

MakeModel = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("tied", [True, False])
def test_grow_keeps_old_rows_and_tie(make_model: MakeModel, tokenizer, tied: bool) -> None:
    model = make_model(tied=tied, rows=320)
    before = model.get_input_embeddings().weight.detach().clone()
    assert grow_rows(model, tokenizer) == len(tokenizer)
    after = model.get_input_embeddings().weight
    assert torch.equal(after[:320], before)
    assert model.config.vocab_size == len(tokenizer)
    assert is_tied(model) is tied
    assert model.get_output_embeddings().weight.shape[0] == len(tokenizer)


def test_padded_table_is_not_cut(make_model: MakeModel, tokenizer) -> None:
    model = make_model(rows=640)
    assert len(tokenizer) < 640
    assert grow_rows(model, tokenizer) == 640
    assert model.get_input_embeddings().weight.shape[0] == 640


@pytest.mark.parametrize("method", ["mean", "text"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_distinct_and_spread_like_words(
    make_model: MakeModel, tokenizer, vocab, catalog, method: str, tied: bool, dtype: torch.dtype
) -> None:
    model = make_model(tied=tied).to(dtype)
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.05  # a mean far from zero, where default rows collapse in bf16
    old = torch.tensor([i for i in range(640) if i not in set(vocab.trainable_token_indices)])
    new = torch.tensor(vocab.trainable_token_indices)
    before = [
        model.get_input_embeddings().weight.detach().clone(),
        model.get_output_embeddings().weight.detach().clone(),
    ]
    init_sid_rows(model, tokenizer, vocab, method=method, catalog=catalog, seed=1)
    for table, was in zip(
        [model.get_input_embeddings().weight, model.get_output_embeddings().weight], before, strict=True
    ):
        assert torch.equal(table[old], was[old]), "text rows are left alone"
        assert not torch.equal(table[new], was[new])
        rows = table[new].float()
        assert len(rows.unique(dim=0)) == len(new), "every SID row differs from every other"
        spread = was[: len(tokenizer) - len(new)].float().std(0).norm()
        deviation = (rows - rows.mean(0)).norm(dim=1).mean()
        assert 0.5 < deviation / spread < 2.0
    assert is_tied(model) is tied


def test_text_rows_follow_their_items(make_model: MakeModel, tokenizer, vocab, catalog) -> None:
    """The first code is the colour here, so its row must lean to the words of that colour's titles."""
    model = make_model()
    weights = model.get_input_embeddings().weight
    init_sid_rows(model, tokenizer, vocab, method="text", catalog=catalog, seed=1)
    rows = weights[torch.from_numpy(vocab.level_token_ids[0])].detach()
    ids = [tokenizer(title, add_special_tokens=False)["input_ids"] for title in catalog.titles]
    words = torch.stack([torch.cat([weights[i] for i in ids[colour::5]]).mean(0) for colour in range(5)]).detach()
    similarity = torch.nn.functional.cosine_similarity(
        (rows - rows.mean(0))[:, None], (words - words.mean(0))[None], dim=-1
    )
    assert similarity.argmax(dim=1).tolist() == [0, 1, 2, 3, 4]


def test_text_rows_do_not_read_items_held_out(make_model: MakeModel, tokenizer, vocab, catalog) -> None:
    rows = torch.tensor(vocab.trainable_token_indices)
    other = Catalog(catalog.item_ids, {"title": ("purple elephants", *catalog.titles[1:])})
    found = []
    for titles, without in ((catalog, {0}), (other, {0}), (other, ())):
        model = make_model()
        init_sid_rows(model, tokenizer, vocab, method="text", catalog=titles, seed=1, without=without)
        found.append(model.get_input_embeddings().weight[rows].detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_unused_code_still_gets_a_row(make_model: MakeModel, tokenizer, vocab, catalog) -> None:
    """Level b has four codes of which items use three."""
    model = make_model()
    init_sid_rows(model, tokenizer, vocab, method="text", catalog=catalog)
    rows = model.get_input_embeddings().weight[torch.from_numpy(vocab.level_token_ids[1])]
    assert torch.isfinite(rows).all()
    assert len(rows.unique(dim=0)) == 4


def test_t5_rows(tokenizer, vocab) -> None:
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=400, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    assert grow_rows(model, tokenizer) == max(400, len(tokenizer))
    init_sid_rows(model, tokenizer, vocab)
    new = torch.tensor(vocab.trainable_token_indices)
    assert len(model.get_input_embeddings().weight[new].unique(dim=0)) == len(new)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight


def test_init_refuses(make_model: MakeModel, tokenizer, vocab) -> None:
    with pytest.raises(InputError, match="sid_init: 'zeros'; choose mean or text"):
        init_sid_rows(make_model(), tokenizer, vocab, method="zeros")
    with pytest.raises(InputError, match="text needs the catalogue's titles"):
        init_sid_rows(make_model(), tokenizer, vocab, method="text")


def test_residual_dropout_acts_in_training_only(make_model: MakeModel) -> None:
    model, plain = make_model(), make_model()
    add_residual_dropout(model, 0.5)
    ids = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(model(ids).logits, plain(ids).logits)
    model.train()
    with torch.random.fork_rng():
        assert not torch.equal(model(ids).logits, model(ids).logits)
    assert set(model.state_dict()) == set(plain.state_dict())


def test_residual_dropout_reaches_the_embeddings_of_an_adapter(make_model: MakeModel, vocab) -> None:
    """Of a model without blocks, so that whatever differs comes from the embeddings."""
    adapted = attach_adapter(make_model(), vocab, method="new_rows")
    add_residual_dropout(adapted, 0.5)
    adapted.train()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.random.fork_rng():
        assert (adapted.get_input_embeddings()(ids) == 0).float().mean() > 0.2


def test_residual_dropout_refuses_a_model_without_blocks() -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(InputError, match="residual_dropout: T5ForConditionalGeneration has no self_attn or mlp"):
        add_residual_dropout(model, 0.1)
