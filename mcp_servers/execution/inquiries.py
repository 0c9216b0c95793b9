"""What can be asked of the execution room without changing anything."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, TypeVar, cast

from mcp_servers.execution.protection.alarms import UNSAFE
from mcp_servers.execution.routing import Child, RouteRequest, plan_child
from mcp_servers.execution.rows import order_of
from trading.domain.approvals import TradingState
from trading.domain.errors import InvalidValue, StaleData, UnknownInstrument
from trading.domain.identifiers import Currency, OrderId, Symbol
from trading.domain.instruments import InstrumentId
from trading.domain.orders import TERMINAL, Order, OrderStatus
from trading.domain.trading_states import AGENT

if TYPE_CHECKING:
    from mcp_servers.execution.service import ExecutionService

T = TypeVar("T")


class Inquiries:
    """Reads the state of one execution service."""

    def __init__(self, service: ExecutionService) -> None:
        self._service = service

    async def find_order(self, name: str) -> Order:
        """Return the order with this order id, client order id or approval id.

        Raises:
            InvalidValue: UNKNOWN_ORDER.
        """
        order = self._service.lifecycle.book.order(OrderId(name))
        if order is not None:
            return order
        for column in ("order_id", "approval_id", "client_order_id"):
            rows = await self._service.parts.ledger.rows("orders", {column: name}, limit=1)
            if rows:
                order = order_of(rows[0])
                return self._service.lifecycle.book.order(order.order_id) or order
        raise InvalidValue(
            "there is no order with this id",
            code="UNKNOWN_ORDER",
            suggestion="list them with execution_list_orders",
        )

    def equity(self) -> Decimal | None:
        """Return the account's worth in the desk's quote currency, None when a held currency has no fresh price."""
        snapshot = self._service.lifecycle.book.snapshot(now_ms=self._service.clock.now_ms(), ledger_seq=0)
        return snapshot.equity(self._service.parts.quote, self.marks())

    def marks(self) -> dict[Currency, Decimal]:
        """Return the mid price of each base currency in the desk's quote, where the book is fresh."""
        found: dict[Currency, Decimal] = {}
        for instrument_id, instrument in self._service.instruments.items():
            book = self._service.book(instrument_id)
            fresh = (
                book is not None and book.age_ms(self._service.clock.now_ms()) <= self._service.rules.price_age_max_ms
            )
            if instrument.quote == self._service.parts.quote and fresh and book is not None and book.mid is not None:
                found[instrument.base] = book.mid
        return found

    def plan(self, request: RouteRequest, instrument_id: InstrumentId) -> Child:
        """Return the child order that would carry out ``request``; reserves nothing.

        Raises:
            UnknownInstrument: not traded here; ``allowed`` has the nearest symbols.
            StaleData: there is no fresh price.
            InvalidValue: see ``plan_child``.
        """
        instrument = self._service.instruments.get(instrument_id)
        if instrument is None:
            known = [str(each.symbol) for each in self._service.instruments]
            near = tuple(difflib.get_close_matches(instrument_id.symbol, known, cutoff=0.4)) or tuple(known[:5])
            raise UnknownInstrument(
                f"{instrument_id} cannot be traded here", suggestion="use a known symbol", allowed=near
            )
        book = self._service.book(instrument_id)
        if book is None or book.age_ms(self._service.clock.now_ms()) > self._service.rules.price_age_max_ms:
            raise StaleData(f"there is no fresh price of {instrument_id.symbol}", suggestion="see market_get_status")
        return plan_child(request, instrument, book, account_id=self._service.rules.account_id, equity=self.equity())

    async def list_orders(
        self, *, statuses: Sequence[OrderStatus] | None, symbol: Symbol | None, since_ms: int, before: str, limit: int
    ) -> list[Order]:
        """Return orders, newest first.

        Args:
            statuses: only these, None for all.
            symbol: only this one.
            since_ms: created at or after.
            before: continue after this order id, empty for the start.
            limit: rows at most.
        """
        if statuses is not None and not any(each in TERMINAL for each in statuses):
            pool = [each for each in self._service.lifecycle.book.open_orders.values() if each.status in statuses]
        else:
            where: dict[str, object] = {"account_id": self._service.rules.account_id}
            if statuses is not None:
                where["status"] = [each.value for each in statuses]
            if symbol is not None:
                where["symbol"] = symbol
            rows = await self._service.parts.ledger.rows("orders", where)
            found = [row for row in rows if cast("int", row["created_ms"]) >= since_ms]
            found.sort(key=lambda row: (cast("int", row["created_ms"]), cast("str", row["order_id"])), reverse=True)
            return [order_of(row) for row in _page(found, lambda row: row["order_id"] == before, before, limit)]
        chosen = [each for each in pool if each.created_ms >= since_ms and symbol in (None, each.terms.symbol)]
        chosen.sort(key=lambda each: (each.created_ms, each.order_id), reverse=True)
        return _page(chosen, lambda each: each.order_id == before, before, limit)

    def unsafe_reasons(self) -> list[str]:
        """Return why new risk would not be taken now, each starting with a stable code; empty when it would."""
        moment, reasons = self._service.moment(), list[str]()
        age_ms = self._service.epochs.age_ms(moment.monotonic_ns)
        if self._service.lifecycle.broken.is_set():
            reasons.append("LEDGER_FAILED the room is stopping")
        if age_ms is None:
            reasons.append("NO_HEARTBEAT risk has not been heard since the start")
        elif age_ms > self._service.rules.heartbeat_age_max_ms:
            reasons.append(f"HEARTBEAT_STALE risk was last heard {age_ms} ms ago")
        if self._service.pulse.state is not TradingState.ACTIVE:
            reasons.append(f"TRADING_STATE trading is {self._service.pulse.state}")
        # An agent's own halt is no reason against the others; a symbol's is one, as its stale price is.
        others = [each for each in self._service.pulse.scopes if not each.scope.startswith(f"{AGENT}:")]
        reasons += [f"TRADING_STATE {each.scope} is {each.state}" for each in others]
        if doubtful := len(self._service.reconciler.in_doubt()):
            reasons.append(f"UNRESOLVED {doubtful} orders may or may not be at the venue")
        last = self._service.reconciler.last
        if last is None or not last.complete:
            reasons.append("NOT_RECONCILED the venue has not answered everything yet")
        elif last.differences:
            reasons.append(f"DIFFERENCES {len(last.differences)} differences between ledger and venue")
        reasons += self._service.stop_loss.alarms.standing(*UNSAFE)
        for instrument_id in self._service.instruments:
            book = self._service.book(instrument_id)
            if book is None or book.mid is None:
                reasons.append(f"NO_PRICE {instrument_id}")
            elif book.age_ms(moment.now_ms) > self._service.rules.price_age_max_ms:
                reasons.append(f"PRICE_STALE {instrument_id} {book.age_ms(moment.now_ms)} ms")
        return reasons


def _page(items: list[T], is_last: Callable[[T], bool], before: str, limit: int) -> list[T]:
    start = next((index + 1 for index, each in enumerate(items) if is_last(each)), len(items)) if before else 0
    return items[start : start + limit]
