"""Packed batches give the losses and gradients of padded ones and of rows alone; nothing leaks between rows."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from llmrec.data.splits import History
from llmrec.tasks.item_text import sid_to_title
from llmrec.tasks.next_item import next_item
from llmrec.tasks.prompt import PromptForm
from llmrec.training.adapters import attach_adapter
from llmrec.training.collator import LabelledCollator
from llmrec.training.examples import encode_examples, encode_sequences
from llmrec.training.forward import add_labelled_forward
from llmrec.training.labelled import Head, Labelled
from llmrec.training.objectives.cross_entropy import negative_log_likelihood

FORM = PromptForm("plain", "pens", max_history=20)


@pytest.fixture
def rows(tokenizer, vocab, catalog) -> list[dict[str, Any]]:
    """Rows of several tasks and lengths."""
    sequences = [(0, 1, 3, 5, 6, 8), (4, 5), (9, 11, 12)]
    made = list(encode_sequences(sequences, tokenizer=tokenizer, vocab=vocab, max_history=20))
    titles = list(sid_to_title(catalog, vocab, [], random.Random(0)))[:4]
    return made + list(encode_examples(titles, tokenizer=tokenizer, form=FORM, max_length=None, task=1))


def losses(model: Any, rows: Sequence[dict[str, Any]], layout: str = "packed", **settings: Any) -> dict[tuple, Tensor]:
    """Loss of each label by row (its tokens) and place within the row."""
    batch = LabelledCollator(0, layout, **settings)(rows)
    found = model(**batch).losses
    starts = {}
    ids = batch["input_ids"].flatten().tolist()
    # Where each label's row begins, from the restarting positions or the line
    length = batch["input_ids"].shape[1]
    positions = batch["position_ids"].flatten().tolist() if "position_ids" in batch else None
    for place, loss in zip(batch["places"].tolist(), found, strict=True):
        within = place % length if positions is None else positions[place]
        first = place - within
        starts[(tuple(ids[first : place + 1]), ids[place])] = loss
    return starts


def prepared(model: Any, vocab: Any = None) -> Any:
    add_labelled_forward(model, negative_log_likelihood, vocab=vocab)
    return model


def gradients(model: Any, rows: Sequence[dict[str, Any]], layout: str, **settings: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(**LabelledCollator(0, layout, **settings)(rows)).losses.sum().backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tied", [False, True])
def test_packed_equals_padded_and_alone(make_model, rows, attention: str, tied: bool) -> None:
    model = prepared(make_model(tied=tied).double())
    model.set_attn_implementation(attention)
    close = 1e-9 if attention == "sdpa" else 1e-5  # eager attention takes its softmax in float32
    alone: dict[tuple, Tensor] = {}
    for row in rows:
        alone |= losses(model, [row], "padded")
    assert len(alone) == sum(label != -100 for row in rows for label in row["labels"])
    for layout, settings in (("packed", {}), ("packed", {"pack_length": 100}), ("padded", {})):
        found = losses(model, rows, layout, **settings)
        assert found.keys() == alone.keys()
        for key, loss in found.items():
            torch.testing.assert_close(loss, alone[key], atol=close, rtol=0)
    wanted = gradients(model, rows, "padded")
    for settings in ({}, {"pack_length": 100}):
        found = gradients(model, rows, "packed", **settings)
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], atol=close, rtol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_packed_equals_padded_with_lora_and_sid_rows(make_model, rows, vocab, tied: bool) -> None:
    model = make_model(tied=tied)
    adapted = attach_adapter(model, vocab, method="lora")
    add_labelled_forward(model, negative_log_likelihood)
    wanted = gradients(adapted, rows, "padded")
    found = gradients(adapted, rows, "packed")
    assert any("trainable_tokens_delta" in name for name in found)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, wanted[name], atol=1e-6 * float(wanted[name].abs().max()) + 1e-7, rtol=1e-5
        )


def test_nothing_leaks_between_rows(make_model, rows) -> None:
    """A token changed in one row changes no loss of another row in the same line, to the last bit."""
    model = prepared(make_model().double())
    collator = LabelledCollator(0, pack_length=400)
    batch = collator(rows)
    assert len(batch["input_ids"]) == 1, "one line"
    row_of = batch["rows_of"].flatten()[batch["places"]]
    before = model(**batch).losses
    for number, row in enumerate(rows):
        tokens = list(row["input_ids"])
        tokens[1] += 1
        changed = [{**row, "input_ids": tokens} if place == number else other for place, other in enumerate(rows)]
        after = model(**collator(changed)).losses
        assert torch.equal(after[row_of != number], before[row_of != number])
        assert not torch.equal(after[row_of == number], before[row_of == number])


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_history_rows_hold_the_losses_of_target_rows(make_model, rows, tokenizer, vocab, catalog, layout: str) -> None:
    """Each target within a window: the loss of the row-a-target form, with other tasks' rows in the same line."""
    model = prepared(make_model().double())
    sequences = [(0, 1, 3, 5, 6, 8, 9, 11, 12), (4, 5), (9, 11, 12, 13)]
    whole = list(encode_sequences(sequences, tokenizer=tokenizer, vocab=vocab, max_history=20))
    together = losses(model, [*whole, *rows[3:]], layout, **({"pack_length": 120} if layout == "packed" else {}))
    histories = [
        History(user, sequence[:place], sequence[place])
        for user, sequence in enumerate(sequences)
        for place in range(1, len(sequence))
    ]
    examples = next_item(catalog, vocab, histories, random.Random(0))
    count = 0
    for row in encode_examples(examples, tokenizer=tokenizer, form=FORM, max_length=None):
        for key, loss in losses(model, [row], "padded").items():
            torch.testing.assert_close(together[key], loss, atol=1e-9, rtol=0)
            count += 1
    assert count == 3 * sum(len(sequence) - 1 for sequence in sequences)


