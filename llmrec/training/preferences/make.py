"""The preferences of one training, from what its YAML says: a story that is the same for items and for lists."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llmrec.decoding.recommender import LLMRecommender
from llmrec.errors import InputError
from llmrec.hub.info import read_info
from llmrec.training.inputs import RecipeInputs
from llmrec.training.preferences.build import draw_negatives, parse_negatives, preference_dataset
from llmrec.training.preferences.config import DEFAULT_NEGATIVES, PreferenceArguments
from llmrec.training.preferences.inputs import PreferenceInputs
from llmrec.training.preferences.questions import choose_questions
from llmrec.training.preferences.scored import best_and_worst, scored_pairs
from llmrec.training.preferences.sessions import (
    TASK,
    Sessions,
    drawn_lists,
    find_sessions,
    own_lists,
    perturbed_lists,
    same_lists,
)
from llmrec.training.reward_head import HeadSettings, fit_head
from llmrec.training.reward_model import RewardModel, SASRecReward, fit_sasrec, mean_over_list
from llmrec.vocab import SIDVocab

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Maker:
    """Makes the preferences of one training.

    Args:
        arguments: what the YAML says.
        inputs: dataset, split and SIDs of the bundle.
        bundle: folder of the policy that is searched.
        start: folder of the bundle that the whole run starts from, on which a head is trained.
        reward_folder: where the reward model is kept.
        prompts: training rows that are drawn; 0 takes all.
        targets: ``all``, or ``last`` for the last training target of each user.
        seed: of the run.
        number: of the round, from 1; what is drawn for a row differs from round to round.
        drawn_before: rows that earlier rounds took, so that this one takes others.
    """

    arguments: PreferenceArguments
    inputs: RecipeInputs = field(repr=False)
    bundle: Path
    start: Path
    reward_folder: Path
    prompts: int
    targets: str
    seed: int
    number: int = 1
    drawn_before: int = 0

    @cached_property
    def _vocab(self) -> SIDVocab:
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(self.bundle))
        return SIDVocab(tokenizer, self.inputs.table, popularity=self.inputs.popularity)

    def _recommender(self, path: Path) -> LLMRecommender:
        state = PartialState()
        return LLMRecommender.from_pretrained(
            path,
            device=state.device,
            score=self.arguments.pair_settings["score"],
            across_processes=state.num_processes > 1,
            progress=state.is_main_process,
        )

    @cached_property
    def _policy(self) -> LLMRecommender:
        return self._recommender(self.bundle)

    def _source_inputs(self, policy: Callable[[], LLMRecommender]) -> PreferenceInputs:
        return PreferenceInputs.of(
            self._vocab, self.inputs.dataset, self.inputs.splits, policy=policy, seed=self.seed + self.number - 1
        )

    def make(self) -> Dataset:
        """Return the preferences, the same on all processes, each of which must call.

        Raises:
            InputError: as the sources say.
        """
        return self._items() if self.arguments.lists is None else self._lists()

    def _items(self) -> Dataset:
        arguments, settings = self.arguments, self.arguments.pair_settings
        questions = choose_questions(
            self.inputs.splits.train, prompts=self.prompts, seed=self.seed, start=self.drawn_before,
            targets=self.targets, retired=self._vocab.retired,
        )  # fmt: skip
        known = self._source_inputs(lambda: self._policy)
        if arguments.reward_model is None:
            questions, rejected = draw_negatives(arguments.negatives or DEFAULT_NEGATIVES, questions, known)
            logger.info("preferences: %d rows, %d rejected items each", len(questions), rejected.shape[1])
            return preference_dataset(questions, rejected, self._vocab)
        wanted = {name: settings[name] for name in ("beams", "rejected", "chosen", "exclude_history")}
        found = scored_pairs(self._policy, self._reward(), known.candidates, questions, **wanted)
        logger.info(
            "preferences: %d rows from %d beams each, the target among them in %.1f %%; %d rows of one reward left "
            "out; mean gap of rewards %.3f",
            len(found.questions), settings["beams"], 100 * found.hits, found.dropped, float(found.gaps.mean()),
        )  # fmt: skip
        return preference_dataset(
            found.questions, found.rejected, self._vocab, chosen=found.chosen, margins=self._margins(found.gaps)
        )

    def _margins(self, gaps: np.ndarray) -> np.ndarray | None:
        """Return what the chosen one is to win by; a gap that the reward sees the other way round asks for nothing."""
        scale = self.arguments.pair_settings["margin"]
        return None if not scale else np.maximum(scale * gaps, 0.0)

    def _reward(self) -> RewardModel:
        spec = self.arguments.reward_model
        assert isinstance(spec, dict)
        state = PartialState()
        with state.main_process_first():
            write = state.is_main_process
            if spec["kind"] == "sasrec":
                items = len(self._vocab)
                return SASRecReward(fit_sasrec(spec, self.inputs.splits, self.reward_folder, items=items, write=write))
            settings = HeadSettings.of({name: value for name, value in spec.items() if name != "kind"})
            rows = choose_questions(self.inputs.splits.train, prompts=settings.examples, seed=self.seed + 1)
            before = self._policy if self.start == self.bundle else self._recommender(self.start)
            # The reward model is one and the same in all rounds, and so are its seed and its states.
            known = PreferenceInputs.of(
                self._vocab, self.inputs.dataset, self.inputs.splits, policy=lambda: before, seed=self.seed
            )
            return fit_head(settings, known, rows, self.reward_folder, write=write)

    # Lists

    def _lists(self) -> Dataset:
        settings, pairs = self.arguments.list_settings, self.arguments.pair_settings
        assert settings is not None
        tasks = read_info(self.start).get("tasks") or {}
        if TASK not in tasks:
            raise InputError(
                f"lists: {self.start} did not learn {TASK}, but {', '.join(tasks) or 'no task'}; give a bundle that "
                f"was trained with {TASK} among its tasks, or leave lists out"
            )
        sessions = find_sessions(
            self.inputs.splits.train, vocab=self._vocab, catalog=self.inputs.dataset.catalog, items=settings["items"],
            prompts=self.prompts, seed=self.seed, start=self.drawn_before, wordings=settings["wordings"],
        )  # fmt: skip
        margins: np.ndarray | None = None
        chosen, count = sessions.lists, settings["count"]
        if settings["rejected"] != "own":
            sources = parse_negatives(self.arguments.negatives or DEFAULT_NEGATIVES)
            if len(sources) > 1:
                raise InputError("lists: they are drawn from one source of negatives; name one")
            source = sources[0].factory(**sources[0].options, inputs=self._source_inputs(lambda: self._policy))
            if settings["rejected"] == "drawn":
                rejected = drawn_lists(sessions, source, count=count)
            else:
                seed = self.seed + self.number - 1
                rejected = perturbed_lists(sessions, source, count=count, swaps=settings["swaps"], seed=seed)
        elif self.arguments.reward_model is None:
            found = self._own(sessions, count + 1)
            # Those that are the real list go behind the others, and the last one is dropped.
            same = same_lists(self._source_inputs(lambda: self._policy).candidates, found, sessions.lists)
            order = np.argsort(same, axis=1, kind="stable")[:, :count]
            rejected = np.take_along_axis(found, order[..., None], axis=1)
        else:
            found = self._own(sessions, pairs["beams"])
            candidates = self._source_inputs(lambda: self._policy).candidates
            same = same_lists(candidates, found, sessions.lists)
            both = np.concatenate([found, sessions.lists[:, None]], axis=1)
            rewards = mean_over_list(self._reward(), sessions.questions, both)
            wins = pairs["chosen"] == "target"
            best, worst = best_and_worst(rewards[:, :-1], same, rejected=pairs["rejected"], target_wins=wins)
            rows = np.arange(len(sessions))
            own = np.where(wins, rewards[:, -1], rewards[rows, best])
            gaps = own[:, None] - np.take_along_axis(rewards, worst, axis=1)
            kept = rows if wins else np.flatnonzero(gaps.min(axis=1) > 0)
            if not len(kept):
                raise InputError("reward_model: all lists of a row have one reward; raise beams, or train another one")
            rejected = np.take_along_axis(found, worst[..., None], axis=1)[kept]
            chosen = (sessions.lists if wins else found[rows, best])[kept]
            margins = self._margins(gaps[kept])
            sessions = sessions.take(kept)
        logger.info("preferences: %d rows, %d rejected lists of %d", len(sessions), *rejected.shape[1:])
        return preference_dataset(
            sessions.questions, rejected, self._vocab, prompts=list(sessions.prompts), chosen=chosen, margins=margins
        )

    def _own(self, sessions: Sessions, count: int) -> np.ndarray:
        """Return the policy's lists; processes share the rows."""
        state = PartialState()
        exclude = self.arguments.pair_settings["exclude_history"]
        candidates = self._source_inputs(lambda: self._policy).candidates
        mine = np.arange(state.process_index, len(sessions), state.num_processes)
        found = np.full((len(sessions), count, sessions.lists.shape[1]), -1, dtype=np.int64)
        if len(mine):
            found[mine] = own_lists(
                sessions.take(mine), self._policy, candidates, count=count, exclude_history=exclude
            )
        if state.num_processes > 1:
            for part in gather_object([found]):
                found = np.maximum(found, part)
        return found
