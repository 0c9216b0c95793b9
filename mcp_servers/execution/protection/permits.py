"""The last check of a protective order: what takes the place of epoch and heartbeat when nobody else is alive.

Rules kept here:

- The exit is valid by itself: not expired, for this place, and only its closing side, down to its floor.
- The order never closes more than is open and not on its way out already; what is sold is what the position has.
- Only FROZEN, which the operator alone sets, stops it. A halt does not, and silence of risk does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Protocol

from mcp_servers.execution.gate import GateCode, GateRules, Moment, RiskPulse, refuse
from mcp_servers.execution.protection.exits import check_place
from trading.domain.approvals import ApprovedOrder, TradingState
from trading.domain.identifiers import AccountId, Symbol, client_order_id_for
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.proposals import OrderType
from trading.domain.standing_exits import PROTECTION, ExitSlice, StandingExit
from trading.domain.trading_states import strictest

_FORMS: Final = (OrderType.LIMIT, OrderType.STOP_LIMIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitPermit:
    """A slice of an exit and how long its order may be sent.

    Attributes:
        send_by_ms: our clock; the venue is told the same where it takes a deadline.
    """

    exit: StandingExit
    used: ExitSlice
    send_by_ms: int


def is_frozen(pulse: RiskPulse, account_id: AccountId, symbol: Symbol) -> bool:
    """Return whether the operator has frozen all trading there, stops included."""
    held = strictest(pulse.state, pulse.scopes, account_id=account_id, agent_id=PROTECTION, symbol=symbol)
    return held.state is TradingState.FROZEN


class ExitFacts(Protocol):
    """What the check asks of the room, answered from memory."""

    @property
    def pulse(self) -> RiskPulse:
        """Return what is known of risk now."""
        ...

    def slack(self, instrument_id: InstrumentId, side: Side) -> Decimal:
        """Return the open quantity less all that may be closing it on ``side``; negative when that is too much."""
        ...


def check_exit(
    permit: ExitPermit, order: ApprovedOrder, facts: ExitFacts, rules: GateRules, moment: Moment, *, claimed: bool
) -> None:
    """Return if a protective order may be sent now.

    Args:
        permit: the slice that it uses.
        order: what would be sent.
        facts: the room's own state.
        rules: what this server is.
        moment: both clocks, read once.
        claimed: whether the order is counted among what closes the position already.

    Raises:
        GateRefused: ``code`` names the failed check.
    """
    found = permit.exit
    check_place(found, rules)
    if (order.account_id, order.instrument_id) != (found.account_id, found.instrument_id):
        refuse(GateCode.ORDER_MISMATCH, "the order is for another place than its exit")
    if order.side is not found.terms.side:
        refuse(GateCode.ORDER_MISMATCH, "the order is not on the closing side of its exit")
    if order.client_order_id != client_order_id_for(permit.used.approval_id, order.venue):
        refuse(GateCode.ORDER_MISMATCH, "the client order id does not follow from the slice")
    if order.order_type not in _FORMS or order.limit_price is None or found.is_beyond(order.limit_price):
        refuse(GateCode.ORDER_MISMATCH, "the order could trade beyond the floor of its exit")
    if moment.now_ms >= found.terms.expires_ms:
        refuse(GateCode.EXPIRED, "the standing exit has expired", suggestion="risk signs a new one when it is running")
    if moment.now_ms >= permit.send_by_ms:
        refuse(GateCode.TTL_MONOTONIC, "the slice was claimed too long ago to be sent")
    if is_frozen(facts.pulse, order.account_id, order.symbol):
        refuse(GateCode.STATE, "trading is frozen by the operator: nothing is sent, stops included")
    left = facts.slack(order.instrument_id, order.side)
    if left < 0 or (not claimed and order.quantity > left):
        refuse(GateCode.REDUCE_ONLY, "the order would close more than is open and not on its way out already")
