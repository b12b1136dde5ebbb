import numpy as np
import pytest
from encoder_kit import script
from pens_dataset import write_pens

from llmrec.data.earlier import earlier_interactions
from llmrec.data.folder import load_dataset
from llmrec.data.interactions import Interactions
from llmrec.errors import InputError

cut = script("earlier_state")


def made() -> Interactions:
    return Interactions.sort(
        ("ann", "bob", "eve"),
        users=np.array([0, 0, 0, 0, 0, 1, 1, 2]),
        items=np.arange(8),
        timestamps=np.array([1, 2, 3, 4, 5, 3, 9, 8]),
        ratings=np.arange(8, dtype=np.float32),
    )


def test_before_a_time():
    left = earlier_interactions(made(), before=4)
    assert left.user_ids == ("ann", "bob"), "eve came later"
    assert left.sequences() == [(0, 1, 2), (5,)]
    assert left.ratings is not None
    assert left.ratings.tolist() == [0, 1, 2, 5]


def test_a_share_of_each_user():
    # 0.6 of 5 is 3, of 2 is 1.2, of 1 is 0.6
    left = earlier_interactions(made(), share=0.6)
    assert left.user_ids == ("ann", "bob", "eve")
    assert left.sequences() == [(0, 1, 2), (5,), (7,)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "one of the two"),
        ({"before": 3, "share": 0.5}, "one of the two"),
        ({"share": 1.0}, r"share 1\.0; above 0 and below 1"),
        ({"before": 1}, "before 1 keeps 0 of 8 interactions"),
        ({"before": 99}, "before 99 keeps 8 of 8 interactions"),
    ],
)
def test_bad_cuts_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        earlier_interactions(made(), **given)


def test_the_folder_is_the_beginning_of_the_dataset(tmp_path, capsys):
    whole = load_dataset(write_pens(tmp_path / "pens"))
    cut(["--dataset", str(tmp_path / "pens"), "--share", "0.5", "--out", str(tmp_path / "early")])
    early = load_dataset(tmp_path / "early")
    assert early.catalog.hash == whole.catalog.hash
    now = dict(zip(whole.interactions.user_ids, whole.interactions.sequences(), strict=True))
    for user_id, sequence in zip(early.interactions.user_ids, early.interactions.sequences(), strict=True):
        assert now[user_id][: len(sequence)] == sequence
        assert len(sequence) < len(now[user_id])
    assert early.manifest["earlier"] == {"share": 0.5}
    assert f"{len(early.interactions):,} of {len(whole.interactions):,} interactions" in capsys.readouterr().out
