"""Short ways to drive the paper venue's matching core by hand."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from trading.adapters.venues.paper.accounts import Accounts
from trading.adapters.venues.paper.matching import PaperExchange
from trading.adapters.venues.paper.orders import PaperOrder
from trading.adapters.venues.paper.rules import FEES_IN_QUOTE, FeeSchedule
from trading.domain.approvals import ApprovedOrder
from trading.domain.identifiers import ClientOrderId, Currency, TradeId
from trading.domain.instruments import Instrument
from trading.domain.market_data import Feed, Side, TradePrint
from trading.domain.proposals import OrderType, TimeInForce
from trading.testing.builders import ACCOUNT, INSTRUMENT_ID, build_approved_order, build_book, build_instrument

D = Decimal
BTC, USDT = Currency("BTC"), Currency("USDT")
GTC, IOC, FOK = TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK
BUY, SELL = Side.BUY, Side.SELL


def terms(
    key: str,
    side: Side,
    quantity: str,
    limit: str | None = None,
    *,
    stop: str | None = None,
    tif: TimeInForce = GTC,
    post_only: bool = False,
    reduce_only: bool = False,
) -> ApprovedOrder:
    """Return an order whose type follows from its prices and whose client order id is ``key``."""
    kinds = {
        (True, False): OrderType.LIMIT,
        (False, False): OrderType.MARKET,
        (False, True): OrderType.STOP,
        (True, True): OrderType.STOP_LIMIT,
    }
    order = build_approved_order(
        side=side,
        quantity=quantity,
        limit_price=limit,
        stop_price=stop,
        order_type=kinds[limit is not None, stop is not None],
        time_in_force=tif,
        post_only=post_only,
        reduce_only=reduce_only,
    )
    return replace(order, client_order_id=ClientOrderId(key))


class Desk:
    """A matching core whose time is the number of the event."""

    def __init__(
        self,
        *,
        usdt: str = "1000000",
        btc: str = "10",
        instrument: Instrument | None = None,
        fees: FeeSchedule = FEES_IN_QUOTE,
    ) -> None:
        accounts = Accounts()
        accounts.deposit({USDT: D(usdt), BTC: D(btc)})
        self.exchange = PaperExchange([instrument or build_instrument()], ACCOUNT, accounts, fees=fees)
        self.now = 1_000

    def tick(self) -> int:
        self.now += 1
        return self.now

    def book(self, bids: list[tuple[str, str]] | None = None, asks: list[tuple[str, str]] | None = None) -> None:
        now = self.tick()
        self.exchange.on_book(build_book(bids, asks, sequence=now, now_ms=now), now)

    def late_print(self, aggressor: Side, price: str, quantity: str, *, venue_ts_ms: int) -> None:
        now = self.tick()
        trade = TradePrint(
            INSTRUMENT_ID, TradeId(f"m{now}"), D(price), D(quantity), aggressor, now, venue_ts_ms, now, now, Feed.REPLAY
        )
        self.exchange.on_trade(trade, now)

    def trade(self, aggressor: Side, price: str, quantity: str) -> None:
        self.late_print(aggressor, price, quantity, venue_ts_ms=self.now + 1)

    def submit(self, order: ApprovedOrder) -> PaperOrder:
        self.exchange.submit(order, self.tick())
        return self.exchange.orders[order.client_order_id]

    def buy(self, key: str, quantity: str, limit: str | None = None, **how: object) -> PaperOrder:
        return self.submit(terms(key, BUY, quantity, limit, **how))  # pyright: ignore[reportArgumentType] keywords of terms

    def sell(self, key: str, quantity: str, limit: str | None = None, **how: object) -> PaperOrder:
        return self.submit(terms(key, SELL, quantity, limit, **how))  # pyright: ignore[reportArgumentType] keywords of terms

    def cancel(self, key: str) -> PaperOrder:
        self.exchange.cancel(ClientOrderId(key), self.tick())
        return self.exchange.orders[ClientOrderId(key)]

    def free(self, currency: Currency) -> Decimal:
        return self.exchange.accounts.free(currency)

    def locked(self, currency: Currency) -> Decimal:
        return self.exchange.accounts.locked.get(currency, D(0))


def fills(order: PaperOrder) -> list[tuple[str, str]]:
    """Return price and quantity of an order's trades as text."""
    return [(str(trade.price), str(trade.quantity)) for trade in order.trades]
