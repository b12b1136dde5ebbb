"""Objectives: each equals its slow twin in loss and gradient, by hand on a small case, and does what it claims."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from reference.slow_objectives import slow_apao, slow_cross_entropy, slow_legal_children, slow_level_smoothing
from torch import Tensor

from llmrec.errors import InputError
from llmrec.sids.table import SIDTable
from llmrec.training.labelled import Head, Labelled
from llmrec.training.objectives.apao import prefix_weights
from llmrec.training.objectives.base import Objective, ObjectiveContext
from llmrec.training.objectives.methods import OBJECTIVES, build_objective, check_objective
from llmrec.training.objectives.sid_labels import nodes_before
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

CODES = [[0, 0, 0], [0, 0, 1], [0, 1, -1], [1, 0, 0], [1, 2, 1], [2, 1, 0], [2, 1, 1], [3, 3, -1], [3, 0, 1]]
RETIRED = 4
DIM = 5


@pytest.fixture(scope="module")
def context() -> ObjectiveContext:
    """SIDs of two and three codes, one of them retired."""
    codes = np.array(CODES)
    ids = tuple(f"i{row}" for row in range(len(codes)))
    table = replace(SIDTable(ids, codes, (4, 4, 2)), retired=np.arange(len(codes)) == RETIRED)
    tokenizer = train_tokenizer(["pens"], vocab_size=300)
    add_sid_tokens(tokenizer, table)
    return ObjectiveContext(SIDVocab(tokenizer, table), tokenizer)


def labelled_of(context: ObjectiveContext, items: list[int], *, text: int = 0, seed: int = 0) -> Labelled:
    """Labels of whole SIDs, with some of text between them."""
    generator = torch.Generator().manual_seed(seed)
    targets, levels, sids = [], [], []
    for number, item in enumerate(items):
        for level, token in enumerate(context.vocab.token_ids(item)):
            targets.append(token)
            levels.append(level)
            sids.append(number)
        if number < text:
            targets.append(7 + number)
            levels.append(-1)
            sids.append(-1)
    hidden = torch.randn((len(targets), DIM), generator=generator, dtype=torch.float64).requires_grad_()
    return made_of([hidden, *(torch.tensor(values) for values in (targets, [0] * len(targets), levels, sids))])


def made_of(fields: Sequence[Tensor]) -> Labelled:
    """Labels of hidden states, targets, tasks, levels and SIDs."""
    hidden, targets, tasks, levels, sids = fields
    return Labelled(hidden, targets, tasks, levels, sids)


def without(labelled: Labelled, place: int) -> Labelled:
    """The same labels but one."""
    keep = torch.arange(len(labelled.targets)) != place
    hidden = labelled.hidden.detach()[keep].requires_grad_()
    return Labelled(hidden, labelled.targets[keep], labelled.tasks[keep], labelled.levels[keep], labelled.sids[keep])


def weight_of(context: ObjectiveContext, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((len(context.tokenizer), DIM), generator=generator, dtype=torch.float64).requires_grad_()


def legal_sids(context: ObjectiveContext) -> list[tuple[int, ...]]:
    return [tuple(context.vocab.token_ids(item)) for item in range(len(CODES)) if item != RETIRED]


def assert_same(fast: Tensor, slow: Tensor, leaves: list[Tensor]) -> None:
    """Equal losses, and equal gradients of everything that they come from."""
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(torch.autograd.grad(fast, leaves), torch.autograd.grad(slow, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.fixture(scope="module")
def cases(context: ObjectiveContext) -> list[Labelled]:
    """All items with text between; the retired one; a SID whose first code carries no label; text alone."""
    whole = labelled_of(context, list(range(len(CODES))), text=3)
    text = torch.tensor([9, 8])
    no_sid = torch.full_like(text, -1)
    alone = Labelled(torch.randn((2, DIM), dtype=torch.float64).requires_grad_(), text, 0 * text, no_sid, no_sid)
    return [whole, without(whole, 4), labelled_of(context, [2, 7]), alone]


def check_against(
    cases: list[Labelled], context: ObjectiveContext, objective: Objective, slow: Callable[..., list[Tensor]]
) -> None:
    weight = weight_of(context)
    for labelled in cases:
        for chunk in (None, 16):  # 16 logits at a time: several parts, made again in the backward pass
            fast = objective(labelled, Head(weight, chunk=chunk))
            assert fast.shape == labelled.targets.shape
            expected = torch.stack(slow(labelled, weight))
            torch.testing.assert_close(fast, expected, rtol=1e-10, atol=1e-10)
            assert_same(fast.sum(), expected.sum(), [labelled.hidden, weight])


def test_cross_entropy_equals_the_slow_twin(cases, context: ObjectiveContext):
    check_against(cases, context, build_objective("cross_entropy", {}, context=context), slow_cross_entropy)


@pytest.mark.parametrize("full", [0.0, 0.3, 1.0])
def test_legal_children_equals_the_slow_twin(cases, context: ObjectiveContext, full: float):
    objective = build_objective("legal_children", {"full": full}, context=context)
    sids = legal_sids(context)
    check_against(cases, context, objective, partial(slow_legal_children, sids=sids, full=full))


@pytest.mark.parametrize("over", ["level", "children"])
def test_level_smoothing_equals_the_slow_twin(cases, context: ObjectiveContext, over: str):
    objective = build_objective("level_smoothing", {"epsilon": 0.2, "over": over}, context=context)
    levels = [token_ids.tolist() for token_ids in context.vocab.level_token_ids]
    slow = partial(slow_level_smoothing, levels=levels, sids=legal_sids(context), epsilon=0.2, over=over)
    check_against(cases, context, objective, slow)


@pytest.mark.parametrize("worst_of", ["batch", "sid"])
@pytest.mark.parametrize("eta", [0.0, 2.0])
def test_apao_equals_the_slow_twin(cases, context: ObjectiveContext, worst_of: str, eta: float):
    objective = build_objective("apao", {"beta": 0.4, "eta": eta, "worst_of": worst_of}, context=context)
    weight = weight_of(context)
    for labelled in cases:
        slow = slow_apao(labelled, weight, beta=0.4, eta=eta, by_batch=worst_of == "batch")
        assert_same(objective(labelled, Head(weight)).sum(), slow, [labelled.hidden, weight])


def test_every_objective_is_the_same_in_float32_under_a_permutation_of_the_labels(context: ObjectiveContext):
    labelled = labelled_of(context, [0, 5, 2, 8, 4], text=2)
    order = torch.randperm(len(labelled.targets), generator=torch.Generator().manual_seed(3))
    fields = (labelled.hidden.detach().float(), labelled.targets, labelled.tasks, labelled.levels, labelled.sids)
    plain, mixed = made_of(fields), made_of([field[order] for field in fields])
    head = Head(weight_of(context).detach().float())
    for name in ("cross_entropy", "apao", "legal_children", "level_smoothing"):
        objective = build_objective(name, {}, context=context)
        torch.testing.assert_close(objective(plain, head)[order], objective(mixed, head), rtol=1e-5, atol=1e-6)


def test_losses_of_bfloat16_states_are_float32(context: ObjectiveContext):
    labelled = labelled_of(context, [0, 5, 2, 8, 4], text=2)
    fields = (labelled.targets, labelled.tasks, labelled.levels, labelled.sids)
    hidden, weight = labelled.hidden.detach(), weight_of(context).detach()
    for name in ("cross_entropy", "apao", "legal_children", "level_smoothing"):
        objective = build_objective(name, {}, context=context)
        whole = objective(made_of([hidden.float(), *fields]), Head(weight.float()))
        half = objective(made_of([hidden.bfloat16(), *fields]), Head(weight.bfloat16()))
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, whole, rtol=0.05, atol=0.05)


def test_text_keeps_plain_cross_entropy(context: ObjectiveContext):
    labelled = labelled_of(context, [0, 3], text=2)
    head = Head(weight_of(context))
    text = labelled.levels < 0
    plain = build_objective("cross_entropy", {}, context=context)(labelled, head)
    for name in ("apao", "legal_children", "level_smoothing"):
        found = build_objective(name, {}, context=context)(labelled, head)
        torch.testing.assert_close(found[text], plain[text])
        assert not torch.allclose(found[~text], plain[~text])


def test_the_loss_of_a_sid_is_the_same_in_any_batch(context: ObjectiveContext):
    both = labelled_of(context, [0, 2])
    first = made_of([getattr(both, name)[:3] for name in ("hidden", "targets", "tasks", "levels", "sids")])
    head = Head(weight_of(context))
    for name, arguments in (("apao", {"worst_of": "sid"}), ("legal_children", {}), ("level_smoothing", {})):
        objective = build_objective(name, arguments, context=context)
        torch.testing.assert_close(objective(both, head)[:3], objective(first, head))


def test_nodes_are_those_of_the_prefixes(context: ObjectiveContext):
    labelled = labelled_of(context, [5, RETIRED], text=1)
    trie, (a, b, _) = context.trie, context.vocab.token_ids(5)
    a1, _, _ = context.vocab.token_ids(RETIRED)
    expected = [0, trie.node_of([a]), trie.node_of([a, b]), -1, 0, trie.node_of([a1]), -1]
    assert nodes_before(labelled, trie).tolist() == expected


def test_apao_weights_by_hand():
    # Cross-entropies 1 and 3: prefix losses 1 and (1 + 3) / 2 = 2; with eta = ln 2 they weigh 2 to 4, 1/3 and 2/3.
    # Level 1 has 1/3 + (2/3) / 2 = 2/3, level 2 (2/3) / 2 = 1/3; times 2 codes.
    numbers = [torch.tensor(values) for values in ([1, 2, 0], [0, 0, 0], [0, 1, -1], [0, 0, -1])]
    labelled = made_of([torch.zeros(3, 1), *numbers])
    losses = torch.tensor([1.0, 3.0, 5.0])
    weights = prefix_weights(losses, labelled, eta=math.log(2), by_batch=False)
    torch.testing.assert_close(weights, torch.tensor([4 / 3, 2 / 3, 0.0]))
    # They sum to 4/3 + 3 * 2/3 = 10/3 = 2 codes * (1/3 * 1 + 2/3 * 2).
    assert float((weights * losses).sum()) == pytest.approx(10 / 3)


def one_hidden(context: ObjectiveContext, item: int, probabilities: dict[int, float]) -> tuple[Labelled, Head]:
    """Labels of one SID whose logits are the logarithms of the numbers given, and ln 1 of every other token."""
    weight = torch.zeros((len(context.tokenizer), 1), dtype=torch.float64)
    for token, value in probabilities.items():
        weight[token] = math.log(value)
    targets = torch.tensor(context.vocab.token_ids(item))
    levels = torch.arange(len(targets))
    return Labelled(
        torch.ones((len(targets), 1), dtype=torch.float64), targets, 0 * targets, levels, 0 * targets
    ), Head(weight)


def test_legal_children_by_hand(context: ObjectiveContext):
    # Item 1 is a_0 b_0 c_1; a_0 is followed by b_0 and b_1. Logits ln 3 and ln 5 there: 3 / (3 + 5).
    # Roots a_0 to a_3 have ln 2, 1, 1, 1: 2 / 5. Leaves c_0 and c_1 have ln 1: 1 / 2.
    a, b, c = (ids.tolist() for ids in context.vocab.level_token_ids)
    labelled, head = one_hidden(context, 1, {a[0]: 2, b[0]: 3, b[1]: 5, b[2]: 100})
    found = build_objective("legal_children", {}, context=context)(labelled, head)
    expected = [-math.log(2 / 5), -math.log(3 / 8), -math.log(1 / 2)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert len(c) == 2


def test_level_smoothing_by_hand(context: ObjectiveContext):
    # Level 1 has 4 codes with 2, 1, 1, 1; all other tokens have 1, so that the target has 2 / (tokens + 1).
    # A share of .4 is dealt to four codes: .1 each, .7 for the target.
    a = context.vocab.level_token_ids[0].tolist()
    labelled, head = one_hidden(context, 0, {a[0]: 2})
    found = build_objective("level_smoothing", {"epsilon": 0.4}, context=context)(labelled, head)
    total = len(context.tokenizer) + 1
    assert float(found[0]) == pytest.approx(-0.7 * math.log(2 / total) - 3 * 0.1 * math.log(1 / total))


class Bigram(torch.nn.Module):
    """Hidden states of contexts and levels, and a table: as small as a model can be."""

    def __init__(self, contexts: int, levels: int, tokens: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.of = torch.nn.Parameter(0.3 * torch.randn((contexts, dim), generator=generator))
        self.at = torch.nn.Parameter(0.3 * torch.randn((levels, dim), generator=generator))
        self.table = torch.nn.Parameter(0.3 * torch.randn((tokens, dim), generator=generator))

    def labelled(self, contexts: Tensor, sids: Tensor) -> Labelled:
        """Labels of one SID a context, ``sids`` ``(contexts, levels)`` tokens."""
        levels = sids.shape[1]
        hidden = torch.tanh(self.of[contexts][:, None] + self.at[None]).flatten(0, 1)
        number = torch.arange(len(contexts)).repeat_interleave(levels)
        return Labelled(
            hidden, sids.flatten(), torch.zeros_like(number), torch.arange(levels).repeat(len(contexts)), number
        )

    def log_probs(self, contexts: Tensor, sids: Tensor) -> Tensor:
        """``(labels, vocab)`` under the full softmax."""
        return (self.labelled(contexts, sids).hidden @ self.table.T).log_softmax(-1)


def learn(model: Bigram, objective: Objective, contexts: Tensor, sids: Tensor, *, steps: int, rate: float) -> Bigram:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = objective(model.labelled(contexts, sids), Head(model.table))
        losses.mean().backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def planted() -> tuple[ObjectiveContext, Tensor, Tensor]:
    """60 items of 12 x 6 x 4 codes, each the answer to one context; a table too narrow to learn all at once."""
    rng = np.random.default_rng(0)
    flat = rng.choice(12 * 6 * 4, 60, replace=False)
    codes = np.stack([flat // 24, flat // 4 % 6, flat % 4], axis=1)
    table = SIDTable(tuple(f"i{row}" for row in range(60)), codes, (12, 6, 4))
    tokenizer = train_tokenizer(["pens"], vocab_size=300)
    add_sid_tokens(tokenizer, table)
    vocab = SIDVocab(tokenizer, table)
    return ObjectiveContext(vocab, tokenizer), torch.arange(60), vocab.item_token_ids


def learned(planted, name: str, arguments: dict, *, dim: int, steps: int, seed: int = 0) -> Bigram:
    context, contexts, sids = planted
    model = Bigram(len(contexts), 3, len(context.tokenizer), dim, seed)
    return learn(model, build_objective(name, arguments, context=context), contexts, sids, steps=steps, rate=0.03)


def accuracy(planted, model: Bigram) -> Tensor:
    """Share of contexts whose code is the likeliest token, by level."""
    _, contexts, sids = planted
    with torch.no_grad():
        hits = model.log_probs(contexts, sids).argmax(-1) == sids.flatten()
    return hits.view(-1, 3).float().mean(0)


def test_apao_raises_the_accuracy_of_the_worst_prefix(planted):
    gains = []
    for seed in range(3):
        plain = accuracy(planted, learned(planted, "cross_entropy", {}, dim=4, steps=120, seed=seed))
        ours = accuracy(planted, learned(planted, "apao", {"beta": 1.0, "eta": 5.0}, dim=4, steps=120, seed=seed))
        assert int(plain.argmin()) == 0  # twelve codes to tell apart, against six and four
        gains.append(float(ours[0] - plain[0]))
    assert min(gains) > 0.05


def test_legal_children_learns_what_is_decoded(planted):
    context, contexts, sids = planted
    judge = build_objective("legal_children", {}, context=context)
    found = {}
    for name in ("cross_entropy", "legal_children"):
        model = learned(planted, name, {}, dim=4, steps=60)
        found[name] = float(judge(model.labelled(contexts, sids), Head(model.table)).mean().detach())
    assert found["legal_children"] < 0.9 * found["cross_entropy"]


def test_level_smoothing_lowers_confidence_within_the_level_and_leaves_other_tokens_without_mass(planted):
    context, contexts, sids = planted
    inside, top = {}, {}
    for name, arguments in (("cross_entropy", {}), ("level_smoothing", {"epsilon": 0.2})):
        model = learned(planted, name, arguments, dim=24, steps=150)
        with torch.no_grad():
            probs = model.log_probs(contexts, sids).exp().view(-1, 3, len(context.tokenizer))
        own = probs[:, 0, context.vocab.level_token_ids[0].tolist()]
        inside[name], top[name] = float(own.sum(1).mean()), float(own.amax(1).mean())
    assert top["cross_entropy"] > 0.95
    assert top["level_smoothing"] == pytest.approx(0.8 + 0.2 / 12, abs=0.05)
    assert inside["level_smoothing"] > 0.95


def test_an_evaluation_reports_cross_entropy(context: ObjectiveContext):
    labelled, head = labelled_of(context, [0, 5], text=1), Head(weight_of(context))
    plain = build_objective("cross_entropy", {}, context=context)(labelled, head)
    objective = build_objective("legal_children", {}, context=context)
    assert not torch.equal(objective(labelled, head), plain)
    with torch.no_grad():
        torch.testing.assert_close(objective(labelled, head), plain)


@pytest.mark.parametrize("equal", [True, False], ids=["table", "frozen"])
@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"distillation"}))  # its own test needs a teacher
def test_a_batch_without_labels_has_losses_whose_gradients_are_zero(context: ObjectiveContext, name: str, equal: bool):
    """Processes wait for one another's gradients, also for those of a micro-batch in which nothing is learned."""
    none = torch.zeros(0, dtype=torch.int64)
    labelled = made_of([torch.zeros((0, DIM), requires_grad=True), none, none, none, none])
    weight = weight_of(context).detach().float().requires_grad_(equal)
    losses = build_objective(name, {}, context=context)(labelled, Head(weight))
    assert losses.shape == (0,)
    assert losses.requires_grad
    losses.sum().backward()
    assert labelled.hidden.grad is not None
    assert not equal or torch.equal(weight.grad, torch.zeros_like(weight))  # type: ignore[arg-type]


