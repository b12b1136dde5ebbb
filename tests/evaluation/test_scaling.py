"""Scaling studies: their runs, held-out loss by SID, laws that are planted and found, and the page."""

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from bundle_kit import PLAIN, make_model, make_t5, make_table, make_tokenizer
from peft import PeftModel

from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.scaling import (
    ScalingConfig,
    fit_axes,
    fit_laws,
    fit_power_law,
    flags_of,
    non_embedding_parameters,
    sid_losses,
)
from llmrec.evaluation.scaling_page import loss_ticks, scaling_markdown, scaling_svg, short
from llmrec.hub import Bundle
from llmrec.training.adapters import attach_adapter
from llmrec.vocab import SIDVocab

CONFIGS = sorted((Path(__file__).parents[2] / "recipes" / "configs").glob("*/scaling_*.yaml"))
STUDY = {
    "dataset": "data", "sids": "sids", "train": "sft.yaml", "results": "out.json", "work": "runs",
    "settings": {"max_steps": 9},
    "sizes": [{"name": "small"}, {"name": "large", "settings": {"model_config": {"num_hidden_layers": 4}}}],
    "share_size": "large", "shares": [{"share": 0.5, "settings": {"max_steps": 4}}, {"share": 1.0}],
}  # fmt: skip


def study(tmp_path: Path, **changes: object) -> ScalingConfig:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    return ScalingConfig.load(path)


def test_runs_are_all_sizes_and_all_shares_and_none_twice(tmp_path: Path):
    runs = study(tmp_path, seeds=[0, 1]).runs()
    assert [(run.size, run.share, run.seed, run.axes) for run in runs] == [
        ("small", 1.0, 0, ("parameters",)), ("large", 1.0, 0, ("parameters", "data")), ("large", 0.5, 0, ("data",)),
        ("small", 1.0, 1, ("parameters",)), ("large", 1.0, 1, ("parameters", "data")), ("large", 0.5, 1, ("data",)),
    ]  # fmt: skip
    assert runs[2].settings == {"max_steps": 4, "model_config": {"num_hidden_layers": 4}}
    assert flags_of({"eval_ks": [5, 10]}) == ["--eval_ks", "5", "10"]
    assert flags_of(runs[2].settings) == ["--max_steps", "4", "--model_config", '{"num_hidden_layers": 4}']


def test_a_whole_share_of_other_settings_is_a_run_of_its_own(tmp_path: Path):
    runs = study(tmp_path, shares=[{"share": 0.5}, {"share": 1.0, "settings": {"max_steps": 7}}]).runs()
    assert [(run.share, run.axes) for run in runs if run.size == "large"] == [
        (1.0, ("parameters",)), (0.5, ("data",)), (1.0, ("data",)),
    ]  # fmt: skip


def test_other_settings_have_another_folder(tmp_path: Path):
    run, other = study(tmp_path).runs()[0], study(tmp_path, settings={"max_steps": 8}).runs()[0]
    folders = {
        run.folder("w", config={"a": 1}), run.folder("w", config={"a": 2}), other.folder("w", config={"a": 1}),
    }  # fmt: skip
    assert len(folders) == 3
    assert run.folder("w", config={"a": 1}) == study(tmp_path).runs()[0].folder("w", config={"a": 1})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_published_studies_are_read(path: Path):
    config = ScalingConfig.load(path)
    assert len(config.sizes) == len(config.shares) == 4
    assert len(config.runs()) == 7
    assert (Path(__file__).parents[2] / config.train).is_file()


def test_messages_of_a_study(tmp_path: Path):
    for changes, message in (
        ({"sizes": [{"name": "small"}]}, r"sizes: \[\{'name': 'small'\}\]; a list of at least two"),
        ({"sizes": [{"name": "a"}, {"name": "a"}]}, "sizes: a, a; give each a name of its own"),
        ({"share_size": "huge"}, r"share_size 'huge' is none of the sizes \(small, large\)"),
        ({"shares": [{"share": 0.5}, {"share": 2}]}, "shares: 2; a share is above 0 and at most 1"),
        ({"shares": [{"part": 0.5}, {"share": 1}]}, "shares 0: unknown key 'part'; known are share, settings"),
        ({"steps": 3}, "unknown key 'steps'; known are dataset, sids"),
    ):
        with pytest.raises(InputError, match=message):
            study(tmp_path, **changes)


