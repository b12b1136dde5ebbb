"""Candidates for reinforcement learning: exactly G distinct items a prompt, found by the engine's searches."""

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.beam import beam_search
from llmrec.decoding.filters import ItemFilter, SearchSpace
from llmrec.decoding.given_sids import score_sids
from llmrec.decoding.prompts import read_prompts, why_expanded
from llmrec.decoding.reader import PromptReader
from llmrec.decoding.recommender import MAX_LOGITS
from llmrec.decoding.sampling import stochastic_beam_search
from llmrec.decoding.steps import check_score
from llmrec.decoding.trie import SIDTrie
from llmrec.errors import InputError
from llmrec.training.rollout_group import Group
from llmrec.vocab import SIDVocab

logger = logging.getLogger(__name__)

KINDS = ("beam", "sample", "mixed")


class Rollouts:
    """Find candidates with the policy, by beam search, by sampling without replacement, or half and half.

    Args:
        kind: ``beam``: the best SIDs under ``score``; ``sample``: SIDs drawn without replacement from the distribution
            over legal SIDs at the temperature; ``mixed``: the better half (rounded up) best SIDs, the rest drawn from
            those that are left.
        num_generations: G, candidates a prompt, at least 2.
        trie: the legal SIDs, on the CPU.
        vocab: SIDs of the catalogue.
        score: of the beam search: ``full``, ``sids`` or ``allowed``.
        temperature: of the samples, above 0.
        end_token_id: the token that ends an answer; needed by ``sids``.
        add_ground_truth: put the target in the place of the last candidate where it is not among them (MiniOneRec's
            ``add_gt``).
        exclude_seen: no item of a prompt's history is a candidate.
        look_beyond: how many places behind the group are searched for the target; they cost time like candidates.
        max_tokens_per_batch: most positions that the cache holds at a time, as in
            `llmrec.decoding.recommender.LLMRecommender`.

    Raises:
        InputError: an unknown kind or score, a number out of range, or a G above the number of SIDs.

    Paper: MiniOneRec (Kong et al., 2025, https://arxiv.org/abs/2510.24431) takes constrained beams as a group. Here
        candidates can be drawn too (Kool et al., https://arxiv.org/abs/1903.06059), in part or all, and never repeat.
    """

    def __init__(
        self,
        kind: str = "beam",
        num_generations: int = 16,
        *,
        trie: SIDTrie,
        vocab: SIDVocab,
        score: str = "full",
        temperature: float = 1.0,
        end_token_id: int | None = None,
        add_ground_truth: bool = False,
        exclude_seen: bool = False,
        look_beyond: int = 0,
        max_tokens_per_batch: int = 16384,
    ) -> None:
        if kind not in KINDS:
            raise InputError(f"rollouts {kind!r}: choose one of {', '.join(KINDS)}")
        check_score(score, end_token_id)
        if not temperature > 0:
            raise InputError(f"temperature {temperature}: above 0; for the best SIDs take rollouts: beam")
        for name, value, least in (
            ("num_generations", num_generations, 2), ("look_beyond", look_beyond, 0),
            ("max_tokens_per_batch", max_tokens_per_batch, 1),
        ):  # fmt: skip
            if value < least:
                raise InputError(f"{name} {value}: at least {least}")
        self.kind, self.num_generations, self.trie, self.vocab = kind, num_generations, trie, vocab
        self.score, self.temperature, self.end_token_id = score, temperature, end_token_id
        self.add_ground_truth, self.exclude_seen = add_ground_truth, exclude_seen
        self.look_beyond, self.max_tokens_per_batch = look_beyond, max_tokens_per_batch
        self._stated: tuple[str, float] | None = None
        self._leaf_of = trie.paths(torch.arange(len(vocab))).amax(dim=1)
        self.sids = int((trie.first_child[1:] == trie.first_child[:-1]).sum())
        """How many SIDs can be reached."""
        if num_generations > self.sids:
            raise InputError(
                f"num_generations {num_generations}: {trie.items} items with {self.sids} SIDs can be reached; set it "
                f"to {self.sids} or less"
            )
        # What the trie keeps of itself must not be made first under inference mode: training would refuse it.
        self._tries = {torch.device("cpu"): _warm(trie)}

    @property
    def distribution(self) -> tuple[str, float]:
        """The score and temperature under which `Group.log_probs` are taken, for all candidates alike."""
        if self._stated is not None:
            return self._stated
        return ("allowed", self.temperature) if self.kind == "sample" else (self.score, 1.0)

    def describe(self) -> dict[str, Any]:
        """Return what the manifest and the log say of the rollouts."""
        score, temperature = self.distribution
        return {
            "kind": self.kind,
            "num_generations": self.num_generations,
            "search_score": "allowed" if self.kind == "sample" else self.score,
            "sample_temperature": None if self.kind == "beam" else self.temperature,
            "log_probs": {"softmax": score, "temperature": temperature},
            "add_ground_truth": self.add_ground_truth,
            "exclude_seen": self.exclude_seen,
        }

    def drawn(self, temperature: float) -> Self:
        """Return the rollouts that draw at a temperature instead; log-probabilities stay under `distribution`."""
        found = copy.copy(self)
        found._stated = self.distribution
        found.kind, found.temperature = "sample", temperature
        return found

    def __call__(
        self,
        model: PreTrainedModel | PeftModel,
        prompt_ids: Sequence[Sequence[int]],
        targets: Sequence[int] | None = None,
        *,
        histories: Sequence[Sequence[int]] | None = None,
        generator: torch.Generator | None = None,
    ) -> Group:
        """Return G candidates for each prompt.

        Args:
            model: the policy, unwrapped; it is set to evaluation mode and back.
            prompt_ids: token ids of each prompt, not padded.
            targets: the row of each prompt's target; needed by ``add_ground_truth``.
            histories: item rows of each prompt's history; needed by ``exclude_seen``.
            generator: of the draws; None takes torch's own.

        Raises:
            InputError: a target outside the SID table, a history that leaves fewer SIDs than G, what is needed and not
                given, logits that are NaN, or a GPU without memory for a batch.
        """
        leaves, filters, left = self._check(prompt_ids, targets, histories)
        width = min(self.num_generations + self.look_beyond, min(left, default=self.sids))
        shape = (len(prompt_ids), self.num_generations)
        group = Group(
            token_ids=torch.full((*shape, self.trie.levels), -1),
            rows=torch.zeros(shape, dtype=torch.int64),
            ranks=torch.arange(shape[1]).repeat(shape[0], 1),
            log_probs=torch.zeros(shape),
            leaves=torch.zeros(shape, dtype=torch.int64),
            target_places=torch.full(shape[:1], -1),
            added=torch.zeros(shape[0], dtype=torch.bool),
        )
        training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                for places in self._batches(model, prompt_ids, width):
                    try:
                        self._fill(group, places, model, prompt_ids, leaves, filters, width, generator)
                    except torch.OutOfMemoryError as error:
                        raise InputError(
                            f"rollouts: the GPU has no memory for {len(places)} prompts of up to "
                            f"{len(prompt_ids[places[0]])} tokens with {width} candidates each; lower rollout_tokens "
                            f"(now {self.max_tokens_per_batch})"
                        ) from error
        finally:
            model.train(training)
        return group

    def _check(
        self,
        prompt_ids: Sequence[Sequence[int]],
        targets: Sequence[int] | None,
        histories: Sequence[Sequence[int]] | None,
    ) -> tuple[Tensor, list[ItemFilter] | None, list[int]]:
        """Return each target's leaf (-1 for none), the filters, and how many SIDs they leave."""
        leaves = torch.full((len(prompt_ids),), -1)
        if targets is None and self.add_ground_truth:
            raise InputError("add_ground_truth: it needs the target of each prompt")
        if targets is not None:
            for number, target in enumerate(targets):
                if not 0 <= target < len(self.vocab):
                    raise InputError(
                        f"prompt {number}: target {target} is not in the SID table of {len(self.vocab)} items; make "
                        "SIDs for the whole catalogue"
                    )
            leaves = self._leaf_of[torch.as_tensor(targets, dtype=torch.int64)]
        if not self.exclude_seen:
            return leaves, None, []
        if histories is None:
            raise InputError("exclude_seen: it needs the history of each prompt")
        left = []
        for number, history in enumerate(histories):
            seen, counts = self._leaf_of[torch.as_tensor(list(set(history)), dtype=torch.int64)].unique(
                return_counts=True
            )
            held = seen >= 0
            gone = counts[held] == self.trie.items_below[seen[held]]
            left.append(self.sids - int(gone.sum()))
            leaves[number] = -1 if bool((seen[held][gone] == leaves[number]).any()) else leaves[number]
            if left[-1] < self.num_generations:
                raise InputError(
                    f"prompt {number}: num_generations {self.num_generations}, but exclude_seen leaves {left[-1]} of "
                    f"{self.sids} SIDs; set it to {left[-1]} or less, or exclude_seen: false"
                )
        return leaves, [ItemFilter(exclude=history) for history in histories], left

    def _batches(
        self, model: PreTrainedModel | PeftModel, prompt_ids: Sequence[Sequence[int]], width: int
    ) -> Iterator[list[int]]:
        """Yield prompt numbers, longest first, as many at a time as positions and logits allow."""
        order = sorted(range(len(prompt_ids)), key=lambda number: -len(prompt_ids[number]))
        expanded = why_expanded(model) is not None
        levels = self.trie.levels
        start = 0
        while start < len(order):
            length = len(prompt_ids[order[start]])
            positions = width * (length + levels) if expanded else length + width * (levels - 1)
            candidates = max(*self.trie.widest, len(self.trie.sid_token_ids))
            row = model.config.get_text_config().vocab_size if expanded else max(candidates, positions)
            stop = start + max(1, min(self.max_tokens_per_batch // positions, MAX_LOGITS // (width * row)))
            yield order[start:stop]
            start = stop

    def _fill(
        self, group: Group, places: list[int], model: PreTrainedModel | PeftModel,
        prompt_ids: Sequence[Sequence[int]], targets: Tensor, filters: list[ItemFilter] | None, width: int,
        generator: torch.Generator | None,
    ) -> None:  # fmt: skip
        """Fill the groups of some prompts; tensors on the CPU that were made outside of inference mode."""
        device = model.device
        if device not in self._tries:
            with torch.inference_mode(False):
                self._tries[device] = _warm(self.trie.to(device))
        own = None if filters is None else [filters[place] for place in places]
        space = SearchSpace(self._tries[device], len(places), own, names=[f"prompt {place}" for place in places])
        prompts = [prompt_ids[place] for place in places]
        length = max(map(len, prompts))
        ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        reader = read_prompts(model, ids, mask, branches=width * (self.trie.levels - 1))
        wanted = targets[places].to(device)
        leaves, scores = self._search(reader, space, width, generator)
        found = (leaves == wanted[:, None]) & (wanted >= 0)[:, None]
        group.target_places[places] = torch.where(found.any(dim=1), found.to(torch.uint8).argmax(dim=1), -1).cpu()
        leaves = leaves[:, : self.num_generations]
        if scores is None:
            scores = self._stated_scores(reader, space, leaves)
        scores = scores[:, : self.num_generations]
        added = (wanted >= 0) & ~(leaves == wanted[:, None]).any(dim=1)
        if self.add_ground_truth and bool(added.any()):
            group.added[places] = added.cpu()
            last = scores.argmin(dim=1, keepdim=True)
            put = torch.where(added[:, None], wanted[:, None], leaves.gather(1, last))
            leaves = leaves.scatter(1, last, put)
            theirs = self._stated_scores(reader, space, put)
            scores = scores.scatter(1, last, torch.where(added[:, None], theirs, scores.gather(1, last)))
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        leaves = leaves.gather(1, order).cpu()
        group.log_probs[places], group.leaves[places] = scores.cpu(), leaves
        group.rows[places] = self._rows(leaves, own)
        group.token_ids[places] = self.vocab.item_token_ids[self.trie.rows[self.trie.first_item[leaves]].long()]

    def _search(
        self, reader: PromptReader, space: SearchSpace, width: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``(batch, width)`` leaves in the order found, and their log-probabilities where they are known."""
        best = beams = None
        if self.kind != "sample":
            beams = width if self.kind == "beam" else (self.num_generations + 1) // 2
            found = beam_search(reader, space, num_beams=beams, score=self.score, end_token_id=self.end_token_id)
            if bool((found.leaves < 0).any()):
                raise InputError("model: its log-probabilities are infinite for legal SIDs; train it again")
            if self.kind == "beam":
                return found.leaves, found.scores if self.distribution == (self.score, 1.0) else None
            best = found.leaves
            reader.rewind()
        drawn = stochastic_beam_search(
            reader, space, num_samples=width, temperature=self.temperature, generator=generator
        )
        if best is None or beams is None:
            return drawn.leaves, drawn.log_probs if self.distribution == ("allowed", self.temperature) else None
        # Drawn from all, with the best passed over: the same law as drawn from those that the best leave.
        again = (drawn.leaves[:, :, None] == best[:, None, :]).any(dim=2)
        order = again.to(torch.uint8).argsort(dim=1, stable=True)
        return torch.cat([best, drawn.leaves.gather(1, order)[:, : width - beams]], dim=1), None

    def _stated_scores(self, reader: PromptReader, space: SearchSpace, leaves: Tensor) -> Tensor:
        reader.rewind()
        score, temperature = self.distribution
        return score_sids(
            reader, space, leaves, score=score, temperature=temperature, end_token_id=self.end_token_id
        )  # fmt: skip

    def _rows(self, leaves: Tensor, filters: list[ItemFilter] | None) -> Tensor:
        """Return the most popular item of each leaf; of those that its prompt's filter leaves."""
        rows = self.trie.rows[self.trie.first_item[leaves]].long()
        for number, item_filter in enumerate(filters or []):
            seen = set(item_filter.exclude)  # type: ignore[arg-type]
            for place, row in enumerate(rows[number].tolist()):
                if row in seen:
                    items = self.trie.leaf_rows(leaves[number, place : place + 1])[0].tolist()
                    rows[number, place] = next(item for item in items if item not in seen)
        return rows


def rollout_generator(seed: int, step: int, *, process: int = 0) -> torch.Generator:
    """Return the generator of one generation step's draws: the same for a run that was stopped and went on.

    Args:
        seed: of the run.
        step: running number of the generation step.
        process: this process's number, so that no two draw alike.
    """
    mixed = (seed * 1_000_003 + step) * 1_000_003 + process
    return torch.Generator().manual_seed(mixed % 2**63)


def _warm(trie: SIDTrie) -> SIDTrie:
    """Return the trie with all that it keeps of itself already made."""
    for kept in ("widest", "level_tokens", "token_bound"):
        getattr(trie, kept)
    return trie
