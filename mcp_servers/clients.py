"""Reach a server: one way to connect over every transport, and one to call a tool and get its data or its error.

::

    async with open_client(f"unix:{home.socket('risk')}") as risk:
        data = await call(risk, "risk_get_status")

Rules kept here:

- A failed tool is a :class:`ToolFailure` with the server's own code and advice; it is never a dictionary.
- A transport that fails mid-call is OutcomeUnknown to the caller: the tool may have run.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import anyio
import httpx2
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.caching import CacheConfig
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolResult, TextContent
from pydantic import SecretStr

from trading.domain.errors import InvalidValue, OutcomeUnknown, TradingError, Unavailable

#: Seconds to wait for one answer unless the caller says otherwise.
READ_TIMEOUT_S: Final = 30.0
_CONNECT_TIMEOUT_S: Final = 5.0
#: Seconds of silence after which a connection counts as dead.
_IDLE_TIMEOUT_S: Final = 300.0
#: Written into requests over a unix socket, where no name is ever looked up.
_UNIX_URL: Final = "http://localhost/mcp"

Target = str | Sequence[str] | MCPServer[Any]


class ToolFailure(TradingError):
    """A tool answered with an error; what the server said is kept.

    Attributes:
        tool: which one.
        retryable: ``no``, ``after_ms`` or ``only_after_reconcile``.
        after_ms: how long to wait, with ``after_ms``.
        trace_id: names the call in the server's log.
    """

    def __init__(
        self,
        tool: str,
        message: str,
        *,
        code: str,
        retryable: str = "no",
        after_ms: int | None = None,
        suggestion: str = "",
        allowed: tuple[str, ...] = (),
        trace_id: str | None = None,
    ) -> None:
        super().__init__(message, code=code, suggestion=suggestion, allowed=allowed)
        self.tool = tool
        self.retryable = retryable
        self.after_ms = after_ms
        self.trace_id = trace_id


@asynccontextmanager
async def open_client(
    target: Target,
    mode: str = "auto",
    *,
    read_timeout_s: float = READ_TIMEOUT_S,
    token: SecretStr | None = None,
    env: dict[str, str] | None = None,
) -> AsyncGenerator[Client]:
    """Connect to a server for the length of an ``async with`` block.

    Args:
        target: ``unix:/path`` or ``http(s)://host:port/mcp``, the command line of a server to start on standard
            input and output, or a server object in this process.
        mode: ``auto`` (newest protocol both sides know), ``legacy`` (2025-11-25) or a revision's date.
        read_timeout_s: seconds to wait for one answer; the server's coroutine is cancelled when it passes.
        token: bearer token, for HTTP.
        env: variables for a started command, beyond the few that are always passed on.

    Raises:
        InvalidValue: the target has none of these forms.
        Unavailable: nothing answers there.
    """
    connected = False
    try:
        async with _connected(target, mode, read_timeout_s, token, env) as client:
            connected = True
            yield client
    except BaseExceptionGroup as group:
        # The SDK's task groups wrap whatever the block raised; its caller wants the exception itself.
        leaf = only_leaf(group)
        if not connected and isinstance(leaf, OSError | httpx2.HTTPError | MCPError):
            raise _unreachable(leaf) from group
        if leaf is None:
            raise
        raise leaf from leaf.__cause__
    except (OSError, httpx2.HTTPError, MCPError) as error:
        if connected:
            raise
        raise _unreachable(error) from error


def only_leaf(error: BaseException) -> BaseException | None:
    """Return the one failure inside nested groups, the error itself if it is no group, None if there are several."""
    while isinstance(error, BaseExceptionGroup):
        inner = cast("BaseExceptionGroup[BaseException]", error).exceptions
        if len(inner) != 1:
            return None
        error = inner[0]
    return error


def _unreachable(error: BaseException) -> Unavailable:
    return Unavailable(f"the server cannot be reached ({type(error).__name__})", suggestion="start it, then try again")


@asynccontextmanager
async def _connected(
    target: Target, mode: str, read_timeout_s: float, token: SecretStr | None, env: dict[str, str] | None
) -> AsyncGenerator[Client]:
    if isinstance(target, MCPServer):
        async with _client(target, mode, read_timeout_s) as client:
            yield client
    elif not isinstance(target, str):
        command, *args = target
        async with _client(StdioServerParameters(command=command, args=args, env=env), mode, read_timeout_s) as client:
            yield client
    else:
        url, transport = _address(target)
        headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
        # The protocol's own timeout must come first: it cancels one call, httpx2's would tear down the connection.
        timeout = httpx2.Timeout(_CONNECT_TIMEOUT_S, read=max(_IDLE_TIMEOUT_S, 2 * read_timeout_s))
        async with (
            # The environment's proxies must not see a desk's calls.
            httpx2.AsyncClient(transport=transport, headers=headers, timeout=timeout, trust_env=False) as http,
            _client(streamable_http_client(url, http_client=http), mode, read_timeout_s) as client,
        ):
            yield client


def _client(server: Any, mode: str, read_timeout_s: float) -> Client:
    return Client(server, mode=mode, read_timeout_seconds=read_timeout_s, cache=CacheConfig())


def _address(target: str) -> tuple[str, httpx2.AsyncHTTPTransport | None]:
    if target.startswith("unix:"):
        return _UNIX_URL, httpx2.AsyncHTTPTransport(uds=target.removeprefix("unix:"))
    if target.startswith(("http://", "https://")):
        return target, None
    raise InvalidValue("a target is unix:/path, http(s)://host:port/mcp, a command or a server", code="INVALID_TARGET")


async def call(client: Client, tool: str, /, **arguments: Any) -> dict[str, Any]:
    """Call a tool and return the ``data`` of its reply.

    Arguments that are None are left out, so that a server's own default holds.

    Raises:
        ToolFailure: the tool answered with an error.
        OutcomeUnknown: no answer came back; the tool may have run.
    """
    reply = await call_reply(client, tool, **arguments)
    return cast("dict[str, Any]", reply["data"])


async def call_reply(client: Client, tool: str, /, **arguments: Any) -> dict[str, Any]:
    """Call a tool and return its whole reply, ``{ok, data, meta}``.

    Raises:
        ToolFailure: the tool answered with an error.
        OutcomeUnknown: no answer came back; the tool may have run.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        result = await client.call_tool(tool, given)
    except MCPError as error:
        raise _unanswered(tool, error) from error
    except (OSError, httpx2.HTTPError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
        raise OutcomeUnknown(f"{tool}: the connection failed ({type(error).__name__})", code="NO_ANSWER") from error
    if result.is_error:
        raise failure_of(tool, result)
    if result.structured_content is None or "data" not in result.structured_content:
        raise ToolFailure(tool, "the server answered without a reply envelope", code="BAD_REPLY")
    return result.structured_content


def failure_of(tool: str, result: CallToolResult) -> ToolFailure:
    """Return the failure that an error result spells."""
    text = next((block.text for block in result.content if isinstance(block, TextContent)), "")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "code" not in found:
        return ToolFailure(tool, text or "the tool failed", code="TOOL_ERROR")
    problem = cast("dict[str, Any]", found)
    return ToolFailure(
        tool,
        str(problem.get("message", "")),
        code=str(problem["code"]),
        retryable=str(problem.get("retryable", "no")),
        after_ms=problem.get("after_ms"),
        suggestion=str(problem.get("suggestion", "")),
        allowed=tuple(map(str, problem.get("allowed", ()))),
        trace_id=problem.get("trace_id"),
    )


#: JSON-RPC codes that say for certain that the request was not carried out.
_NOT_DONE: Final = frozenset({-32700, -32600, -32601, -32602, -32003, -32020})


def _unanswered(tool: str, error: MCPError) -> TradingError:
    if error.code in _NOT_DONE:
        return ToolFailure(tool, error.message, code="PROTOCOL_ERROR")
    return OutcomeUnknown(f"{tool}: {error.message}", code="NO_ANSWER", suggestion="read the state, then ask again")
