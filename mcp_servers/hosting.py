"""What a room needs to be an MCP server; import from here.

A room's ``server.py``::

    def build() -> DeskServer[RiskService]:
        settings = load_risk_settings()                       # reads, never connects
        server = build_server(
            "grekko-risk",
            title="Risk",
            instructions="Signs or denies orders. Ask risk_check_order first. …",
            lifespan=lambda: open_risk(settings),             # async context manager that yields RiskService
            mode=settings.desk.mode,
            authorization=load_authorization(),
        )
        register(server)
        return server

    def register(server: DeskServer[RiskService]) -> None:
        read = tool_kind(
            server, read_only=True, destructive=False, idempotent=True, open_world=False, scope="risk:read"
        )

        @read(title="Get limits")
        async def risk_get_limits(ctx: Context[RiskService], scope: str = "desk") -> Reply[Limits]:
            \"\"\"Show the limits in force. …\"\"\"
            return ok(await state(ctx).limits(scope), Meta(source="policy"))

        @tool(server, title="Request approval", read_only=False, destructive=True, idempotent=True, open_world=False,
              scope="risk:request")
        async def risk_request_approval(ctx: Context[RiskService], request_id: str, …) -> Reply[Approvals]: ...

A tool that shows a picture beside its data is annotated ``Annotated[CallToolResult, Reply[Data]]`` and returns
:func:`illustrated`. One whose result an MCP App shows is registered with ``app="ui://…"`` on a server built with
``extensions=[apps]``, the ``mcp.server.apps.Apps`` that serves that page.

Raise any ``TradingError`` in a tool; do not catch, do not build error texts. Types used in a tool's signature must be
importable names of the module (annotations are strings). A room's ``__main__.py``::

    if __name__ == "__main__":
        sys.exit(serve(build, sys.argv[1:], "risk"))

A caller::

    async with open_client(f"unix:{home.socket('risk')}", read_timeout_s=2) as risk:
        data = await call(risk, "risk_get_limits", scope="desk")      # or ToolFailure(code=…, retryable=…)

A client that times out cancels the tool's coroutine: put ``anyio.CancelScope(shield=True)`` (or a task of the room's
own) around a commit or a venue call, and let the result be found again by its id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mcp.server.mcpserver import Context

from mcp_servers.authorization import AuthorizationSettings, load_authorization
from mcp_servers.calls import LOCAL, Principal, current_principal
from mcp_servers.clients import ToolFailure, call, call_reply, failure_of, open_client
from mcp_servers.desk_server import DeskServer, build_server, state, tool
from mcp_servers.envelope import illustrated
from mcp_servers.serving import serve, serve_http, serve_socket, serve_stdio, stop_process

F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "LOCAL",
    "AuthorizationSettings",
    "Context",
    "DeskServer",
    "Principal",
    "ToolFailure",
    "build_server",
    "call",
    "call_reply",
    "current_principal",
    "failure_of",
    "illustrated",
    "load_authorization",
    "open_client",
    "serve",
    "serve_http",
    "serve_socket",
    "serve_stdio",
    "state",
    "stop_process",
    "tool",
    "tool_kind",
]


def tool_kind(
    server: DeskServer[Any], *, read_only: bool, destructive: bool, idempotent: bool, open_world: bool, scope: str
) -> Callable[..., Callable[[F], F]]:
    """Return :func:`tool` with all but the title decided, for a room with several tools of one kind."""

    def titled(*, title: str, app: str | None = None) -> Callable[[F], F]:
        return tool(
            server,
            title=title,
            read_only=read_only,
            destructive=destructive,
            idempotent=idempotent,
            open_world=open_world,
            scope=scope,
            app=app,
        )

    return titled
