"""What a person or model looks at without asking for an order: limits, exposure, approvals, breaker, refusals, audit.

========================================  =============================================================================
``risk://limits{?agent}``                 the desk's limits in force, with the scope that each comes from
``risk://limits/{base}/{quote}{?agent}``  those of a symbol
``risk://exposure{?cursor}``              held and promised, gross, net, today's result
``risk://exposure/{base}/{quote}``        of one symbol
``risk://approvals{?cursor}``             approvals that still count, newest first
``risk://approvals/{approval_id}``        one approval: order, state, fate
``risk://breaker{?limit}``                trading state now, and how it changed
``risk://denials{?agent}``                newest refusals with every failed rule
``risk://audit{?room}``                   head of risk's audit chain, and the heads of other rooms it has witnessed
========================================  =============================================================================

``FOLLOWED`` lists those that say when they may have changed: at most one cue each 250 ms, while somebody listens.
Execution never waits for a cue; a trip reaches it by the heartbeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from mcp.server.subscriptions import ResourceUpdated
from mcp.types import Resource

from mcp_servers.calls import current_principal
from mcp_servers.desk_resources import ResourceBus, readable
from mcp_servers.envelope import DEFAULT_ROWS, Meta, fit, ok, timestamp
from mcp_servers.hosting import Context, DeskServer, state
from mcp_servers.risk import rows, views
from mcp_servers.risk.pages import exposure_page
from mcp_servers.risk.service import RiskService
from trading.domain.errors import InvalidValue, LedgerError
from trading.domain.identifiers import AgentId, ApprovalId, parse_name

CUE_INTERVAL_S: Final = 0.25
_JSON: Final = "application/json"
_PLAIN: Final = {
    "limits": ("Limits", "Limits in force, and the scope each comes from."),
    "exposure": ("Exposure", "What is held and promised, gross, net, and today's result."),
    "approvals": ("Open approvals", "Approvals that still count against the limits, newest first."),
    "breaker": ("Breaker", "Trading state of the desk and of scopes, and how it changed."),
    "denials": ("Refusals", "Newest refusals with every failed rule."),
    "audit": ("Audit head", "Head of risk's audit chain and what it has witnessed of other rooms."),
}
#: Addresses that can be followed.
FOLLOWED: Final = tuple(f"risk://{name}" for name in _PLAIN if name != "audit")


def register(server: DeskServer[RiskService]) -> None:
    """Add the resources."""
    _register_standing(server)
    _register_events(server)
    for name, (title, description) in _PLAIN.items():
        server.list_resource(
            Resource(uri=f"risk://{name}", name=name, title=title, description=description, mime_type=_JSON)
        )


def _register_standing(server: DeskServer[RiskService]) -> None:
    @server.resource("risk://limits{?agent}", name="limits", title="Limits", mime_type=_JSON)
    @readable
    async def limits(ctx: Context[RiskService], agent: str = "") -> str:
        """The desk's limits in force for an agent, and the scope that each comes from."""
        return _limits(state(ctx), "desk", agent)

    @server.resource(
        "risk://limits/{base}/{quote}{?agent}", name="limits_of", title="Limits of a symbol", mime_type=_JSON
    )
    @readable
    async def limits_of(base: str, quote: str, ctx: Context[RiskService], agent: str = "") -> str:
        """The limits of a symbol in force for an agent."""
        return _limits(state(ctx), f"{base}/{quote}", agent)

    @server.resource("risk://exposure{?cursor}", name="exposure", title="Exposure", mime_type=_JSON)
    @readable
    async def exposure(ctx: Context[RiskService], cursor: str | None = None) -> str:
        """What is held and promised, with the worst case, of every instrument that has any."""
        return _exposure(state(ctx), None, cursor)

    @server.resource(
        "risk://exposure/{base}/{quote}", name="exposure_of", title="Exposure of a symbol", mime_type=_JSON
    )
    @readable
    async def exposure_of(base: str, quote: str, ctx: Context[RiskService]) -> str:
        """What is held and promised of one symbol; the sums are the desk's."""
        return _exposure(state(ctx), f"{base}/{quote}", None)

    @server.resource("risk://audit{?room}", name="audit", title="Audit head", mime_type=_JSON)
    @readable
    async def audit(ctx: Context[RiskService], room: str = "") -> str:
        """Number of events, the head signed last, and the heads of other rooms that are embedded in this chain."""
        service = state(ctx)
        data = await views.audit_view(service, room)
        return ok(data, _meta(service, "risk ledger, checkpoint files")).model_dump_json()


