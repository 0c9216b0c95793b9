"""The MCP server that every room is: the SDK's, with the desk's conventions enforced at registration and on each call.

Rules kept here:

- A tool without a title, all four hints, a scope, a docstring and an envelope as its return type is not registered.
- Arguments that no tool has are refused with the nearest name; the SDK would silently drop them.
- Every failure leaves as the JSON of ``tool_errors``; every call leaves one line in the log, without its arguments.
- Scopes and rate are checked before the tool runs, and tools a token cannot call are not listed for it.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

import orjson
from mcp.server import Server
from mcp.server.auth.provider import TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.caching import CacheHint
from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.extension import Extension
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import SubscriptionBus
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, Icon, InputRequiredResult, Resource, TextContent, Tool, ToolAnnotations
from starlette.applications import Starlette

from mcp_servers.authorization import AuthorizationSettings, principal_now
from mcp_servers.calls import Call, answering, current_call
from mcp_servers.envelope import MAX_CHARS
from mcp_servers.rate_limits import RateLimiter
from mcp_servers.tool_conventions import app_of, broken_convention, lean
from mcp_servers.tool_errors import ScopeMissing, did_you_mean, failure, is_internal, problem_of
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.domain.errors import InvalidValue, TradingError
from trading.domain.proposals import Mode
from trading.ports.clock import Clock, IdFactory

A = TypeVar("A")
F = TypeVar("F", bound=Callable[..., Any])

_SCOPE_KEY: Final = "grekko/scope"
#: Methods other than tools that show a room's content.
_GUARDED: Final = ("resources/", "prompts/", "subscriptions/", "completion/")
#: JSON-RPC error code for a refused request that is not a tool call.
_REFUSED: Final = -32003

log = logging.getLogger("grekko.mcp")


class DeskServer(MCPServer[A]):
    """A room's MCP server; made by :func:`build_server`, filled with :func:`tool`.

    Attributes:
        mode: the desk's mode, copied into every reply.
        authorization: how bearer tokens are checked on HTTP; None where none are configured.
        startup_failure: why the lifespan did not start, for whoever runs the server: uvicorn would only log it.
    """

    def __init__(
        self,
        *,
        name: str,
        title: str,
        instructions: str,
        lifespan: Callable[[], AbstractAsyncContextManager[A]],
        mode: Mode,
        version: str,
        authorization: AuthorizationSettings | None,
        limiter: RateLimiter,
        clock: Clock,
        ids: IdFactory,
        middleware: Sequence[ServerMiddleware[Any]],
        subscriptions: SubscriptionBus | None,
        extensions: Sequence[Extension],
    ) -> None:
        self.mode = mode
        self.authorization = authorization
        self._read_scope = f"{name.removeprefix('grekko-')}:read"
        self._limiter = limiter
        self._clock = clock
        self._ids = ids
        self._listing: dict[str, Tool] = {}
        self._listed_resources: list[Resource] = []
        self._scopes: dict[str, str] = {}
        self.startup_failure: Exception | None = None
        if not logging.getLogger().handlers:
            # The SDK would put a terminal handler on the root logger of a process that has none.
            logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
        super().__init__(
            name=name,
            title=title,
            instructions=instructions,
            version=version,
            lifespan=lambda _: self._noting_failure(lifespan),
            middleware=[self._answer, *middleware],
            subscriptions=subscriptions,
            extensions=extensions,
            # What a caller is shown depends on its token, so nothing between us may share it.
            cache_hints={"tools/list": CacheHint(ttl_ms=60_000, scope="private")},
        )

    @asynccontextmanager
    async def _noting_failure(self, lifespan: Callable[[], AbstractAsyncContextManager[A]]) -> AsyncGenerator[A]:
        async with AsyncExitStack() as stack:
            try:
                found = await stack.enter_async_context(lifespan())
            except Exception as error:
                self.startup_failure = error
                raise
            yield found

    # ---- registration

    def add_tool(
        self,
        fn: Callable[..., Any],
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        annotations: ToolAnnotations | None = None,
        icons: list[Icon] | None = None,
        meta: dict[str, Any] | None = None,
        structured_output: bool | None = None,
    ) -> None:
        """Register a tool that keeps the desk's conventions; rooms use :func:`tool`.

        Raises:
            TypeError: it breaks one; the message names the tool and the convention.
        """
        found = name or fn.__name__
        text = inspect.cleandoc(description or fn.__doc__ or "")
        scope = str((meta or {}).get(_SCOPE_KEY, ""))
        problem = broken_convention(fn, found, title, text, annotations, scope)
        page = app_of(meta)
        if not problem and page and all(page != item.uri for item in self._resource_manager.list_resources()):
            problem = f"give build_server the extension that serves {page}"
        if problem or found in self._scopes:
            raise TypeError(f"tool {found}: {problem or 'registered twice'}")
        super().add_tool(fn, found, title, text, annotations, icons, meta, structured_output)
        self._scopes[found] = scope
        self._listing.clear()

    async def list_tools(self) -> list[Tool]:
        """Return the tools that the current principal may call, with schemas free of what a model does not need."""
        if not self._listing:
            self._listing.update({item.name: lean(item) for item in await super().list_tools()})
        principal = principal_now()
        return [item for item in self._listing.values() if principal.may(self._scopes[item.name])]

    @property
    def scopes(self) -> tuple[str, ...]:
        """Return every scope a tool of this server asks for, sorted."""
        return tuple(sorted(set(self._scopes.values())))

    @property
    def protocol(self) -> Server[A]:
        """The SDK's protocol layer, for requests that its tool layer does not serve (see ``desk_resources``)."""
        return self._lowlevel_server

    async def list_resources(self) -> list[Resource]:
        """Return the resources to be found without knowing a template."""
        return [*await super().list_resources(), *self._listed_resources]

    def list_resource(self, resource: Resource) -> None:
        """Show one address of a resource template in the list of resources."""
        self._listed_resources.append(resource)

    # ---- one call

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[A, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Run a tool; every failure but a protocol error comes back as its JSON."""
        try:
            await self._check_arguments(name, arguments)
            result = await super().call_tool(name, arguments, context)
        except MCPError:
            raise
        except TradingError as error:
            return self._failed(name, error)
        except ToolError as error:
            return self._failed(name, error.__cause__ or error)
        return _compact(name, result)

    async def _check_arguments(self, name: str, arguments: dict[str, Any]) -> None:
        offered = await self.list_tools()
        if name not in self._scopes:
            near = did_you_mean(name, [item.name for item in offered])
            raise InvalidValue("there is no such tool", code="UNKNOWN_TOOL", allowed=near)
        known = self._listing[name].input_schema.get("properties", {})
        for argument in arguments:
            if argument not in known:
                near = did_you_mean(argument, known)
                raise InvalidValue(
                    f"{argument[:40]} is not an argument of {name}",
                    code="INVALID_ARGUMENTS",
                    suggestion=f"did you mean {near[0]}?" if near else "leave it out",
                    allowed=near or tuple(known),
                )

    def _failed(self, name: str, error: BaseException) -> CallToolResult:
        call = current_call()
        problem = problem_of(error, trace_id=call.trace_id if call else None)
        if is_internal(error):
            log.error("tool %s failed, trace %s", name, problem.trace_id, exc_info=error)
        return failure(problem)

    async def _answer(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Middleware: name the call, check its rate and scope, and leave one line about it."""
        if ctx.request_id is None:
            return await call_next(ctx)
        call = Call(trace_id=self._ids.new_id(), principal=principal_now(), mode=self.mode)
        started = self._clock.monotonic_ns()
        name = str((ctx.params or {}).get("name", ""))[:64] if ctx.method == "tools/call" else ""
        outcome = "failed"
        with answering(call):
            try:
                self._admit(call, ctx.method, name)
                result = await call_next(ctx)
                outcome = "refused" if _is_error(result) else "ok"
                return result
            except (TradingError, MCPError) as error:
                outcome = "refused"
                if isinstance(error, MCPError):
                    raise
                problem = problem_of(error, trace_id=call.trace_id)
                if name:
                    return failure(problem)
                raise MCPError(_REFUSED, problem.message, {"code": problem.code}) from error
            finally:
                if name:
                    micros = (self._clock.monotonic_ns() - started) // 1_000
                    log.info(
                        "call tool=%r principal=%r outcome=%s us=%d trace=%s",
                        name,
                        call.principal.name,
                        outcome,
                        micros,
                        call.trace_id,
                    )

    def _admit(self, call: Call, method: str, name: str) -> None:
        self._limiter.take(call.principal.name)
        # A room's resources and prompts show what its reading tools show, so they ask for the same scope.
        scope = self._scopes.get(name) if name else self._read_scope if method.startswith(_GUARDED) else None
        if scope is not None and not call.principal.may(scope):
            raise ScopeMissing(
                f"{name or method} needs the scope {scope}",
                suggestion="ask whoever runs the desk for a token with that scope",
            )

    # ---- transports

    async def run_stdio_async(self) -> None:
        """Serve standard input and output until the input ends."""
        async with stdio_server() as (read, write):
            await self.run_streams(read, write)

    async def run_streams(self, read: Any, write: Any) -> None:
        """Serve one pair of message streams; the room's lifespan spans this call."""
        server = self._lowlevel_server
        await server.run(read, write, server.create_initialization_options())

    def http_app(
        self,
        *,
        security: TransportSecuritySettings,
        auth: AuthSettings | None = None,
        token_verifier: TokenVerifier | None = None,
    ) -> Starlette:
        """Return the ASGI application with the protocol at ``/mcp``; its lifespan is the room's.

        Args:
            security: Host and Origin checks; explicit, because the SDK turns them off for unknown hosts.
            auth: with ``token_verifier``, makes a bearer token mandatory.
        """
        return self._lowlevel_server.streamable_http_app(
            transport_security=security,
            auth=auth,
            token_verifier=token_verifier,
            custom_starlette_routes=self._custom_starlette_routes,
        )


def build_server(
    name: str,
    *,
    title: str,
    instructions: str,
    lifespan: Callable[[], AbstractAsyncContextManager[A]],
    mode: Mode,
    version: str = "0.1.0",
    authorization: AuthorizationSettings | None = None,
    requests_per_s: float = 500.0,
    burst: int = 1_000,
    clock: Clock | None = None,
    ids: IdFactory | None = None,
    middleware: Sequence[ServerMiddleware[Any]] = (),
    subscriptions: SubscriptionBus | None = None,
    extensions: Sequence[Extension] = (),
) -> DeskServer[A]:
    """Return a room's server, without tools.

    Args:
        name: ``grekko-<room>``; resources and prompts need the scope ``<room>:read``.
        title: for people.
        instructions: what the model reads first: what the room does, what to call first, what it will not do.
        lifespan: makes the room's state once per process; what it yields is :func:`state` in a tool.
        mode: the desk's mode.
        version: the release that serves.
        authorization: how tokens are checked on HTTP.
        requests_per_s: requests that one principal may make in the long run.
        burst: requests at once before that holds.
        clock, ids: the machine's unless a test says otherwise.
        middleware: the room's own, inside ours.
        subscriptions: where resource cues are published.
        extensions: of the protocol; ``Apps`` with the pages that tools name as their ``app``.
    """
    found_clock = clock or SystemClock()
    return DeskServer(
        name=name,
        title=title,
        instructions=inspect.cleandoc(instructions),
        lifespan=lifespan,
        mode=mode,
        version=version,
        authorization=authorization,
        limiter=RateLimiter(found_clock, per_s=requests_per_s, burst=burst),
        clock=found_clock,
        ids=ids or Uuid7Factory(),
        middleware=middleware,
        subscriptions=subscriptions,
        extensions=extensions,
    )


def tool(
    server: DeskServer[Any],
    *,
    title: str,
    read_only: bool,
    destructive: bool,
    idempotent: bool,
    open_world: bool,
    scope: str,
    app: str | None = None,
) -> Callable[[F], F]:
    """Register an ``async def`` as a tool of ``server``; its docstring is the description the model reads.

    Args:
        server: made by :func:`build_server`.
        title: two to four words for a person.
        read_only: it changes nothing.
        destructive: it may spend, cancel or stop something.
        idempotent: the same call twice is the same as once.
        open_world: it reaches beyond the desk (an exchange, a node, the web).
        scope: ``<room>:<verb>``, what a token must hold, for example ``market:read``.
        app: ``ui://`` address of the page that shows its result, in hosts that can.
    """

    def register(fn: F) -> F:
        hints = ToolAnnotations(
            title=title,
            read_only_hint=read_only,
            destructive_hint=destructive,
            idempotent_hint=idempotent,
            open_world_hint=open_world,
        )
        shown = {} if app is None else {"ui": {"resourceUri": app}}
        server.add_tool(fn, title=title, annotations=hints, meta={_SCOPE_KEY: scope, **shown})
        return fn

    return register


def state(ctx: Context[A, Any]) -> A:
    """Return what the server's lifespan yielded, inside a tool that takes ``ctx: Context[State]``."""
    return ctx.request_context.lifespan_context


def _is_error(result: HandlerResult) -> bool:
    """Return whether a tool's result, already serialized by the SDK, is an error."""
    return bool(result.get("isError")) if isinstance(result, dict) else getattr(result, "is_error", False)


def _compact(name: str, result: CallToolResult | InputRequiredResult) -> CallToolResult | InputRequiredResult:
    """Replace the SDK's indented copy of the data by compact JSON: the same facts in fewer tokens; pictures stay."""
    if not isinstance(result, CallToolResult) or result.is_error or result.structured_content is None:
        return result
    text = orjson.dumps(result.structured_content).decode()
    if len(text) > MAX_CHARS:
        # Cutting here could hide an order's receipt, so the room must page; say so where it is seen.
        log.warning("tool %s answered %d characters, more than %d", name, len(text), MAX_CHARS)
    added = [block for block in result.content if not isinstance(block, TextContent)]
    return result.model_copy(update={"content": [TextContent(type="text", text=text), *added]})
