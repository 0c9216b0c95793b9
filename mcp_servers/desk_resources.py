"""Resources that say when they changed, in both protocol eras, and completions that know the room's state.

A client of 2026-07-28 opens a ``subscriptions/listen`` stream, which the SDK serves from the bus. A client of an
earlier revision sends ``resources/subscribe``, which the SDK leaves to us. Both are cues without content: the client
reads the resource when it wants to.

Rules kept here:

- Cues are coalesced: a connection that is slow to take them gets one per resource, never a queue of them.
- What a connection subscribed to ends with the connection, and is bounded.
- A failure to read a resource carries the code and suggestion of our own error, as a tool's failure does.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, ParamSpec, TypeVar

from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourceUpdated, ServerEvent
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CompleteRequestParams,
    CompleteResult,
    Completion,
    EmptyResult,
    ResourceUpdatedNotification,
    ResourceUpdatedNotificationParams,
    SubscribeRequestParams,
    UnsubscribeRequestParams,
)

from mcp_servers.desk_server import DeskServer
from mcp_servers.tool_errors import problem_of
from trading.domain.errors import TradingError, UnknownInstrument

P = ParamSpec("P")
T = TypeVar("T")

#: Resources that one connection may follow.
MAX_FOLLOWED: Final = 200
#: Values that one completion answers; the protocol allows no more.
MAX_COMPLETIONS: Final = 100
_STATE_KEY: Final = "grekko/followed"
_UNREADABLE: Final = -32004

Complete = Callable[[Any, str, str, dict[str, str]], Sequence[str]]


class ResourceBus(InMemorySubscriptionBus):
    """The SDK's bus, which also knows whether anybody listens, so that cues nobody wants are not made."""

    def __init__(self) -> None:
        super().__init__()
        self._open = 0

    @property
    def has_listeners(self) -> bool:
        """Whether a stream or a connection waits for cues."""
        return self._open > 0

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Register a listener and return what ends it; calling that twice is harmless."""
        end, ended = super().subscribe(listener), False
        self._open += 1

        def unsubscribe() -> None:
            nonlocal ended
            if not ended:
                ended = True
                self._open -= 1
                end()

        return unsubscribe


class _Followed:
    """What one connection of an earlier protocol revision follows."""

    def __init__(self, connection: Connection, bus: ResourceBus) -> None:
        self._connection = connection
        self._changed: dict[str, None] = {}
        self._sender: asyncio.Task[None] | None = None
        self.uris: set[str] = set()
        connection.exit_stack.push_async_callback(self._end, bus.subscribe(self._hear))

    def _hear(self, event: ServerEvent) -> None:
        if isinstance(event, ResourceUpdated) and event.uri in self.uris:
            self._changed[event.uri] = None
            if self._sender is None or self._sender.done():
                self._sender = asyncio.create_task(self._send(), name="resource-cues")

    async def _send(self) -> None:
        while self._changed:
            uri = next(iter(self._changed))
            del self._changed[uri]
            note = ResourceUpdatedNotification(params=ResourceUpdatedNotificationParams(uri=uri))
            data = note.model_dump(by_alias=True, mode="json", exclude_none=True)
            await self._connection.notify(data["method"], data.get("params"))

    async def _end(self, unsubscribe: Callable[[], None]) -> None:
        unsubscribe()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])


def serve_subscriptions(server: DeskServer[Any], bus: ResourceBus, *, may_follow: Callable[[str], bool]) -> None:
    """Serve ``resources/subscribe`` and ``resources/unsubscribe`` from the bus.

    Args:
        server: made with ``subscriptions=bus``.
        bus: where the room publishes ``ResourceUpdated``.
        may_follow: whether an address is one of this server's changing resources.
    """

    async def subscribe(ctx: ServerRequestContext[Any, Any], params: SubscribeRequestParams) -> EmptyResult:
        if not may_follow(params.uri):
            raise MCPError(INVALID_PARAMS, "there is no such resource to follow", {"uri": params.uri[:200]})
        followed = _followed(ctx, bus)
        if len(followed.uris) >= MAX_FOLLOWED and params.uri not in followed.uris:
            raise MCPError(INVALID_PARAMS, f"a connection may follow {MAX_FOLLOWED} resources", {"max": MAX_FOLLOWED})
        followed.uris.add(params.uri)
        return EmptyResult()

    async def unsubscribe(ctx: ServerRequestContext[Any, Any], params: UnsubscribeRequestParams) -> EmptyResult:
        _followed(ctx, bus).uris.discard(params.uri)
        return EmptyResult()

    server.protocol.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)
    server.protocol.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, unsubscribe)


def _followed(ctx: ServerRequestContext[Any, Any], bus: ResourceBus) -> _Followed:
    # The SDK hands each request a session of its own; only the connection behind it lasts.
    connection = ctx.session._connection  # pyright: ignore[reportPrivateUsage]
    known = connection.state.get(_STATE_KEY)
    if not isinstance(known, _Followed):
        known = connection.state[_STATE_KEY] = _Followed(connection, bus)
    return known


def serve_completions(server: DeskServer[Any], complete: Complete) -> None:
    """Serve ``completion/complete``.

    Args:
        server: the room's.
        complete: given the room's state, the argument's name, what was typed so far and the arguments already chosen,
            returns values, best first.
    """

    async def handle(ctx: ServerRequestContext[Any, Any], params: CompleteRequestParams) -> CompleteResult:
        chosen = dict(params.context.arguments or {}) if params.context is not None else {}
        values = list(complete(ctx.lifespan_context, params.argument.name, params.argument.value, chosen))
        shown = values[:MAX_COMPLETIONS]
        return CompleteResult(completion=Completion(values=shown, total=len(values), has_more=len(shown) < len(values)))

    server.protocol.add_request_handler("completion/complete", CompleteRequestParams, handle)


def readable(read: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Let a resource's function fail with our errors: unknown things are "not found", the rest says code and advice."""

    @functools.wraps(read)
    async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await read(*args, **kwargs)
        except UnknownInstrument as error:
            raise ResourceNotFoundError(f"{error} ({error.suggestion})") from error
        except TradingError as error:
            problem = problem_of(error, trace_id=None)
            advice = {"code": problem.code, "suggestion": problem.suggestion, "allowed": list(problem.allowed[:20])}
            raise MCPError(_UNREADABLE, problem.message, advice) from error

    return wrapped
