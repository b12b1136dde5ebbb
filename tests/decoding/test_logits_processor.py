"""The logits processor leaves what the dict of prefixes allows."""

import pytest
import torch
from reference.slow_decoding import legal_next
from transformers import LogitsProcessorList

from llmrec.decoding.logits_processor import SIDLogitsProcessor
from llmrec.decoding.trie import SIDTrie
from llmrec.errors import InputError

END = 1


def test_agrees_with_the_dict_of_prefixes(make_vocab):
    tokenizer, vocab = make_vocab([[0, -1, -1], [1, 0, -1], [1, 1, 0], [1, 1, 1], [2, 0, 0]])
    token_lists = [vocab.token_ids(row) for row in range(len(vocab))]
    prompt = [3, 4]
    stray = token_lists[1][1]  # a second-level token straight after the prompt
    prefixes = [ids[:depth] for ids in token_lists for depth in (0, 1, 2, 3)]
    prefixes += [[*token_lists[0], END], [stray], [END], [len(tokenizer) - 1, 3]]
    processor = SIDLogitsProcessor(SIDTrie.from_vocab(vocab), len(prompt), end_token_id=END)
    generator = torch.Generator().manual_seed(0)
    for prefix in prefixes:
        # A legal row beside it: a batch that is off the trie as a whole is refused.
        beside = (token_lists[3] + [END] * 5)[: len(prefix)]
        ids = torch.tensor([prompt + prefix, prompt + beside])
        scores = torch.randn(2, len(tokenizer), generator=generator)
        out = processor(ids, scores)[0]
        legal = legal_next(token_lists, prefix)
        expected = torch.full((len(tokenizer),), -torch.inf)
        expected[legal] = scores[0, legal]
        if not legal:
            expected[END] = 0.0
        assert torch.equal(out, expected), prefix


@pytest.mark.parametrize("settings", [{"do_sample": True, "top_k": 3}, {"do_sample": False}, {"num_beams": 4}])
def test_stock_generate_only_writes_items(settings, make_vocab, make_model, random_codes, left_padded):
    tokenizer, vocab = make_vocab(random_codes(10, (3, 3, 3)))
    model = make_model("qwen3", len(tokenizer))
    ids, mask = left_padded([4, 6], len(tokenizer))
    processor = SIDLogitsProcessor(SIDTrie.from_vocab(vocab), ids.shape[1], end_token_id=END)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=4,
        logits_processor=LogitsProcessorList([processor]),
        **settings,
    )
    for completion in out[:, ids.shape[1] :].tolist():
        assert vocab.rows(completion[:3])
        assert completion[3:] == [END]


def test_a_wrong_prompt_length_is_refused(make_vocab):
    tokenizer, vocab = make_vocab([[0, 0], [1, 0]])
    processor = SIDLogitsProcessor(SIDTrie.from_vocab(vocab), 1, end_token_id=END)
    with pytest.raises(InputError, match="prompt_length 1: no row has a SID token there"):
        processor(torch.tensor([[3, 4, 5]]), torch.zeros(1, len(tokenizer)))
