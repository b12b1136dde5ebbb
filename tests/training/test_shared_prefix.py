"""Groups read from one row a prompt have the log-probabilities, entropies and gradients of rows read one by one."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from reference.slow_rl import slow_group_scores
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)
from trl.trainer.utils import add_fused_lm_head

from llmrec.decoding.trie import SIDTrie
from llmrec.errors import InputError
from llmrec.training import group_rows, labelled, state_log_probs
from llmrec.training.adapters import attach_adapter
from llmrec.training.forward import add_labelled_forward
from llmrec.training.group_softmax import GroupSoftmax
from llmrec.training.objectives.cross_entropy import negative_log_likelihood
from llmrec.training.output_columns import Piece
from llmrec.training.shared_prefix import add_group_forward, group_batch, group_log_probs, groups_of_rows

VOCAB, END = 60, 1
SIDS = [
    (20, 30, 40), (20, 30, 41), (20, 31, 40), (20, 32), (21, 30, 42), (21, 33), (22, 31, 43), (22, 31, 44),
    (23, 34, 45),
]  # fmt: skip
SID_TOKENS = list(range(20, 50))  # 24 to 29, 35 to 39 and 46 to 49 belong to no item
PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [10, 11], [12, 20, 30, 40, 13]]
GROUPS = [[SIDS[0], SIDS[3], SIDS[2]], [SIDS[7], SIDS[6], SIDS[4]], [SIDS[5], SIDS[8]]]
"""SIDs of two and three tokens, of one and of several first codes, and a group that is smaller than the others."""

CAUSAL = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
    "eos_token_id": END, "bos_token_id": None,
}  # fmt: skip
T5 = {
    "vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "pad_token_id": 0,
    "decoder_start_token_id": 0, "relative_attention_num_buckets": 4, "relative_attention_max_distance": 6,
    "dropout_rate": 0.0, "initializer_factor": 0.5,
}  # fmt: skip
GPT2 = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": END}
SHAPES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**CAUSAL, head_dim=8, tie_word_embeddings=True)),
    "qwen2-untied": lambda: Qwen2ForCausalLM(Qwen2Config(**CAUSAL, tie_word_embeddings=False)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**CAUSAL, tie_word_embeddings=True)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5, tie_word_embeddings=True)),
    "t5-unscaled": lambda: T5ForConditionalGeneration(T5Config(**T5, tie_word_embeddings=False)),
    "mt5": lambda: MT5ForConditionalGeneration(MT5Config(**T5)),
    # Read one row a candidate
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**CAUSAL, sliding_window=4)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, **NO_DROPOUT)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**CAUSAL, head_dim=8)),
}
OTHERS = ("mistral-window", "gpt2", "gemma")


@pytest.fixture(scope="module")
def trie() -> SIDTrie:
    rows = np.array([[*sid, *[-1] * (3 - len(sid))] for sid in SIDS])
    return SIDTrie.from_token_ids(rows, sid_token_ids=np.array(SID_TOKENS))


def build(shape: str, softmax: GroupSoftmax | None = None, *, dtype: torch.dtype = torch.float64) -> Any:
    set_seed(0)
    model = SHAPES[shape]().to(dtype).eval()
    if softmax is not None:
        add_group_forward(model, softmax)
    return model


def logits_of(model: Any) -> Callable[[list[int], list[int]], Tensor]:
    """The model's own logits behind what was written, from a row of its own."""

    def read(prompt: list[int], written: list[int]) -> Tensor:
        if model.config.is_encoder_decoder:
            given = {"decoder_input_ids": torch.tensor([[0, *written]])}
            return model(input_ids=torch.tensor([prompt]), **given, use_cache=False).logits[0, -1]
        return model(input_ids=torch.tensor([[*prompt, *written]]), use_cache=False).logits[0, -1]

    return read


def weigh(log_prob: Any, entropy: Any, at: tuple[int, int, int]) -> Any:
    """A loss of every number, each with a weight of its own."""
    number, place, level = at
    return (1.0 + 0.3 * number - 0.7 * place + 0.2 * level) * log_prob + (0.5 - 0.1 * level) * entropy


