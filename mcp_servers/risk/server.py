"""The risk server and its tools."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

from pydantic import Field

from mcp_servers.desk_resources import ResourceBus, serve_completions, serve_subscriptions
from mcp_servers.envelope import DEFAULT_ROWS, Meta, PositiveDecimalText, Reply, ok, timestamp
from mcp_servers.hosting import (
    Context,
    DeskServer,
    build_server,
    current_principal,
    load_authorization,
    state,
    tool,
    tool_kind,
)
from mcp_servers.risk import prompts, resources, rows, schemas, views
from mcp_servers.risk.bootstrap import open_risk
from mcp_servers.risk.numbers.desk import Basis, History
from mcp_servers.risk.numbers.rows import risk_row
from mcp_servers.risk.numbers.schemas import Risk
from mcp_servers.risk.orders import ORDERS_MAX, OrderRequest
from mcp_servers.risk.pages import answer_page, exposure_page
from mcp_servers.risk.schemas import IdText, NameText, OrderItem, ReasonText, ScopeText, SymbolText, Tif, Unit
from mcp_servers.risk.score.rows import score_rows
from mcp_servers.risk.service import RiskService
from mcp_servers.risk.settings import RiskSettings, check_allowed, load_risk_settings
from mcp_servers.risk.status import status_row
from trading.adapters.config import load_settings
from trading.domain.errors import InvalidValue
from trading.domain.identifiers import (
    AccountId,
    AgentId,
    ApprovalId,
    DecisionId,
    Venue,
    parse_name,
    parse_request_id,
    parse_symbol,
)
from trading.domain.market_data import Side
from trading.domain.proposals import OrderType, TimeInForce
from trading.domain.sizing import SizeUnit

_INSTRUCTIONS: Final = """
    Signs or denies every order of this desk; without its approval execution sends nothing.
    Ask risk_check_order first: it costs nothing and names the largest size allowed now.
    Then risk_request_approval, and give the approval_id to execution at once: approvals expire within seconds.
    A denial lists every failed rule with its limit. Change the order; repeating it cannot help.
    Halting is possible with risk_trip_breaker. Resuming is the operator's alone.
    Amounts and prices are decimal strings; unit says what amount counts.
