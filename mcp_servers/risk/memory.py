"""What a restart must not forgive beside the reservations: the day, the peak, the turnover, and who was stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Final

from trading.domain.approvals import ApprovedOrder
from trading.domain.errors import LedgerError
from trading.domain.identifiers import AccountId, AgentId, ApprovalId, Symbol
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import ZERO, multiply
from trading.domain.proposals import Mode
from trading.ports.ledger import Ledger, Row, Unit, Upsert

from .activity import Activity
from .assessment import Approved
from .daily import SCOPE as DAY_SCOPE
from .daily import DailyResult, read_day_open
from .drawdown import SCOPE as PEAK_SCOPE
from .drawdown import Drawdown, read_peak
from .limits import Policy
from .parts import RiskParts
from .portfolio import Portfolio
from .rates import OrderPace, Rate
from .scopes import InForce

log = logging.getLogger("grekko.risk")

REARM_SCOPE: Final = "rearmed"
_AGENT: Final = f"{REARM_SCOPE} "


class Memory:
    """The day's opening, the peak and the last time a person let stopped agents go on, kept in ``desk_state``.

    Args:
        states: rows of ``desk_state`` by scope, as the last run left them.
    """

    def __init__(self, states: Mapping[str, Row]) -> None:
        self.daily = DailyResult(read_day_open(states.get(DAY_SCOPE)))
        self.drawdown = Drawdown(read_peak(states.get(PEAK_SCOPE)))
        rearmed = states.get(REARM_SCOPE)
        self.rearmed_ms = 0 if rearmed is None else int(str(rearmed["updated_ms"]))
        self._rearmed_saved = True
        self._rearmed_agents = {
            AgentId(scope.removeprefix(_AGENT)): int(str(row["updated_ms"]))
            for scope, row in states.items()
            if scope.startswith(_AGENT)
        }
        self._unsaved_agents: dict[AgentId, int] = {}

    def prepare(self, portfolio: Portfolio, in_force: Callable[[], Policy], account_id: AccountId, mode: Mode) -> None:
        """Make the activity ready to hear what happened since, before the ledger is folded."""
        activity = portfolio.activity
        activity.rearmed_ms, activity.rearmed_agents = self.rearmed_ms, dict(self._rearmed_agents)

        def entries(agent_id: AgentId, instrument_id: InstrumentId) -> tuple[int, int]:
            limits = limits_of(in_force(), account_id, mode, agent_id, instrument_id).limits
            return limits.entries_max, limits.entries_window_ms

        activity.entries_limit = entries

    def refill(self, portfolio: Portfolio, approvals: Iterable[Approved], policy: Policy, now_ms: int) -> None:
        """Count again what was approved within the window before the restart."""
        found = [_flow(item.approval_id, item.agent_id, item.terms, item.at_ms) for item in portfolio.rebuilt]
        found += [
            _flow(item.approval.approval_id, item.approval.agent_id, item.approval.order, item.approval.issued_ms)
            for item in approvals
        ]
        portfolio.activity.replay(found, now_ms, policy.limits.turnover_window_ms)
        portfolio.rebuilt.clear()

    def rearm(self, activity: Activity, now_ms: int) -> None:
        """Let stopped agents go on; the caller has checked that the operator wants it."""
        if activity.rearm(now_ms):
            self.rearmed_ms, self._rearmed_saved = now_ms, False

    def rearm_agent(self, activity: Activity, agent_id: AgentId, now_ms: int) -> None:
        """Let one agent go on; the caller has checked that the operator wants it."""
        activity.rearm_agent(agent_id, now_ms)
        self._unsaved_agents[agent_id] = now_ms

    async def save(self, ledger: Ledger, now_ms: int) -> None:
        """Write what changed; what fails is written next time."""
        day, peak = self.daily.unsaved(now_ms), self.drawdown.unsaved(now_ms)
        rearmed = None if self._rearmed_saved else _rearm_row(self.rearmed_ms)
        agents = dict(self._unsaved_agents)
        of_agents = [_rearm_row(at_ms, f"{_AGENT}{agent_id}") for agent_id, at_ms in agents.items()]
        rows = tuple([row for row in (day, peak, rearmed, *of_agents) if row is not None])
        if not rows:
            return
        try:
            await ledger.commit(Unit(writes=rows))
        except LedgerError as error:
            log.warning("the day's figures are not written yet (%s)", error.code)
            return
        if day is not None:
            self.daily.saved()
        if peak is not None:
            self.drawdown.saved(peak)
        for agent_id, at_ms in agents.items():
            if self._unsaved_agents.get(agent_id) == at_ms:
                del self._unsaved_agents[agent_id]
        if rearmed is not None and rearmed.row["updated_ms"] == self.rearmed_ms:
            self._rearmed_saved = True


def limits_of(
    policy: Policy, account_id: AccountId, mode: Mode, agent_id: AgentId, instrument_id: InstrumentId
) -> InForce:
    """Return what is in force for an agent in an instrument."""
    return policy.scopes.of(account_id, mode, instrument_id.venue, agent_id, instrument_id.symbol)


def pace_of(parts: RiskParts, policy: Policy) -> OrderPace:
    """Return the rates that the limits ask for; an agent's are the strictest of its scopes."""
    limits = policy.limits

    def per_agent(agent_id: AgentId) -> Rate:
        of = limits_of(policy, parts.account_id, parts.mode, agent_id, InstrumentId(parts.venue, Symbol(""))).limits
        return of.order_rate_per_s, of.order_burst

    symbol, venue = limits.symbol_rate_per_s, limits.venue_rate_per_s
    return OrderPace(
        per_agent,
        (limits.desk_rate_per_s, limits.desk_burst),
        None if symbol is None else (symbol, symbol),
        None if venue is None else (venue, venue),
    )


def _flow(
    approval_id: ApprovalId, agent_id: AgentId, order: ApprovedOrder, at_ms: int
) -> tuple[ApprovalId, tuple[AgentId, InstrumentId], Side, Decimal, int]:
    price = order.limit_price or order.stop_price or ZERO
    return approval_id, (agent_id, order.instrument_id), order.side, multiply(order.quantity, price), at_ms


def _rearm_row(at_ms: int, scope: str = REARM_SCOPE) -> Upsert:
    row = {"scope": scope, "state": "", "generation": 0, "counter": 0, "reason": "", "updated_ms": at_ms}
    return Upsert("desk_state", row)
