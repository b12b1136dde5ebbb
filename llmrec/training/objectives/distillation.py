"""Distillation: a small model learns, beside its labels, how a larger one weighs the codes of each level."""

from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.errors import InputError
from llmrec.hub.bundle import Bundle, load_bundle
from llmrec.training.forward import add_labelled_forward
from llmrec.training.held_out import check_protocol
from llmrec.training.labelled import Head, Labelled
from llmrec.training.objectives.base import Objective, ObjectiveContext, check_number
from llmrec.training.objectives.sid_labels import LevelTokens, in_parts, labels_by_level
from llmrec.training.seq2seq import add_seq2seq_forward


def distillation(
    context: ObjectiveContext,
    *,
    teacher: str,
    share: float = 0.5,
    temperature: float = 1.0,
    hidden_weight: float = 0.0,
) -> Objective:
    """Return cross-entropy mixed with the divergence from a teacher at codes, and cross-entropy at text.

    At a code the loss is ``(1 - share)`` times cross-entropy plus ``share * temperature ** 2`` times the
    Kullback-Leibler divergence of the student's softmax over the level's codes from the teacher's. The teacher reads
    the same batch, packed alike, without dropout and without gradients.

    Args:
        context: the student's SIDs and tokenizer.
        teacher: folder or hub id of a bundle with the same SIDs and the same tokenizer.
        share: of the divergence, in [0, 1].
        temperature: divides both sides' logits, above 0.
        hidden_weight: times ``1 - cosine`` of both models' last hidden states at codes; needs the same hidden size.

    Raises:
        InputError: a value out of its range, no such bundle, or one with other SIDs, another tokenizer or
            another protocol.

    Paper: Xu et al., 2025, "SLMRec: Distilling Large Language Models into Small for Sequential Recommendation"
    (arXiv:2405.17890). How we differ: there, items are rows of an embedding and the states of four blocks of layers
    are matched, by cosine and by norm, with a prediction at each; here items are SIDs, the softmax over each level's
    codes is what is matched (Hinton et al., 2015), which needs no equal sizes, and of the states the last alone, by
    cosine, when asked for.
    """
    share = check_number("distillation", "share", share, low=0.0, high=1.0)
    temperature = check_number("distillation", "temperature", temperature, low=1e-3)
    hidden_weight = check_number("distillation", "hidden_weight", hidden_weight, low=0.0)
    bundle = load_bundle(teacher, device=context.device)
    check_teacher(bundle, context, name=teacher)
    ask = Teacher(bundle, context)
    levels = LevelTokens.of(context.vocab, context.device)

    def objective(labelled: Labelled, head: Head) -> Tensor:
        found = -head.log_probs(labelled.hidden, labelled.targets)
        hidden, table = ask(labelled)
        sid = labelled.levels >= 0
        found = torch.where(sid, (1.0 - share) * found, found)

        def divergence(logits: Tensor, hidden: Tensor, level: int) -> Tensor:
            with torch.no_grad():
                theirs = (table.logits(hidden, levels[level].token_ids) / temperature).log_softmax(1)
            ours = (logits / temperature).log_softmax(1)
            return (theirs.exp() * (theirs - ours)).sum(1)

        for level, places in labels_by_level(labelled, sid, len(levels)):
            losses = in_parts(
                lambda logits, states, level=level: divergence(logits, states, level),
                head,
                labelled.hidden[places],
                levels[level].token_ids,
                hidden[places],
            )
            found = found.index_add(0, places, (share * temperature**2 * losses).to(found.dtype))
        if hidden_weight:
            found = found + torch.where(sid, hidden_weight * apart(labelled.hidden, hidden), 0.0)
        return found

    return objective


def apart(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return ``1 - cosine`` of hidden states, ``(labels,)``.

    Args:
        ours: ``(labels, dim)``.
        theirs: ``(labels, dim)``.

    Raises:
        InputError: states of another size.
    """
    if ours.shape != theirs.shape:
        raise InputError(
            f"objective distillation: hidden_weight compares hidden states, and the teacher's have {theirs.shape[1]} "
            f"numbers where the student's have {ours.shape[1]}; set hidden_weight to 0"
        )
    kind = torch.float64 if ours.dtype == torch.float64 else torch.float32
    return 1.0 - cosine_similarity(ours.to(kind), theirs.to(kind), dim=1)


class Teacher:
    """Asks a bundle's model for what it holds where the student's labels stand.

    Args:
        bundle: its model is patched in place, frozen, and put into evaluation mode.
        context: the student's SIDs.
    """

    def __init__(self, bundle: Bundle, context: ObjectiveContext) -> None:
        self._found: list[tuple[Tensor, Head]] = []
        self._model = cast(nn.Module, bundle.model).eval().requires_grad_(False)
        base: Any = bundle.model.get_base_model() if isinstance(bundle.model, PeftModel) else bundle.model
        add = add_seq2seq_forward if base.config.is_encoder_decoder else add_labelled_forward
        add(cast(PreTrainedModel, base), self._keep, vocab=context.vocab)

    def _keep(self, labelled: Labelled, head: Head) -> Tensor:
        self._found.append((labelled.hidden, head))
        return labelled.hidden.new_zeros(len(labelled.hidden))

    def __call__(self, labelled: Labelled) -> tuple[Tensor, Head]:
        """Return the teacher's ``(labels, dim)`` hidden states at the labels, and its head."""
        if labelled.batch is None:
            raise InputError("objective distillation: the batch is not at hand; train with recipes/sft.py")
        with torch.no_grad():
            self._model(**labelled.batch)
        return self._found.pop()


def check_teacher(bundle: Bundle, context: ObjectiveContext, *, name: str) -> None:
    """Raise when a bundle cannot teach.

    Args:
        bundle: the teacher.
        context: the student's SIDs and tokenizer.
        name: of the bundle, for the message.

    Raises:
        InputError: other SIDs, another protocol or another tokenizer.
    """
    ours, theirs = context.vocab.table.hash, bundle.table.hash
    if ours != theirs:
        raise InputError(
            f"objective distillation: teacher {name} has other SIDs (hash {theirs[:12]}) than the student "
            f"({ours[:12]}); train the teacher on the same SID folder"
        )
    check_protocol(bundle.info, context.protocol, source=f"objective distillation: teacher {name}")
    differing = different_token(context.tokenizer, bundle.tokenizer)
    if differing is not None:
        raise InputError(
            f"objective distillation: teacher {name} has another tokenizer, in which {differing!r} is another token; "
            "a teacher reads the student's batch, so train both with one tokenizer"
        )


def different_token(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> str | None:
    """Return a token that stands for another number in, or is missing from, one of two tokenizers; None for none."""
    left, right = ours.get_vocab(), theirs.get_vocab()
    return min((token for token in left.keys() | right.keys() if left.get(token) != right.get(token)), default=None)
