"""The softmax that scores a group's candidates: over the vocabulary, over SID tokens, or over the legal children."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmrec.decoding.steps import SCORES
from llmrec.decoding.trie import ROOT, SIDTrie
from llmrec.errors import InputError
from llmrec.training.labelled import Head
from llmrec.training.objectives.sid_labels import LevelTokens, legal_columns
from llmrec.training.output_columns import FewRows, place_among, sum_dtype
from llmrec.training.state_log_probs import StateLogProbs, chunk_of, full_log_probs


@dataclass(frozen=True)
class GroupStates:
    """Hidden states of groups, and the tokens that stand behind them.

    Args:
        hidden: ``(states, dim)``.
        owners: ``(labels,)`` the state that predicts each label.
        targets: ``(labels,)`` token ids.
        places: ``(labels, 3)`` prompt, candidate and level of each label, for errors.
        nodes: ``(states,)`` int64 node of the trie at each state, -1 behind a token that leads out of it; None without
            a trie.
    """

    hidden: Tensor
    owners: Tensor
    targets: Tensor
    places: Tensor
    nodes: Tensor | None = None


@dataclass(frozen=True)
class GroupSoftmax:
    """Over which tokens a candidate's log-probabilities are taken; the names are those of decoding's ``score``.

    Args:
        kind: ``full`` (the whole vocabulary), ``sids`` (SID tokens and the end token) or ``allowed`` (the legal
            children of the prefix).
        temperature: what logits are divided by, above 0.
        trie: the legal SIDs; ``full`` does without and then knows no mass outside it.
        end_token_id: needed by ``sids``.

    Raises:
        InputError: an unknown kind, a temperature out of range, or ``sids`` without its end token.
    """

    kind: str = "full"
    temperature: float = 1.0
    trie: SIDTrie | None = None
    end_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in SCORES:
            raise InputError(f"softmax {self.kind!r}: choose one of {', '.join(SCORES)}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(f"temperature {self.temperature}: logits are divided by it; give a number above 0")
        if self.kind == "sids" and self.end_token_id is None:
            raise InputError("softmax 'sids': it is taken over the SID tokens and the end token; give end_token_id")

    def to(self, device: torch.device | str) -> "GroupSoftmax":
        """Return the softmax with its trie on a device."""
        if self.trie is None or self.trie.token.device == torch.device(device):
            return self
        return replace(self, trie=self.trie.to(device))

    def needed_trie(self) -> SIDTrie:
        """Return the trie.

        Raises:
            InputError: there is none.
        """
        if self.trie is None:
            raise InputError(f"softmax {self.kind!r}: it needs the legal SIDs; give a trie or a vocab")
        return self.trie

    def nodes(self, completions: Tensor) -> Tensor:
        """Return the trie's node before each token, the root again behind a whole SID.

        Args:
            completions: ``(..., length)`` token ids.

        Returns:
            ``(..., length)`` int64, -1 behind a token that leads out of the trie.
        """
        trie, found = self.needed_trie(), torch.full_like(completions, ROOT)
        for place in range(1, completions.shape[-1]):
            node = trie.child(found[..., place - 1], completions[..., place - 1])
            at = node.clamp(min=ROOT)
            leaf = (node >= 0) & (trie.first_child[at] == trie.first_child[at + 1])
            found[..., place] = torch.where(leaf, ROOT, node)
        return found

    def log_probs(
        self, states: GroupStates, head: Head, *, entropy: bool = False, entropy_grad: bool = False
    ) -> StateLogProbs:
        """Return the log-probabilities of the labels, and log-sum-exp and entropy of the states.

        Args:
            states: where labels stand.
            head: the model's output table; ``sids`` and ``allowed`` multiply no rows of it but those they need.
            entropy: whether entropies are asked for.
            entropy_grad: whether they carry a gradient.

        Raises:
            InputError: under ``sids`` and ``allowed``, a label that has probability 0.
        """
        if self.kind == "full":
            return full_log_probs(
                head, states.hidden, owners=states.owners, targets=states.targets, temperature=self.temperature,
                entropy=entropy, entropy_grad=entropy_grad,
            )  # fmt: skip
        scored = torch.zeros_like(states.targets, dtype=torch.bool)
        kept: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        for part in self._parts(states, head):
            labels, columns, found = part.labels(states)
            scored[labels] = found
            kept.append((part.places, labels, *part.scores(columns, entropy=entropy, entropy_grad=entropy_grad)))
        if not bool(scored.all()):
            self._refuse(states, scored)
        places, labels, totals, entropies, log_probs = (torch.cat(values) for values in zip(*kept, strict=True))
        return StateLogProbs(
            log_probs[labels.argsort()],
            totals[places.argsort()].detach(),
            entropies[places.argsort()] if entropy else None,
        )

    @torch.no_grad()
    def outside(self, states: GroupStates, head: Head, totals: Tensor) -> Tensor | None:
        """Return ``(states,)`` the probability of all tokens that are no legal child; None without a trie.

        Args:
            states: where labels stand; where the path has left the trie, all probability is outside.
            head: the model's output table.
            totals: ``(states,)`` as `log_probs` gives them.
        """
        if self.kind == "allowed":
            return torch.zeros_like(totals)
        if states.nodes is None:
            return None
        found = torch.ones_like(totals)
        for part in replace(self, kind="allowed")._parts(states, head):
            inside = part.logits(part.hidden).logsumexp(1) - totals[part.places]
            found[part.places] = -torch.expm1(inside.clamp(max=0.0))
        return found

    def _parts(self, states: GroupStates, head: Head) -> Iterator["_Part"]:
        """Yield states whose softmax is over the same few rows, at most a chunk of logits at a time."""
        trie, hidden = self.needed_trie(), head.scaled(states.hidden)
        if self.kind == "sids":
            ids = torch.cat([trie.sid_token_ids, trie.sid_token_ids.new_tensor([self.end_token_id])]).unique()
            spans = [(torch.arange(len(hidden), device=hidden.device), ids)]
        else:
            assert states.nodes is not None
            spans = list(_children_by_level(states.nodes, trie))
        if not spans:
            return
        # One lookup for all levels: each would give the table a gradient of its size.
        rows = head.few_rows(torch.cat([ids for _, ids in spans]), sum_dtype(hidden))
        start = 0
        for places, ids in spans:
            for some in places.split(max(1, chunk_of(head, hidden) // len(ids))):
                legal = None
                if self.kind == "allowed":
                    assert states.nodes is not None
                    legal = legal_columns(states.nodes[some], trie, LevelTokens(ids))
                span = (start, start + len(ids))
                yield _Part(hidden[some], some, ids, rows, span, legal, self.temperature, len(some) < len(places))
            start += len(ids)

    def _refuse(self, states: GroupStates, scored: Tensor) -> None:
        label = int((~scored).nonzero()[0])
        prompt, candidate, level = states.places[label].tolist()
        what = "no legal child of the tokens before it" if self.kind == "allowed" else "no SID token"
        raise InputError(
            f"completions: prompt {prompt}, candidate {candidate}: token {int(states.targets[label])} at place "
            f"{level} is {what}, so that softmax {self.kind!r} gives it no probability; use candidates of the trie, "
            "or 'full'"
        )


def _children_by_level(nodes: Tensor, trie: SIDTrie) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``(states,)`` states whose node lies at each depth, and ``(tokens,)`` rising, what may follow."""
    for first, stop in pairwise(trie.level_start[:-1].tolist()):
        places = ((nodes >= first) & (nodes < stop)).nonzero().flatten()
        if len(places):
            distinct = nodes[places].unique()
            low = trie.first_child[distinct].long()
            counts = trie.first_child[distinct + 1].long() - low
            offset = torch.arange(int(counts.sum()), device=nodes.device)
            children = offset + (low - (counts.cumsum(0) - counts)).repeat_interleave(counts)
            yield places, trie.token[children].long().unique()


