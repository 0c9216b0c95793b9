"""One instrument at the paper venue: the public book, our resting orders and our stops."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from trading.adapters.venues.paper.book import Ladder, Plan, Resting
from trading.adapters.venues.paper.orders import PaperOrder
from trading.domain.instruments import Instrument
from trading.domain.market_data import OrderBook, Side, TradePrint
from trading.domain.money import ZERO, add, subtract


class Market:
    """State and queries of one instrument; ``PaperExchange`` decides what happens."""

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.ladders = {side: Ladder(side) for side in Side}
        self.resting = {side: Resting(side) for side in Side}
        self.has_book = False
        self.book_ts_ms = 0
        self.seen_ms = 0  # our own clock when the last book came in
        self._stops: dict[PaperOrder, None] = {}

    @property
    def has_own_orders(self) -> bool:
        """Whether anything of ours rests or waits here."""
        return bool(self._stops) or any(self.resting.values())

    def opposite(self, side: Side) -> Ladder:
        """Return what an order on ``side`` would take from."""
        return self.ladders[side.opposite]

    def update(self, book: OrderBook) -> bool:
        """Take in a public book; False, and nothing changes, if it is crossed or locked."""
        if book.bids and book.asks and book.bids[0].price >= book.asks[0].price:
            return False
        self.ladders[Side.BUY].update(book.bids)
        self.ladders[Side.SELL].update(book.asks)
        if not self.has_book:  # whatever is kept already was there before this process: it meets the market now
            for order in self._kept():
                order.met_ts_ms = book.venue_ts_ms
        self.has_book, self.book_ts_ms = True, book.venue_ts_ms
        for side, resting in self.resting.items():
            if resting:
                self._cap_queues(side)
        return True

    def _kept(self) -> Iterator[PaperOrder]:
        yield from self._stops
        for resting in self.resting.values():
            for _, orders in resting.levels():
                yield from orders

    def _cap_queues(self, side: Side) -> None:
        """Nobody can be ahead of us who is not in the level any more; prints seen later may explain the cap."""
        ladder = self.ladders[side]
        for price, orders in self.resting[side].levels():
            public = ladder.quantity_at(price)
            if public is None:
                return  # this level and all deeper ones are out of sight
            for order in orders:
                if order.ahead is None:
                    order.ahead = public
                elif public < order.ahead:
                    gone = subtract(order.ahead, public)
                    order.credit, order.credit_ts_ms = add(order.credit, gone), self.book_ts_ms
                    order.ahead = public

    # Our orders -----------------------------------------------------------------------------------------------

    def plan(self, order: PaperOrder) -> Plan:
        """Return what the order would take now, without touching anything."""
        side = order.terms.side
        own = self.resting[side.opposite].first()
        return self.opposite(side).plan(order.leaves, order.terms.limit_price, own)

    def rest(self, order: PaperOrder) -> None:
        """Keep an order: in the queue of its price, or among the stops."""
        price = order.terms.limit_price
        order.is_kept = True
        if order.waits_for_trigger or price is None:
            self._stops[order] = None
            return
        order.ahead = self.ladders[order.terms.side].available_at(price) if self.has_book else None
        self.resting[order.terms.side].add(order, price)

    def unrest(self, order: PaperOrder) -> None:
        """Let an order go."""
        order.is_kept = False
        price = order.terms.limit_price
        if order in self._stops:
            del self._stops[order]
        elif price is not None:
            self.resting[order.terms.side].remove(order, price)

    # Prints ---------------------------------------------------------------------------------------------------

    def fills_by_print(self, trade: TradePrint) -> Iterator[tuple[PaperOrder, Decimal]]:
        """Yield our orders that a print fills and how much, in priority, moving the queues forward.

        What one of our orders gets, those behind it do not see; all together never get more than the print.
        """
        left = trade.quantity
        for price, orders in self.resting[trade.aggressor.opposite].down_to(trade.price):
            for order in orders:
                if trade.venue_ts_ms <= order.met_ts_ms:
                    continue  # older than the order
                if price != trade.price:
                    order.ahead = ZERO  # traded through: nobody is left in front
                filled = min(_advance(order, trade, left), order.leaves)
                if filled > 0:
                    left = subtract(left, filled)
                    yield order, filled

    # Stops ----------------------------------------------------------------------------------------------------

    def is_triggered(self, order: PaperOrder) -> bool:
        """Whether the book alone would trigger this stop now."""
        best = self.ladders[order.terms.side.opposite].levels
        return bool(best) and _is_hit(order, best[0].price)

    def stops_hit_by_book(self) -> list[PaperOrder]:
        """Return stops whose price the book has reached, in order of arrival."""
        return [order for order in self._stops if self.is_triggered(order)]

    def stops_hit_by_print(self, trade: TradePrint) -> list[PaperOrder]:
        """Return stops that a print triggers, in order of arrival; one that is older than a stop does not."""
        return [order for order in self._stops if trade.venue_ts_ms > order.met_ts_ms and _is_hit(order, trade.price)]


def _advance(order: PaperOrder, trade: TradePrint, quantity: Decimal) -> Decimal:
    """Let ``quantity`` of a print run along the queue in front of an order; return what reaches it."""
    if order.ahead is None:
        return ZERO
    if trade.venue_ts_ms <= order.credit_ts_ms:
        explained = min(order.credit, quantity)  # a book that already contained this print moved us forward
        order.credit = subtract(order.credit, explained)
        quantity = subtract(quantity, explained)
    else:
        order.credit = ZERO  # prints come in order: nothing older will follow
    passed = min(order.ahead, quantity)
    order.ahead = subtract(order.ahead, passed)
    return subtract(quantity, passed)


def _is_hit(order: PaperOrder, price: Decimal) -> bool:
    stop = order.terms.stop_price
    if stop is None:
        return False
    return price >= stop if order.terms.side is Side.BUY else price <= stop
