"""The page that shows a chart inside a host: one HTML document with its style and scripts in it.

Rules kept here:

- The page asks nobody for anything: no address is in its policy, neither in the one it declares to the host nor in the
  one it carries itself.
- Only the scripts that ship with it run: its own policy names them by their hash, so text that looks like a script
  stays text.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

from mcp.server.apps import Apps, ResourceCsp

#: Where hosts find the page.
PAGE: Final = "ui://grekko/market/chart.html"
_SCRIPTS: Final = ("host.js", "view.js", "main.js")


def chart_page() -> Apps:
    """Return the extension that serves the page, for ``build_server(extensions=[chart_page()])``."""
    apps = Apps()
    apps.add_html_resource(
        PAGE,
        page_html(),
        name="chart",
        title="Chart",
        description="Interactive candles with the desk's orders and fills",
        csp=ResourceCsp(connect_domains=[], resource_domains=[], frame_domains=[], base_uri_domains=[]),
        prefers_border=True,
    )
    return apps


@cache
def page_html() -> str:
    """Return the document."""
    script = "\n".join(_part(name) for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
    page = _part("app.html")
    for mark, text in (("{{policy}}", policy), ("{{style}}", _part("app.css")), ("{{script}}", script)):
        page = page.replace(mark, text, 1)
    return page


def _part(name: str) -> str:
    return files("mcp_servers.market.chart").joinpath("page", name).read_text(encoding="utf-8")