def test_legal_children_never_keeps_hits_of_some_labels_alone(context: ObjectiveContext):
    labelled = labelled_of(context, [0, 5], text=1)
    for full, kept in ((0.0, []), (0.5, [len(labelled.targets)])):
        head = Head(weight_of(context))
        build_objective("legal_children", {"full": full}, context=context)(labelled, head)
        assert [len(hits) for hits in head.hits] == kept


def test_messages(context: ObjectiveContext):
    for name, arguments, message in (
        ("focal", {}, "unknown objective 'focal': choose one of apao, cross_entropy"),
        ("cross_entropy", {"beta": 1}, "objective cross_entropy has no argument 'beta'; it takes none"),
        ("apao", {"gamma": 1}, "objective apao has no argument 'gamma'; it takes beta, eta"),
        ("apao", {"beta": -1}, "objective apao: beta -1; it is at least 0"),
        ("apao", {"eta": "much"}, "objective apao: eta 'much'; give a number"),
        ("apao", {"worst_of": "all"}, "objective apao: worst_of 'all'; choose one of batch, sid"),
        ("legal_children", {"full": 1.5}, "objective legal_children: full 1.5; it is between 0 and 1"),
        ("level_smoothing", {"epsilon": 1}, "objective level_smoothing: epsilon 1; it is between 0 and 0.999"),
        ("level_smoothing", {"over": "trie"}, "over 'trie'; choose one of level, children"),
    ):
        with pytest.raises(InputError, match=r"^[^\n]+$") as raised:
            build_objective(name, arguments, context=context)
        assert message in str(raised.value)


def test_an_objective_of_ones_own(context: ObjectiveContext):
    name = "llmrec.training.objectives.level_smoothing:level_smoothing"
    assert check_objective(name, {"epsilon": 0.3}) is OBJECTIVES["level_smoothing"]
