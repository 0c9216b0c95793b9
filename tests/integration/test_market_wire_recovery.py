"""Lost, repeated and reordered changes, cut and mute connections: seen, said, and healed into the true book again."""

from __future__ import annotations

import pytest

from tests.bus_support import eventually
from tests.venue_wire_support import VENUES, Line, live_line, next_visible_change, print_rows, venue_server
from trading.testing.fault_proxy import FaultProxy
from trading.testing.venue_wire import VenueServer

each_venue = pytest.mark.parametrize("venue", VENUES)


async def checkpoints(server: VenueServer, line: Line, count: int = 4, *, step: int = 30) -> None:
    """Play on; the published book must become the true one after every step."""
    for _ in range(count):
        await server.play(step)
        await eventually(line.agrees)


async def play_until(server: VenueServer, line: Line, counter: str, *, limit: int = 400) -> None:
    """Play event by event, each read before the next, until the source counts something."""
    before = line.counters[counter]
    for _ in range(limit):
        await server.play(1)
        await server.settle()
        if line.counters[counter] > before:
            return
    raise AssertionError(f"{counter} was not counted within {limit} events")


@each_venue
async def test_a_lost_change_empties_the_book_and_a_fresh_one_is_true_again(venue: str) -> None:
    async with venue_server(venue) as server, live_line(server, venue) as line:
        await line.ready()
        await checkpoints(server, line, 2)
        await server.play(next_visible_change(server, line.symbol))
        await eventually(line.agrees)
        before = len(line.published.books)
        server.faults.drop_delta()
        await play_until(server, line, "gaps")
        await line.ready()
        assert line.emptied(since=before)
        assert line.counters["gaps"] == line.counters["resyncs"] == 1
        assert line.counters["failures"] == 0, "one lost change is no reason to give up the venue"
        await checkpoints(server, line)
        await eventually(lambda: len(line.published.trades) == len(server.prints(line.symbol)))
        assert line.trade_rows() == print_rows(server.prints(line.symbol))


@each_venue
async def test_a_change_that_comes_twice_is_taken_once(venue: str) -> None:
    async with venue_server(venue) as server, live_line(server, venue) as line:
        await line.ready()
        for _ in range(3):
            server.faults.duplicate_delta()
            await checkpoints(server, line, 2)
        assert line.counters["resyncs"] == line.counters["garbage"] == 0
        assert line.counters["old"] == (0 if venue == "kraken" else 3)  # Kraken numbers nothing; the same level is set


@each_venue
async def test_changes_that_change_places_do_not_leave_a_wrong_book(venue: str) -> None:
    async with venue_server(venue) as server, live_line(server, venue) as line:
        await line.ready()
        await server.play(next_visible_change(server, line.symbol))
        await eventually(line.agrees)
        server.faults.swap_delta()
        await play_until(server, line, "resyncs")
        await line.ready()
        await checkpoints(server, line)


@each_venue
@pytest.mark.parametrize("end", ["cut", "close"])
async def test_a_connection_that_ends_is_made_again(venue: str, end: str) -> None:
    async with venue_server(venue) as server, live_line(server, venue) as line:
        await line.ready()
        await checkpoints(server, line, 2)
        await eventually(lambda: len(line.published.trades) == len(server.prints(line.symbol)))
        before, had = len(line.published.books), len(line.published.trades)
        if end == "cut":
            server.cut()
        else:
            await server.close()
        await server.play(60)  # nobody listens
        away = len(server.prints(line.symbol))
        await eventually(lambda: line.emptied(since=before))
        await line.ready()
        await checkpoints(server, line)
        true = print_rows(server.prints(line.symbol))
        await eventually(lambda: line.trade_rows()[-1] == true[-1])
        rows = line.trade_rows()
        assert rows[:had] == true[:had]
        assert [row for row in rows if row in set(true[away:])] == true[away:]
        assert len(set(rows)) == len(rows), "what the venue repeats is published once"
        if venue != "binance":  # the others begin a subscription with the newest trades, so none is missing
            assert rows == true


@each_venue
async def test_a_connection_that_falls_mute_is_given_up_and_made_again(venue: str) -> None:
    async with venue_server(venue) as server, live_line(server, venue, silence_s=0.4) as line:
        await line.ready()
        before = len(line.published.books)
        server.faults.silent = True
        await line.failing("VENUE_DOWN")
        assert line.emptied(since=before)
        server.faults.heal()
        await server.play(50)
        await line.ready()
        assert line.code == ""
        await server.play(30)
        await eventually(line.agrees)


async def test_a_half_open_tcp_connection_is_found_and_replaced() -> None:
    async with (
        venue_server("binance") as server,
        FaultProxy(("127.0.0.1", server.port)) as proxy,
        live_line(server, "binance", port=proxy.port, silence_s=0.4) as line,
    ):
        await line.ready()
        proxy.half_open = True
        await server.play(30)
        await line.failing("VENUE_DOWN")
        proxy.cut()
        proxy.heal()
        await line.ready()
        await checkpoints(server, line, 2)


async def test_a_venue_that_is_reset_and_refuses_is_unreachable_until_it_is_back() -> None:
    async with (
        venue_server("coinbase") as server,
        FaultProxy(("127.0.0.1", server.port)) as proxy,
        live_line(server, "coinbase", port=proxy.port) as line,
    ):
        await line.ready()
        proxy.refuse = True
        proxy.cut()
        await line.failing("NO_NETWORK")
        await eventually(lambda: len(line.pauses) >= 5)
        assert line.pauses[:5] == [1.0, 2.0, 4.0, 8.0, 16.0], "the waits grow"
        proxy.heal()
        await line.ready()
        await checkpoints(server, line, 2)


async def test_bytes_damaged_on_the_way_end_the_connection_and_nothing_else() -> None:
    async with (
        venue_server("kraken") as server,
        FaultProxy(("127.0.0.1", server.port)) as proxy,
        live_line(server, "kraken", port=proxy.port, silence_s=1.0) as line,
    ):
        await line.ready()
        before = len(line.published.books)
        proxy.garble(1)
        await server.play(5)
        await eventually(lambda: line.emptied(since=before))
        await line.ready()
        await checkpoints(server, line, 2)
