"""How each task may word its prompt: the first wording is the one that evaluation uses."""

import random

from llmrec.errors import InputError

WORDINGS: dict[str, tuple[str, ...]] = {
    "sid_to_title": (
        "Title of {sid}:",
        "What is the item {sid} called?",
        "Give the title of the item with the ID {sid}.",
        "The item {sid} is sold under the title:",
        "{sid} is the ID of which item?",
    ),
    "title_to_sid": (
        "ID of {title}:",
        "Which ID does the item {title} have?",
        "Give the ID of the item called: {title}\nID:",
        "{title}\nThe ID of this item:",
        "Find the item with this title: {title}\nIts ID:",
    ),
    "description_to_sid": (
        "Description: {text}\nID of this item:",
        "Which item is described here? {text}\nIts ID:",
        "Give the ID of the item with this description: {text}\nID:",
        "{text}\nThis describes the item with the ID:",
        "Find the item from its description. {text}\nIts ID:",
    ),
    "attributes_to_sid": (
        "Item with {attributes}\nIts ID:",
        "Which item has these properties? {attributes}\nIts ID:",
        "Give the ID of an item with {attributes}\nID:",
        "{attributes}\nID of an item like this:",
        "Find an item by its properties. {attributes}\nIts ID:",
    ),
    "sid_to_category": (
        "Category of {sid}:",
        "Which category does the item {sid} belong to?",
        "Give the category of the item with the ID {sid}.",
        "The item {sid} is found under the category:",
        "What kind of item is {sid}?",
    ),
    "prefix_to_category": (
        "Category of items whose ID starts with {prefix}:",
        "Which category do most items with an ID that starts with {prefix} belong to?",
        "What kind of items have an ID that begins with {prefix}?",
        "IDs that begin with {prefix} stand for the category:",
        "Give the most common category of items whose ID starts with {prefix}.",
    ),
    "similar_items": (
        "Item similar to {sid}:",
        "Which item is most like {sid}? Its ID:",
        "Give the ID of an item similar to {sid}.",
        "The item {sid} resembles the item",
        "Name another item like {sid}:",
    ),
    "history_title_to_sid": (
        "A customer took these items, oldest first:{history}\nID of the next item:",
        "These items were bought one after the other:{history}\nWhich item comes next? Its ID:",
        "Purchases so far, the latest at the end:{history}\nPredict the ID of the next purchase:",
        "A shopper's history:{history}\nRecommend the next item by its ID:",
        "Given what was taken before:{history}\nThe ID of what is taken next:",
    ),
    "sid_history_to_title": (
        "A customer took {history}. Title of the next item:",
        "These items were bought one after the other: {history}\nWhat is the title of the next one?",
        "After {history}, the next item is called:",
        "A shopper's history: {history}\nRecommend the next item by its title:",
        "Given the items {history}, predict the title of the item taken next.",
    ),
    "sid_history_to_description": (
        "A customer took {history}. Description of the next item:",
        "These items were bought one after the other: {history}\nDescribe the next one.",
        "After {history}, the next item is described as:",
        "A shopper's history: {history}\nDescribe the item to recommend next:",
        "Given the items {history}, write the description of the item taken next.",
    ),
    "next_session": (
        "A customer took {history}. The next {items} items:",
        "These items were bought one after the other: {history}\nList the next {items}:",
        "After {history}, the following {items} items are taken:",
        "A shopper's history: {history}\nRecommend {items} items in order:",
        "Given the items {history}, predict the {items} that come next:",
    ),
    "query_to_sid": (
        "Search: {query}\nID of an item:",
        "A customer searches for {query}\nWhich item fits? Its ID:",
        "Find an item for this request: {query}\nID:",
        "Query: {query}\nThe ID of a result:",
        "{query}\nThe ID of an item like this:",
    ),
    "intention_to_sid": (
        "A customer wants: {text}\nID of a fitting item:",
        "What a customer is looking for: {text}\nWhich item should they get? Its ID:",
        "Intention: {text}\nRecommend an item by its ID:",
        "{text}\nThe ID of the item that meets this wish:",
        "Find the item that serves this need. {text}\nIts ID:",
    ),
    "preference_to_sid": (
        "What a customer likes: {text}{taken}\nID of the next item:",
        "Preferences: {text}{taken}\nWhich item comes next? Its ID:",
        "A shopper described in words: {text}{taken}\nRecommend the next item by its ID:",
        "{text}{taken}\nGiven this taste, the ID of what is taken next:",
        "Use these preferences. {text}{taken}\nPredict the ID of the next item:",
    ),
    "review_to_sid": (
        "Review: {text}\nID of the item:",
        "Which item is this review about? {text}\nIts ID:",
        "A customer wrote: {text}\nThe ID of the item they mean:",
        "{text}\nThis was said of the item with the ID:",
        "Find the item from what a buyer says of it. {text}\nIts ID:",
    ),
    "rating": (
        "A customer took {history}. Their rating of {sid}, from {low} to {high}:",
        "These items were bought one after the other: {history}\nHow will {sid} be rated, from {low} to {high}?",
        "After {history}, a customer gives {sid} this rating ({low} to {high}):",
        "A shopper's history: {history}\nPredict the rating of {sid} between {low} and {high}:",
        "Given the items {history}, rate {sid} on a scale from {low} to {high}.",
    ),
    "explanation": (
        "A customer took {history}. Why {sid} comes next:",
        "These items were bought one after the other: {history}\nWhy does {sid} fit?",
        "After {history}, say what speaks for {sid}:",
        "A shopper's history: {history}\nExplain the recommendation of {sid}:",
        "Given the items {history}, explain why {sid} is taken next.",
    ),
    "denoise": (
        "One of these items does not belong: {history}\nIts ID:",
        "Which of the items {history} was put in by mistake? Its ID:",
        "A shopper's history with one strange item: {history}\nThe ID of the strange one:",
        "Find the item that does not fit among {history}. Its ID:",
        "{history}\nThe ID of the item that another customer took:",
    ),
    "user_profile": (
        "A customer took {history}. Their taste in a few words:",
        "These items were bought one after the other: {history}\nWhat does this customer like?",
        "After {history}, describe the customer's taste:",
        "A shopper's history: {history}\nSum it up in a few words:",
        "Given the items {history}, write a short profile of the customer.",
    ),
    "profile_to_sid": (
        "A customer likes {profile} and took {history}. ID of the next item:",
        "Profile: {profile}\nBought so far: {history}\nWhich item comes next? Its ID:",
        "A shopper interested in {profile}, with the history {history}\nRecommend the next item by its ID:",
        "Taste: {profile}\nItems: {history}\nThe ID of what is taken next:",
        "Knowing that a customer likes {profile} and took {history}, predict the ID of the next item:",
    ),
    "reasoning": (
        "A customer took {history}. ID of the next item, at once:",
        "These items were bought one after the other: {history}\nAnswer with the ID of the next one alone:",
        "After {history}, without explanation, the ID of the next item:",
        "A shopper's history: {history}\nRecommend the next item by its ID alone:",
        "Given the items {history}, name the ID of the item taken next and nothing else.",
    ),
    "reasoning_aloud": (
        "A customer took {history}. Think first, then give the ID of the next item:",
        "These items were bought one after the other: {history}\nSay what this customer is after, then the next ID:",
        "After {history}, explain what comes next and end with its ID:",
        "A shopper's history: {history}\nReason about it, then recommend the next item by its ID:",
        "Given the items {history}, give a reason and then the ID of the item taken next.",
    ),
}
"""By task: texts whose fields in braces `str.format` fills; none names a domain, so that they serve every dataset."""


def wordings_of(task: str, *, first: int | None = None) -> tuple[str, ...]:
    """Return the wordings that a task draws from.

    Args:
        task: a name in `WORDINGS`.
        first: how many, counted from the first, 1 for the canonical one alone; None takes all.

    Raises:
        InputError: a ``first`` that is no whole number from 1 to the number of wordings.
    """
    known = WORDINGS[task]
    if first is None:
        return known
    if isinstance(first, bool) or not isinstance(first, int) or not 1 <= first <= len(known):
        raise InputError(f"task {task!r}: wordings {first!r}; from 1 to {len(known)}, or none for all")
    return known[:first]


def wording(task: str, rng: random.Random, *, first: int | None = None) -> str:
    """Draw one wording of a task.

    Args:
        task: a name in `WORDINGS`.
        rng: the task's own.
        first: as `wordings_of` takes it.

    Raises:
        InputError: as `wordings_of` says.
    """
    return rng.choice(wordings_of(task, first=first))
