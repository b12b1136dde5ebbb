"""How others feed next-item fine-tuning: one padded row a target.

`target_rows` is the form of MiniOneRec (https://github.com/AkaliKong/MiniOneRec, data.py) and LC-Rec
(https://github.com/RUCAIBox/LC-Rec, data.py): for each training target a row of its own, the most recent items of the
history before it as the prompt, and a loss on the target alone. `random_batches` shuffles the rows; `sorted_batches`
puts rows of like length together (transformers' ``group_by_length``, taken to its end: all rows sorted, whole batches
shuffled). `padded` fills a batch to its longest row. The prompt is ours, SIDs one after another behind a start token;
theirs is a sentence of words around them, which would make each row longer.
"""

import random

import torch


def target_rows(sequences, sid_tokens, *, start, max_history):
    """One row a target: ``(token ids, how many of the last are learned)``."""
    rows = []
    for items in sequences:
        for place in range(1, len(items)):
            history = items[max(0, place - max_history) : place]
            ids = [start]
            for item in history:
                ids += sid_tokens(item)
            answer = sid_tokens(items[place])
            rows.append((ids + answer, len(answer)))
    return rows


def random_batches(rows, size, seed):
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [[rows[place] for place in order[first : first + size]] for first in range(0, len(order), size)]


def sorted_batches(rows, size, seed):
    order = sorted(range(len(rows)), key=lambda place: len(rows[place][0]))
    batches = [[rows[place] for place in order[first : first + size]] for first in range(0, len(order), size)]
    random.Random(seed).shuffle(batches)
    return batches


def padded(batch, pad):
    """Fill to the longest row, and say where the learned tokens are predicted, as the forward wants it."""
    length = max(len(ids) for ids, _ in batch)
    input_ids, mask, places, targets = [], [], [], []
    for number, (ids, learned) in enumerate(batch):
        input_ids.append(ids + [pad] * (length - len(ids)))
        mask.append([1] * len(ids) + [0] * (length - len(ids)))
        for place in range(len(ids) - learned, len(ids)):
            places.append(number * length + place - 1)
            targets.append(ids[place])
    return {
        "input_ids": torch.tensor(input_ids),
        "attention_mask": torch.tensor(mask),
        "places": torch.tensor(places),
        "targets": torch.tensor(targets),
        "tasks": torch.zeros(len(targets), dtype=torch.long),
    }