def gradients(model: Any, loss: Any) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], share: float) -> None:
    """Gradients agree to a share of the largest one."""
    largest = max(float(value.abs().max()) for value in wanted.values())
    assert largest > 0.01
    for name, value in wanted.items():
        torch.testing.assert_close(found.get(name, torch.zeros_like(value)), value, atol=share * largest, rtol=0)


def loss_of(output: Any) -> Tensor:
    at = [(n, p, t) for n, group in enumerate(GROUPS) for p, sid in enumerate(group) for t in range(len(sid))]
    return sum((weigh(output.log_probs[one], output.entropies[one], one) for one in at), torch.zeros(()))


@pytest.mark.parametrize("kind", ["full", "sids", "allowed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_groups_are_their_rows_one_by_one(trie: SIDTrie, shape: str, kind: str) -> None:
    model = build(shape, GroupSoftmax(kind, 0.7, trie, END))
    twin = slow_group_scores(
        logits_of(model), PROMPTS, GROUPS, kind=kind, temperature=0.7, sids=SIDS, sid_tokens=SID_TOKENS,
        end_token_id=END,
    )  # fmt: skip
    output = group_log_probs(model, PROMPTS, GROUPS, pad_token_id=0, entropy="grad")
    assert output.log_probs.shape == (3, 3, 3)
    # Gemma's and T5's norms and eager attention are in float32 whatever the model is
    near = 2e-5
    for at, (log_prob, entropy, outside) in twin.items():
        torch.testing.assert_close(output.log_probs[at], log_prob, atol=near, rtol=0)
        torch.testing.assert_close(output.entropies[at], entropy, atol=near, rtol=0)
        assert float(output.outside[at]) == pytest.approx(outside, abs=near)
    masked = torch.ones(3, 3, 3, dtype=torch.bool)
    for at in twin:
        masked[at] = False
    assert int(masked.sum()) == 5  # the third candidate of the last group, and two SIDs of two tokens
    for values in output.values():
        assert not values[masked].any()
    wanted = gradients(model, sum(weigh(*scores[:2], at) for at, scores in twin.items()))
    close(gradients(model, loss_of(output)), wanted, 1e-5)


def test_a_prompt_is_read_once_and_the_head_where_it_predicts(trie: SIDTrie, monkeypatch: Any) -> None:
    """Three groups of three in rows of 7 + 3 * 2 tokens; 3 ends of prompts, and 5 + 6 + 3 tokens with one behind."""
    model = build("qwen3", GroupSoftmax("full"))
    shapes, products = [], []
    model.model.register_forward_pre_hook(
        lambda module, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    plain = Piece.logits
    monkeypatch.setattr(Piece, "logits", lambda *args: products.append(len(args[1])) or plain(*args))
    group_log_probs(model, PROMPTS, GROUPS, pad_token_id=0)
    assert shapes == [(3, 13)]
    assert products == [3 + 5 + 6 + 3]


def test_t5_encodes_a_prompt_once(trie: SIDTrie) -> None:
    """Three groups of three: three rows of the longest prompt's 7 tokens, one decoder row a group."""
    model = build("t5", GroupSoftmax("full"))
    encoded, decoded = [], []
    for part, shapes in ((model.encoder, encoded), (model.decoder, decoded)):
        part.register_forward_hook(
            lambda module, args, given, output, shapes=shapes: shapes.append(tuple(output[0].shape[:2])),
            with_kwargs=True,
        )
    group_log_probs(model, PROMPTS, GROUPS, pad_token_id=0)
    assert encoded == [(3, 7)]
    assert [rows for rows, _ in decoded] == [3]


@pytest.mark.parametrize("shape", ["qwen3", "t5"])
def test_batches_paddings_and_groups_change_nothing(trie: SIDTrie, shape: str) -> None:
    model = build(shape, GroupSoftmax("full", trie=trie), dtype=torch.float32)
    together = group_log_probs(model, PROMPTS, GROUPS, pad_token_id=0, entropy=True)
    for number, (prompt, group) in enumerate(zip(PROMPTS, GROUPS, strict=True)):
        for place, sid in enumerate(group):
            alone = group_log_probs(model, [prompt], [[sid]], pad_token_id=0, entropy=True)
            for name in ("log_probs", "entropies", "outside"):
                found = together[name][number, place, : len(sid)]
                torch.testing.assert_close(found, alone[name][0, 0], atol=2e-6, rtol=0)


def test_candidates_do_not_see_each_other(trie: SIDTrie) -> None:
    """Another candidate in a group changes the numbers of no other, to the last bit."""
    model = build("qwen3", GroupSoftmax("full"))
    before = group_log_probs(model, PROMPTS, GROUPS, pad_token_id=0).log_probs
    changed = [[SIDS[8], *GROUPS[0][1:]], *GROUPS[1:]]
    after = group_log_probs(model, PROMPTS, changed, pad_token_id=0).log_probs
    assert torch.equal(before[0, 1:], after[0, 1:])
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0, 0], after[0, 0])


@pytest.mark.parametrize("kind", ["full", "sids", "allowed"])
@pytest.mark.parametrize("shape", ["qwen3", "t5"])
def test_gradient_checkpointing(trie: SIDTrie, shape: str, kind: str) -> None:
    model = build(shape, GroupSoftmax(kind, 1.0, trie, END)).train()

    def read() -> dict[str, Tensor]:
        return gradients(model, loss_of(group_log_probs(model, PROMPTS, GROUPS, pad_token_id=0, entropy="grad")))

    wanted = read()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    runs: list[int] = []
    part = model.decoder.block[1].layer[2] if shape == "t5" else model.model.layers[1].mlp
    part.register_forward_pre_hook(lambda *_: runs.append(1))
    close(read(), wanted, 1e-9)
    assert len(runs) == 2, "once more in the backward pass"


@pytest.mark.parametrize("shape", ["qwen3", "t5"])
def test_eager_attention_and_bfloat16(trie: SIDTrie, shape: str) -> None:
    model = build(shape, GroupSoftmax("sids", 1.0, trie, END), dtype=torch.float32)
    before = group_log_probs(model, PROMPTS, GROUPS, pad_token_id=0)
    model.set_attn_implementation("eager")
    eager = group_log_probs(model, PROMPTS, GROUPS, pad_token_id=0)
    torch.testing.assert_close(eager.log_probs, before.log_probs, atol=1e-5, rtol=0)
    model.set_attn_implementation("sdpa")
    with torch.autocast("cpu", torch.bfloat16):
        half = group_log_probs(model, PROMPTS, GROUPS, pad_token_id=0, entropy=True)
    assert half.log_probs.dtype == half.entropies.dtype == torch.float32
    torch.testing.assert_close(half.log_probs, before.log_probs, atol=0.15, rtol=0)
    assert not torch.equal(half.log_probs, before.log_probs)
    whole = group_log_probs(model.bfloat16(), PROMPTS, GROUPS, pad_token_id=0)
    assert whole.log_probs.dtype == torch.float32
    torch.testing.assert_close(whole.log_probs, before.log_probs, atol=0.3, rtol=0)


@pytest.mark.parametrize("kind", ["full", "sids", "allowed"])
@pytest.mark.parametrize("entropy", [False, True, "grad"])
def test_chunks_change_nothing_and_are_kept(trie: SIDTrie, monkeypatch: Any, kind: str, entropy: bool | str) -> None:
    model = build("qwen3", GroupSoftmax(kind, 0.8, trie, END))

    def read() -> tuple[Any, dict[str, Tensor]]:
        output = group_log_probs(model, PROMPTS, GROUPS, pad_token_id=0, entropy=entropy)
        weights = torch.arange(27.0).view(3, 3, 3)
        loss = (output.log_probs * weights).sum()
        return output, gradients(model, loss + output.entropies.sum() if entropy == "grad" else loss)

    wanted, slopes = read()
    for module in (labelled, state_log_probs):
        monkeypatch.setattr(module, "CHUNK_LOGITS", 119)
    sizes = []
    plain = Piece.logits
    monkeypatch.setattr(Piece, "logits", lambda *args: sizes.append(plain(*args).numel()) or plain(*args))
    output, found = read()
    assert output.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(output[name], values, atol=1e-12, rtol=0)
    close(found, slopes, 1e-12)
    assert kind != "full" or (max(sizes) <= 119 and len(sizes) > 10)
    if entropy is True:
        assert not output.entropies.requires_grad


@pytest.mark.parametrize("method", ["lora", "new_rows"])
@pytest.mark.parametrize("kind", ["full", "sids", "allowed"])
@pytest.mark.parametrize("chunk", [2**24, 2**11])
def test_rows_of_an_adapter(make_model: Any, vocab: Any, monkeypatch: Any, method: str, kind: str, chunk: int) -> None:
    """With LoRA and SID rows of an adapter, whole and in chunks: PEFT's own forward, row by row."""
    end = 2
    base = make_model("qwen2", tied=False, hidden=16).double()
    model = attach_adapter(base, vocab, method=method, rank=2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ("lora_B" in name or "delta" in name) and value.requires_grad:
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    add_group_forward(base, GroupSoftmax(kind, 1.3, end_token_id=end), vocab=vocab)
    for module in (labelled, state_log_probs):
        monkeypatch.setattr(module, "CHUNK_LOGITS", chunk)
    groups = [[vocab.token_ids(row) for row in (0, 7, 13)], [vocab.token_ids(row) for row in (29, 1, 2)]]
    prompts = [[5, 6, 7], [8, *vocab.token_ids(3)]]
    twin = slow_group_scores(
        logits_of(model), prompts, groups, kind=kind, temperature=1.3,
        sids=[tuple(vocab.token_ids(row)) for row in range(len(vocab))], sid_tokens=vocab.trainable_token_indices,
        end_token_id=end,
    )  # fmt: skip
    output = group_log_probs(model, prompts, groups, pad_token_id=0, entropy=True)
    for at, (log_prob, entropy, outside) in twin.items():
        torch.testing.assert_close(output.log_probs[at], log_prob, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.entropies[at], entropy, atol=1e-5, rtol=0)
        assert float(output.outside[at]) == pytest.approx(outside, abs=1e-5)
    wanted = gradients(model, sum((1 + at[1] + at[2]) * scores[0] for at, scores in twin.items()))
    found = gradients(model, sum((1 + at[1] + at[2]) * output.log_probs[at] for at in twin))
    assert any("trainable_tokens_delta" in name for name in found)
    close(found, wanted, 1e-5)
    with model.disable_adapter(), torch.no_grad():
        plain = group_log_probs(model, prompts, groups, pad_token_id=0).log_probs
        wanted = logits_of(model)(prompts[0], [])
    assert not torch.allclose(plain, output.log_probs, atol=1e-3)
    if kind == "full":
        torch.testing.assert_close(plain[0, 0, 0], (wanted / 1.3).log_softmax(0)[groups[0][0][0]], atol=1e-5, rtol=0)


def test_a_base_of_four_bits(make_model: Any, vocab: Any, tmp_path: Path) -> None:
    make_model(hidden=64).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization, device_map="cpu")
    model = attach_adapter(base, vocab, method="qlora", rank=2).eval()
    add_group_forward(base, GroupSoftmax("full", 1.3), vocab=vocab)
    prompts, groups = [[5, 6, 7], [8]], [[vocab.token_ids(row) for row in (0, 7)], [vocab.token_ids(29)]]
    # In a training forward alone bitsandbytes multiplies matrices that it has made whole again
    output = group_log_probs(model.train(), prompts, groups, pad_token_id=0)
    for number, place, row in ((0, 0, 0), (0, 1, 7), (1, 0, 29)):
        ids = vocab.token_ids(row)
        logits = model(input_ids=torch.tensor([[*prompts[number], *ids]])).logits[0, -4:-1] / 1.3
        wanted = logits.log_softmax(1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(output.log_probs[number, place], wanted, atol=1e-3, rtol=0)
    output.log_probs.sum().backward()
    trained = [name for name, value in model.named_parameters() if value.grad is not None and value.grad.abs().any()]
    assert any("trainable_tokens_delta" in name for name in trained)
    assert any("lora_B" in name for name in trained)


def test_the_output_survives_what_accelerate_does_to_it(trie: SIDTrie) -> None:
    model = build("qwen3", GroupSoftmax("full"), dtype=torch.bfloat16)
    output = group_log_probs(model, PROMPTS, GROUPS, pad_token_id=0, entropy=True)
    again = convert_outputs_to_fp32(lambda: output)()
    assert type(again) is type(output)
    assert torch.equal(again.log_probs, output.log_probs)
    assert again.outside is None


@pytest.mark.parametrize("first", ["ours", "trl"])
def test_other_forwards_are_left_as_they_are(trie: SIDTrie, first: str) -> None:
    plain = build("qwen3", dtype=torch.float32)
    model = build("qwen3", dtype=torch.float32)
    patches = [
        lambda: add_group_forward(model, GroupSoftmax("full", 0.9)),
        lambda: add_fused_lm_head(model, temperature=0.9, outputs=("log_probs", "entropy")),
        lambda: add_labelled_forward(model, negative_log_likelihood),
    ]
    for patch in patches if first == "ours" else patches[::-1]:
        patch()
    row = torch.tensor([[*PROMPTS[0], *GROUPS[0][0]]])
    assert torch.equal(model(input_ids=row).logits, plain(input_ids=row).logits)
    labels = row.masked_fill(torch.arange(row.shape[1]) < len(PROMPTS[0]), -100)
    fused = model(input_ids=row, labels=labels, fused_lm_head=True)
    output = group_log_probs(model, PROMPTS, GROUPS, pad_token_id=0, entropy=True)
    torch.testing.assert_close(output.log_probs[0, 0], fused.log_probs[0, -3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.entropies[0, 0], fused.entropy[0, -3:], atol=1e-5, rtol=0)
    assert output.outside is None, "no trie, no mass outside it"
    given = {"places": torch.tensor([6]), "targets": torch.tensor([20]), "tasks": torch.tensor([0])}
    losses = model(input_ids=row, rows_of=torch.zeros_like(row), **given).losses
    torch.testing.assert_close(
        -losses[0] / 1.0, plain(input_ids=row).logits[0, 6].log_softmax(0)[20], atol=1e-5, rtol=0
    )
    written = {"max_new_tokens": 2, "do_sample": False}
    assert torch.equal(model.generate(row, **written), plain.generate(row, **written))


def test_models_without_a_mask_of_their_own_say_so_once(trie: SIDTrie, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(group_rows, "_told", set())
    model = build("mistral-window", GroupSoftmax("full"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            group_log_probs(model, PROMPTS, GROUPS, pad_token_id=0)
    said = [record.getMessage() for record in caplog.records if "read once a candidate" in record.getMessage()]
    assert said == [
        "attention layers of kind sliding_attention: prompts are read once a candidate, which is slower; the results "
        "are the same"
    ]


def test_lists_of_sids_start_anew_behind_each(trie: SIDTrie) -> None:
    """Nodes of 20 32 | 21 33: the root, 20, the root again, 21."""
    softmax = GroupSoftmax("allowed", trie=trie)
    tokens = torch.tensor([[20, 32, 21, 33], [20, 47, 21, 33]])
    nodes = softmax.nodes(tokens).tolist()
    assert nodes[0] == [0, trie.node_of([20]), 0, trie.node_of([21])]
    assert nodes[1] == [0, trie.node_of([20]), -1, -1], "47 belongs to no item"
    model = build("qwen3", softmax)
    found = group_log_probs(model, PROMPTS[:1], [[(20, 32, 21, 33)]], pad_token_id=0).log_probs
    logits = logits_of(model)(PROMPTS[0], [20, 32])[[20, 21, 22, 23]]
    torch.testing.assert_close(found[0, 0, 2], logits.log_softmax(0)[1], atol=1e-6, rtol=0)


def test_text_is_outside_the_trie(trie: SIDTrie) -> None:
    model = build("qwen3", GroupSoftmax("full", trie=trie))
    output = group_log_probs(model, PROMPTS[:1], [[(5, 6)]], pad_token_id=0, entropy=True)
    assert float(output.outside[0, 0, 1]) == 1.0
    assert 0 < float(output.outside[0, 0, 0]) < 1


@pytest.mark.parametrize("entropy", [False, True, "grad"])
def test_a_batch_with_nothing_to_score_has_a_gradient(trie: SIDTrie, entropy: bool | str) -> None:
    """What DDP waits for on a process whose candidates are all masked."""
    model = build("qwen3", GroupSoftmax("sids", 1.0, trie, END))
    output = group_log_probs(model, PROMPTS, [[], [], []], pad_token_id=0, entropy=entropy)
    assert output.log_probs.shape == (3, 1, 1)
    assert not any(values.any() for values in output.values())
    output.log_probs.sum().backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None


def test_rows_of_trl_are_groups() -> None:
    rows = torch.tensor([[0, 3, 7, 8], [0, 3, 9, 0], [4, 5, 7, 8], [4, 5, 6, 6]])
    mask = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    batch = groups_of_rows(rows, mask, completion_length=2, num_generations=2)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[0, 3], [4, 5]],
        "attention_mask": [[0, 1], [1, 1]],
        "completions": [[[7, 8], [9, 0]], [[7, 8], [6, 6]]],
        "completion_mask": [[[1, 1], [1, 0]], [[1, 1], [1, 1]]],
    }
    with pytest.raises(InputError, match="4 rows are no whole groups of num_generations 3"):
        groups_of_rows(rows, mask, completion_length=2, num_generations=3)
    with pytest.raises(InputError, match="row 2 has another prompt than the first of its group of 4; groups were"):
        groups_of_rows(rows, mask, completion_length=2, num_generations=4)


def test_group_batch_pads_prompts_on_the_left_and_candidates_on_the_right() -> None:
    batch = group_batch([[3, 4], [5]], [[(6, 7)], [(8,), (9, 6)]], pad_token_id=0)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[3, 4], [0, 5]],
        "attention_mask": [[1, 1], [0, 1]],
        "completions": [[[6, 7], [0, 0]], [[8, 0], [9, 6]]],
        "completion_mask": [[[1, 1], [0, 0]], [[1, 0], [1, 1]]],
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "sid"}, "softmax 'sid': choose one of full, sids, allowed"),
        ({"temperature": 0.0}, r"temperature 0.0: .* give a number above 0"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"kind": "sids"}, "softmax 'sids': .* give end_token_id"),
    ],
)
def test_bad_softmaxes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GroupSoftmax(**settings)


