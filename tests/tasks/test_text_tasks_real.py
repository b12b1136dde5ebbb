"""Tasks of searches, ratings, denoising and profiles on Office, Beauty and MovieLens: how many examples, of whom."""

import runpy
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llmrec.data.folder import DatasetFolder, load_dataset
from llmrec.errors import InputError
from llmrec.sids.table import SIDTable, pad_codes
from llmrec.tasks.inputs import TaskInputs
from llmrec.tasks.mixture import mix_tasks
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

pytestmark = pytest.mark.real

SCRIPTS = Path(__file__).parents[2] / "data_prep"
SETS = {
    "office": ("lcrec.py", ["--source", "{root}/office", "--name", "Office"]),
    "beauty": (
        "sequences.py",
        ["--source", "{root}/beauty/user_sequence.txt", "--items", "{root}/beauty/Amazon_Beauty.item"],
    ),
    "ml-100k": ("recbole.py", ["--source", "{root}/ml-100k", "--name", "ml-100k"]),
}


@pytest.fixture(scope="module", params=SETS)
def dataset(
    request: pytest.FixtureRequest, real_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> DatasetFolder:
    out = tmp_path_factory.mktemp("tasks") / request.param
    script, arguments = SETS[request.param]
    paths = [text.format(root=real_data) for text in arguments]
    runpy.run_path(str(SCRIPTS / script))["main"]([*paths, "--out", str(out)])
    return load_dataset(out)


def test_every_task_runs(dataset: DatasetFolder) -> None:
    catalog, splits = dataset.catalog, dataset.split("leave_one_out", max_history=20)
    codes = pad_codes([[row % 64, row // 64 % 16, row // 1024] for row in range(len(catalog))], 3)
    table = SIDTable(catalog.item_ids, codes, (64, 16, 16))
    tokenizer = train_tokenizer(catalog.titles, vocab_size=1024)
    add_sid_tokens(tokenizer, table)
    inputs = TaskInputs.of(dataset, splits)
    rows = len(splits.train)
    counts = {"query_to_sid": 2 * len(catalog), "user_profile": rows, "profile_to_sid": rows}
    counts["denoise"] = sum(len(row.items) > 1 for row in splits.train)
    if inputs.interactions.ratings is not None:
        counts["rating"] = rows
    found = mix_tasks(
        dict.fromkeys(counts, 1.0), catalog=catalog, vocab=SIDVocab(tokenizer, table), histories=splits.train, seed=0,
        inputs=inputs,
    )  # fmt: skip
    made = Counter(example.task for example in found)
    assert not [example for example in found if not example.completion.strip()]
    for task in ("denoise", *({"rating"} & counts.keys())):
        assert made[task] == counts[task]
    # Items and histories without words give no example; few are such (Office has three items without a title).
    for task in ("query_to_sid", "user_profile", "profile_to_sid"):
        assert 0.95 * counts[task] <= made[task] <= counts[task]
    queries = {example.prompt for example in found if example.task == "query_to_sid"}
    assert len(queries) > 0.9 * made["query_to_sid"]


def test_ratings_are_those_of_training(dataset: DatasetFolder) -> None:
    splits = dataset.split("leave_one_out")
    inputs = TaskInputs.of(dataset, splits)
    if dataset.interactions.ratings is None:
        with pytest.raises(InputError, match="no column 'rating'"):
            inputs.ratings()
        return
    starts = dataset.interactions.user_starts()
    kept = np.concatenate([np.arange(start, stop - 2) for start, stop in pairwise(starts)])
    np.testing.assert_array_equal(inputs.ratings(), dataset.interactions.ratings[kept])
