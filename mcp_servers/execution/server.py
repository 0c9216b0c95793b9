"""The execution server and its tools."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from mcp_servers.envelope import DEFAULT_ROWS, Meta, PositiveDecimalText, Reply, fit, ok, parse_since, timestamp
from mcp_servers.execution import answers, schemas
from mcp_servers.execution.bootstrap import ExecutionRoom, open_execution
from mcp_servers.execution.protection.tightening import Wish
from mcp_servers.execution.routing import RouteRequest
from mcp_servers.execution.settings import check_allowed, load_execution_settings
from mcp_servers.execution.submission import BATCH_MAX
from mcp_servers.execution.walks import Refusal
from mcp_servers.hosting import (
    Context,
    DeskServer,
    build_server,
    current_principal,
    load_authorization,
    tool,
    tool_kind,
)
from mcp_servers.hosting import state as lifespan_state
from trading.adapters.config import load_settings
from trading.domain.errors import InvalidValue
from trading.domain.identifiers import Venue, parse_symbol
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.orders import TERMINAL, OrderStatus
from trading.domain.proposals import REASON_MAX, OrderType, TimeInForce
from trading.domain.sizing import SizeUnit

_INSTRUCTIONS: Final = """
    The only server of this desk that can trade, and only what risk has signed.
    Walk: execution_plan_route, then risk_request_approval, then execution_submit_order with the approval_id.
    Submitting the same approval again is safe: it gives the same order. An order in state unknown may be at the venue:
    call execution_reconcile, never ask for it a second time.
    Prices and amounts are decimal strings; symbols are spot, BASE/QUOTE such as BTC/USDT.
