"""A headless Chromium for the tests of pages: the machine's own, driven by playwright, without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "STSIMDIFF_BROWSER_REQUIRED"
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def executable() -> str:
    """Path of the browser; without one the tests skip, or fail where it is required."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found:
        return found
    reason = f"no browser: none of {', '.join(NAMES)} is installed"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{reason}, and {REQUIRED}=1")
    pytest.skip(reason)


@contextmanager
def browser() -> Iterator[Browser]:
    path = executable()
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield opened
        opened.close()


@dataclass
class Seen:
    """What a page did that it must not do."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def visit(
    opened: Browser, url: str, *, width: int = 1280, height: int = 900, scheme: str = "light"
) -> tuple[Page, Seen]:
    """A page, loaded without a network, and what it asked for and complained of."""
    context = opened.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
    )
    page, seen = context.new_page(), Seen()

    def asked(route) -> None:
        wanted = route.request.url
        if wanted.partition("#")[0] == url.partition("#")[0] or wanted.startswith("data:"):
            route.continue_()
        else:
            seen.requests.append(wanted)
            route.abort()

    page.route("**/*", asked)
    page.on(
        "console", lambda line: seen.errors.append(line.text) if line.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.goto(url, wait_until="load")
    return page, seen


def until(page: Page, condition: str) -> None:
    """Wait for a JavaScript condition; playwright's own waiting would need ``eval``, which the page forbids."""
    check = f"const check = () => ({condition}) ? done() : requestAnimationFrame(check); check();"
    page.evaluate(f"new Promise(done => {{ {check} }})")