"""

Orders = Annotated[list[OrderItem], Field(min_length=1, max_length=ORDERS_MAX)]


def build(risk: RiskSettings | None = None) -> DeskServer[RiskService]:
    """Read the settings and return the server; nothing is opened before its lifespan.

    Raises:
        ConfigurationError: the configuration refuses to start.
    """
    desk, chosen = load_settings(), risk or load_risk_settings()
    check_allowed(desk, chosen)
    bus = ResourceBus()

    @asynccontextmanager
    async def lifespan() -> AsyncGenerator[RiskService]:
        async with open_risk(desk, chosen) as service, resources.cueing(service, bus):
            yield service

    server: DeskServer[RiskService] = build_server(
        "grekko-risk",
        title="Risk",
        instructions=_INSTRUCTIONS,
        lifespan=lifespan,
        mode=desk.mode,
        authorization=load_authorization(),
        requests_per_s=2_000,
        burst=4_000,
        subscriptions=bus,
    )
    register(server)
    register_face(server, bus)
    return server


def register_face(server: DeskServer[RiskService], bus: ResourceBus) -> None:
    """Add what people and hosts use beside the tools: resources, subscriptions, completions and prompts."""
    resources.register(server)
    serve_subscriptions(server, bus, may_follow=resources.may_follow)
    serve_completions(server, views.complete)
    prompts.register(server)


def register(server: DeskServer[RiskService]) -> None:
    """Add the risk tools to a server."""
    _register_reads(
        tool_kind(server, read_only=True, destructive=False, idempotent=True, open_world=False, scope="risk:read")
    )
    _register_requests(server)


def _register_reads(read: Callable[..., Callable[[Any], Any]]) -> None:
    @read(title="Check an order")
    async def risk_check_order(
        ctx: Context[RiskService],
        symbol: SymbolText,
        side: schemas.Side,
        type: schemas.Type,  # noqa: A002  the field's word
        amount: PositiveDecimalText,
        unit: Unit = "base",
        limit_price: PositiveDecimalText | None = None,
        stop_price: PositiveDecimalText | None = None,
        time_in_force: Tif = "gtc",
        post_only: bool = False,
        reduce_only: bool = False,
        venue: NameText | None = None,
        account: NameText | None = None,
        agent_id: NameText | None = None,
        reason: ReasonText = "",
    ) -> Reply[schemas.Check]:
        """Say what risk would answer to this order, with every rule, limit and headroom.

        Reserves nothing and gives no right to trade: use risk_request_approval for that.
        amount counts base unless unit says otherwise. Example: symbol "BTC/USDT", side "buy", type "market",
        amount "500", unit "quote".
        """
        service = state(ctx)
        order = _order(service, locals_item(locals()))
        report = service.check_order(order)
        return ok(rows.check_row(report, order.agent_id), _meta(service))

    @read(title="Get an approval")
    async def risk_get_approval(
        ctx: Context[RiskService], approval_id: IdText, include_envelope: bool = False
    ) -> Reply[schemas.ApprovalState]:
        """Show an approval's order, expiry, state and fate.

        state is risk's: open, release_requested (still counts) or released. fate is execution's: empty while undecided,
        then consumed, lapsed or voided. With a pending_id state is pending, approved, refused, expired or withdrawn;
        detail says why. Execution takes the id; include_envelope only to verify the signature yourself.
        """
        service = state(ctx)
        report = await service.get_approval(ApprovalId(approval_id))
        now_ms = service.parts.clock.now_ms()
        return ok(rows.approval_state(report, now_ms, envelope=include_envelope), _meta(service))

    @read(title="Get limits")
    async def risk_get_limits(
        ctx: Context[RiskService], scope: SymbolText = "desk", agent_id: NameText | None = None
    ) -> Reply[schemas.Limits]:
        """Show the limits in force for an agent's orders, and the scope each comes from.

        Not how much of them is left: use risk_check_order. Scope: desk, or a symbol such as "BTC/USDT". Amounts are
        quote, names with _quantity base, with _bps and _pct as they say.
        """
        service = state(ctx)
        return ok(
            rows.limits_row(service, rows.asked_for(scope), AgentId(_agent_name(agent_id))), Meta(source="policy")
        )

    @read(title="Get exposure")
    async def risk_get_exposure(
        ctx: Context[RiskService],
        scope: SymbolText | None = None,
        limit: Annotated[int, Field(ge=1, le=100)] = DEFAULT_ROWS,
        cursor: SymbolText | None = None,
    ) -> Reply[schemas.Exposures]:
        """Show what is held and promised, gross, net, by venue and agent, and today's result.

        Not for VaR: use risk_get_risk. Held and open are base, the rest quote; sums are always the whole desk's.
        Instruments with nothing held or promised are left out unless scope names one. Example: scope "BTC/USDT".
        """
        service, scope = state(ctx), None if scope is None else rows.asked_for(scope)
        data, page = exposure_page(rows.exposure_rows(service, scope), scope, cursor=cursor, limit=limit)
        return ok(data, _meta(service).model_copy(update=page.meta))

    @read(title="Get risk numbers")
    async def risk_get_risk(ctx: Context[RiskService], basis: Basis = "held", history: History = "best") -> Reply[Risk]:
        """Show VaR, ES, volatility, drawdown, beta, concentration, the cost of leaving, stress losses, risk score.

        Each in quote with horizon, window and n. They inform; not for sizing an order: limits alone decide. history
        "own" never falls back on the bundled years 2019-2021. Example: basis "worst_case".
        """
        service = state(ctx)
        frame = service.frame()
        report = await service.numbers.report(frame, basis=basis, history=history)
        row = risk_row(report, score_rows(frame), quote=service.parts.quote, basis=basis)
        return ok(row, _meta(service))

    @read(title="Get status")
    async def risk_get_status(ctx: Context[RiskService]) -> Reply[schemas.Status]:
        """Show trading state, epoch, ages of all inputs, and whether new risk could be approved now.

        Not about one order: use risk_check_order. Ages are milliseconds. reasons says why safe_to_trade is false.
        """
        service = state(ctx)
        return ok(status_row(service, AgentId(_agent_name(None))), _meta(service))


def _register_requests(server: DeskServer[RiskService]) -> None:
    @tool(
        server,
        title="Request approval",
        read_only=False,
        destructive=False,
        idempotent=True,
        open_world=False,
        scope="risk:request",
    )
    async def risk_request_approval(
        ctx: Context[RiskService],
        request_id: IdText,
        decision_id: IdText | None = None,
        orders: Orders | None = None,
        symbol: SymbolText | None = None,
        side: schemas.Side | None = None,
        type: schemas.Type | None = None,  # noqa: A002  the field's word
        amount: PositiveDecimalText | None = None,
        unit: Unit = "base",
        limit_price: PositiveDecimalText | None = None,
        stop_price: PositiveDecimalText | None = None,
        time_in_force: Tif = "gtc",
        post_only: bool = False,
        reduce_only: bool = False,
        venue: NameText | None = None,
        account: NameText | None = None,
        agent_id: NameText | None = None,
        reason: ReasonText = "",
        cursor: NameText | None = None,
    ) -> Reply[schemas.Approvals]:
        """Ask risk to sign one order, up to 256, or a decision's; the operator may be asked too.

        request_id names the intent: repeat it on a retry and you get the same answer, never a second order.
        An approval reserves its worst case until it is used, lapses or is released. What is in pending_human reserves
        nothing: poll risk_get_approval with its pending_id; once the operator approves, the desk submits it itself.
        Example: request_id "r-1", symbol "BTC/USDT", side "buy", type "limit", amount "0.01", limit_price "60000".
        """
        service = state(ctx)
        single = locals_item(locals()) if symbol is not None else None
        if single is not None and orders is not None:
            raise InvalidValue("give one order or orders, not both", code="INVALID_ORDERS")
        items = [single] if single is not None else (orders or [])
        answer = await service.request_approval(
            current_principal().name,
            parse_request_id(request_id),
            tuple([_order(service, item) for item in items]),
            None if decision_id is None else DecisionId(decision_id),
        )
        data, truncated, following = answer_page(answer, cursor)
        meta = _meta(service).model_copy(update={"truncated": truncated, "next_cursor": following})
        return ok(data, meta)

    @tool(
        server,
        title="Release an approval",
        read_only=False,
        destructive=False,
        idempotent=True,
        open_world=False,
        scope="risk:request",
    )
    async def risk_release_approval(ctx: Context[RiskService], approval_id: IdText) -> Reply[schemas.Release]:
        """Ask execution to void an approval you will not use, or withdraw an order that waits for the operator.

        This is a request only: the approval counts against the limits, and could still trade, until its fate is
        voided or lapsed; look with risk_get_approval. Not for an order already sent: use execution_cancel_order.
        """
        service = state(ctx)
        return ok(
            rows.release_row(await service.release_approval(ApprovalId(approval_id), current_principal().name)),
            _meta(service),
        )

    @tool(
        server,
        title="Trip the breaker",
        read_only=False,
        destructive=True,
        idempotent=True,
        open_world=False,
        scope="risk:trip",
    )
    async def risk_trip_breaker(
        ctx: Context[RiskService],
        reason: Annotated[str, Field(min_length=1, max_length=280)],
        scope: ScopeText = "desk",
    ) -> Reply[schemas.Trip]:
        """Halt trading at once: nothing that adds risk is sent any more. Only the operator can resume.

        Exits and cancels stay possible. Not for one order: cancel that. Scope: desk, agent:NAME, symbol:BASE/QUOTE or
        account:ID. Example: reason "prices frozen".
        """
        service = state(ctx)
        answer = await service.trip(reason, current_principal().name, scope)
        data = schemas.Trip(
            scope=answer.scope,
            state=answer.state.value,
            generation=answer.epoch.generation,
            counter=answer.epoch.counter,
            changed=answer.changed,
            durable=answer.durable,
            open_reservations=len(service.reservations),
        )
        return ok(data, _meta(service))


def locals_item(arguments: dict[str, Any]) -> OrderItem:
    """Return a tool's flat order arguments as one order, so that single and batch are read alike.

    Raises:
        InvalidValue: side, type or amount is missing.
    """
    missing = [name for name in ("side", "type", "amount") if arguments.get(name) is None]
    if missing:
        raise InvalidValue(f"an order needs {', '.join(missing)}", code="INVALID_ORDERS")
    return OrderItem.model_construct(**{name: arguments[name] for name in OrderItem.model_fields})


def _order(service: RiskService, item: OrderItem) -> OrderRequest:
    return OrderRequest(
        symbol=parse_symbol(item.symbol),
        side=Side(item.side),
        order_type=OrderType(item.type),
        amount=item.amount,
        unit=SizeUnit(item.unit),
        limit_price=item.limit_price,
        stop_price=item.stop_price,
        time_in_force=TimeInForce(item.time_in_force),
        post_only=item.post_only,
        reduce_only=item.reduce_only,
        venue=Venue(parse_name(item.venue, what="venue")) if item.venue else service.parts.venue,
        account_id=AccountId(item.account) if item.account else service.parts.account_id,
        agent_id=AgentId(_agent_name(item.agent_id)),
        reason=item.reason,
    )


def _agent_name(agent_id: str | None) -> str:
    """Return whose counters an order goes to: the named agent of a local caller, else the caller itself."""
    principal = current_principal()
    if agent_id is not None and principal.local:
        return parse_name(agent_id, what="agent_id")
    return principal.name


def _meta(service: RiskService) -> Meta:
    now_ms = service.parts.clock.now_ms()
    return Meta(
        venue=service.parts.venue,
        as_of=timestamp(now_ms),
        age_ms=service.portfolio.age_ms(now_ms),
        source="risk ledger, execution ledger, market stream",
    )
