"""Scores of tasks, each computed by hand from answers that are given."""

import numpy as np
import pytest

from llmrec.errors import InputError
from llmrec.evaluation import task_scores
from llmrec.evaluation.task_examples import TaskExamples
from llmrec.evaluation.task_scores import chrf_of, compare_scores, score_task
from llmrec.sids.table import SIDTable, pad_codes
from llmrec.tasks.example import Example


class Given:
    """Stands for a model: it answers what it was given, and holds the SIDs of five items."""

    def __init__(self, answers) -> None:
        self.answers = answers
        table = SIDTable(tuple("abcde"), pad_codes([[0, 0], [0, 1], [1, 0], [1, 1], [2]], 2), (3, 2))
        self.vocab = type("V", (), {"table": table, "levels": 2, "__len__": lambda self: 5})()

    def items(self, examples, k):
        return np.array(self.answers)[:, :k]

    def lists(self, examples, length):
        return np.array(self.answers)[:, :length]

    def texts(self, examples):
        return list(self.answers)


def item_examples(*targets: int, name: str = "title_to_sid") -> TaskExamples:
    return TaskExamples(name, "item", [Example("p", "s", target, name) for target in targets])


def test_items() -> None:
    """Targets 0, 3, 4 in lists led by 1, 2, 4: ranks 1, none, 0; the first code right in all, all codes in the last.

    Item 4 has one code: what stands behind it is alike in target and answer.
    """
    model = Given([[1, 0, 2, 3, 4], [2, 0, 1, 4, 4], [4, 0, 1, 2, 3]])
    score = score_task(model, item_examples(0, 3, 4), ks=(1, 5, 10))
    assert score.main == "recall@5", "a cut above the catalogue is left out"
    assert score.metrics == pytest.approx({
        "recall@1": 1 / 3, "recall@5": 2 / 3, "ndcg@5": (1 / np.log2(3) + 0 + 1) / 3,
        "prefix_accuracy@1": 1.0, "prefix_accuracy@2": 1 / 3,
    })  # fmt: skip
    assert score.about == (0, 3, 4)
    assert score_task(model, item_examples(0, 3, 4, name="denoise")).main == "recall@1"


def test_lists() -> None:
    examples = [Example("p", "s", 0, "next_session", targets=targets) for targets in ((0, 1), (4,))]
    score = score_task(Given([[1, 2, 3], [4, 0, 1]]), TaskExamples("next_session", "items", examples, length=3))
    assert (score.main, score.metrics) == ("recall@3", {"recall@3": 0.75})  # a half and one


def test_numbers() -> None:
    examples = [Example("p", f" {value:g}", None, "rating", item=1) for value in (4.0, 4.5, 3.0, 5.0)]
    score = score_task(Given(["4", "4,5 stars", "five", "3"]), TaskExamples("rating", "number", examples))
    # Of the three that are numbers two are right and one is off by 2.
    assert score.metrics == pytest.approx({"accuracy": 0.5, "unreadable": 0.25, "rmse": (4 / 3) ** 0.5})
    empty = score_task(Given(["?"] * 4), TaskExamples("rating", "number", examples))
    assert empty.metrics == {"accuracy": 0.0, "unreadable": 1.0}


def test_texts() -> None:
    examples = [Example("p", f" {text}", None, "sid_to_title", item=1) for text in ("Crème pen", "blue ink")]
    score = score_task(Given(["Crème pen", "red ink"]), TaskExamples("sid_to_title", "text", examples, trained=True))
    assert score.main == "chrf_mean"
    assert score.metrics["exact"] == 0.5
    assert score.metrics["chrf_mean"] == pytest.approx((100 + chrf_of(["red ink"], ["blue ink"])) / 2)
    assert score.row()["trained"] is True
    assert score_task(Given(["x", "y"]), TaskExamples("sid_to_category", "text", examples)).main == "exact"


def test_chrf_by_hand() -> None:
    """``ab`` against ``abc``: n-grams without spaces of order 1 (2 of 2, 2 of 3) and 2 (1 of 1, 1 of 2); beta is 2.

    Orders that one side lacks are left out; precision and recall are averaged over orders: 1 and 7/12.
    """
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    assert chrf_of(["ab"], ["abc"]) == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall), abs=1e-6)


def test_chrf_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(task_scores, "import_module", missing)
    with pytest.raises(InputError, match=r"the library sacrebleu is not there .*pip install 'llmrec\[evaluation\]'"):
        chrf_of(["a"], ["b"])


def test_differences_are_paired() -> None:
    own = score_task(Given([[0, 1], [1, 0], [2, 0], [3, 0]]), item_examples(0, 1, 2, 0), ks=(1,))
    other = score_task(Given([[1, 1], [1, 0], [0, 0], [3, 0]]), item_examples(0, 1, 2, 0), ks=(1,))
    found = compare_scores(own, other)["recall@1"]
    assert found["difference"] == 0.5  # two of four
    assert found["low"] <= 0.5 <= found["high"]
    with pytest.raises(InputError, match=r"task 'title_to_sid' on 4 examples against 'title_to_sid' on 4 others"):
        compare_scores(own, score_task(Given([[0, 1]] * 4), item_examples(0, 1, 2, 3), ks=(1,)))
