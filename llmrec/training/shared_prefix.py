"""Log-probabilities of groups of candidates that share a prompt, which is read once."""

import functools
import types
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from llmrec.decoding.trie import SIDTrie
from llmrec.errors import InputError
from llmrec.training.group_rows import read_groups
from llmrec.training.group_softmax import GroupSoftmax, GroupStates
from llmrec.training.labelled import Head
from llmrec.training.seq2seq import output_scale
from llmrec.vocab import SIDVocab


@dataclass
class GroupOutput(ModelOutput):
    """What a model says of groups of candidates; masked places hold 0.

    Args:
        log_probs: ``(prompts, group, length)`` float32.
        entropies: ``(prompts, group, length)`` float32, in nats, of the softmax at each token; None if not asked for.
        outside: ``(prompts, group, length)`` float32 probability of all tokens that are no legal child of the prefix,
            without gradient; None when entropies are not asked for, or without a trie.
    """

    log_probs: Tensor
    entropies: Tensor | None = None
    outside: Tensor | None = None


def add_group_forward(model: PreTrainedModel, softmax: GroupSoftmax, *, vocab: SIDVocab | None = None) -> None:
    """Let a model score groups, ``model(..., completions=...)``, and leave other calls as they are.

    Call the model as it is wrapped (DDP, PEFT), because gradients are averaged over processes for what happens in the
    wrapper's forward alone:

        model(input_ids=..., attention_mask=..., completions=..., completion_mask=..., entropy=True)

    with prompts ``(prompts, length)`` padded on the left, their mask, token ids of candidates ``(prompts, group,
    length)`` padded on the right, and their mask. ``entropy`` is True, False, or ``"grad"`` where a loss
    differentiates entropies. It returns a `GroupOutput`. Each prompt is read once, and the head is multiplied at
    places that predict a candidate's token; the first token of all candidates is predicted by one place.

    Args:
        model: a causal or encoder-decoder model without its adapter's wrapper; patched in place. TRL's
            ``add_fused_lm_head`` and `llmrec.training.forward.add_labelled_forward` patch the same method; any order
            works.
        softmax: what log-probabilities are taken over.
        vocab: makes the trie where the softmax has none.

    Raises:
        InputError: ``sids`` or ``allowed`` without trie and vocab. When called: shapes that do not fit, a prompt that
            ends in padding, or a candidate that the softmax gives no probability.
    """
    if softmax.trie is None and vocab is not None:
        softmax = replace(softmax, trie=SIDTrie.from_vocab(vocab))
    if softmax.kind != "full":
        softmax.needed_trie()
    original = model.forward
    where: dict[torch.device, GroupSoftmax] = {}

    # `generate` reads the signature to check its arguments
    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel, *args: Any, completions: Tensor | None = None, completion_mask: Tensor | None = None,
        entropy: bool | str = False, **kwargs: Any,
    ) -> Any:  # fmt: skip
        if completions is None:
            return original(*args, **kwargs)
        input_ids, attention_mask = kwargs["input_ids"], kwargs["attention_mask"]
        mask = torch.ones_like(completions) if completion_mask is None else completion_mask
        _check(input_ids, attention_mask, completions, mask, entropy)
        if input_ids.device not in where:
            where[input_ids.device] = softmax.to(input_ids.device)
        hidden = read_groups(self, input_ids, attention_mask, completions, mask)
        head = Head.of(self, scale=output_scale(self) if self.config.is_encoder_decoder else None)
        return score_groups(hidden, completions, mask, softmax=where[input_ids.device], head=head, entropy=entropy)

    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]


def score_groups(
    hidden: Tensor, completions: Tensor, mask: Tensor, *, softmax: GroupSoftmax, head: Head, entropy: bool | str
) -> GroupOutput:
    """Return what a softmax says of candidates.

    Args:
        hidden: ``(prompts, 1 + group * (length - 1), dim)``: each prompt's end, then each candidate's tokens but the
            last.
        completions: ``(prompts, group, length)`` token ids.
        mask: ``(prompts, group, length)``.
        softmax: what log-probabilities are taken over.
        head: the model's output table.
        entropy: as the model takes it.
    """
    prompts, group, length = completions.shape
    places = mask.bool().nonzero()
    prompt, candidate, level = places.unbind(1)
    behind = torch.where(level == 0, 0, 1 + candidate * (length - 1) + level - 1)
    used, owners = (prompt * hidden.shape[1] + behind).unique(return_inverse=True)
    nodes = None
    if softmax.trie is not None:
        nodes = torch.empty_like(used)
        nodes[owners] = softmax.nodes(completions)[prompt, candidate, level]
    states = GroupStates(hidden.flatten(0, 1)[used], owners, completions[prompt, candidate, level], places, nodes)

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros((prompts, group, length)).index_put((prompt, candidate, level), values)

    if not len(places):  # nothing to score, and a loss of it has a gradient all the same
        zeros = spread(hidden.new_zeros(0)) + 0.0 * hidden.sum()
        return GroupOutput(
            zeros, zeros if entropy else None, zeros.detach() if entropy and nodes is not None else None
        )
    found = softmax.log_probs(states, head, entropy=bool(entropy), entropy_grad=entropy == "grad")
    outside = softmax.outside(states, head, found.totals) if entropy else None
    return GroupOutput(
        spread(found.log_probs),
        None if found.entropies is None else spread(found.entropies[owners]),
        None if outside is None else spread(outside[owners]),
    )


