"""Whether risk could approve new risk now, and if not, why."""

from __future__ import annotations

from typing import Final

from mcp_servers.risk import schemas
from mcp_servers.risk.breaker_scopes import restrictions_text
from mcp_servers.risk.context import Frame
from mcp_servers.risk.service import RiskService
from trading.domain.approvals import TradingState
from trading.domain.identifiers import AgentId
from trading.domain.trading_states import AGENT

#: Symbols whose market's problem is told one by one.
_PROBLEMS_MAX: Final = 20


def status_row(service: RiskService, agent_id: AgentId) -> schemas.Status:
    """Return state, ages and the reasons against trading; works without bus, market and execution."""
    frame, live = service.frame(), service.live
    reasons = reasons_against(service, frame, agent_id)
    sent_ms = live.heartbeats.sent_ms
    return schemas.Status(
        account=service.parts.account_id,
        state=frame.state.value,
        state_reason=restrictions_text(live.breaker),
        generation=frame.epoch.generation,
        counter=frame.epoch.counter,
        policy_version=frame.policy.version,
        policy_digest=frame.policy.digest,
        key_id=service.parts.signer.key_id,
        safe_to_trade=not reasons,
        reasons=reasons,
        heartbeat_age_ms=None if sent_ms is None else max(0, frame.now_ms - sent_ms),
        execution_age_ms=frame.execution_age_ms,
        portfolio_age_ms=frame.portfolio_age_ms,
        market_age_ms={item.symbol: market.age_ms for item, market in frame.markets.items()},
        open_reservations=len(service.reservations),
        uncertain_requests=live.sign_off.uncertain,
        unresolved_orders=service.pulse.unresolved,
        orders_left=service.assessor.orders_left(agent_id, frame.now_ms),
        limits_note=live.adoption.note,
    )


def reasons_against(service: RiskService, frame: Frame, agent_id: AgentId) -> list[str]:
    """Return why no new risk can be approved now for that agent; empty when it can."""
    limits, reasons = frame.limits, list[str]()
    if frame.state is not TradingState.ACTIVE:
        reasons.append(f"trading is {frame.state.value}: {service.live.breaker.reason}")
    asking = f"{AGENT}:{agent_id}"  # another agent's halt is no reason against this one
    reasons += [
        f"{each.scope} is {each.state.value}"
        for each in frame.scopes
        if each.scope == asking or not each.scope.startswith(f"{AGENT}:")
    ]
    if not service.ready:
        reasons.append("reservations are being rebuilt")
    if frame.execution_age_ms is None or frame.execution_age_ms > limits.execution_max_age_ms:
        reasons.append("execution is not heard of")
    if frame.portfolio_age_ms is None or frame.portfolio_age_ms > limits.portfolio_max_age_ms:
        reasons.append("the portfolio is stale")
    problems = [f"{item.symbol}: {market.problem}" for item, market in frame.markets.items() if market.problem]
    reasons += problems[:_PROBLEMS_MAX]
    if len(problems) > _PROBLEMS_MAX:
        reasons.append(f"{len(problems) - _PROBLEMS_MAX} more symbols have no usable market")
    if frame.daily_result is not None and frame.daily_result <= -limits.daily_loss_max:
        reasons.append("the day's loss limit is reached")
    return reasons