def test_a_planted_law_is_found():
    x = np.array([2e4, 1e5, 4e5, 2e6, 1e7])
    pure = fit_power_law(x, 40.0 * x**-0.12, floor=False)
    assert (pure.exponent, pure.coefficient, pure.floor) == (pytest.approx(0.12), pytest.approx(40.0), 0.0)
    assert pure.error < 1e-9
    floored = fit_power_law(x, 9.0 + 300.0 * x**-0.4, floor=True)
    assert floored.exponent == pytest.approx(0.4, rel=1e-3)
    assert floored.coefficient == pytest.approx(300.0, rel=1e-2)
    assert floored.floor == pytest.approx(9.0, rel=1e-4)
    np.testing.assert_allclose(floored.at(x), 9.0 + 300.0 * x**-0.4, rtol=1e-5)
    # Without a floor, the slope of a law that has one is lower
    assert fit_power_law(x, 9.0 + 300.0 * x**-0.4, floor=False).exponent < 0.1


def test_two_points_by_hand():
    # From 1,000 to 16,000, sixteen times, the loss halves: 16 ** -a = 1/2, a = 1/4. 8 = A * 1000 ** -1/4.
    law = fit_power_law(np.array([1000.0, 16000.0]), np.array([8.0, 4.0]), floor=False)
    assert law.exponent == pytest.approx(0.25)
    assert law.coefficient == pytest.approx(8 * 1000**0.25)


def rows_of(means: np.ndarray, *, rows: int = 400, seed: int = 0) -> np.ndarray:
    """Losses of rows that differ by row far more than by point, as held-out losses do."""
    rng = np.random.default_rng(seed)
    return means[:, None] + 3.0 * rng.standard_normal(rows) + 0.1 * rng.standard_normal((len(means), rows))


def test_intervals_cover_what_was_planted_and_a_floor_that_shows_is_known():
    x = np.geomspace(1e3, 1e8, 8)
    losses = rows_of(10.0 + 4e3 * x**-0.8)
    found = fit_laws(x.tolist(), losses, samples=60)
    low, high = found["floored"]["exponent"]["interval"]
    assert low < 0.8 < high
    assert found["floor_is_known"]
    assert found["rows"] == 400
    assert [point["x"] for point in found["points"]] == x.tolist()
    np.testing.assert_allclose([point["loss"] for point in found["points"]], losses.mean(1))
    assert all(point["interval"][0] < point["loss"] < point["interval"][1] for point in found["points"])


def test_four_points_of_a_slow_fall_fix_no_floor():
    x = np.geomspace(2e4, 2e6, 4)
    found = fit_laws(x.tolist(), rows_of(20.0 * x**-0.03), samples=60)
    assert not found["floor_is_known"]
    low, high = found["pure"]["exponent"]["interval"]
    assert low < 0.03 < high
    assert found["pure"]["floor"] == {"value": 0.0, "interval": [0.0, 0.0]}


def test_a_point_is_the_mean_of_its_seeds_and_an_axis_of_one_point_has_no_law():
    rng = np.random.default_rng(0)
    losses = [4 + rng.random(50) for _ in range(4)]
    runs = [
        {"parameters": 100, "targets": 9, "axes": ["parameters", "data"]},
        {"parameters": 100, "targets": 9, "axes": ["parameters"]},
        {"parameters": 900, "targets": 9, "axes": ["parameters"]},
        {"parameters": 900, "targets": 9, "axes": ["parameters"]},
    ]
    found = fit_axes(runs, losses, samples=5)
    assert list(found) == ["parameters"]
    means = [np.mean([losses[0], losses[1]]), np.mean([losses[2], losses[3]])]
    assert [point["loss"] for point in found["parameters"]["points"]] == pytest.approx(means)
    assert found["parameters"]["floored"] is None
    assert not found["parameters"]["floor_is_known"]


def test_messages_of_a_fit():
    with pytest.raises(InputError, match="power law: 2 points; three are needed"):
        fit_power_law(np.array([1.0, 2.0]), np.array([2.0, 1.0]), floor=True)
    with pytest.raises(InputError, match="a point that is not above 0; logarithms are fitted"):
        fit_power_law(np.array([1.0, 2.0]), np.array([2.0, 0.0]), floor=False)


