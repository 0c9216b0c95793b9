"""Real ccxt against recorded wire data: the book is the true one at every checkpoint, every trade arrives once."""

from __future__ import annotations

import pytest

from tests.bus_support import eventually
from tests.venue_wire_support import SYMBOLS, VENUES, live_line, print_rows, rest_records, tape, venue_server
from trading.testing.venue_wire import CoinbaseDialect, StartingBook, Tape, VenueServer

_STEP = 40  # events between two checkpoints
_STEPS = 25


@pytest.mark.parametrize("venue", VENUES)
async def test_the_book_is_the_independent_rebuild_at_every_checkpoint(venue: str) -> None:
    async with venue_server(venue) as server, live_line(server, venue) as line:
        await line.ready()
        for _ in range(_STEPS):
            await server.play(_STEP)
            await eventually(line.agrees)
        top = server.top(line.symbol)
        assert len(top.bids) == len(top.asks) == 50
        assert server.market.position == _STEP * _STEPS
        await eventually(lambda: len(line.published.trades) == len(server.prints(line.symbol)))
        assert line.trade_rows() == print_rows(server.prints(line.symbol))
        assert line.counters["garbage"] == line.counters["gaps"] == line.counters["resyncs"] == 0


async def test_a_frame_of_forty_thousand_levels_is_read_and_fifty_are_published() -> None:
    symbol = SYMBOLS["coinbase"]
    bids, asks = (
        tuple((f"{start}{digits:04}", "1.5") for digits in range(10_000) for start in starts)
        for starts in (("0.1", "0.2"), ("0.8", "0.9"))
    )
    events = tape("coinbase").renamed(symbol, symbol).events
    deep = Tape({symbol: StartingBook(bids, asks, 0, 1)}, events)
    server = VenueServer(CoinbaseDialect, deep, rest_records()["coinbase"])
    async with server, live_line(server, "coinbase") as line:
        await line.ready()
        assert server.top(symbol).bids[0] == ("0.29999", "1.5")
        await server.play(20)
        await eventually(line.agrees)
        assert max(len(book.bids) for book in line.published.books) == 50
