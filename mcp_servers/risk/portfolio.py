"""What we hold and what is open, folded from execution's ledger.

The fold itself is ``trading.domain.accounts.AccountBook``, shared with execution, the console and the audit. Here it is
joined with the reservations: a fill moves quantity from the promise to the position in the same step, and an approval
stops counting only when the ledger says how it ended.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple

from trading.domain.accounts import AccountBook, split_symbol
from trading.domain.approvals import ApprovedOrder, Effect, Fate
from trading.domain.events import (
    AccountFunded,
    AlarmRaised,
    ApprovalEnded,
    EventEnvelope,
    OrderFilled,
    OrderInitialized,
    ReservationReleased,
)
from trading.domain.identifiers import AccountId, AgentId, ApprovalId, Currency, OrderId
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import ZERO, add, multiply, subtract
from trading.domain.orders import Order, OrderStatus
from trading.domain.positions import Position
from trading.domain.standing_exits import PROTECTION

from .activity import Activity
from .reservations import Reservation, ReservationBook, resting_price, unit_cost_of

#: Fee assumed for an order that risk has no approval for; above every spot venue's published rate.
_FOREIGN_FEE = Decimal("0.02")
#: Orders of an earlier run looked at to fill the turnover windows again; the newest are kept.
_REBUILT_KEPT: Final = 50_000
#: Orders of standing exits remembered after they ended: one that is found alive again is no stranger.
_STOPS_KEPT: Final = 4_096
#: How long stops may look larger than the position before they are.
_STOP_GRACE_MS: Final = 2_000

#: Whether an order, written at that time, is one that a standing exit allows.
Covers = Callable[[OrderInitialized, int], bool]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a batch of execution events means for risk's own ledger."""

    released: tuple[ReservationReleased, ...] = ()
    alarms: tuple[AlarmRaised, ...] = ()


class OpenedOrder(NamedTuple):
    """An order that was found while rebuilding, and when it was opened."""

    approval_id: ApprovalId
    agent_id: AgentId
    terms: ApprovedOrder
    at_ms: int


