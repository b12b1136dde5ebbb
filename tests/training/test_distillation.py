"""Distillation: equal to its slow twin on packed batches, closer to the teacher than plain training, and checked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_kit import PLAIN, make_model, make_t5, make_table, make_tokenizer
from peft import PeftModel
from reference.slow_objectives import slow_distillation
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.errors import InputError
from llmrec.hub import load_bundle, save_bundle
from llmrec.sids.table import SIDTable
from llmrec.training.collator import IGNORED, LabelledCollator
from llmrec.training.forward import add_labelled_forward
from llmrec.training.labelled import Head, Labelled
from llmrec.training.objectives.base import ObjectiveContext
from llmrec.training.objectives.methods import build_objective
from llmrec.training.seq2seq import Seq2SeqCollator, add_seq2seq_forward
from llmrec.vocab import SIDVocab

TABLE = make_table()
TOKENIZER = make_tokenizer(TABLE)
VOCAB = SIDVocab(TOKENIZER, TABLE)
CONTEXT = ObjectiveContext(VOCAB, TOKENIZER)
ROWS, PAD = len(TOKENIZER) + 5, 0


def save_teacher(path: Path, model: PreTrainedModel, *, table: SIDTable = TABLE, tokenizer=TOKENIZER) -> str:
    info = {
        "dataset": {"name": "made up", "licence": "CC0-1.0", "source": "drawn"}, "protocol": "leave_one_out",
        "prompt": PLAIN.to_dict(), "base_model": "none", "method": "full", "seed": 0, "vocab_rows": ROWS,
    }  # fmt: skip
    save_bundle(path, model=model, tokenizer=tokenizer, table=table, info=info)
    return str(path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_teacher(tmp_path_factory.mktemp("teacher") / "bundle", make_model(ROWS, seed=1, hidden_size=24))


def token_rows(count: int, *, seed: int = 0, text: bool = True) -> list[dict]:
    """A text token, some SIDs whose last is the target, and text behind it that is learned too."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        items = rng.integers(0, len(VOCAB), int(rng.integers(2, 4)))
        prompt = [9, *(token for item in items[:-1] for token in VOCAB.token_ids(item))]
        answer = [*VOCAB.token_ids(items[-1]), *([11, 12] if text else [])]
        rows.append({"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer, "task": 0})
    return rows


def dense_logits(model: PreTrainedModel | PeftModel, rows: list[dict]) -> list[Tensor]:
    """Logits before each label, row by row, from the model's own forward."""
    found = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        found += [logits[place - 1] for place, label in enumerate(row["labels"]) if label != IGNORED]
    return found


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_and_its_gradient_are_those_of_the_slow_twin(teacher: str, layout: str, temperature: float):
    student, twin = make_model(ROWS, seed=2), make_model(ROWS, seed=2)
    arguments = {"teacher": teacher, "share": 0.3, "temperature": temperature}
    objective = build_objective("distillation", arguments, context=CONTEXT)
    seen: list[Labelled] = []

    def listen(labelled: Labelled, head: Head) -> Tensor:
        seen.append(labelled)
        return objective(labelled, head)

    add_labelled_forward(student, listen, vocab=VOCAB)
    rows = token_rows(4)
    batch = LabelledCollator(PAD, layout)(rows)
    losses = student(**batch).losses

    theirs = dense_logits(load_bundle(teacher).model, rows)
    by_target = dense_logits(twin, rows)
    # The slow twin reads logits as hidden states under a table that changes nothing
    labelled = seen[0]
    order = in_order_of_rows(batch, rows)
    hidden = torch.stack(by_target)[order]
    slow = slow_distillation(
        Labelled(hidden, labelled.targets, labelled.tasks, labelled.levels, labelled.sids), torch.eye(ROWS),
        [ids.tolist() for ids in VOCAB.level_token_ids], [theirs[place] for place in order], share=0.3,
        temperature=temperature,
    )  # fmt: skip
    torch.testing.assert_close(losses, torch.stack(slow), rtol=1e-4, atol=1e-4)
    losses.mean().backward()
    torch.stack(slow).mean().backward()
    for (name, ours), other in zip(student.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-3, atol=2e-5, msg=name)


def in_order_of_rows(batch: dict, rows: list[dict]) -> list[int]:
    """For each label of a batch, its number when labels are counted row by row."""
    if "rows_of" not in batch:
        return list(range(len(batch["targets"])))
    first = np.cumsum([0, *(sum(label != IGNORED for label in row["labels"]) for row in rows)])
    used, order = dict.fromkeys(range(len(rows)), 0), []
    for place in batch["places"].tolist():
        row = int(batch["rows_of"].flatten()[place])
        order.append(int(first[row]) + used[row])
        used[row] += 1
    return order


def trained(name: str, arguments: dict, labels: list[list[dict]], *, hidden_size: int = 16) -> PreTrainedModel:
    """A small model after one pass over batches of rows."""
    student = make_model(ROWS, seed=3, hidden_size=hidden_size)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim > 1:
                parameter *= 0.2
    objective = build_objective(name, arguments, context=CONTEXT)
    add_labelled_forward(student, objective, vocab=VOCAB)
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
    collate = LabelledCollator(PAD)
    for rows in labels:
        optimizer.zero_grad()
        student(**collate(rows)).losses.mean().backward()
        optimizer.step()
    return student


def divergence(teacher: PreTrainedModel | PeftModel, student: PreTrainedModel, rows: list[dict]) -> float:
    """Mean divergence of the student from the teacher over the first level's codes."""
    token_ids = torch.from_numpy(VOCAB.level_token_ids[0])
    found = []
    with torch.no_grad():
        for row in rows:
            place = next(number for number, label in enumerate(row["labels"]) if label != IGNORED)
            ids = torch.tensor([row["input_ids"][:place]])
            theirs, ours = (
                model(input_ids=ids).logits[0, -1, token_ids].log_softmax(0) for model in (teacher, student)
            )
            found.append(float((theirs.exp() * (theirs - ours)).sum()))
    return float(np.mean(found))


@pytest.mark.slow
def test_a_student_comes_closer_to_its_teacher_than_by_its_labels_alone(teacher: str):
    bundle = load_bundle(teacher)
    # Labels are drawn from the teacher itself, so that plain training learns it too, from one draw a prompt
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(40):
        rows = token_rows(16, seed=number, text=False)
        for row in rows:
            start = row["labels"].count(IGNORED)
            with torch.no_grad():
                logits = bundle.model(input_ids=torch.tensor([row["input_ids"][:start]])).logits[0, -1]
            codes = torch.from_numpy(VOCAB.level_token_ids[0])
            drawn = int(codes[torch.multinomial(logits[codes].softmax(0), 1, generator=generator)])
            row["input_ids"][start], row["labels"][start] = drawn, drawn
        batches.append(rows)
    unseen = token_rows(60, seed=99, text=False)
    plain = divergence(bundle.model, trained("cross_entropy", {}, batches), unseen)
    taught = divergence(bundle.model, trained("distillation", {"teacher": teacher}, batches), unseen)
    assert taught < 0.9 * plain


def test_hidden_states_are_drawn_together(tmp_path: Path):
    path = save_teacher(tmp_path / "alike", make_model(ROWS, seed=1))
    batches = [token_rows(8, seed=number) for number in range(15)]
    asked = build_objective("distillation", {"teacher": path, "share": 0.0, "hidden_weight": 1.0}, context=CONTEXT)
    plain = build_objective("distillation", {"teacher": path, "share": 0.0}, context=CONTEXT)
    found = {}
    for weight in (0.0, 2.0):
        student = trained("distillation", {"teacher": path, "share": 0.0, "hidden_weight": weight}, batches)
        gaps: list[float] = []

        def gap(labelled: Labelled, head: Head, gaps: list[float] = gaps) -> Tensor:
            difference = asked(labelled, head) - plain(labelled, head)
            gaps.append(float(difference[labelled.levels >= 0].mean().detach()))
            assert float(difference.detach()[labelled.levels < 0].abs().max()) == 0.0
            return difference

        add_labelled_forward(student, gap, vocab=VOCAB)
        student(**LabelledCollator(PAD)(token_rows(8, seed=50)))
        found[weight] = gaps[0]
    assert found[2.0] < 0.9 * found[0.0]


def test_the_teacher_is_not_trained_and_an_evaluation_does_not_ask_it(teacher: str):
    objective = build_objective("distillation", {"teacher": teacher}, context=CONTEXT)
    student = make_model(ROWS, seed=2)
    add_labelled_forward(student, objective, vocab=VOCAB)
    batch = LabelledCollator(PAD)(token_rows(3))
    with torch.no_grad():
        held_out = student(**batch).losses
    plain = make_model(ROWS, seed=2)
    add_labelled_forward(plain, build_objective("cross_entropy", {}, context=CONTEXT), vocab=VOCAB)
    torch.testing.assert_close(held_out, plain(**batch).losses.detach())


def test_a_batch_without_labels_has_losses_whose_gradients_are_zero(teacher: str):
    objective = build_objective("distillation", {"teacher": teacher}, context=CONTEXT)
    student = make_model(ROWS, seed=2)
    add_labelled_forward(student, objective, vocab=VOCAB)
    rows = [{**row, "labels": [IGNORED] * len(row["labels"])} for row in token_rows(2)]
    losses = student(**LabelledCollator(PAD)(rows)).losses
    assert losses.shape == (0,)
    losses.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in student.parameters())


def test_an_encoder_decoder_teaches_its_kind(tmp_path: Path):
    path = save_teacher(tmp_path / "t5", make_t5(ROWS))
    student = make_t5(ROWS)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter *= 0.9
    objective = build_objective("distillation", {"teacher": path, "share": 1.0}, context=CONTEXT)
    add_seq2seq_forward(student, objective, vocab=VOCAB)
    collate = Seq2SeqCollator(PAD, 0)
    losses = student(**collate(token_rows(3, text=False))).losses
    assert float(losses.min()) >= 0.0
    assert float(losses.max()) > 0.0
    # A student that is its teacher diverges nowhere
    twin = make_t5(ROWS)
    add_seq2seq_forward(twin, objective, vocab=VOCAB)
    same = twin(**collate(token_rows(3, text=False))).losses
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-5)


