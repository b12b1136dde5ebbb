"""The tokenizer trained in place: any text survives, SIDs stay whole, chat prompts work."""

from pathlib import Path

from transformers import AutoTokenizer

from llmrec.training.tokenizer import train_tokenizer


def test_round_trip_of_any_text() -> None:
    tokenizer = train_tokenizer(["red pen", "blue pen"] * 20, vocab_size=320)
    for text in ("red pen", 'Crème "brûlée", 日本 🙂', "  two  spaces\n"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert len(tokenizer.encode("red pen", add_special_tokens=False)) < len("red pen")


def test_sids_stay_whole_beside_text_and_after_a_reload(tokenizer, vocab, tmp_path: Path) -> None:
    text = f"Title of{vocab.tokens(3)}{vocab.tokens(4)}:"
    tokenizer.save_pretrained(tmp_path)
    for made in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = made.encode(text, add_special_tokens=False)
        sid_ids = [token for token in ids if token in set(vocab.trainable_token_indices)]
        assert sid_ids == [*vocab.token_ids(3), *vocab.token_ids(4)]
        assert made.decode(ids, skip_special_tokens=True) == text


def test_vocabulary_is_bounded_and_ends_are_set() -> None:
    tokenizer = train_tokenizer(["a b c"], vocab_size=10)
    assert len(tokenizer) >= 259, "256 bytes and three special tokens, whatever was asked for"
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
