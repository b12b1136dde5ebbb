"""Prompts without spread: asked again, replaced, or left out; and a run whose rewards never differ ends."""

import json
from collections.abc import Callable
from functools import partial

import pytest
import torch

from llmrec.decoding.trie import SIDTrie
from llmrec.errors import InputError
from llmrec.training.hard_prompts import HardPrompts, HardPromptSettings
from llmrec.training.rollouts import Group, Rollouts
from llmrec.training.spread import NoSpread, SpreadWatch, has_spread, loss_weights
from llmrec.vocab import SIDVocab

G = 4
HOPELESS, HIT_WHEN_DRAWN = 1000, 2000
"""Users whose candidates are never rewarded, or only when they are drawn at a temperature."""


class Scene:
    """A policy of random weights, and rewards by which kind of prompt it is; counts what is asked."""

    def __init__(self, vocab: SIDVocab, model, **settings) -> None:
        self.model, self.vocab = model, vocab
        self.asked: list[list[int]] = []
        self.kinds: list[str] = []
        further = settings.pop("further", None)
        parsed = HardPromptSettings.parse(settings)
        rollouts = Rollouts("beam", G, trie=SIDTrie.from_vocab(vocab), vocab=vocab, look_beyond=parsed.look_beyond)
        self.hard = HardPrompts(
            parsed,
            rollouts,
            has_spread=partial(has_spread, weights=[1.0, 2.0]),
            encode=self.encode,
            score=self.score,
            next_rows=further,
            seed=5,
        )

    def encode(self, rows) -> list[list[int]]:
        return [[1, *(token for item in row["history"] for token in self.vocab.token_ids(item))] for row in rows]

    def score(self, rows, group: Group) -> torch.Tensor:
        """The second part, weight 2: 1 for the first candidate of users below 1000."""
        self.asked.append([row["user_row"] for row in rows])
        parts = torch.zeros(len(rows), G, 2)
        for number, row in enumerate(rows):
            if row["user_row"] < HOPELESS or (row["user_row"] >= HIT_WHEN_DRAWN and len(self.asked) > 1):
                parts[number, 0, 1] = 1.0
        return parts


def row(user: int, target: int = 0) -> dict:
    return {"prompt": f"{user} {target}", "target": target, "history": [user % 30, 3], "user_row": user}


@pytest.fixture
def scene(vocab: SIDVocab, make_model: Callable) -> Callable[..., Scene]:
    return lambda **settings: Scene(vocab, make_model(rows=640), **settings)


def users(collected) -> list[int]:
    return [entry["user_row"] for entry in collected.rows]


def test_without_options_groups_stay_as_they_are_and_are_counted(scene: Callable):
    stage = scene()
    found = stage.hard.collect(stage.model, [row(1), row(HOPELESS), row(2)], step=0)
    assert users(found) == [1, HOPELESS, 2]
    assert found.counts == {"asked": 3, "no_spread": 1, "resampled": 0, "replaced": 0, "skipped": 0}
    assert found.keep.all()
    assert stage.asked == [[1, HOPELESS, 2]]
    assert found.rewards.shape == (3, G, 2)


def test_a_prompt_is_asked_again_until_its_rewards_differ(scene: Callable):
    stage = scene(resample=3, resample_temperature=4.0)
    found = stage.hard.collect(stage.model, [row(1), row(HOPELESS), row(HIT_WHEN_DRAWN)], step=0)
    assert stage.asked == [[1, HOPELESS, HIT_WHEN_DRAWN], [HOPELESS, HIT_WHEN_DRAWN], [HOPELESS], [HOPELESS]]
    assert found.counts == {"asked": 3, "no_spread": 2, "resampled": 1, "replaced": 0, "skipped": 0}
    assert has_spread(found.rewards, [1.0, 2.0]).tolist() == [True, False, True]
    assert found.spread.tolist() == [True, False, True]
    beams = stage.hard.rollouts(stage.model, stage.encode(found.rows))
    same = (beams.leaves == found.group.leaves).all(dim=1).tolist()
    assert same == [True, True, False]  # the drawn group stands where it was of use, and there alone


