"""Bad days at the venue: a clear code, bounded memory, and a process that stays up and comes back."""

from __future__ import annotations

import asyncio
import json
import tracemalloc

import pytest

from mcp_servers.market.sources.base import SourceState
from tests.bus_support import eventually
from tests.venue_wire_support import CHANNELS, SYMBOLS, VENUES, live_line, print_rows, venue_server
from trading.testing.venue_wire import VenueServer

each_venue = pytest.mark.parametrize("venue", VENUES)

_HUGE = 11_000_000  # bytes; more than ccxt takes in one frame
_NONSENSE = (
    "garbage",
    "",
    "null",
    "[1,2,3]",
    '"text"',
    "{}",
    "[" * 5_000,
    '{"channel":"l2_data"',
    '{"stream":"btcusdt@depth","data":',
    "\x00\x01\x02",
    "{'e': 'depthUpdate'}",
    "NaN",
    "<html><body>502 Bad Gateway</body></html>",
)
#: Messages whose envelope is right and whose contents are not.
_MALFORMED = {
    "binance": (
        {"e": "depthUpdate", "s": "BTCUSDT"},
        {"e": "depthUpdate", "E": 1, "s": "BTCUSDT", "U": "x", "u": None, "b": 7, "a": [[]]},
        {"e": "trade", "E": 1, "s": "BTCUSDT", "t": 1, "p": "NaN", "q": "1", "T": 1, "m": True},
        {"e": "trade", "E": 1, "s": "BTCUSDT", "t": 2, "p": "-1", "q": "1e400", "T": 1, "m": True},
        {"e": "trade"},
    ),
    "coinbase": (
        {"channel": "l2_data", "sequence_num": "x", "events": []},
        {"channel": "market_trades", "events": [{"type": "update", "trades": [{"product_id": "SKL-USD"}]}]},
        {"channel": "l2_data", "events": [{"type": "update", "product_id": "SKL-USD", "updates": [{"side": "bid"}]}]},
    ),
    "kraken": (
        {"channel": "book", "type": "update", "data": []},
        {"channel": "book", "type": "update", "data": [{"symbol": "NO/SUCH", "bids": [], "asks": [], "checksum": 1}]},
        {"channel": "trade", "type": "update", "data": [{"symbol": "BTC/USDT", "price": "NaN", "qty": -1}]},
        {"channel": "book"},
    ),
}


@pytest.mark.parametrize(
    ("status", "retry_after_s", "code"),
    [(429, 7, "RATE_LIMITED"), (418, 90, "RATE_LIMITED"), (500, None, "VENUE_DOWN"), (503, 3, "VENUE_DOWN")],
)
@each_venue
async def test_a_venue_that_refuses_at_the_start_is_named_and_asked_again(
    venue: str, status: int, retry_after_s: int | None, code: str
) -> None:
    async with venue_server(venue) as server:
        server.faults.answer(status, retry_after_s=retry_after_s, times=None)
        async with live_line(server, venue) as line:
            await line.failing(code)
            await eventually(lambda: len(line.pauses) >= 2)
            if code == "RATE_LIMITED":
                assert min(line.pauses[:2]) >= (retry_after_s or 0)
            assert line.published.books == [] or not line.top()
            server.faults.heal()
            await line.ready()
            assert line.code == ""
            assert line.source.status().state is SourceState.RUNNING


@each_venue
@pytest.mark.parametrize("status", [429, 503])
async def test_a_refused_handshake_has_the_same_codes(venue: str, status: int) -> None:
    async with venue_server(venue) as server:
        server.faults.answer(status, path=server.ws_path, retry_after_s=5, times=None)
        async with live_line(server, venue) as line:
            await line.failing("RATE_LIMITED" if status == 429 else "VENUE_DOWN")
            server.faults.heal()
            await line.ready()


@each_venue
@pytest.mark.parametrize("body", ["html", "half", "wrong"])
async def test_answers_that_make_no_sense_are_garbage(venue: str, body: str) -> None:
    async with venue_server(venue) as server:
        if body == "html":
            server.faults.answer_html(times=None)
        elif body == "half":
            server.faults.answer_text('{"symbols":[{"symbol":"BTCU', times=None)
        else:
            server.faults.answer_text('{"symbols":7,"products":7,"error":[],"result":7}', times=None)
        async with live_line(server, venue) as line:
            await line.failing("GARBAGE")
            server.faults.heal()
            await line.ready()


