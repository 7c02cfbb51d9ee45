"""A headless Chromium for the tests that look at pages.

Without one they are skipped; with REQUIRE_BROWSER set, that is an error.
"""
import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
OFFLINE = ("--no-sandbox", "--disable-gpu", "--disable-background-networking",
           "--disable-component-update", "--disable-sync", "--no-first-run")


def missing(what: str) -> None:
    "Skip, or fail where a browser is promised."
    (pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip)(what)


@pytest.fixture(scope="session")
def chromium():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install -e '.[dev]'")
    if not CHROMIUM:
        missing("no Chromium was found: install one, or name it in the environment variable "
                "CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(OFFLINE))
        yield browser
        browser.close()
