"""From the service's values to the rows of a reply."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from mcp_servers.envelope import timestamp
from mcp_servers.risk import schemas
from mcp_servers.risk.assessment import Approved
from mcp_servers.risk.limits import changed_fields
from mcp_servers.risk.parts import ApprovalReport, CheckReport
from mcp_servers.risk.policies.exposure import worst_case
from mcp_servers.risk.pricing import build_context
from mcp_servers.risk.reservations import Exposure
from mcp_servers.risk.scopes import DEFAULT, DESK
from mcp_servers.risk.service import RiskService
from mcp_servers.risk.tightness import text_of
from trading.domain.approvals import ApprovedOrder
from trading.domain.denials import RuleResult
from trading.domain.errors import InvalidValue
from trading.domain.identifiers import AgentId, Symbol
from trading.domain.money import ZERO, add, multiply
from trading.domain.proposals import OrderIntent


def order_row(order: OrderIntent | ApprovedOrder) -> schemas.OrderRow:
    """Return an order as the caller reads it."""
    return schemas.OrderRow(
        symbol=order.symbol,
        side=order.side.value,
        type=order.order_type.value,
        quantity=order.quantity,
        limit_price=order.limit_price,
        stop_price=order.stop_price,
        time_in_force=order.time_in_force.value,
        reduce_only=order.reduce_only,
        venue=order.venue,
    )


def rule_row(result: RuleResult) -> schemas.RuleRow:
    """Return one rule's verdict."""
    return schemas.RuleRow(
        rule=result.rule.value,
        passed=result.passed,
        limit=result.limit,
        observed=result.observed,
        message=result.message,
        headroom=result.headroom,
    )


def check_row(report: CheckReport, agent_id: AgentId) -> schemas.Check:
    """Return the verdict on one order with its cost."""
    context = build_context(report.frame, report.intent, agent_id, decided=False)
    fee = None if context.notional is None else multiply(context.notional, context.fee_rate)
    return schemas.Check(
        passed=report.passed,
        effect=report.effect,
        order=order_row(report.intent),
        notional=context.notional,
        fee_estimate=fee,
        rules=[rule_row(result) for result in report.results],
        max_allowed_now=None if report.max_allowed_now is None else order_row(report.max_allowed_now),
        nearest_legal=None if report.nearest_legal is None else order_row(report.nearest_legal),
    )


def approval_row(item: Approved) -> schemas.ApprovalRow:
    """Return one approval without its signature."""
    approval = item.approval
    return schemas.ApprovalRow(
        approval_id=approval.approval_id,
        client_order_id=approval.order.client_order_id,
        order=order_row(approval.order),
        effect=approval.effect.value,
        band_low=approval.band_low,
        band_high=approval.band_high,
        max_notional=approval.max_notional,
        expires_at=timestamp(approval.expires_ms),
    )


def approval_state(report: ApprovalReport, now_ms: int, *, envelope: bool) -> schemas.ApprovalState:
    """Return an approval with its state and fate, or a waiting order's state."""
    approved = report.approved
    return schemas.ApprovalState(
        approval=None if approved is None else approval_row(approved),
        state=report.state,
        fate=report.fate,
        order_id=report.order_id,
        expired=report.expires_ms <= now_ms,
        detail=report.detail,
        envelope=approved.envelope if envelope and approved is not None else None,
    )


def release_row(report: ApprovalReport) -> schemas.Release:
    """Return what became of a request to release."""
    return schemas.Release(
        approval_id=report.named,
        state=report.state,
        fate=report.fate,
        order_id=report.order_id,
    )


def asked_for(scope: str) -> str:
    """Return a symbol as it is written in the limits, also of the scope that the breaker has for it."""
    return scope.removeprefix("symbol:")