@each_venue
async def test_a_venue_that_answers_too_late_is_down(venue: str) -> None:
    async with venue_server(venue) as server:
        release = server.faults.hold(times=None)
        async with live_line(server, venue, timeout_ms=150) as line:
            await line.failing("VENUE_DOWN")
            server.faults.heal()
            release.set()
            await line.ready()


async def test_a_venue_that_is_not_there_is_unreachable_until_it_is() -> None:
    async with venue_server("binance") as server:
        await server.refuse()
        async with live_line(server, "binance") as line:
            await line.failing("NO_NETWORK")
            await eventually(lambda: line.counters["failures"] >= 4)
            await server.listen()
            await line.ready()
            await server.play(50)
            await eventually(line.agrees)


@each_venue
async def test_frames_of_nonsense_leave_the_book_true(venue: str) -> None:
    async with venue_server(venue) as server, live_line(server, venue) as line:
        await line.ready()
        for text in _NONSENSE:
            await server.send_text(text)
            await server.send_bytes(b"\xff\xfe" + text.encode())
            await server.play(10)
            await eventually(line.agrees)
        assert line.counters["garbage"] > 0
        assert line.counters["failures"] == line.counters["resyncs"] == 0, "no connection is given up for them"


@each_venue
async def test_malformed_messages_are_counted_and_survived(venue: str) -> None:
    async with venue_server(venue) as server, live_line(server, venue) as line:
        await line.ready()
        for message in _MALFORMED[venue]:
            before = line.counters["garbage"] + line.counters["old"] + line.counters["resyncs"]
            await server.send_text(json.dumps(message))
            await eventually(lambda known=before: _noticed(line.counters) > known)
            await line.ready()
            await server.play(10)
            await eventually(line.agrees)
        assert set(line.trade_rows()) <= set(print_rows(server.prints(line.symbol))), "no invented trade is published"


def _noticed(counters: dict[str, int]) -> int:
    return counters["garbage"] + counters["old"] + counters["resyncs"]


@each_venue
async def test_frames_too_large_to_read_end_the_connection_and_keep_no_memory(venue: str) -> None:
    async with venue_server(venue) as server, live_line(server, venue) as line:
        await line.ready()
        await _oversized(server)
        await line.ready()
        tracemalloc.start()
        try:
            for _ in range(3):
                await _oversized(server)
                await line.ready()
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 3 * _HUGE / 2, "less than half of what was sent is still held"
        assert peak < 8 * _HUGE
        await server.play(50)
        await eventually(line.agrees)


async def _oversized(server: VenueServer) -> None:
    """Send a frame that is too large to every client and wait until they are gone."""
    connected = server.asked["connect"]
    await server.send_text('{"channel":"' + "x" * _HUGE + '"}')
    await eventually(lambda: server.asked["connect"] > connected)


async def test_a_book_that_never_stays_whole_is_given_up_as_garbage() -> None:
    async with venue_server("coinbase") as server, live_line(server, "coinbase") as line:
        await line.ready()
        for number in range(6):
            server.faults.drop_delta()
            await server.play(10)
            await eventually(lambda known=number: line.counters["gaps"] > known)
            if line.counters["failures"]:
                break
            await eventually(lambda: line.counters["failures"] > 0 or line.agrees())
        await line.failing("GARBAGE")
        await line.ready()


async def test_a_symbol_the_venue_does_not_have_is_said_so() -> None:
    async with venue_server("kraken") as server, live_line(server, "kraken", symbol="NO/SUCH") as line:
        await line.failing("UNKNOWN_INSTRUMENT")
        assert "NO/SUCH" in line.source.status().message


@each_venue
async def test_pings_of_the_venue_are_answered_while_data_flows(venue: str) -> None:
    async with venue_server(venue) as server, live_line(server, venue) as line:
        await line.ready()
        await server.play(20)
        await asyncio.wait_for(server.settle(), 5)
        assert server.asked["pong"] == server.connections
        await server.beat()
        await server.play(20)
        await eventually(line.agrees)
        assert all(server.subscribers(channel, SYMBOLS[venue]) == 1 for channel in CHANNELS[venue])
