"""A real Chromium for tests, cut off from everything but this machine.

Needs Debian's ``chromium`` and the npm packages that ``make tools`` installs; a missing one fails the test.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from tests.mcp_harness import ROOT

NODE_MODULES: Final = ROOT / ".venv" / "node" / "node_modules"
#: The browser itself before Debian's wrapper script, which adds extensions and switches of its own.
_BINARIES: Final = ("/usr/lib/chromium/chromium", "chromium", "chromium-browser")
_SWITCHES: Final = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
#: What a page does on this machine takes milliseconds.
_PATIENCE_MS: Final = 10_000


def chromium() -> str:
    """Return the path of Chromium; fails the test when there is none."""
    found = next(filter(None, map(shutil.which, _BINARIES)), None)
    return found or pytest.fail("there is no Chromium: run make tools")


def node_package(name: str) -> Path:
    """Return the directory of an npm package; fails the test when it is not installed."""
    path = NODE_MODULES / name
    return path if path.is_dir() else pytest.fail(f"the npm package {name} is missing: run make tools")


@asynccontextmanager
async def open_browser(*switches: str) -> AsyncGenerator[Browser]:
    """Yield a headless Chromium that can reach loopback addresses alone.

    Args:
        switches: more of its command line.
    """
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()  # Chromium refuses its own sandbox to root
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium(), headless=True, args=[*_SWITCHES, *sandbox, *switches]
        )
        try:
            yield browser
        finally:
            await browser.close()


class Watched:
    """A page, and what happened in it.

    Attributes:
        requests: addresses asked for by any frame, in order.
        errors: uncaught exceptions and console errors, refusals by a content policy among them.
    """

    def __init__(self, context: BrowserContext, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        context.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)


@asynccontextmanager
async def open_page(browser: Browser, *, width: int = 900, height: int = 700) -> AsyncGenerator[Watched]:
    """Yield an empty page in a profile of its own, watched from its first request on."""
    context = await browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(_PATIENCE_MS)
    try:
        yield Watched(context, await context.new_page())
    finally:
        await context.close()


@asynccontextmanager
async def serve_site(routes: Sequence[web.AbstractRouteDef]) -> AsyncGenerator[str]:
    """Serve routes on a free loopback port and yield the site's address, without a slash at its end."""
    application = web.Application()
    application.add_routes(routes)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
