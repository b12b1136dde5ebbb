"""Texts for a generated dataset with the right answer planted in them: tasks that read SIDs can find it there.

The words of a text come from an item's cluster and looks, and from how its cluster follows the one before. Whoever
knows the clusters (SIDs made from titles do) can write the text or find the item; whoever must learn every item by
heart, as with shuffled SIDs, sees each too seldom.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llmrec.artifacts import whole_file
from llmrec.data.items import Catalog
from llmrec.data.synthetic import COLOURS, KINDS, MATERIALS, PLACES, Synthetic
from llmrec.data.written_texts import save_written_texts

CHAT_FILE = "chat.jsonl"
HELD_OUT_CHAT_FILE = "chat_held_out.jsonl"
HELD_OUT_SHARE = 0.1
VERDICTS = {
    5: "Just what I needed.",
    4: "Nice enough.",
    3: "It will do for now.",
    2: "Not quite right.",
    1: "I hardly ever use it.",
}


class Looks(NamedTuple):
    """The words that make an item."""

    brand: str
    place: str
    kind: str
    colour: str
    material: str

    @property
    def short(self) -> str:
        """What its cluster is called, with its article: ``a garden lamp``."""
        return _a(f"{self.place} {self.kind}")


class Written(NamedTuple):
    """One text of a file beside the dataset: a row of the interactions it is about, the position, and the text."""

    row: int
    position: int
    text: str


@dataclass(frozen=True)
class Planted:
    """A generated dataset with texts.

    Args:
        data: with item columns ``description`` and ``query`` (a request a line), ratings, and texts ``review`` and
            ``explanation`` of the interactions.
        written: texts about every interaction, training or not, by kind.
        chat: conversations about words, each a list of messages.
    """

    data: Synthetic
    written: Mapping[str, Sequence[Written]] = field(repr=False)
    chat: Sequence[Sequence[Mapping[str, str]]] = field(repr=False)

    def save_beside(self, folder: str | Path) -> None:
        """Write the texts that stand beside a dataset into its folder: `written`, and `chat` in two files.

        A tenth of the conversations go to ``chat_held_out.jsonl``, the others to ``chat.jsonl``.
        """
        folder = Path(folder)
        interactions, ids = self.data.interactions, self.data.catalog.item_ids
        for kind, rows in self.written.items():
            save_written_texts(
                folder,
                kind,
                user_ids=[interactions.user_ids[interactions.users[row.row]] for row in rows],
                item_ids=None if kind == "preferences" else [ids[interactions.items[row.row]] for row in rows],
                positions=[row.position for row in rows],
                texts=[row.text for row in rows],
                manifest={"model": "llmrec.data.planted", "seed": self.data.process.seed},
            )
        held_out = max(1, round(len(self.chat) * HELD_OUT_SHARE))
        for name, part in ((HELD_OUT_CHAT_FILE, self.chat[:held_out]), (CHAT_FILE, self.chat[held_out:])):
            lines = [json.dumps({"messages": messages}, ensure_ascii=False) for messages in part]
            with whole_file(folder / name) as file:
                file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def plant_texts(data: Synthetic) -> Planted:
    """Return a generated dataset with texts; titles, walks and times stay as they are.

    A rating says how an item's cluster follows that of the item before: 5 for the likeliest successor, 3 for the
    second, 2 for further ones, 1 for any other, and 4 for a user's first item.

    Args:
        data: as `generate` made it.
    """
    rng = np.random.default_rng([data.process.seed, 3])
    looks = [
        _looks(title, brand) for title, brand in zip(data.catalog.titles, data.catalog.columns["brand"], strict=True)
    ]
    described = [
        f"{_a(item.kind).capitalize()} of {item.material} for the {item.place}, {item.colour} all over, "
        f"made by {item.brand}."
        for item in looks
    ]
    queries = [
        f"{item.colour} {item.kind} for the {item.place}\n{item.place} {item.kind} made of {item.material}"
        for item in looks
    ]
    columns = {**data.catalog.columns, "description": tuple(described), "query": tuple(queries)}
    interactions = data.interactions
    items = interactions.items.tolist()
    starts = interactions.user_starts()[interactions.users]
    positions = (np.arange(len(interactions)) - starts).tolist()
    ratings = _ratings(data)
    reviews, explanations = [], []
    written: dict[str, list[Written]] = {"intentions": [], "preferences": [], "rationales": []}
    for row, (item, position, stars) in enumerate(zip(items, positions, ratings.tolist(), strict=True)):
        now = looks[item]
        forms = (
            f"The {now.colour} {now.kind} stands in my {now.place}, and the {now.material} feels solid.",
            f"I took this {now.kind} of {now.material} for the {now.place}. Good {now.colour}.",
            f"For my {now.place}: {_a(now.colour)} {now.kind}, all {now.material}.",
        )
        reviews.append(f"{forms[rng.integers(len(forms))]} {VERDICTS[round(stars)]}")
        wish = f"Something {now.colour} for the {now.place}: {_a(now.kind)}, best of {now.material}."
        written["intentions"].append(Written(row, position, wish))
        if not position:
            explanations.append("")
            continue
        last = looks[items[row - 1]]
        explanations.append(
            f"{last.short.capitalize()} asks for {now.short}, and {now.colour} {now.material} goes with it."
        )
        written["rationales"].append(Written(row, position, f"The last was {last.short}, which {now.short} follows."))
        before = f", before that {looks[items[row - 2]].short}" if position > 1 else ""
        written["preferences"].append(Written(row, position, f"Lately {last.short}{before}."))
    texts = {"review": pa.array(reviews, pa.string()), "explanation": pa.array(explanations, pa.string())}
    whole = replace(
        data,
        catalog=Catalog(data.catalog.item_ids, columns),
        interactions=replace(interactions, ratings=ratings, texts=texts),
    )
    return Planted(whole, written, _chat(rng))


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _looks(title: str, brand: str) -> Looks:
    """Read an item's words out of its title: ``"BRAND PLACE KIND, COLOUR MATERIAL"``."""
    (place, kind), (colour, material) = (part.split() for part in title.removeprefix(f"{brand} ").split(", "))
    return Looks(brand, place, kind, colour, material)


