"""Open a page in headless Chromium, for tests marked ``browser``."""

import shutil
import subprocess
from pathlib import Path

import pytest


def browse(page: str, folder: Path, *, at: str = "", then: str = "", timeout: int = 120) -> tuple[str, list[str]]:
    """Return the page as a browser made it, and what it said on the console.

    Args:
        page: HTML.
        folder: an empty one.
        at: what stands behind the address.
        then: JavaScript that runs when the page stands.
        timeout: seconds.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here; apt-get install chromium")
    (folder / "page.html").write_text(page.replace("</body>", f"<script>{then}</script></body>"), encoding="ascii")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000",
        "--virtual-time-budget=3000", "--dump-dom", f"file://{folder / 'page.html'}{at}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    errors = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0, errors
    return done.stdout.decode("utf-8"), [line for line in errors.splitlines() if "CONSOLE" in line]
