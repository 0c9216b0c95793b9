"""Real ccxt against recorded wire data: the book is the true one at every checkpoint, every trade arrives once."""

from __future__ import annotations

import pytest

from tests.bus_support import eventually
from tests.venue_wire_support import VENUES, live_line, print_rows, venue_server

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