def _ratings(data: Synthetic) -> np.ndarray:
    """``(interactions,)`` float32 ratings, as `plant_texts` says."""
    order = np.argsort(-data.transitions, axis=1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(order.shape[1])[None, :], axis=1)
    clusters = data.cluster_of[data.interactions.items]
    follows = place[clusters[:-1], clusters[1:]]
    ratings = np.full(len(clusters), 4.0, dtype=np.float32)
    ratings[1:] = np.where(follows < data.process.successors, np.maximum(5 - 2 * follows, 2), 1)
    first = np.ones(len(clusters), dtype=bool)
    first[1:] = data.interactions.users[1:] != data.interactions.users[:-1]
    ratings[first] = 4.0
    return ratings


def _chat(rng: np.random.Generator) -> list[list[dict[str, str]]]:
    """Conversations about words, in random order: what sort of word it is, how it is spelt, how long it is."""
    sorts = {"a colour": COLOURS, "a material": MATERIALS, "a thing": KINDS, "a place": PLACES}
    pairs = []
    for sort, words in sorts.items():
        for word in words:
            spelt = ", ".join(word)
            pairs.append(((f"What sort of word is {word}?", f"It is {sort}."),))
            pairs.append(((f"How is {word} spelt?", f"{spelt}."),))
            again = ("And what sort of word is it?", f"It is {sort}.")
            pairs.append(((f"How many letters are in {word}?", f"There are {len(word)}."), again))
    conversations = [
        list(
            itertools.chain.from_iterable(
                ({"role": "user", "content": asked}, {"role": "assistant", "content": told}) for asked, told in turns
            )
        )
        for turns in pairs
    ]
    return [conversations[number] for number in rng.permutation(len(conversations)).tolist()]
