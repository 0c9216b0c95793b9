"""The member whose consent every trade needs. It looks at exposure, spread and staleness, and at nothing else.

Its vote is a judgement among colleagues; the limits that cannot be voted away live in the risk server.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from trading.domain.identifiers import AgentId, Symbol
from trading.domain.market_data import Side
from trading.domain.money import add, bps_of, multiply
from trading.domain.proposals import TradeProposal
from trading.domain.voting import Choice, Role
from trading.strategy.rules import Hold, Propose, Stance
from trading.strategy.snapshot import MarketSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficerNumbers:
    """When the risk officer withholds its consent.

    Attributes:
        book_age_max_ms: older market data is no basis for a trade.
        account_age_max_ms: nor are older account figures.
        spread_bps_max: widest spread.
        order_equity_bps_max: largest order, of equity.
        exposure_equity_bps_max: largest position in the instrument after the order, of equity.
    """

    book_age_max_ms: int = 1_500
    account_age_max_ms: int = 5_000
    spread_bps_max: Decimal = Decimal(15)
    order_equity_bps_max: Decimal = Decimal(1_000)
    exposure_equity_bps_max: Decimal = Decimal(9_500)


class RiskOfficer:
    """Votes yes or no, never abstains, never proposes.

    Args:
        agent_id: its name.
        numbers: its bounds.
    """

    def __init__(self, agent_id: AgentId, numbers: OfficerNumbers | None = None) -> None:
        self._agent_id = agent_id
        self._numbers = numbers or OfficerNumbers()
        self._seen: dict[Symbol, MarketSnapshot] = {}

    @property
    def agent_id(self) -> AgentId:
        """Its name on the desk."""
        return self._agent_id

    @property
    def role(self) -> Role:
        """Risk."""
        return Role.RISK

    @property
    def family(self) -> str:
        """Rules."""
        return "rules"

    @property
    def proposal_interval_ms(self) -> int:
        """Zero: it never proposes."""
        return 0

    def observe(self, snapshot: MarketSnapshot) -> None:
        """Remember the newest state of an instrument."""
        self._seen[snapshot.instrument.symbol] = snapshot

    def propose(self) -> Propose | Hold:
        """Return Hold: whoever controls does not trade."""
        return Hold("the risk officer does not propose")

    def vote(self, proposal: TradeProposal) -> Stance:
        """Consent, or say no with the first reason. Without data there is no consent."""
        snapshot = self._seen.get(proposal.order.symbol)
        reason = "this instrument was not observed" if snapshot is None else self._objection(snapshot, proposal)
        return Stance(Choice.NO, reason) if reason else Stance(Choice.YES, "within exposure, spread and age")

    def _objection(self, snapshot: MarketSnapshot, proposal: TradeProposal) -> str:
        numbers, order, mid = self._numbers, proposal.order, snapshot.book.mid
        spread = snapshot.book.spread_bps
        if mid is None or spread is None:
            return "the book is not two-sided"
        if snapshot.book_age_ms > numbers.book_age_max_ms:
            return f"the book is {snapshot.book_age_ms} ms old"
        if snapshot.account_age_ms > numbers.account_age_max_ms:
            return f"the account figures are {snapshot.account_age_ms} ms old"
        if spread > numbers.spread_bps_max:
            return f"spread of {float(spread):.2f} bps is too wide"
        if order.side is Side.SELL:  # spot: it can only bring the exposure down
            return "" if order.quantity <= snapshot.held else "more than is held"
        notional = multiply(order.quantity, mid)
        if notional > bps_of(snapshot.equity, numbers.order_equity_bps_max):
            return "the order is too large a share of equity"
        if add(notional, multiply(snapshot.held, mid)) > bps_of(snapshot.equity, numbers.exposure_equity_bps_max):
            return "the position would be too large a share of equity"
        return ""