def group_batch(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    pad_token_id: int,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Return the batch that a model with `add_group_forward` takes.

    Args:
        prompts: token ids of each prompt.
        completions: token ids of each prompt's candidates; groups may differ in size.
        pad_token_id: fills what no row fills.
        device: where the model is.

    Raises:
        InputError: no prompt, an empty one, or another number of groups.
    """
    if len(prompts) != len(completions):
        raise InputError(f"completions: {len(completions)} groups for {len(prompts)} prompts; give one a prompt")
    empty = next((number for number, prompt in enumerate(prompts) if not len(prompt)), None)
    if not len(prompts) or empty is not None:
        raise InputError(f"prompts: {'none' if empty is None else f'number {empty} is empty'}; give each a token")
    width = max(len(prompt) for prompt in prompts)
    group = max([1, *(len(candidates) for candidates in completions)])
    length = max([1, *(len(candidate) for candidates in completions for candidate in candidates)])
    filled = [[list(one) for one in (*candidates, *[[]] * (group - len(candidates)))] for candidates in completions]
    return {
        "input_ids": torch.tensor([[pad_token_id] * (width - len(one)) + list(one) for one in prompts], device=device),
        "attention_mask": torch.tensor(
            [[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=device
        ),
        "completions": torch.tensor(
            [[one + [pad_token_id] * (length - len(one)) for one in candidates] for candidates in filled],
            device=device,
        ),
        "completion_mask": torch.tensor(
            [[[1] * len(one) + [0] * (length - len(one)) for one in candidates] for candidates in filled],
            device=device,
        ),
    }  # fmt: skip


def group_log_probs(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    pad_token_id: int,
    entropy: bool | str = False,
) -> GroupOutput:
    """Return what a model with `add_group_forward` says of lists of token ids.

    Args:
        model: the model as it is wrapped.
        prompts: token ids of each prompt.
        completions: token ids of each prompt's candidates; groups may differ in size.
        pad_token_id: fills what no row fills.
        entropy: as the model takes it.

    Raises:
        InputError: as `group_batch` and the model.
    """
    device = next(model.parameters()).device
    batch = group_batch(prompts, completions, pad_token_id=pad_token_id, device=device)
    return model(**batch, entropy=entropy)


def _check(input_ids: Tensor, attention_mask: Tensor, completions: Tensor, mask: Tensor, entropy: bool | str) -> None:
    if attention_mask.shape != input_ids.shape:
        raise InputError(f"attention_mask is {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}")
    if completions.dim() != 3 or len(completions) != len(input_ids) or mask.shape != completions.shape:
        raise InputError(
            f"completions are {tuple(completions.shape)}, their mask {tuple(mask.shape)}, for {len(input_ids)} "
            "prompts; both are (prompts, group, length)"
        )
    if entropy not in (True, False, "grad"):
        raise InputError(f"entropy {entropy!r}: give True, False, or 'grad' where a loss differentiates it")
    if not bool(attention_mask[:, -1].all()):
        raise InputError("attention_mask: a prompt ends in padding; pad prompts on the left")


def groups_of_rows(
    input_ids: Tensor, attention_mask: Tensor, *, completion_length: int, num_generations: int
) -> dict[str, Tensor]:
    """Return rows of prompt and candidate, as TRL has them, as the batch that a model with `add_group_forward` takes.

    Args:
        input_ids: ``(rows, length)``, a prompt padded on the left and a candidate padded on the right; the rows of a
            group stand one after another.
        attention_mask: ``(rows, length)``.
        completion_length: tokens of a row that are the candidate's.
        num_generations: rows of a group.

    Raises:
        InputError: rows that are no whole groups, or rows of a group with different prompts.
    """
    rows = len(input_ids)
    if rows % num_generations:
        raise InputError(
            f"{rows} rows are no whole groups of num_generations {num_generations}; give each process a multiple of it"
        )
    width = input_ids.shape[1] - completion_length
    ids, mask = (tensor.unflatten(0, (-1, num_generations)) for tensor in (input_ids, attention_mask))
    same = (ids[..., :width] == ids[:, :1, :width]) & (mask[..., :width] == mask[:, :1, :width])
    if not bool(same.all()):
        row = int((~same).flatten(0, 1).any(dim=1).nonzero()[0])
        raise InputError(
            f"row {row} has another prompt than the first of its group of {num_generations}; groups were split or "
            "shuffled, keep their rows together"
        )
    return {
        "input_ids": ids[:, 0, :width], "attention_mask": mask[:, 0, :width], "completions": ids[..., width:],
        "completion_mask": mask[..., width:],
    }  # fmt: skip