def test_the_loss_is_the_models_own(make_model, rows) -> None:
    model = prepared(make_model().double())
    row = rows[0]
    found = losses(model, [row])
    # transformers casts logits to float32
    own = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
    assert float(sum(found.values()) / len(found)) == pytest.approx(float(own), abs=1e-5)


def test_a_batch_without_labels_is_a_connected_zero(make_model, rows) -> None:
    model = prepared(make_model())
    idle = {"input_ids": [5, 6], "labels": [-100, -100], "task": 0}
    total = model(**LabelledCollator(0)([idle])).losses.sum()
    total.backward()
    assert float(total) == 0.0
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(float(parameter.grad.abs().max()) == 0.0 for parameter in model.parameters())


def test_other_calls_are_as_before(make_model) -> None:
    model = make_model()
    tokens = torch.tensor([[5, 6, 7]])
    before = model(tokens).logits
    written = model.generate(tokens, max_new_tokens=3, do_sample=False)
    prepared(model)
    assert torch.equal(model(tokens).logits, before)
    assert torch.equal(model.generate(tokens, max_new_tokens=3, do_sample=False), written)


def test_an_objective_sees_levels_sids_and_tasks(make_model, rows, vocab) -> None:
    seen: list[Labelled] = []

    def objective(labelled: Labelled, head: Head) -> Tensor:
        seen.append(labelled)
        return -head.log_probs(labelled.hidden, labelled.targets)

    model = make_model()
    add_labelled_forward(model, objective, vocab=vocab)
    model(**LabelledCollator(0, "padded")([rows[1], rows[3]]))
    text = sum(label != -100 for label in rows[3]["labels"])
    assert seen[0].levels.tolist() == [0, 1, 2] + [-1] * text
    assert seen[0].sids.tolist() == [0, 0, 0] + [-1] * text
    assert seen[0].tasks.tolist() == [0, 0, 0] + [1] * text
    assert seen[0].targets.tolist()[:3] == vocab.token_ids(5)


def test_gradient_checkpointing_and_autocast(make_model, rows) -> None:
    model = prepared(make_model().train())
    wanted = gradients(model, rows, "packed")
    model.gradient_checkpointing_enable()
    for name, gradient in gradients(model, rows, "packed").items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-4)
    model.gradient_checkpointing_disable()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, rows, "packed")
    for name, gradient in found.items():
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), wanted[name].flatten(), dim=0) > 0.98, name