def test_nothing_is_asked_once_all_rewards_differ(scene: Callable):
    stage = scene(resample=3, replace="replay", replace_tries=3, skip=True)
    found = stage.hard.collect(stage.model, [row(1), row(HIT_WHEN_DRAWN)], step=0)
    assert stage.asked == [[1, HIT_WHEN_DRAWN], [HIT_WHEN_DRAWN]]
    assert found.counts == {"asked": 2, "no_spread": 1, "resampled": 1, "replaced": 0, "skipped": 0}


def test_next_prompts_fill_the_places(scene: Callable):
    asked = []

    def further(count: int, attempt: int, step: int) -> list[dict]:
        asked.append((count, attempt, step))
        return [row(HOPELESS + 7), row(11), row(12)][:count] if attempt == 0 else [row(13), row(14)][:count]

    stage = scene(replace="next", replace_tries=3, skip=True, further=further)
    batch = [row(HOPELESS), row(1), row(HOPELESS + 1), row(HOPELESS + 2)]
    found = stage.hard.collect(stage.model, batch, step=9)
    assert asked == [(3, 0, 9), (1, 1, 9)]  # all three places are filled by then
    assert users(found) == [11, 1, 12, 13]
    assert found.counts == {"asked": 4, "no_spread": 3, "resampled": 0, "replaced": 3, "skipped": 0}
    assert found.keep.all()
    expected = stage.hard.rollouts(stage.model, stage.encode(found.rows))
    assert found.group.rows.tolist() == expected.rows.tolist()  # the groups of those that stand there now


def test_what_stays_without_spread_is_left_out(scene: Callable):
    stage = scene(skip=True)
    found = stage.hard.collect(stage.model, [row(1), row(HOPELESS), row(2), row(HOPELESS + 1)], step=0)
    assert found.keep.tolist() == [True, False, True, False]
    assert found.counts["skipped"] == 2
    weights = loss_weights(found.keep, lambda keep: torch.cat([keep, torch.tensor([True, True, False, False])]))
    assert weights.tolist() == [2.0, 0.0, 2.0, 0.0]  # 8 prompts of both processes, 4 of them kept
    assert loss_weights(torch.tensor([False]), lambda keep: keep).tolist() == [0.0]


def near_miss(stage: Scene, place: int) -> dict:
    """A row whose target is where the search has it."""
    wide = Rollouts("beam", 10, trie=SIDTrie.from_vocab(stage.vocab), vocab=stage.vocab)
    asked = row(HOPELESS + place)
    return {**asked, "target": int(wide(stage.model, stage.encode([asked])).rows[0, place])}


def test_near_misses_are_kept_and_take_the_places_of_hopeless_prompts(scene: Callable):
    stage = scene(replace="replay", look_beyond=4)
    for place in (0, 2, 3, 6, 9):  # found well, low in the group twice, just behind it, and nowhere
        stage.hard.collect(stage.model, [near_miss(stage, place)], step=0)
    assert sorted(entry["place"] for entry in stage.hard.near_misses.state_dict()) == [2, 3, 6]
    stage.hard.near_misses.add({**near_miss(stage, 3), "user_row": 20}, 3)  # the one that has spread by now
    found = [stage.hard.collect(stage.model, [row(HOPELESS)], step=step) for step in range(20)]
    assert {(tuple(users(one)), one.counts["replaced"]) for one in found} == {((20,), 1), ((HOPELESS,), 0)}
    assert len(stage.hard.near_misses) == 3


