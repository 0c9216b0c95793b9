"""One account as its execution events tell it: a fold from events to balances, positions and orders.

Risk, execution, the console and the audit all use this one fold, so they cannot disagree about what an event means.
It is the only mutable thing in the domain: an accumulator owned by one task.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache

from trading.domain.errors import InvalidValue
from trading.domain.events import (
    AccountFunded,
    DomainEvent,
    OrderAccepted,
    OrderCanceled,
    OrderCancelRefused,
    OrderCancelRequested,
    OrderExpired,
    OrderFilled,
    OrderFoundAbsent,
    OrderInitialized,
    OrderNotSent,
    OrderOutcomeUnknown,
    OrderRejected,
    OrderSubmitted,
    OrderTriggered,
)
from trading.domain.fills import Fill
from trading.domain.identifiers import AccountId, Currency, OrderId, VenueOrderId
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import ZERO, add, multiply
from trading.domain.orders import Order, OrderAlarm, OrderTrigger
from trading.domain.portfolio import Balance, PortfolioSnapshot
from trading.domain.positions import Position


class AccountBook:
    """Balances, positions and orders of one account.

    Args:
        account_id: events of other accounts are ignored.
        currencies: splits a symbol into (base, quote).
        terminal_kept: how many finished orders stay in memory for late fills and queries.
    """

    def __init__(
        self,
        account_id: AccountId,
        *,
        currencies: Callable[[InstrumentId], tuple[Currency, Currency]] | None = None,
        terminal_kept: int = 1000,
    ) -> None:
        self.account_id = account_id
        self.totals: dict[Currency, Decimal] = {}
        self.positions: dict[InstrumentId, Position] = {}
        self.open_orders: dict[OrderId, Order] = {}
        self._finished: OrderedDict[OrderId, Order] = OrderedDict()
        self._currencies = currencies or split_symbol
        self._terminal_kept = terminal_kept

    def order(self, order_id: OrderId) -> Order | None:
        """Return an order that is open or finished lately, else None."""
        return self.open_orders.get(order_id) or self._finished.get(order_id)

    def finished_orders(self) -> list[Order]:
        """Return the finished orders still in memory, oldest first."""
        return list(self._finished.values())

    def position(self, instrument_id: InstrumentId) -> Position:
        """Return the position, flat if there never was one."""
        known = self.positions.get(instrument_id)
        if known is not None:
            return known
        base, quote = self._currencies(instrument_id)
        return Position(
            account_id=self.account_id,
            instrument_id=instrument_id,
            base=base,
            quote=quote,
        )

    def apply(self, event: DomainEvent, *, now_ms: int) -> OrderAlarm | None:
        """Take one event of the execution ledger, in order.

        Args:
            event: any event; those that say nothing about an account are ignored.
            now_ms: the event's timestamp.

        Returns:
            An alarm if a fill came that should not have.

        Raises:
            InvalidTransition: the events contradict the order table.
        """
        match event:
            case OrderInitialized():
                self._put(_opened(event, now_ms))
            case OrderFilled(fill=fill):
                return self._fill(fill, now_ms)
            case AccountFunded(account_id=self.account_id):
                self.totals[event.currency] = add(self.totals.get(event.currency, ZERO), event.amount)
            case _:
                move = _move_of(event)
                if move is not None:
                    self._move(*move, now_ms=now_ms)
        return None

    def restore(self, order: Order) -> None:
        """Take an order as a projection of the same events holds it; replaces what is known of it."""
        self._put(order)

    def locked(self) -> dict[Currency, Decimal]:
        """Return what working orders hold by currency: quote at the limit price for buys, base for sells."""
        locked: dict[Currency, Decimal] = {}
        for order in self.open_orders.values():
            base, quote = self._currencies(order.terms.instrument_id)
            if order.terms.side is Side.SELL:
                locked[base] = add(locked.get(base, ZERO), order.leaves)
            elif (price := order.terms.limit_price or order.terms.stop_price) is not None:
                locked[quote] = add(locked.get(quote, ZERO), multiply(order.leaves, price))
        return locked

    def snapshot(self, *, now_ms: int, ledger_seq: int) -> PortfolioSnapshot:
        """Return an immutable picture of this moment."""
        locked = self.locked()
        return PortfolioSnapshot(
            account_id=self.account_id,
            as_of_ms=now_ms,
            ledger_seq=ledger_seq,
            balances={c: Balance(total, locked.get(c, ZERO)) for c, total in self.totals.items()},
            positions=dict(self.positions),
            open_orders=tuple(self.open_orders.values()),
        )

    def _put(self, order: Order) -> None:
        if order.terms.account_id != self.account_id:
            return
        if not order.is_terminal:
            self._finished.pop(order.order_id, None)
            self.open_orders[order.order_id] = order
            return
        self.open_orders.pop(order.order_id, None)
        self._finished[order.order_id] = order
        self._finished.move_to_end(order.order_id)
        while len(self._finished) > self._terminal_kept:
            self._finished.popitem(last=False)

    def _move(
        self,
        order_id: OrderId,
        trigger: OrderTrigger,
        venue_id: VenueOrderId | None,
        reason: str,
        *,
        now_ms: int,
    ) -> None:
        order = self.order(order_id)
        if order is not None:
            self._put(order.move(trigger, now_ms=now_ms, venue_order_id=venue_id, reason=reason))

    def _fill(self, fill: Fill, now_ms: int) -> OrderAlarm | None:
        if fill.account_id != self.account_id:
            return None
        alarm = None
        order = self.order(fill.order_id)
        if order is None:
            alarm = OrderAlarm.FILL_AFTER_END  # finished so long ago that it left memory; the money still moved
        else:
            if fill.trade_id in order.trade_ids:
                return None
            moved, alarm = order.fill(fill, now_ms=now_ms)
            self._put(moved)
        self.positions[fill.instrument_id] = self.position(fill.instrument_id).apply(fill)
        base, quote = self._currencies(fill.instrument_id)
        sign = fill.side.sign
        self._credit(base, multiply(fill.quantity, Decimal(sign)))
        self._credit(quote, multiply(fill.notional, Decimal(-sign)))
        self._credit(fill.fee_currency, -fill.fee)
        return alarm

    def _credit(self, currency: Currency, amount: Decimal) -> None:
        self.totals[currency] = add(self.totals.get(currency, ZERO), amount)


@lru_cache(maxsize=4_096)
def split_symbol(instrument_id: InstrumentId) -> tuple[Currency, Currency]:
    """Return (base, quote) of a unified spot symbol."""
    base, slash, quote = instrument_id.symbol.partition("/")
    if not slash:
        raise InvalidValue(f"{instrument_id.symbol!r} is not BASE/QUOTE", code="INVALID_SYMBOL")
    return Currency(base), Currency(quote)


def _opened(event: OrderInitialized, now_ms: int) -> Order:
    return Order(
        order_id=event.order_id,
        approval_id=event.approval_id,
        agent_id=event.agent_id,
        effect=event.effect,
        terms=event.terms,
        created_ms=now_ms,
        updated_ms=now_ms,
    )


def _move_of(
    event: DomainEvent,
) -> tuple[OrderId, OrderTrigger, VenueOrderId | None, str] | None:
    """Return (order, trigger, venue order id, reason) for events that move an order."""
    match event:
        case OrderSubmitted():
            return event.order_id, OrderTrigger.SUBMIT, None, ""
        case OrderAccepted():
            return event.order_id, OrderTrigger.ACCEPT, event.venue_order_id, ""
        case OrderRejected():
            return event.order_id, OrderTrigger.REJECT, None, event.reason
        case OrderTriggered():
            return event.order_id, OrderTrigger.TRIGGER, None, ""
        case OrderNotSent():
            return event.order_id, OrderTrigger.WITHHOLD, None, event.code
        case OrderCancelRequested():
            return event.order_id, OrderTrigger.REQUEST_CANCEL, None, ""
        case OrderCancelRefused():
            return event.order_id, OrderTrigger.REFUSE_CANCEL, None, event.reason
        case OrderCanceled():
            return event.order_id, OrderTrigger.CANCEL, None, event.reason
        case OrderExpired():
            return event.order_id, OrderTrigger.EXPIRE, None, event.reason
        case OrderOutcomeUnknown():
            return event.order_id, OrderTrigger.LOSE, None, event.reason
        case OrderFoundAbsent():
            return event.order_id, OrderTrigger.FIND_ABSENT, None, event.evidence
        case _:
            return None
