"""The paper venue on a recorded market: no fill is ever outside what was really there."""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from tests.paper_support import Desk, terms
from trading.domain.fills import Liquidity
from trading.domain.identifiers import TradeId
from trading.domain.market_data import Feed, OrderBook, Side, TradePrint
from trading.domain.proposals import TimeInForce
from trading.ports.venue import VenueTrade
from trading.testing.builders import INSTRUMENT_ID, build_book

RECORDING = Path(__file__).parents[1] / "data" / "paper" / "binance_spot_BTCUSDT_20240808.csv.gz"
Event = OrderBook | TradePrint


def recording() -> Iterator[tuple[int, Event]]:
    """Yield receive time and event; books have one level, which is all the feed says."""
    with gzip.open(RECORDING, "rt", newline="") as lines:
        for n, (time, kind, a, b, c, d) in enumerate(list(csv.reader(lines))[1:]):
            now = int(time)
            if kind == "quote":
                yield now, build_book([(a, b)], [(c, d)], sequence=n, now_ms=now)
                continue
            yield (
                now,
                TradePrint(INSTRUMENT_ID, TradeId(d), Decimal(a), Decimal(b), Side(c), n, now, now, now, Feed.REPLAY),
            )


class Checked:
    """A desk on the recording that checks each fill against the event it came from."""

    def __init__(self, seed: int) -> None:
        self.desk = Desk()
        self.random = random.Random(seed)
        self.book: OrderBook | None = None
        self.counts = dict.fromkeys(Liquidity, 0)
        self.taken_from_quote: dict[Side, Decimal] = {}

    def run(self) -> list[VenueTrade]:
        exchange = self.desk.exchange
        for n, (now, event) in enumerate(recording()):
            if isinstance(event, OrderBook):
                step = exchange.on_book(event, now)
                self.book = event
                self.taken_from_quote = {side: Decimal(0) for side in Side}
            else:
                step = exchange.on_trade(event, now)
            for trade in step.trades:
                self.check(trade, event)
            if n % 7 == 0 and self.book is not None:
                for trade in exchange.submit(self.order(n, self.book), now).trades:
                    self.check(trade, self.book)
            if n % 50 == 0 and exchange.working:
                exchange.cancel(self.random.choice(list(exchange.working)), now)
        return exchange.trades

    def order(self, n: int, book: OrderBook):
        side = self.random.choice(list(Side))
        touch = book.bids[0].price if side is Side.BUY else book.asks[0].price
        ticks = self.random.choice([-200, -20, -1, 0, 0, 0, 1, 30])
        price = str(touch + side.sign * ticks * Decimal("0.01"))
        quantity = str(Decimal(self.random.randint(20, 3_000)).scaleb(-5))
        return terms(f"c{n}", side, quantity, price, tif=self.random.choice([TimeInForce.GTC, TimeInForce.IOC]))

    def check(self, trade: VenueTrade, event: Event) -> None:
        self.counts[trade.liquidity] += 1
        buys = trade.side is Side.BUY
        if trade.liquidity is Liquidity.TAKER:
            assert self.book is not None
            level = (self.book.asks if buys else self.book.bids)[0]
            assert trade.price == level.price
            self.taken_from_quote[trade.side] += trade.quantity
            assert self.taken_from_quote[trade.side] <= level.quantity
        elif isinstance(event, OrderBook):
            crossing = (event.asks if buys else event.bids)[0]
            assert (crossing.price <= trade.price) if buys else (crossing.price >= trade.price)
            assert trade.quantity <= crossing.quantity
        else:
            assert event.aggressor is trade.side.opposite
            assert (event.price <= trade.price) if buys else (event.price >= trade.price)
            assert trade.quantity <= event.quantity


def test_no_fill_is_outside_the_book_or_print_that_made_it() -> None:
    run = Checked(seed=1)
    run.run()
    assert run.counts[Liquidity.TAKER] > 50
    assert run.counts[Liquidity.MAKER] > 50
    assert run.desk.exchange.accounts.imbalance() == {}


def test_the_same_seed_gives_the_same_trades_and_another_seed_others() -> None:
    first, again, other = Checked(seed=2).run(), Checked(seed=2).run(), Checked(seed=3).run()
    assert first == again
    assert first != other


def test_what_a_book_shows_can_be_bought_once_while_it_stands_still() -> None:
    desk, event = Desk(), next(event for _, event in recording() if isinstance(event, OrderBook))
    desk.exchange.on_book(event, desk.tick())
    shown = event.asks[0]
    for n in range(40):
        desk.exchange.on_book(replace(event, sequence=event.sequence + n), desk.tick())
        desk.buy(f"c{n}", "0.1", str(shown.price), tif=TimeInForce.IOC)
    assert sum(trade.quantity for trade in desk.exchange.trades) == shown.quantity
