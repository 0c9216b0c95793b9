"""A host of MCP Apps in a real browser: the page's other end is the AppBridge that hosts are built with.

The page runs as hosts run it: in an iframe without ``allow-same-origin``, served from another origin under the content
policy that its resource asks for.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from aiohttp import web
from mcp import Client
from mcp.types import CallToolResult, TextResourceContents, Tool
from playwright.async_api import Browser, Frame, Page

from tests.browser_support import NODE_MODULES, Watched, node_package, open_page, serve_site

_IMPORTS: Final = {
    "@modelcontextprotocol/ext-apps/app-bridge": "@modelcontextprotocol/ext-apps/dist/src/app-bridge.js",
    "@modelcontextprotocol/client": "@modelcontextprotocol/client/dist/index.mjs",
    "@modelcontextprotocol/client/_shims": "@modelcontextprotocol/client/dist/shimsBrowser.mjs",
    "@modelcontextprotocol/core": "@modelcontextprotocol/core/dist/index.mjs",
    "@modelcontextprotocol/core/internal": "@modelcontextprotocol/core/dist/internal.mjs",
    "zod/v4": "zod/v4/index.js",
    "eventsource": "eventsource/dist/index.js",
    "eventsource-parser": "eventsource-parser/dist/index.js",
    "eventsource-parser/stream": "eventsource-parser/dist/stream.js",
    "pkce-challenge": "pkce-challenge/dist/index.browser.js",
}
_HOST: Final = """<!doctype html>
<html><head><meta charset="utf-8"><title>Host</title><link rel="icon" href="data:,">
<script type="importmap">{imports}</script>
<style>body { margin: 0; background: #8884 } iframe { display: block; border: 0; width: 100% }</style>
</head><body><script type="module">
import { AppBridge, PostMessageTransport } from "@modelcontextprotocol/ext-apps/app-bridge";

let seen;
window.forget = () => {
  seen = window.seen = { sizes: [], calls: [], modes: [], app: null };
  document.body.replaceChildren();
};
window.forget();

window.openApp = async ({ url, context, capabilities, input, result }) => {
  const frame = document.createElement("iframe");
  frame.name = "app";
  frame.sandbox = "allow-scripts";
  frame.height = 500;
  document.body.replaceChildren(frame);
  const info = { name: "test-host", version: "1.0.0" };
  const bridge = window.bridge = new AppBridge(null, info, capabilities, { hostContext: context });
  bridge.onsizechange = (size) => { seen.sizes.push(size); frame.height = size.height; };
  bridge.onrequestdisplaymode = async ({ mode }) => { seen.modes.push(mode); return { mode }; };
  bridge.oncalltool = async (params) => {
    seen.calls.push(params);
    const answer = await window.callServerTool(params.name, params.arguments ?? {});
    if (answer.refusal) throw new Error(answer.refusal);
    return answer;
  };
  const ready = new Promise((resolve) => { bridge.oninitialized = resolve; });
  await bridge.connect(new PostMessageTransport(frame.contentWindow, frame.contentWindow));
  frame.src = url;
  await ready;
  seen.app = { version: bridge.getAppVersion(), capabilities: bridge.getAppCapabilities() };
  if (input) await bridge.sendToolInput({ arguments: input });
  if (result) await bridge.sendToolResult(result);
};
window.opened = true;
</script></body></html>
"""


def wire(result: CallToolResult) -> dict[str, Any]:
    """Return a result as it is on the wire."""
    return result.model_dump(mode="json", by_alias=True, exclude_none=True)


def policy_of(page: TextResourceContents) -> str:
    """Return the content policy that a host must enforce for a page, after the extension's specification."""
    wanted = (page.meta or {}).get("ui", {}).get("csp", {})

    def origins(name: str, default: str) -> str:
        return " ".join(wanted.get(name) or ()) or default

    resources = origins("resourceDomains", "")
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' 'unsafe-inline' {resources}",
            f"style-src 'self' 'unsafe-inline' {resources}",
            f"img-src 'self' data: {resources}",
            f"connect-src {origins('connectDomains', chr(39) + 'none' + chr(39))}",
            f"frame-src {origins('frameDomains', chr(39) + 'none' + chr(39))}",
            f"base-uri {origins('baseUriDomains', chr(39) + 'self' + chr(39))}",
        )
    )


