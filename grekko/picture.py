"""The desk at a glance: a fold over the three ledgers that the live view, the status and the report share."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from grekko.latency import LatencyBook
from grekko.ledgers import ROOMS, Ledgers
from trading.domain.accounts import AccountBook
from trading.domain.approvals import Epoch, TradingState
from trading.domain.events import (
    AlarmRaised,
    BreakerReset,
    BreakerTripped,
    EventEnvelope,
    OrderFilled,
    OrderInitialized,
    ProposalDecided,
    ProposalOpened,
    ProposalRefused,
    RiskApproved,
    RiskDenied,
    VoteCast,
    VoteRefused,
)
from trading.domain.identifiers import AccountId, Currency, OrderId
from trading.domain.instruments import InstrumentId
from trading.domain.money import ZERO, add
from trading.domain.positions import Position
from trading.domain.trading_states import DESK

_RECENT = 12  # lines of each kind that the live view can show
_PAGE = 1000


@dataclass(slots=True)
class Counts:
    """How often each thing happened since the picture's start.

    Attributes:
        denials: by rule code; a denial with two failed rules counts under both.
    """

    proposals: int = 0
    proposals_refused: int = 0
    votes: int = 0
    votes_refused: int = 0
    decisions: int = 0
    decisions_approved: int = 0
    approvals: int = 0
    denied: int = 0
    fills: int = 0
    alarms: int = 0
    denials: Counter[str] = field(default_factory=Counter[str])


class DeskPicture:
    """Counts, recent happenings, account and breaker of one desk.

    Args:
        account_id: whose orders and positions to keep.
        since_ms: events before this time build the account but are not counted.

    Attributes:
        opening: the positions as they were at ``since_ms``.
        fees: paid since ``since_ms``.
        state: the desk's.  scopes: state and reason of everything else that is restricted.
    """

    def __init__(self, account_id: AccountId, *, since_ms: int = 0) -> None:
        self.account = AccountBook(account_id, terminal_kept=100_000)
        self.counts = Counts()
        self.latency = LatencyBook()
        self.state = TradingState.HALTED
        self.epoch = Epoch(0, 0)
        self.state_reason = "risk has not started"
        self.scopes: dict[str, tuple[TradingState, str]] = {}
        self.fees: dict[Currency, Decimal] = {}
        self.recent: dict[str, deque[EventEnvelope]] = {
            kind: deque(maxlen=_RECENT) for kind in ("coordinator", "risk", "execution")
        }
        self.opening: dict[InstrumentId, Position] = {}
        self._since_ms = since_ms
        self._cursors = dict.fromkeys(ROOMS, 0)
        self._order_ids: list[OrderId] = []
        self._stop_ids: set[OrderId] = set()

    def order_states(self) -> Counter[str]:
        """Return the orders opened since the start by the state they are in now."""
        return self._states(self._order_ids)

    def stop_states(self) -> Counter[str]:
        """Return those of :meth:`order_states` that are stops of standing exits."""
        return self._states([order_id for order_id in self._order_ids if order_id in self._stop_ids])

    def _states(self, order_ids: Sequence[OrderId]) -> Counter[str]:
        orders = (self.account.order(order_id) for order_id in order_ids)
        return Counter(str(order.status) for order in orders if order is not None)

    async def refresh(self, ledgers: Ledgers) -> int:
        """Read what is new in every ledger and return how many events that was."""
        count = 0
        for room in ROOMS:
            while page := await ledgers.reader(room).events_after(self._cursors[room], limit=_PAGE):
                self.take(page)
                self._cursors[room] = page[-1].seq
                count += len(page)
        return count

    def take(self, events: Sequence[EventEnvelope]) -> None:
        """Fold in the next events of one ledger, in order."""
        for event in events:
            self.account.apply(event.payload, now_ms=event.timestamp_ms)
            self._follow_breaker(event)
            if event.timestamp_ms < self._since_ms:
                self.opening = dict(self.account.positions)
            else:
                self._count(event)
                self.latency.take(event)
                self.recent[event.source_service].append(event)

    def _follow_breaker(self, event: EventEnvelope) -> None:
        match event.payload:
            case BreakerTripped() | BreakerReset() as change:
                self.epoch = max(self.epoch, change.epoch)
                if change.scope == DESK:
                    self.state, self.state_reason = change.state, change.reason
                elif change.state is TradingState.ACTIVE:
                    self.scopes.pop(change.scope, None)
                else:
                    self.scopes[change.scope] = (change.state, change.reason)
            case _:
                pass

    def _count(self, event: EventEnvelope) -> None:
        counts = self.counts
        match event.payload:
            case ProposalOpened():
                counts.proposals += 1
            case ProposalRefused():
                counts.proposals_refused += 1
            case VoteCast():
                counts.votes += 1
            case VoteRefused():
                counts.votes_refused += 1
            case ProposalDecided(outcome=outcome):
                counts.decisions += 1
                counts.decisions_approved += outcome == "approved"
            case RiskApproved():
                counts.approvals += 1
            case RiskDenied(denial=denial):
                counts.denied += 1
                counts.denials.update(str(failure.rule) for failure in denial.failures)
            case AlarmRaised():
                counts.alarms += 1
            case OrderInitialized() as opened:
                self._order_ids.append(opened.order_id)
                if opened.exit_slice is not None:
                    self._stop_ids.add(opened.order_id)
            case OrderFilled(fill=fill):
                counts.fills += 1
                self.fees[fill.fee_currency] = add(self.fees.get(fill.fee_currency, ZERO), fill.fee)
            case _:
                pass
