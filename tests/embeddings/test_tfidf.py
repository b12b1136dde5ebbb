import numpy as np
import pytest
from encoder_kit import small_catalog

from llmrec.embeddings.tfidf import embed_tfidf
from llmrec.errors import InputError

TEXTS = list(small_catalog(40).titles)


def test_the_seed_decides_and_rows_have_length_one():
    one, two = (embed_tfidf(TEXTS, dim=8, seed=seed) for seed in (0, 0))
    assert one.shape == (40, 8)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, rtol=1e-5)
    assert not np.allclose(np.linalg.norm(embed_tfidf(TEXTS, dim=8, normalize=False), axis=1), 1, atol=0.01)


def test_texts_that_share_words_lie_closer():
    texts = ["red gel pen", "blue gel pen", "wood desk lamp", "metal desk lamp"]
    near = embed_tfidf(texts, dim=3)
    similar = near @ near.T
    assert similar[0, 1] > similar[0, 2] + 0.2
    assert similar[2, 3] > similar[2, 0] + 0.2


def test_a_text_without_words_is_zero_and_counted(caplog):
    vectors = embed_tfidf([*TEXTS, "!"], dim=4)
    assert not vectors[-1].any()
    assert "1 of 41 texts hold no word" in caplog.text


@pytest.mark.parametrize(
    ("texts", "dim", "message"),
    [
        (TEXTS, 0, "dim 0; at least 1"),
        (TEXTS, 41, r"dim 41 for 40 texts with \d+ distinct terms; set --dim to 40 or less"),
        (["red pen"] * 9, 4, "dim 4 for 9 texts with 3 distinct terms; set --dim to 3 or less"),
        (["!", "?"], 1, "no words in the 2 texts"),
    ],
)
def test_bad_input_is_one_clear_error(texts: list[str], dim: int, message: str):
    with pytest.raises(InputError, match=message):
        embed_tfidf(texts, dim=dim)