def test_a_near_miss_that_is_found_is_forgotten(scene: Callable):
    stage = scene(replace="replay")
    found = near_miss(stage, 0)
    stage.hard.near_misses.add(found, 3)
    stage.hard.collect(stage.model, [found], step=0)
    assert len(stage.hard.near_misses) == 0


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(scene: Callable):
    settings = {"replace": "replay", "look_beyond": 6, "resample": 1}

    def batch(stage: Scene, step: int) -> list[dict]:
        return [near_miss(stage, (step + add) % 10) for add in (0, 3)] + [row(step)]

    def outcome(found) -> tuple:
        return found.rows, found.group.leaves.tolist(), found.rewards.tolist(), found.counts

    whole = scene(**settings)
    outcomes = [outcome(whole.hard.collect(whole.model, batch(whole, step), step=step)) for step in range(6)]
    first = scene(**settings)
    for step in range(3):
        first.hard.collect(first.model, batch(first, step), step=step)
    state = json.loads(json.dumps(first.hard.state_dict()))
    second = scene(**settings)
    second.hard.load_state_dict(state)
    second.asked = [[], []]  # the scene's own count of what was asked
    again = [outcome(second.hard.collect(second.model, batch(second, step), step=step)) for step in range(3, 6)]
    assert again == outcomes[3:]
    assert second.hard.state_dict() == whole.hard.state_dict()


def test_spread_is_that_of_the_weighted_sum_and_of_what_was_scored():
    none = torch.nan
    rewards = torch.tensor(
        [
            [[1.0, 0.0], [0.0, 0.5]],  # 1 + 2 * 0 and 0 + 2 * 0.5: the same
            [[1.0, 0.0], [0.0, 0.0]],
            [[none, none], [0.0, 3.0]],  # one candidate was scored
            [[none, 1.0], [2.0, none]],  # 2 * 1 and 2
            [[none, 1.0], [3.0, none]],
            [[none, none], [none, none]],
        ]
    )
    assert has_spread(rewards, [1.0, 2.0]).tolist() == [False, True, False, False, True, False]
    # each part by itself: the first two differ in theirs, the others have one value a part
    assert has_spread(rewards, [1.0, 2.0], by_part=True).tolist() == [True, True, False, False, False, False]


def test_rewards_that_never_differ_stop_the_run():
    flat, spread = torch.tensor([[[0.25, 0.0]] * 3] * 2), torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]] * 2)
    spread_of = partial(has_spread, weights=[1.0, 1.0])
    watch = SpreadWatch(3, ["exact_match", "novelty"], spread_of)
    for rewards in (flat, flat, spread, flat, flat):
        watch.see(rewards)
    again = SpreadWatch(3, ["exact_match", "novelty"], spread_of)
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    with pytest.raises(
        NoSpread,
        match=r"for 3 generation steps in a row all 3 candidates of every prompt got the same reward \(the last "
        r"means: exact_match 0.25, novelty 0\).*raise num_generations.*add_ground_truth: true.*stop_after: 0",
    ):
        again.see(flat)
    never = SpreadWatch(0, ["exact_match", "novelty"], spread_of)
    for _ in range(10):
        never.see(flat)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resamples": 1}, "hard_prompts: unknown key 'resamples'; the keys are resample, "),
        ({"resample": -1}, "hard_prompts: resample -1: a whole number, at least 0"),
        ({"replace_tries": 0}, "hard_prompts: replace_tries 0: a whole number, at least 1"),
        ({"replay_size": 1.5}, "hard_prompts: replay_size 1.5: a whole number, at least 1"),
        ({"resample_temperature": 0}, "hard_prompts: resample_temperature 0: above 0"),
        ({"resample_temperature": "hot"}, "hard_prompts: resample_temperature 'hot': a number above 0"),
        ({"replace": "later"}, "hard_prompts: replace 'later': choose one of none, replay, next, replay_next"),
        ({"skip": 1}, "hard_prompts: skip 1: true or false"),
        ({"stop_after": True}, "hard_prompts: stop_after True: a whole number"),
        ({"replace": "next"}, "hard_prompts: replace next: there is no source of further prompts"),
    ],
)
def test_bad_settings_are_refused(scene: Callable, settings: dict, message: str):
    with pytest.raises(InputError, match=message):
        scene(**settings)