def test_messages(teacher: str, tmp_path: Path):
    other = make_table()
    codes = other.codes.copy()
    codes[[0, 1]] = codes[[1, 0]]
    swapped = SIDTable(other.item_ids, codes, other.codebook_sizes, "by hand")
    small = save_teacher(tmp_path / "swapped", make_model(ROWS, seed=1), table=swapped)
    tokenizer = make_tokenizer(None)
    tokenizer.add_tokens(["<word>"])
    for tokens in TABLE.level_tokens():
        tokenizer.add_tokens(tokens)
    shifted = save_teacher(tmp_path / "shifted", make_model(ROWS, seed=1), tokenizer=tokenizer)
    for arguments, message in (
        ({}, "objective_args: objective distillation needs 'teacher'; add it"),
        ({"teacher": str(tmp_path / "nowhere")}, "no such folder"),
        ({"teacher": small}, r"has other SIDs \(hash \w{12}\) than the student \(\w{12}\); train the teacher on the"),
        ({"teacher": shifted}, "has another tokenizer, in which '<.+>' is another token; a teacher reads"),
        ({"teacher": teacher, "share": 2}, "objective distillation: share 2; it is between 0 and 1"),
        ({"teacher": teacher, "temperature": 0}, "objective distillation: temperature 0; it is at least 0.001"),
    ):
        with pytest.raises(InputError, match=message):
            build_objective("distillation", arguments, context=CONTEXT)
    build_objective("distillation", {"teacher": teacher}, context=replace(CONTEXT, protocol="leave_one_out"))
    with pytest.raises(
        InputError, match=r"teacher .* was trained under protocol 'leave_one_out', and this run's is 't"
    ):
        build_objective("distillation", {"teacher": teacher}, context=replace(CONTEXT, protocol="temporal"))
    student = make_model(ROWS, seed=2)
    arguments = {"teacher": teacher, "hidden_weight": 1.0}
    add_labelled_forward(student, build_objective("distillation", arguments, context=CONTEXT), vocab=VOCAB)
    with pytest.raises(InputError, match=r"the teacher's have 24 numbers where the student's have 16; set hidden_wei"):
        student(**LabelledCollator(PAD)(token_rows(2)))