TABLE = make_table(shared=True)  # SIDs of two and of three tokens
TOKENIZER = make_tokenizer(TABLE)
VOCAB = SIDVocab(TOKENIZER, TABLE)
INFO = {"prompt": PLAIN.to_dict(), "protocol": "leave_one_out", "metrics": []}


def bundle_of(model) -> Bundle:
    return Bundle(model, TOKENIZER, VOCAB, TABLE, INFO, None)


def test_losses_are_those_of_one_row_at_a_time():
    rng = np.random.default_rng(0)
    rows = [
        History(user, tuple(rng.integers(0, 40, int(rng.integers(1, 6))).tolist()), int(rng.integers(0, 40)))
        for user in range(30)
    ]
    base = make_model(len(TOKENIZER), tied=False)
    adapted = attach_adapter(make_model(len(TOKENIZER), seed=4), VOCAB, method="new_rows")
    for name, parameter in adapted.named_parameters():
        if "trainable_tokens_delta" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    for model in (base, adapted):
        expected = []
        for row in rows:
            prompt = PLAIN.encode_history(TOKENIZER, VOCAB, row.items)
            target = VOCAB.token_ids(row.target)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + target])).logits[0].double()
            scores = logits.log_softmax(-1)
            expected.append(-sum(float(scores[len(prompt) - 1 + at, token]) for at, token in enumerate(target)))
        assert {len(VOCAB.token_ids(row.target)) for row in rows} == {2, 3}
        np.testing.assert_allclose(sid_losses(bundle_of(model), rows, batch_size=7), expected, rtol=1e-4)


def test_an_encoder_decoder_is_refused():
    with pytest.raises(InputError, match="held-out loss by SID is for causal models"):
        sid_losses(bundle_of(make_t5(len(TOKENIZER))), [History(0, (1,), 2)])


def test_parameters_outside_the_tables_by_hand():
    # Two layers: queries 16 x 16, keys and values 16 x 8, output 16 x 16, three matrices of the MLP 16 x 32, two norms
    # of 16, and norms of queries and keys of 8; and the last norm.
    layer = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 32 + 2 * 16 + 2 * 8
    for tied in (True, False):
        model = make_model(50, tied=tied)
        assert non_embedding_parameters(model) == 2 * layer + 16
    adapted = attach_adapter(make_model(len(TOKENIZER)), VOCAB, method="new_rows")
    assert isinstance(adapted, PeftModel)


@pytest.fixture(scope="module")
def fitted() -> dict:
    x = np.geomspace(2e4, 2e6, 4)
    return {"parameters": fit_laws(x.tolist(), rows_of(20.0 * x**-0.03), samples=20)}


def test_the_picture_is_an_svg_of_points_and_laws(fitted: dict):
    root = ElementTree.fromstring(scaling_svg(fitted))
    tag = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{tag}svg"
    assert len(root.findall(f".//{tag}circle")) == 4
    assert len(root.findall(f".//{tag}polyline")) == 2
    words = [node.text for node in root.iter(f"{tag}text")]
    assert "parameters outside the tables" in words
    assert any(word and word.startswith("no floor: exponent 0.0") for word in words)
    heights = [float(node.get("cy", "nan")) for node in root.iter(f"{tag}circle")]
    assert heights == sorted(heights)  # a lower loss stands lower, and the axis grows upwards
    assert all(math.isfinite(height) for height in heights)


def test_the_page_says_what_it_rests_on(fitted: dict):
    run = {
        "name": "small, 1 of the users, seed 0", "axes": ["parameters", "data"], "parameters": 26624, "targets": 38000,
        "loss": 12.5, "best_step": 300, "steps": 400, "seconds": 90.0, "seed": 0,
    }  # fmt: skip
    text = scaling_markdown([run], fitted, title="Loss", command="python x.py", picture="loss.svg")
    assert "the mean over 400 rows" in text
    assert "and one seed was trained" in text
    assert "4 points do not fix the floor E" in text
    assert (
        "| small, 1 of the users, seed 0 | parameters and data | 26,624 | 38,000 | 12.5000 | 300 | 400 | 1.5 |" in text
    )
    assert "![Held-out loss by parameters and by data](loss.svg)" in text


def test_ticks():
    assert loss_ticks(11.83, 12.41) == pytest.approx([11.9, 12.0, 12.1, 12.2, 12.3, 12.4])
    assert [short(value) for value in (500, 20000, 2e6)] == ["500", "20k", "2M"]