class Portfolio:
    """Balances, positions and reservations of one account at the last event applied.

    Args:
        account_id: events of other accounts are ignored.
        reservations: shared with the check, which adds to it.
        quote: the currency profit and loss is counted in.
    """

    def __init__(self, account_id: AccountId, reservations: ReservationBook, quote: Currency) -> None:
        self.account_id = account_id
        self.quote = quote
        self.reservations = reservations
        self.book = AccountBook(account_id)
        self.applied_seq = 0
        self.polled_ms = 0
        self.funded: dict[Currency, Decimal] = {}
        self._beyond: tuple[int, dict[Currency, Decimal]] = (0, {})  # as of which event, and what trading changed
        self.activity = Activity()
        self.covers: Covers = _nothing_covers
        self._stops: OrderedDict[ApprovalId, None] = OrderedDict()  # orders of standing exits, the newest
        self._too_large_since: dict[tuple[InstrumentId, Side], int] = {}
        self._builders: dict[OrderId, set[AgentId]] = {}
        self.holders: dict[InstrumentId, set[AgentId]] = {}  # whose entries built each open position
        self.rebuilt: deque[OpenedOrder] = deque(maxlen=_REBUILT_KEPT)
        self._earned: dict[OrderId, Decimal] = {}
        self._reported: dict[OrderId, Decimal] = {}
        self._behind_since_ms: int | None = None
        self._behind_seq = 0

    # -- what the rules ask -----------------------------------------------------------------------------------------

    def held(self, instrument_id: InstrumentId) -> Decimal:
        """Return base held, from any source; negative if more was sold than there was."""
        base, _ = split_symbol(instrument_id)
        return self.book.totals.get(base, ZERO)

    def open_positions(self) -> list[Position]:
        """Return the positions that our fills built and that are not flat."""
        return [position for position in self.book.positions.values() if position.quantity]

    def reducible(self, instrument_id: InstrumentId) -> Decimal:
        """Return base that selling would bring the position nearer to zero by, ignoring what is already open.

        The smaller of the position that our fills built and the balance: execution re-checks against the position.
        """
        position = self.book.positions.get(instrument_id)
        if position is None:
            return ZERO
        return max(ZERO, min(position.quantity, self.held(instrument_id)))

    def closable(self, instrument_id: InstrumentId, side: Side) -> Decimal:
        """Return base that a further reduce may have: the position less everything already on its way out."""
        if side is Side.BUY:
            return ZERO  # spot: there are no short positions to buy back
        open_sells = self.reservations.exposure(instrument_id).sell_open
        return max(ZERO, subtract(self.reducible(instrument_id), open_sells))

    def total(self, currency: Currency) -> Decimal:
        """Return everything held of one currency."""
        return self.book.totals.get(currency, ZERO)

    def equity(self, marks: Mapping[Currency, Decimal]) -> Decimal | None:
        """Return the account's worth in quote; None while a held currency has no mark."""
        return self._worth(self.book.totals, marks)

    def trading_result(self, marks: Mapping[Currency, Decimal]) -> Decimal | None:
        """Return what trading has earned since the beginning, in quote, after fees; None without marks.

        Everything beyond what was paid in, valued now: a deposit is no profit and a withdrawal no loss.
        """
        if self._beyond[0] != self.applied_seq:
            changes = {
                currency: subtract(amount, self.funded.get(currency, ZERO))
                for currency, amount in self.book.totals.items()
            }
            self._beyond = self.applied_seq, {currency: amount for currency, amount in changes.items() if amount}
        return self._worth(self._beyond[1], marks)

    def _worth(self, amounts: Mapping[Currency, Decimal], marks: Mapping[Currency, Decimal]) -> Decimal | None:
        worth = ZERO
        for currency, amount in amounts.items():
            if currency == self.quote:
                worth = add(worth, amount)
            elif amount:
                mark = marks.get(currency)
                if mark is None:
                    return None
                worth = add(worth, multiply(amount, mark))
        return worth

    # -- freshness --------------------------------------------------------------------------------------------------

    def polled(self, now_ms: int) -> None:
        """Note that the ledger was read to its end."""
        self.polled_ms = max(self.polled_ms, now_ms)

    def expect(self, ledger_seq: int, now_ms: int) -> None:
        """Note how far execution says its ledger goes; what we lack for too long makes us stale."""
        if ledger_seq > self.applied_seq and self._behind_since_ms is None:
            self._behind_since_ms, self._behind_seq = now_ms, ledger_seq

    def age_ms(self, now_ms: int) -> int | None:
        """Return how old this picture may be; None before the first successful read."""
        if not self.polled_ms:
            return None
        age = max(0, now_ms - self.polled_ms)
        if self._behind_since_ms is not None:
            age = max(age, now_ms - self._behind_since_ms)
        return age

    # -- events -----------------------------------------------------------------------------------------------------

    def apply(self, envelopes: Sequence[EventEnvelope], *, live: bool) -> Changes:
        """Take execution events in order.

        Args:
            envelopes: the next events; those already applied are skipped.
            live: False while rebuilding: an order without an approval is then normal, because approvals that ended
                before are not loaded any more.
        """
        released: list[ReservationReleased] = []
        alarms: list[AlarmRaised] = []
        for envelope in envelopes:
            if envelope.seq <= self.applied_seq:
                continue
            self._apply(envelope, released, alarms, live=live)
            self.applied_seq = envelope.seq
        if self._behind_since_ms is not None and self.applied_seq >= self._behind_seq:
            self._behind_since_ms = None
        return Changes(tuple(released), tuple(alarms))

    def foreign_orders(self) -> list[Reservation]:
        """Return the open orders that risk never approved."""
        return [item for item in self.reservations if item.foreign]

    def judge_stops(self, now_ms: int) -> list[AlarmRaised]:
        """Return an alarm for each stop that has been larger than the position for too long; it counts in full then.

        Not at once: execution's memory is ahead of its ledger, so a stop may be read before the fill that it protects.
        """
        stops: dict[tuple[InstrumentId, Side], list[Reservation]] = {}
        for item in self.reservations.protective():
            stops.setdefault((item.instrument_id, item.side), []).append(item)
        self._too_large_since = {
            key: self._too_large_since.get(key, now_ms)
            for key, found in stops.items()
            if self._are_too_large(key, found)
        }
        late = [key for key, since in self._too_large_since.items() if now_ms - since >= _STOP_GRACE_MS]
        alarms: list[AlarmRaised] = []
        for item in [item for key in late for item in stops[key]]:
            self.reservations.expose(item.approval_id)
            message = "stops would close more than is open; they count in full against the limits"
            alarms.append(_alarm("STOP_TOO_LARGE", message, item.order_id or item.approval_id))
        return alarms

    def _are_too_large(self, key: tuple[InstrumentId, Side], stops: Sequence[Reservation]) -> bool:
        open_now = self.book.position(key[0]).quantity
        leaves = ZERO
        for item in stops:
            leaves = add(leaves, item.leaves)
        return leaves > (open_now if key[1] is Side.SELL else -open_now)

    def _apply(
        self,
        envelope: EventEnvelope,
        released: list[ReservationReleased],
        alarms: list[AlarmRaised],
        *,
        live: bool,
    ) -> None:
        event = envelope.payload
        before = self.book.position(event.fill.instrument_id) if isinstance(event, OrderFilled) else None
        alarm = self.book.apply(event, now_ms=envelope.timestamp_ms)
        if alarm is not None and isinstance(event, OrderFilled) and live:
            alarms.append(_alarm(alarm.value, "a fill came that should not have; it counts", event.fill.order_id))
        match event:
            case OrderInitialized():
                if event.terms.account_id == self.account_id:
                    if not live and event.exit_slice is None:
                        opened = OpenedOrder(event.approval_id, event.agent_id, event.terms, envelope.timestamp_ms)
                        self.rebuilt.append(opened)
                    self._consumed(event, envelope.timestamp_ms, alarms, live=live)
            case OrderFilled(fill=fill):
                self._reported[fill.order_id] = event.filled
                if before is not None and (stopped := self._filled(event, before, envelope.timestamp_ms)) and live:
                    alarms.append(stopped)
            case ApprovalEnded(fate=Fate.LAPSED | Fate.VOIDED):
                self._release(event.approval_id, event.fate.value, released)
                return
            case AccountFunded(account_id=self.account_id):
                self.funded[event.currency] = add(self.funded.get(event.currency, ZERO), event.amount)
                return
            case _:
                pass
        order_id = getattr(event, "order_id", None) or (event.fill.order_id if isinstance(event, OrderFilled) else None)
        order = self.book.order(order_id) if order_id is not None else None
        if order is not None:
            self._follow(order, released)

    def _consumed(self, event: OrderInitialized, at_ms: int, alarms: list[AlarmRaised], *, live: bool) -> None:
        if self.reservations.get(event.approval_id) is None:
            is_stop = event.exit_slice is not None and self.covers(event, at_ms)
            if is_stop:
                self._stops[event.approval_id] = None
                if len(self._stops) > _STOPS_KEPT:
                    self._stops.popitem(last=False)
            self._count(event.approval_id, event.agent_id, event.effect, event.terms)
            if live and not is_stop:
                message = "execution has an order for which risk holds no approval"
                alarms.append(_alarm("ORDER_WITHOUT_APPROVAL", message, event.order_id))
        self.reservations.consume(event.approval_id, event.order_id)

    def _follow(self, order: Order, released: list[ReservationReleased]) -> None:
        """Let the reservation count for what may still trade, or end it on terminal evidence."""
        if order.is_terminal and self._fills_complete(order):
            self._reported.pop(order.order_id, None)
            if (earned := self._earned.pop(order.order_id, None)) is not None:
                for agent_id in self._builders.pop(order.order_id, None) or (order.agent_id,):
                    self.activity.closed(agent_id, earned, order.updated_ms)
            self._release(order.approval_id, order.status.value, released)
            return
        leaves = max(ZERO, subtract(order.terms.quantity, order.filled))
        if not order.is_terminal and self.reservations.get(order.approval_id) is None:
            # Real world: an order thought absent is found alive. It counts again from here.
            self._count(order.approval_id, order.agent_id, order.effect, order.terms)
            self.reservations.consume(order.approval_id, order.order_id)
        self.reservations.shrink(order.approval_id, leaves)

    def _count(self, approval_id: ApprovalId, agent_id: AgentId, effect: Effect, terms: ApprovedOrder) -> None:
        """Count an order that has no approval: one of a standing exit, or one that should not be."""
        is_stop = approval_id in self._stops
        self.reservations.add(
            Reservation(
                approval_id=approval_id,
                agent_id=agent_id,
                instrument_id=terms.instrument_id,
                side=terms.side,
                effect=effect,
                quantity=terms.quantity,
                unit_cost=unit_cost_of(terms, _FOREIGN_FEE),
                rests_at=resting_price(terms),
                foreign=not is_stop,
                protective=is_stop,
            )
        )

    def _filled(self, event: OrderFilled, before: Position, at_ms: int) -> AlarmRaised | None:
        """Tell the activity what a fill was: an entry, a close, or neither; an alarm when it stops the agent."""
        fill = event.fill
        order = self.book.order(fill.order_id)
        after = self.book.position(fill.instrument_id)
        if order is None or after is before:
            return None
        if order.agent_id == PROTECTION:  # what a stop loses is lost by those who built the position
            self._builders.setdefault(order.order_id, set()).update(self.holders.get(fill.instrument_id, ()))
        if not after.quantity:
            self.holders.pop(fill.instrument_id, None)
        elif order.effect is Effect.INCREASE:
            self.holders.setdefault(fill.instrument_id, set()).add(order.agent_id)
        if after.realized != before.realized:
            fee = fill.fee if fill.fee_currency == self.quote else ZERO
            earned = subtract(subtract(after.realized, before.realized), fee)
            self._earned[order.order_id] = add(self._earned.get(order.order_id, ZERO), earned)
        first = event.filled <= fill.quantity and order.effect is Effect.INCREASE
        if first and self.activity.entered(order.agent_id, fill.instrument_id, at_ms):
            message = f"{order.agent_id} entered {fill.instrument_id.symbol} too often; only a person lets it go on"
            return _alarm("REPEATED_EXECUTION", message, order.order_id)
        return None

    def _fills_complete(self, order: Order) -> bool:
        """Whether every fill the venue reported is in the book, so that nothing is counted by neither side."""
        if order.status is OrderStatus.FILLED and order.filled < order.terms.quantity:
            return False
        return order.filled >= self._reported.get(order.order_id, ZERO)

    def _release(self, approval_id: ApprovalId, evidence: str, released: list[ReservationReleased]) -> None:
        reservation = self.reservations.remove(approval_id)
        if reservation is not None and not (reservation.foreign or reservation.protective):
            released.append(ReservationReleased(approval_id=approval_id, evidence=evidence))


def _nothing_covers(_: OrderInitialized, __: int) -> bool:
    return False


def _alarm(code: str, message: str, subject: str) -> AlarmRaised:
    return AlarmRaised(code=code, message=message, subject=subject)
