"""An output folder belongs to one run; a killed one goes on, another is refused."""

from pathlib import Path

import pytest

from llmrec.errors import InputError
from llmrec.training.run_folder import RUN_FILE, check_resume, check_run_folder, claim_run_folder

RUN = {"dataset": "office", "seed": 0}


def check(path: Path, run: dict = RUN, *, overwrite: bool = False) -> str | None:
    return check_run_folder(path, run, overwrite=overwrite, finished="README.md")


def claim(path: Path, run: dict = RUN, *, overwrite: bool = False) -> str | None:
    checkpoint = check(path, run, overwrite=overwrite)
    claim_run_folder(path, run, checkpoint=checkpoint)
    return checkpoint


def save(folder: Path, *names: str) -> None:
    """A checkpoint as a trainer leaves it: its state last."""
    for name in (*names, "trainer_state.json"):
        if name.endswith("/"):
            (folder / name).mkdir(parents=True)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")


def test_new_folder_is_claimed(tmp_path: Path) -> None:
    assert claim(tmp_path / "run") is None
    assert (tmp_path / "run" / RUN_FILE).is_file()


def test_checking_writes_and_deletes_nothing(tmp_path: Path) -> None:
    claim(tmp_path)
    (tmp_path / "checkpoint-5").mkdir()
    check(tmp_path, {**RUN, "seed": 1}, overwrite=True)
    assert (tmp_path / "checkpoint-5").is_dir()
    check(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    claim(tmp_path)
    for step in (5, 10):
        save(tmp_path / f"checkpoint-{step}", "optimizer.pt", "scheduler.pt")
    assert claim(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize("killed_before", ["optimizer.pt", "scheduler.pt", "trainer_state.json", "its end"])
def test_a_half_written_checkpoint_is_passed_over_and_kept(
    tmp_path: Path, killed_before: str, caplog: pytest.LogCaptureFixture
) -> None:
    claim(tmp_path)
    for step in (9, 10):
        save(tmp_path / f"checkpoint-{step}", "optimizer.pt", "scheduler.pt")
    half = tmp_path / "checkpoint-10"
    if killed_before == "its end":
        (half / "trainer_state.json").write_text('{"epoch": 1.0, "log_hi')
    else:
        (half / killed_before).unlink()
    assert claim(tmp_path) == str(tmp_path / "checkpoint-9")
    assert half.is_dir()
    assert "checkpoint-10: holds no whole " in caplog.text


@pytest.mark.parametrize(
    "names",
    [("optimizer_0/", "scheduler.pt"), ("optimizer.bin", "scheduler.pt"), ("global_step10/",)],
)
def test_sharded_states_are_whole_checkpoints(tmp_path: Path, names: tuple[str, ...]) -> None:
    claim(tmp_path)
    save(tmp_path / "checkpoint-10", *names)
    assert claim(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_run_that_left_nothing_but_its_description_is_free(tmp_path: Path) -> None:
    claim(tmp_path, {**RUN, "model": "misspelt"})
    assert claim(tmp_path) is None


def test_another_run_is_refused(tmp_path: Path) -> None:
    claim(tmp_path)
    (tmp_path / "checkpoint-5").mkdir()
    message = r"holds another run \(seed is 0 there, 1 here\).*--overwrite_output_dir true"
    with pytest.raises(InputError, match=message):
        claim(tmp_path, {**RUN, "seed": 1})
    assert claim(tmp_path, {**RUN, "seed": 1}, overwrite=True) is None
    assert not (tmp_path / "checkpoint-5").exists()


def test_a_finished_run_is_refused(tmp_path: Path) -> None:
    claim(tmp_path)
    (tmp_path / "README.md").touch()
    with pytest.raises(InputError, match="holds this very run, finished"):
        claim(tmp_path)


@pytest.mark.parametrize("overwrite", [True, False])
def test_foreign_files_are_neither_used_nor_deleted(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="so it is no run of llmrec"):
        claim(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(InputError, match=r"thesis.tex: is a file"):
        claim(tmp_path / "thesis.tex", overwrite=overwrite)


@pytest.mark.parametrize("missing", ["optimizer.pt", "scheduler.pt"])
def test_weights_alone_are_nothing_to_go_on_from(tmp_path: Path, missing: str) -> None:
    save(tmp_path, "optimizer.pt", "scheduler.pt", "llmrec.json")
    check_resume(str(tmp_path), {})
    (tmp_path / missing).unlink()
    with pytest.raises(
        InputError, match=rf"holds no whole {missing}: it was cut off while it was written, or holds w"
    ):
        check_resume(str(tmp_path), {})