@dataclass(frozen=True)
class _Part:
    """Some states, and the rows that their softmax is over."""

    hidden: Tensor
    places: Tensor
    token_ids: Tensor
    rows: FewRows
    span: tuple[int, int]
    legal: Tensor | None
    temperature: float
    again: bool
    """Whether logits are made again in the backward pass, because all of them would be more than a chunk."""

    def labels(self, states: GroupStates) -> tuple[Tensor, Tensor, Tensor]:
        """Return the labels of these states; their state here and column; and whether they have a probability."""
        at = torch.full((len(states.hidden),), -1, device=self.places.device)
        at[self.places] = torch.arange(len(self.places), device=at.device)
        labels = (at[states.owners] >= 0).nonzero().flatten()
        state = at[states.owners[labels]]
        column, found = place_among(self.token_ids, states.targets[labels])
        if self.legal is not None:
            found = found & self.legal[state, column]
        return labels, torch.stack([state, column]), found

    def logits(self, hidden: Tensor) -> Tensor:
        """Return ``(states, tokens)`` logits, -inf where illegal."""
        logits = self.rows.logits(hidden, *self.span) / self.temperature
        return logits if self.legal is None else logits.masked_fill(~self.legal, -torch.inf)

    def scores(self, chosen: Tensor, *, entropy: bool, entropy_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-sum-exp and entropy of the states, and the log-probabilities of ``(2, labels)`` chosen logits."""

        def made(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = self.logits(hidden)
            totals = logits.logsumexp(1)
            spread = torch.zeros_like(totals)
            if entropy:
                with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
                    log_probs = (logits - totals[:, None]).clamp(min=_NEVER)
                    spread = -(log_probs.exp() * log_probs).sum(1)
            return totals, spread, logits[chosen[0], chosen[1]] - totals[chosen[0]]

        return checkpoint(made, self.hidden, use_reentrant=False) if self.again else made(self.hidden)


_NEVER = -1e4
"""A log-probability that is as good as none; with -inf, the entropy's gradient would be NaN."""
