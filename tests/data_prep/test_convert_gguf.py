"""data_prep/convert_gguf.py: what it refuses before it reads any weights."""

import runpy
from pathlib import Path

import pytest

from llmrec.errors import InputError

main = runpy.run_path(str(Path(__file__).parents[2] / "data_prep" / "convert_gguf.py"))["main"]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        main(["--source", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    with pytest.raises(InputError, match="holds 0 GGUF files, expected one; name the file itself"):
        main(["--source", str(tmp_path), "--out", str(tmp_path / "out")])
    (tmp_path / "a.gguf").touch()
    with pytest.raises(InputError, match="is not empty; choose another folder"):
        main(["--source", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(InputError, match=r"--out .*a\.gguf: is a file; choose a folder"):
        main(["--source", str(tmp_path), "--out", str(tmp_path / "a.gguf")])
    with pytest.raises(InputError, match=r"a\.gguf.*cannot be read as GGUF"):
        main(["--source", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
