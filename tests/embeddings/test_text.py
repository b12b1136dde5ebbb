import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_kit import WORDS, small_catalog, write_encoder
from hypothesis import given
from hypothesis import strategies as st
from reference.slow_embeddings import slow_encode

from llmrec.embeddings.cache import RowCache, row_key
from llmrec.embeddings.text import (
    TextEncoder,
    encode_texts,
    folder_fingerprint,
    length_batches,
    load_encoder,
    pool_cls,
    pool_last,
    pool_mean,
)
from llmrec.errors import InputError

TEXTS = small_catalog(40).texts(["title", "brand"])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("qwen"), "qwen3")


def embed(encoder: TextEncoder, texts: list[str], folder: Path, *, max_tokens: int = 64) -> np.ndarray:
    cache = RowCache(folder, flush_seconds=0)
    encode_texts(encoder, texts, cache=cache, max_tokens=max_tokens)
    return cache.gather([row_key(text, encoder.identity) for text in texts])


def test_pooling_by_hand():
    hidden = torch.tensor([[[1.0, 0], [3, 4], [9, 9]], [[2, 2], [9, 9], [9, 9]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(pool_mean(hidden, mask), torch.tensor([[2.0, 2.0], [2, 2]]))  # (1 + 3) / 2, (0 + 4) / 2
    torch.testing.assert_close(pool_cls(hidden, mask), torch.tensor([[1.0, 0], [2, 2]]))
    torch.testing.assert_close(pool_last(hidden, mask), torch.tensor([[3.0, 4], [2, 2]]))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_batches_give_what_one_text_at_a_time_gives(bert: Path, tmp_path: Path, pooling: str, normalize: bool):
    encoder = load_encoder(str(bert), pooling=pooling, normalize=normalize, max_length=10)
    slow = slow_encode(str(bert), TEXTS, pooling=pooling, normalize=normalize, max_length=10)
    np.testing.assert_allclose(embed(encoder, TEXTS, tmp_path), slow, atol=2e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_causal_model_without_a_padding_token(qwen: Path, tmp_path: Path, pooling: str):
    encoder = load_encoder(str(qwen), pooling=pooling, max_length=10)
    assert encoder.tokenizer.pad_token_id is None
    slow = slow_encode(str(qwen), TEXTS, pooling=pooling, normalize=True, max_length=10)
    np.testing.assert_allclose(embed(encoder, TEXTS, tmp_path), slow, atol=2e-5)


def test_of_an_encoder_decoder_the_encoder_is_taken(tmp_path: Path, bert: Path):
    from_t5 = pytest.importorskip("transformers").T5Model
    config = from_t5.config_class(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    from_t5(config).save_pretrained(tmp_path / "t5")
    for file in bert.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "t5")
    assert embed(load_encoder(str(tmp_path / "t5")), TEXTS, tmp_path / "cache").shape == (40, 16)


def test_long_texts_lose_their_end(bert: Path, tmp_path: Path):
    encoder = load_encoder(str(bert), max_length=5)
    same_start = ["red green blue pen paper", "red green blue lamp"]  # [CLS] red green blue [SEP]
    one, two = embed(encoder, same_start, tmp_path)
    np.testing.assert_allclose(one, two, atol=1e-6)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 200))
def test_batches_hold_every_row_once_and_stay_within_bounds(lengths: list[int], max_tokens: int):
    batches = length_batches(lengths, max_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= max_tokens
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(lengths, reverse=True)


class Counting(TextEncoder):
    """Counts encoded texts, and dies when told."""

    encoded: int
    die_after: int

    def encode_batch(self, token_ids):
        object.__setattr__(self, "encoded", getattr(self, "encoded", 0) + len(token_ids))
        if self.encoded > getattr(self, "die_after", 10**9):
            raise KeyboardInterrupt
        return super().encode_batch(token_ids)


def counting(path: Path, *, die_after: int = 10**9, **options) -> Counting:
    encoder = load_encoder(str(path), **options)
    counted = Counting(**{name: getattr(encoder, name) for name in TextEncoder.__dataclass_fields__})
    object.__setattr__(counted, "die_after", die_after)
    object.__setattr__(counted, "encoded", 0)
    return counted


def test_a_killed_run_goes_on_and_gives_the_same_numbers(bert: Path, tmp_path: Path):
    whole = counting(bert)
    expected = embed(whole, TEXTS, tmp_path / "whole")
    assert whole.encoded == len(set(TEXTS))
    killed = counting(bert, die_after=15)
    with pytest.raises(KeyboardInterrupt):
        embed(killed, TEXTS, tmp_path / "killed")
    kept = len(RowCache(tmp_path / "killed").keys())
    assert 0 < kept <= 15
    resumed = counting(bert)
    np.testing.assert_array_equal(embed(resumed, TEXTS, tmp_path / "killed"), expected)
    assert resumed.encoded == len(set(TEXTS)) - kept


def test_only_a_changed_item_is_encoded_again(bert: Path, tmp_path: Path):
    embed(counting(bert), TEXTS, tmp_path)
    changed = [*TEXTS[:7], "small wood set", *TEXTS[8:]]
    again = counting(bert)
    vectors = embed(again, changed, tmp_path)
    assert again.encoded == 1
    np.testing.assert_allclose(vectors, embed(counting(bert), changed, tmp_path / "fresh"), atol=1e-6)


def test_equal_texts_are_encoded_once(bert: Path, tmp_path: Path):
    encoder = counting(bert)
    vectors = embed(encoder, ["red pen", "desk", "red pen"], tmp_path)
    assert encoder.encoded == 2
    np.testing.assert_array_equal(vectors[0], vectors[2])


def test_other_weights_or_settings_share_no_rows(bert: Path, tmp_path: Path):
    embed(counting(bert), TEXTS, tmp_path / "cache")
    other = write_encoder(tmp_path / "other", seed=1)
    for path, options in (
        (other, {}),
        (bert, {"pooling": "cls"}),
        (bert, {"max_length": 9}),
        (bert, {"dtype": "bfloat16"}),
    ):
        encoder = counting(path, **options)
        embed(encoder, TEXTS, tmp_path / "cache")
        assert encoder.encoded == len(set(TEXTS)), options


def test_a_local_model_is_known_by_contents_not_by_its_path(bert: Path, tmp_path: Path):
    moved = tmp_path / "moved"
    shutil.copytree(bert, moved)
    (moved / "README.md").write_text("news")
    assert folder_fingerprint(moved) == folder_fingerprint(bert)
    assert load_encoder(str(moved)).identity == load_encoder(str(bert)).identity
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    assert folder_fingerprint(moved) != folder_fingerprint(bert)


@pytest.mark.parametrize("processes", [2, 3])
def test_shares_of_several_processes_make_the_whole(bert: Path, tmp_path: Path, processes: int):
    expected = embed(load_encoder(str(bert)), TEXTS, tmp_path / "one")
    counts = []
    for process in range(processes):
        encoder = counting(bert)
        cache = RowCache(tmp_path / "many")
        encode_texts(encoder, TEXTS, cache=cache, max_tokens=64, process=process, processes=processes)
        counts.append(encoder.encoded)
    keys = [row_key(text, encoder.identity) for text in TEXTS]
    np.testing.assert_array_equal(RowCache(tmp_path / "many").gather(keys), expected)
    assert sum(counts) == len(set(TEXTS))
    assert min(counts) > 0


def test_nan_is_refused_before_it_is_cached(bert: Path, tmp_path: Path):
    encoder = load_encoder(str(bert))
    with torch.no_grad():
        encoder.model.get_input_embeddings().weight[encoder.tokenizer.convert_tokens_to_ids("ink")] = torch.nan
    with pytest.raises(InputError, match=r"in float32: 1 of 1 embeddings hold NaN"):
        embed(encoder, ["red pen", "blue gel pen", "ink"], tmp_path, max_tokens=5)  # three batches, the longest first
    cached = RowCache(tmp_path)
    assert cached.keys() == {row_key(text, encoder.identity) for text in ("red pen", "blue gel pen")}
    assert np.isfinite(cached.gather(list(cached.keys()))).all()


def test_a_text_without_tokens_is_named(qwen: Path, tmp_path: Path):
    with pytest.raises(InputError, match="makes no token of the text ' '"):
        embed(load_encoder(str(qwen)), [*WORDS, " "], tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling 'max': choose one of mean, cls, last"),
        ({"dtype": "int8"}, "dtype 'int8': choose one of float32"),
        ({"max_length": 257}, "max_length 257: encoder .* takes 3 to 256 tokens; set --max_length"),
        ({"max_length": 2}, "max_length 2: encoder .* takes 3 to 256 tokens"),
    ],
)
def test_settings_that_cannot_be_are_refused(bert: Path, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        load_encoder(str(bert), **options)


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"cannot be loaded .*or 'tfidf'"):
        load_encoder(str(tmp_path))


def test_an_empty_budget_is_refused(bert: Path, tmp_path: Path):
    with pytest.raises(InputError, match="max_tokens 0"):
        embed(load_encoder(str(bert)), TEXTS, tmp_path, max_tokens=0)