def limits_row(service: RiskService, scope: str, agent_id: AgentId) -> schemas.Limits:
    """Return what is in force for an agent's orders: the desk's limits, or those of one symbol.

    Raises:
        InvalidValue: no limits of that scope.
    """
    parts, policy = service.parts, service.live.frames.policy
    limits, symbol = policy.limits, Symbol("" if scope == DESK else scope)
    in_force = policy.scopes.of(parts.account_id, parts.mode, parts.venue, agent_id, symbol)
    if scope == DESK:
        only = {"symbols": in_force.symbols or tuple(limits.symbols), "venues": in_force.venues}
        values = {name: text_of(value) for name, value in only.items()}
        fields = (name for name in type(limits).model_fields if name in in_force.sources)
        values.update({name: text_of(getattr(in_force.limits, name)) for name in fields})
        for part in ("quorum", "breaker"):
            values.update(
                {f"{part}.{name}": text_of(value) for name, value in getattr(limits, part).model_dump().items()}
            )
    elif in_force.symbol is not None:
        own = {**in_force.symbol.model_dump(exclude={"protection"}), **in_force.protection.model_dump()}
        values = {name: text_of(value) for name, value in own.items()}
    else:
        raise InvalidValue(
            f"there are no limits for {scope[:41]!r}",
            code="UNKNOWN_SCOPE",
            suggestion="ask for desk or for a symbol with limits; other symbols are restricted",
            allowed=(DESK, *limits.symbols),
        )
    sources = {name: source for name, source in in_force.sources.items() if name in values and source != DEFAULT}
    return schemas.Limits(
        version=policy.version,
        digest=policy.digest,
        scope=scope,
        values=values,
        sources=sources,
        changed=sorted(changed_fields(limits)),
        note=service.live.adoption.note,
    )


def exposure_rows(service: RiskService, scope: str | None) -> schemas.Exposures:
    """Return what is held and promised, of every instrument or of one symbol; the sums are the desk's.

    One pass, exact throughout, and rows as dictionaries that become models all at once.
    """
    frame = service.frame()
    held_of, exposures, symbols = frame.portfolio.held, frame.reservations.exposures(), frame.limits.symbols
    by_venue = dict[str, Decimal]()
    gross, net = ZERO, ZERO
    unpriced = any(worst_case(held_of(item), exposures[item]) for item in exposures if item not in frame.markets)
    rows: list[dict[str, object]] = []
    for instrument_id, market in frame.markets.items():
        venue, symbol = instrument_id
        held, exposure, mid = held_of(instrument_id), exposures.get(instrument_id, _NONE), market.mid
        worst = abs(held) if exposure is _NONE else worst_case(held, exposure)
        value = None if mid is None else multiply(worst, mid)
        if worst:
            unpriced |= mid is None or bool(market.problem)
            if mid is not None and value is not None:
                gross = add(gross, value)
                net = add(net, value if worst == held else multiply(held, mid))
                by_venue[venue] = add(by_venue.get(venue, ZERO), value)
        if scope is None or scope in (symbol, "desk"):
            limits = symbols.get(symbol)
            rows.append(
                {
                    "symbol": symbol,
                    "held": held,
                    "open_buys": exposure.buy_open,
                    "open_sells": exposure.sell_open,
                    "worst_case": worst,
                    "worst_case_quote": value,
                    "limit": None if limits is None else limits.position_quantity_max,
                }
            )
    if not rows:
        raise InvalidValue(
            "no such symbol on this desk", code="UNKNOWN_SCOPE", allowed=("desk", *service.parts.symbols)
        )
    return schemas.Exposures.model_validate(
        {
            "quote": service.parts.quote,
            "equity": frame.equity,
            "daily_result": frame.daily_result,
            "daily_loss_max": frame.limits.daily_loss_max,
            "gross": None if unpriced else gross,
            "gross_max": frame.limits.gross_exposure_max,
            "net": None if unpriced else net,
            "by_venue": by_venue,
            "by_agent": {name: use.notional for name, use in frame.reservations.agents().items() if use.notional},
            "reservations": len(frame.reservations),
            "instruments": rows,
        }
    )


_NONE: Final = Exposure()
