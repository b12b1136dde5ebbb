"""Files on disk: written whole or not at all, hashed, and signed with how they were made."""

import contextlib
import datetime
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from llmrec.errors import InputError

VERSIONED_PACKAGES = (
    "llmrec", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "scikit-learn", "pyarrow",
)  # fmt: skip


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes the name ``path`` only if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it becomes ``path``, replacing it, only if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield part
        part.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            path.replace(old / path.name)
            part.replace(path)
            shutil.rmtree(old)
        else:
            part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all.

    Raises:
        InputError: a number in it is NaN or infinite, which JSON has no word for and other readers refuse.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InputError(
            f"{path}: not written, for a number in it is NaN or infinite ({error}); find where it was computed, and "
            "write null where there is no number"
        ) from error
    with whole_file(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: what the file should be, for the error message ("dataset manifest").

    Raises:
        InputError: the file is missing, empty, or no JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the {what}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable {what} ({error}); make it again") from error


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Args:
        path: the file.
        what: what the file should be, for the error message ("YAML of a grid").

    Raises:
        InputError: a missing or unreadable file, or no mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the {what}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of keys to values")
    return values


def file_sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(*parts: str) -> str:
    """Return the hexadecimal SHA-256 of strings, each followed by a NUL so that no two lists share a hash."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_commit() -> str | None:
    """Return the commit of the checkout that llmrec runs from, ``-dirty`` when it has changes, None outside git.

    Results files do not count as changes: writing one changes nothing of what ran.
    """
    here = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!recipes/results")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def made_by() -> dict[str, Any]:
    """Return how a file was made: command, commit, versions, hardware and UTC date."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": git_commit(),
        "versions": versions(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def check_hash(path: Path, found: str, manifest: Mapping[str, Any]) -> None:
    """Raise `InputError` when ``found`` is not the hash that ``manifest["files"]`` holds for the file's name."""
    expected = manifest.get("files", {}).get(path.name)
    if expected is not None and expected != found:
        raise InputError(
            f"{path}: sha256 {found[:12]} differs from the manifest's {expected[:12]}; the file was changed after the "
            "import or only half written: import the dataset again"
        )