class AppHost:
    """The host page; one is enough for many apps and servers, see :meth:`serving`.

    Attributes:
        watched: requests and errors of the host and of the app.
        refuse: when set, the app's calls of tools fail with it as a JSON-RPC error.
    """

    def __init__(self, watched: Watched, app_url: str, tool: Tool) -> None:
        self.watched = watched
        self.refuse = ""
        self._client: Client | None = None
        self._app_url = app_url
        self._tool = tool.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def page(self) -> Page:
        """The host's own page."""
        return self.watched.page

    @property
    def frame(self) -> Frame:
        """The app."""
        frame = self.page.frame("app")
        assert frame is not None
        return frame

    @asynccontextmanager
    async def serving(self, client: Client, *, width: int = 760) -> AsyncGenerator[None]:
        """Forget what was seen, and take the tool of this client's server for the length of an ``async with`` block."""
        self._client, self.refuse = client, ""
        await self.page.evaluate("() => forget()")
        await self.page.set_viewport_size({"width": width, "height": 760})
        self.watched.requests.clear()
        self.watched.errors.clear()
        try:
            yield
        finally:
            self._client = None

    async def call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Call a tool of the server as the app asked."""
        if self.refuse or self._client is None:
            return {"refusal": self.refuse or "no server"}
        return wire(await self._client.call_tool(name, arguments))

    async def show(self, arguments: dict[str, Any], result: dict[str, Any] | None = None, **context: Any) -> None:
        """Call the tool, or take ``result`` for its answer, and open the app with it.

        Args:
            arguments: of the tool.
            result: as on the wire.
            context: of the host, such as its theme; ``capabilities`` is what the host can do.
        """
        capabilities = context.pop("capabilities", {"serverTools": {}})
        found = result or await self.call(self._tool["name"], arguments)
        host_context = {"theme": "light", "displayMode": "inline", "toolInfo": {"tool": self._tool}, **context}
        await self.page.evaluate(
            "(what) => openApp(what)",
            {
                "url": self._app_url,
                "context": host_context,
                "capabilities": capabilities,
                "input": arguments,
                "result": found,
            },
        )

    async def until(self, state: str) -> None:
        """Wait until the app says that it is in a state: ready or failed."""
        await self.frame.wait_for_selector(f"html[data-state={state}]", state="attached")

    async def seen(self) -> dict[str, Any]:
        """Return what the host has heard from the app."""
        return await self.page.evaluate("() => window.seen")


async def app_of(client: Client, tool_name: str) -> tuple[Tool, TextResourceContents]:
    """Return a tool and the page that it names, as a host finds them."""
    tool = next(item for item in (await client.list_tools()).tools if item.name == tool_name)
    page = (await client.read_resource((tool.meta or {})["ui"]["resourceUri"])).contents[0]
    assert isinstance(page, TextResourceContents)
    return tool, page


@asynccontextmanager
async def open_host(browser: Browser, tool: Tool, page: TextResourceContents) -> AsyncGenerator[AppHost]:
    """Yield a host that shows the results of a tool in its page."""
    for package in ("@modelcontextprotocol/ext-apps", "@modelcontextprotocol/client", "zod"):
        node_package(package)
    imports = json.dumps({"imports": {name: f"/npm/{path}" for name, path in _IMPORTS.items()}})

    def document(text: str, policy: str | None = None) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(_: web.Request) -> web.Response:
            headers = {} if policy is None else {"Content-Security-Policy": policy}
            return web.Response(text=text, content_type="text/html", headers=headers)

        return answer

    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(serve_site([web.get("/chart", document(page.text, policy_of(page)))]))
        site = await stack.enter_async_context(
            serve_site([web.get("/", document(_HOST.replace("{imports}", imports))), web.static("/npm", NODE_MODULES)])
        )
        watched = await stack.enter_async_context(open_page(browser))
        host = AppHost(watched, f"{app}/chart", tool)
        await watched.page.expose_function("callServerTool", host.call)
        await watched.page.goto(f"{site}/")
        await watched.page.wait_for_function("() => window.opened")
        yield host