def test_what_is_refused(trie: SIDTrie) -> None:
    with pytest.raises(InputError, match="softmax 'allowed': it needs the legal SIDs; give a trie or a vocab"):
        build("qwen3", GroupSoftmax("allowed"))
    model = build("qwen3", GroupSoftmax("allowed", 1.0, trie))
    message = "prompt 1, candidate 0: token 47 at place 1 is no legal child of the tokens before it.*'full'"
    with pytest.raises(InputError, match=message):
        group_log_probs(model, PROMPTS[:2], [[SIDS[0]], [(20, 47)]], pad_token_id=0)
    sids = build("qwen3", GroupSoftmax("sids", 1.0, trie, END))
    with pytest.raises(InputError, match="prompt 0, candidate 1: token 5 at place 0 is no SID token"):
        group_log_probs(sids, PROMPTS[:1], [[SIDS[0], (5,)]], pad_token_id=0)
    with pytest.raises(InputError, match="completions: 2 groups for 1 prompts"):
        group_log_probs(model, PROMPTS[:1], GROUPS[:2], pad_token_id=0)
    with pytest.raises(InputError, match="prompts: number 1 is empty; give each a token"):
        group_log_probs(model, [[3], []], GROUPS[:2], pad_token_id=0)
    batch = group_batch(PROMPTS, GROUPS, pad_token_id=0)
    with pytest.raises(InputError, match="a prompt ends in padding; pad prompts on the left"):
        model(**{**batch, "attention_mask": batch["attention_mask"].flip(1)})
    with pytest.raises(InputError, match=r"attention_mask is \(3, 6\), input_ids \(3, 7\)"):
        model(**{**batch, "attention_mask": batch["attention_mask"][:, 1:]})
    with pytest.raises(InputError, match=r"completions are \(3, 3\).*both are \(prompts, group, length\)"):
        model(**{**batch, "completions": batch["completions"][..., 0]})
    with pytest.raises(InputError, match="entropy 'yes': give True, False, or 'grad'"):
        model(**batch, entropy="yes")
