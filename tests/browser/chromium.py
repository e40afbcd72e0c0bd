"""The Chromium that this computer has: as Debian packages it, or as Playwright has fetched it.

python tests/browser/chromium.py       prints its path, or ends with exit code 1
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Its path; None where there is none."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is not None:
        return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        fetched = playwright.chromium.executable_path
    return fetched if Path(fetched).exists() else None


if __name__ == "__main__":
    path = chromium()
    if path is None:
        sys.exit("no Chromium is installed")
    print(path)
