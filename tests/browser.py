"""A real browser for the tests: Debian's Chromium, without a network, which writes down all that goes wrong."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = "Chromium is not installed; the package of Debian is called chromium"
FLAGS = (  # in a container there is no sandbox and no GPU; the others keep the browser from calling home
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
LOCAL = "file:", "data:", "blob:"


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Start the browser."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only where there is a browser

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@contextlib.contextmanager
def opened(started: Any, path: Path, width: int = 1400, scheme: str = "light") -> Iterator[Any]:
    """Open a page of a report and wait until it is drawn; at the end, there may be no errors and no requests."""
    context = started.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 600)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda told: page.complaints.append(told.text) if told.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda one: None if one.url.startswith(LOCAL) else page.complaints.append(one.url))
    page.goto(path.as_uri())
    page.wait_for_function("document.documentElement.dataset.ready")
    yield page
    assert page.complaints == []
    context.close()