"""

Id = Annotated[str, Field(min_length=1, max_length=64)]
Symbol = Annotated[str, Field(min_length=1, max_length=41)]
Name = Annotated[str | None, Field(max_length=64)]
Cursor = Annotated[str, Field(max_length=64)]
StateText = Literal[
    "open", "closed", "unknown", "filled", "canceled", "rejected", "expired", "not_sent", "absent", "all"
]

_GROUPS: Final[dict[str, list[OrderStatus] | None]] = {
    "all": None,
    "open": [status for status in OrderStatus if status not in TERMINAL],
    "closed": [status for status in OrderStatus if status in TERMINAL],
}


def build() -> DeskServer[ExecutionRoom]:
    """Read the settings and return the server; nothing is connected before its lifespan.

    Raises:
        ConfigurationError: the configuration refuses to start.
    """
    desk, settings = load_settings(), load_execution_settings()
    check_allowed(desk)
    server: DeskServer[ExecutionRoom] = build_server(
        "grekko-execution",
        title="Execution",
        instructions=_INSTRUCTIONS,
        lifespan=lambda: open_execution(desk, settings),
        mode=desk.mode,
        authorization=load_authorization(),
    )
    register(server)
    return server


def register(server: DeskServer[ExecutionRoom]) -> None:
    """Add the execution tools to a server."""
    _register_trading(server)
    _register_cancels(server)
    _register_stops(server)
    _register_orders(server)
    _register_state(server)


def _room(ctx: Context[ExecutionRoom]) -> ExecutionRoom:
    return lifespan_state(ctx)


def _meta(room: ExecutionRoom, **fields: object) -> Meta:
    service = room.service
    as_of = timestamp(service.clock.now_ms())
    return Meta(venue=service.rules.venue, as_of=as_of, source="execution ledger").model_copy(update=fields)


def _check_account(room: ExecutionRoom, account: str | None) -> None:
    if account is not None and account != room.desk.account_id:
        raise InvalidValue(
            "this server trades another account", code="UNKNOWN_ACCOUNT", allowed=(str(room.desk.account_id),)
        )


def _register_trading(server: DeskServer[ExecutionRoom]) -> None:
    read = tool_kind(
        server, read_only=True, destructive=False, idempotent=True, open_world=False, scope="execution:read"
    )
    trade = tool_kind(
        server, read_only=False, destructive=True, idempotent=True, open_world=True, scope="execution:trade"
    )

    @read(title="Plan route")
    async def execution_plan_route(
        ctx: Context[ExecutionRoom],
        symbol: Symbol,
        side: Side,
        type: OrderType,  # noqa: A002 - the argument's name on every server
        amount: PositiveDecimalText,
        unit: SizeUnit = SizeUnit.BASE,
        limit_price: PositiveDecimalText | None = None,
        stop_price: PositiveDecimalText | None = None,
        time_in_force: TimeInForce = TimeInForce.GTC,
        post_only: bool = False,
        reduce_only: bool = False,
        venue: Name = None,
        account: Name = None,
        agent_id: Name = None,  # noqa: ARG001 - part of every order's arguments; routing does not depend on it
        reason: Annotated[str, Field(max_length=REASON_MAX)] = "",  # noqa: ARG001
    ) -> Reply[schemas.Route]:
        """Turn a wish into child orders with venue, base size, expected price, fee and slippage. Reserves nothing.

        Pass each child to risk_request_approval. Example: symbol BTC/USDT, side buy, type limit, amount "250",
        unit quote, limit_price "60000".
        """
        room = _room(ctx)
        _check_account(room, account)
        request = RouteRequest(
            order_type=type,
            side=side,
            amount=amount,
            unit=unit,
            limit_price=limit_price,
            stop_price=stop_price,
            time_in_force=time_in_force,
            post_only=post_only,
            reduce_only=reduce_only,
        )
        name = InstrumentId(Venue(venue or room.desk.venue), parse_symbol(symbol))
        child = room.service.inquiries.plan(request, name)
        return ok(schemas.Route(orders=[answers.child(child)]), _meta(room, source="order book"))

    @trade(title="Submit order")
    async def execution_submit_order(ctx: Context[ExecutionRoom], approval_id: Id) -> Reply[schemas.Receipt]:
        """Send the one order that an approval allows, once. The approval comes from risk_request_approval.

        Repeat it freely: the same approval gives the same order. In state unknown call execution_reconcile.
        """
        room = _room(ctx)
        outcome = (await room.service.submit([approval_id]))[0]
        if isinstance(outcome, Refusal):
            raise outcome.error
        return ok(answers.receipt(outcome.order), _meta(room))

    @trade(title="Submit orders")
    async def execution_submit_orders(
        ctx: Context[ExecutionRoom],
        approval_ids: Annotated[list[Id], Field(min_length=1, max_length=BATCH_MAX)],
        cursor: Cursor = "",
    ) -> Reply[schemas.Batch]:
        """Send up to 256 approved orders together, each once. Failures are listed; the others are sent all the same.

        Repeat with the returned cursor to see more of the orders; nothing is sent twice.
        """
        room = _room(ctx)
        data, following = answers.batch(await room.service.submit(approval_ids), cursor)
        return ok(data, _meta(room, truncated=following is not None, next_cursor=following))


def _register_cancels(server: DeskServer[ExecutionRoom]) -> None:
    @tool(
        server,
        title="Cancel order",
        read_only=False,
        destructive=True,
        idempotent=True,
        open_world=True,
        scope="execution:cancel",
    )
    async def execution_cancel_order(
        ctx: Context[ExecutionRoom],
        id: Id,  # noqa: A002 - the argument's name on every server
    ) -> Reply[schemas.Receipt]:
        """Cancel a working order; the answer is what the venue confirmed. It may have filled first.

        Needs no approval, except for a reduce-only order of an open position (CANCEL_NEEDS_APPROVAL).
        """
        room = _room(ctx)
        order = await room.service.cancel(id, by=current_principal().name)
        return ok(answers.receipt(order), _meta(room))

    @tool(
        server,
        title="Cancel all orders",
        read_only=False,
        destructive=True,
        idempotent=True,
        open_world=True,
        scope="execution:cancel",
    )
    async def execution_cancel_all(ctx: Context[ExecutionRoom], scope: Symbol = "all") -> Reply[schemas.Canceled]:
        """Cancel every working order, or those of one symbol. Exits of open positions are kept and listed.

        scope is "all" or a symbol such as BTC/USDT. If `remaining` is not empty, call again.
        """
        room = _room(ctx)
        symbol = None if scope == "all" else parse_symbol(scope)
        found = await room.service.cancel_all(by=current_principal().name, symbol=symbol)
        return ok(answers.canceled(found), _meta(room))


def _register_stops(server: DeskServer[ExecutionRoom]) -> None:
    @tool(
        server,
        title="Set stop",
        read_only=False,
        destructive=False,
        idempotent=True,
        open_world=True,
        scope="execution:cancel",
    )
    async def execution_set_stop(
        ctx: Context[ExecutionRoom],
        symbol: Symbol,
        stop_price: PositiveDecimalText | None = None,
        trailing_bps: PositiveDecimalText | None = None,
        hold_max_s: Annotated[int | None, Field(ge=1, le=31_536_000)] = None,
    ) -> Reply[schemas.StopRow]:
        """Bring the stop of an open position nearer; it never moves away again. Needs no approval.

        hold_max_s counts from the entry. A looser stop is refused (PROTECTION_LOOSENED) with the one that holds.
        Example: symbol BTC/USDT, stop_price "59000".
        """
        room = _room(ctx)
        name = InstrumentId(room.desk.venue, parse_symbol(symbol))
        wish = Wish(stop_price=stop_price, trailing_bps=trailing_bps, hold_max_s=hold_max_s)
        await room.service.stop_loss.tighten(name, wish)
        return ok(answers.stop(room.service, name), _meta(room))


async def _detail(room: ExecutionRoom, name: str) -> schemas.OrderDetail:
    order = await room.service.inquiries.find_order(name)
    rows = await room.service.parts.ledger.rows("fills", {"order_id": order.order_id})
    fills = sorted((answers.fill(row) for row in rows), key=lambda each: (each.venue_ts_ms, each.trade_id))
    return schemas.OrderDetail(order=answers.order(order), fills=fills[:30])


def _register_orders(server: DeskServer[ExecutionRoom]) -> None:
    read = tool_kind(
        server, read_only=True, destructive=False, idempotent=True, open_world=False, scope="execution:read"
    )

    @read(title="Get order")
    async def execution_get_order(
        ctx: Context[ExecutionRoom],
        id: Id,  # noqa: A002 - the argument's name on every server
    ) -> Reply[schemas.OrderDetail]:
        """Show one order with its state, fills, fees and reason. id: order, client order or approval id."""
        room = _room(ctx)
        return ok(await _detail(room, id), _meta(room))

    @read(title="List orders")
    async def execution_list_orders(
        ctx: Context[ExecutionRoom],
        state: StateText = "open",
        symbol: Annotated[str | None, Field(max_length=41)] = None,
        since: Annotated[str | None, Field(max_length=40)] = None,
        cursor: Cursor = "",
        limit: Annotated[int, Field(ge=1, le=DEFAULT_ROWS)] = 10,
    ) -> Reply[schemas.Orders]:
        """List orders, newest first. since: "1h", "5d" or a time with offset. state: open unless said otherwise."""
        room = _room(ctx)
        service = room.service
        found = await service.inquiries.list_orders(
            statuses=_GROUPS[state] if state in _GROUPS else [OrderStatus(state)],
            symbol=None if symbol is None else parse_symbol(symbol),
            since_ms=0 if since is None else parse_since(since, now_ms=service.clock.now_ms()),
            before=cursor,
            limit=limit + 1,
        )
        page = fit([answers.order(each) for each in found], cursor_of=lambda row: row.order_id, limit=limit)
        return ok(schemas.Orders(orders=page.rows), _meta(room, **page.meta))


def _register_state(server: DeskServer[ExecutionRoom]) -> None:
    read = tool_kind(
        server, read_only=True, destructive=False, idempotent=True, open_world=False, scope="execution:read"
    )

    @read(title="Get account")
    async def execution_get_account(ctx: Context[ExecutionRoom], account: Name = None) -> Reply[schemas.Account]:
        """Show balances, positions, profit and loss, and the stop that protects each position."""
        room = _room(ctx)
        _check_account(room, account)
        return ok(answers.account(room.service), _meta(room))

    @read(title="Get fees")
    async def execution_get_fees(ctx: Context[ExecutionRoom]) -> Reply[schemas.Fees]:
        """Show maker and taker rates by symbol, where they come from, and what was really paid lately."""
        room = _room(ctx)
        return ok(answers.fees(room.service), _meta(room))

    @tool(
        server,
        title="Reconcile",
        read_only=False,
        destructive=False,
        idempotent=True,
        open_world=True,
        scope="execution:reconcile",
    )
    async def execution_reconcile(ctx: Context[ExecutionRoom]) -> Reply[schemas.Reconciled]:
        """Compare ledger and venue now: orders, trades, balances. Resolves unknown orders; sends and cancels none."""
        room = _room(ctx)
        return ok(answers.reconciled(await room.service.reconcile()), _meta(room))

    @read(title="Get metrics")
    async def execution_get_metrics(ctx: Context[ExecutionRoom]) -> Reply[schemas.MetricsData]:
        """Show latency percentiles of each submit stage and counts of outcomes since the start."""
        room = _room(ctx)
        return ok(answers.metrics(room.service), _meta(room, source="this process"))

    @read(title="Get status")
    async def execution_get_status(ctx: Context[ExecutionRoom]) -> Reply[schemas.Status]:
        """Show whether new orders would be taken now and why not, unresolved orders and data ages."""
        room = _room(ctx)
        return ok(await answers.status(room.service), _meta(room))