def _register_events(server: DeskServer[RiskService]) -> None:
    @server.resource("risk://approvals{?cursor}", name="approvals", title="Open approvals", mime_type=_JSON)
    @readable
    async def approvals(ctx: Context[RiskService], cursor: str = "") -> str:
        """Approvals that still count against the limits, newest first; unused ones, and those an order stands for."""
        service = state(ctx)
        found = await views.open_approvals(service, cursor)
        page = fit(found, limit=DEFAULT_ROWS, cursor_of=lambda row: row.approval.approval_id)
        data = views.OpenApprovals(open=len(service.reservations), approvals=page.rows)
        return ok(data, _meta(service).model_copy(update=page.meta)).model_dump_json()

    @server.resource("risk://approvals/{approval_id}", name="approval", title="Approval", mime_type=_JSON)
    @readable
    async def approval(approval_id: str, ctx: Context[RiskService]) -> str:
        """One approval's order, expiry, state and fate, without its signature."""
        service = state(ctx)
        report = await service.get_approval(ApprovalId(approval_id[:128]))
        data = rows.approval_state(report, service.parts.clock.now_ms(), envelope=False)
        return ok(data, _meta(service)).model_dump_json()

    @server.resource("risk://breaker{?limit}", name="breaker", title="Breaker", mime_type=_JSON)
    @readable
    async def breaker(ctx: Context[RiskService], limit: str = "20") -> str:
        """Trading state now, why, and the newest trips and resets."""
        service = state(ctx)
        found = await views.breaker_view(service)
        page = fit(found.history, limit=_count(limit), cursor_of=lambda row: str(row.seq))
        data = found.model_copy(update={"history": page.rows})
        return ok(data, _meta(service).model_copy(update={"truncated": page.truncated})).model_dump_json()

    @server.resource("risk://denials{?agent}", name="denials", title="Refusals", mime_type=_JSON)
    @readable
    async def denials(ctx: Context[RiskService], agent: str = "") -> str:
        """Newest refusals of all agents or one: the order, every failed rule, and the nearest legal order then."""
        service = state(ctx)
        found = await views.denials_view(service, agent)
        page = fit(found.denials, limit=DEFAULT_ROWS, cursor_of=lambda row: row.request_id)
        data = found.model_copy(update={"denials": page.rows})
        return ok(data, _meta(service).model_copy(update={"truncated": page.truncated})).model_dump_json()


def _limits(service: RiskService, scope: str, agent: str) -> str:
    principal = current_principal()
    if agent and not principal.local and agent != principal.name:
        raise InvalidValue(
            "a token sees its own limits only", code="WRONG_AGENT", suggestion="leave agent out", allowed=()
        )
    agent_id = AgentId(parse_name(agent, what="agent") if agent and principal.local else principal.name)
    return ok(rows.limits_row(service, scope, agent_id), Meta(source="policy")).model_dump_json()


def _exposure(service: RiskService, symbol: str | None, cursor: str | None) -> str:
    data, page = exposure_page(rows.exposure_rows(service, symbol), symbol, cursor=cursor, limit=DEFAULT_ROWS)
    return ok(data, _meta(service).model_copy(update=page.meta)).model_dump_json()


def _count(text: str) -> int:
    if not (text.isdecimal() and len(text) <= 3 and int(text)):
        raise InvalidValue("must be a whole number from 1 to 999", code="INVALID_LIMIT")
    return int(text)


def _meta(service: RiskService, source: str = "risk ledger, execution ledger, market stream") -> Meta:
    now_ms = service.parts.clock.now_ms()
    return Meta(
        venue=service.parts.venue, as_of=timestamp(now_ms), age_ms=service.portfolio.age_ms(now_ms), source=source
    )


# -- cues --------------------------------------------------------------------------------------------------------------


def may_follow(uri: str) -> bool:
    """Return whether an address is one of the changing resources."""
    return uri in FOLLOWED


@asynccontextmanager
async def cueing(
    service: RiskService, bus: ResourceBus, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> AsyncGenerator[None]:
    """Publish a cue for every resource that may have changed, for the length of the block."""

    async def run() -> None:
        before = await _marks(service)
        while True:
            await sleep(CUE_INTERVAL_S)
            if not bus.has_listeners:
                continue
            after = await _marks(service)
            for uri in FOLLOWED:
                if before.get(uri) != after.get(uri):
                    await bus.publish(ResourceUpdated(uri=uri))
            before = after

    task = asyncio.create_task(run(), name="risk-cues")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _marks(service: RiskService) -> dict[str, object]:
    """Return what differs whenever a resource differs; no resource is made for it."""
    live, reserved = service.live, service.reservations.changes
    try:
        written = await service.parts.ledger.last_seq()
    except LedgerError:
        written = -1  # whoever reads the resource is told; the state in memory is cued all the same
    return {
        "risk://limits": live.frames.policy.version,
        "risk://exposure": (reserved, service.portfolio.applied_seq),
        "risk://approvals": (reserved, written),
        "risk://breaker": (live.breaker.epoch, live.breaker.state, live.breaker.scopes),
        "risk://denials": written,
    }
