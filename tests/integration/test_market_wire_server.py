"""The venue server itself: its checksum is Kraken's own, its faults do what they say, its pace is the recording's."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

import aiohttp

from tests.bus_support import eventually
from tests.venue_wire_support import rest_records, tape, venue_server
from trading.testing.venue_wire import BookChange, KrakenDialect, StartingBook, Tape, VenueServer, WireMarket

#: The example of Kraken's guide to the book checksum of WebSocket v2, and the checksum it gives.
_ASKS = (
    "45285.2 0.00100000 45286.4 1.54571953 45286.6 1.54571109 45289.6 1.54560911 45290.2 0.15890660 "
    "45291.8 1.54553491 45294.7 0.04454749 45296.1 0.35380000 45297.5 0.09945542 45299.5 0.18772827"
)
_BIDS = (
    "45283.5 0.10000000 45283.4 1.54582015 45282.1 0.10000000 45281.0 0.10000000 45280.3 1.54592586 "
    "45279.0 0.07990000 45277.6 0.03310103 45277.5 0.30000000 45277.3 1.54602737 45276.6 0.15445238"
)
_CHECKSUM = 3310070434


def _levels(text: str) -> tuple[tuple[str, str], ...]:
    words = text.split()
    return tuple(zip(words[::2], words[1::2], strict=True))


def test_the_checksum_of_krakens_own_example_is_krakens() -> None:
    book = Tape({"BTC/USD": StartingBook(_levels(_BIDS), _levels(_ASKS), 0, 0)}, ())
    assert KrakenDialect(WireMarket(book), rest_records()["kraken"]).checksum("BTC/USD") == _CHECKSUM


def test_the_tapes_hold_what_was_recorded() -> None:
    coinbase, binance = tape("coinbase"), tape("binance")
    assert {symbol: (len(b.bids), len(b.asks)) for symbol, b in coinbase.books.items()} == {
        "SKL/USD": (814, 1341),
        "DASH/BTC": (432, 548),
    }
    changes = [event for event in binance.events if isinstance(event, BookChange)]
    for before, after in pairwise(changes):
        assert after.first_id == before.last_id + 1, "the recording itself has no gap"
    start = binance.books["BTC/USDT"]
    assert changes[0].first_id <= start.last_id + 1 <= changes[0].last_id
    assert len(binance.events) - len(changes) == 9_756  # all but the one before the snapshot


async def test_playing_keeps_the_recorded_distances_at_any_speed() -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    short = tape("coinbase")
    some = Tape(short.books, short.events[:200])
    async with VenueServer(KrakenDialect, some, rest_records()["kraken"]) as server:
        began = some.events[0].ts_us
        await server.run(speed=10, sleep=sleep)
        assert server.market.left == 0
        latest, total_us = began, 0
        for event in some.events:  # an event that was recorded late does not turn the clock back
            total_us += max(0, event.ts_us - latest)
            latest = event.ts_us
        assert abs(sum(waited) * 10_000_000 - total_us) < 1


async def test_a_venue_with_a_clock_lets_everything_happen_when_it_is_played() -> None:
    now_us = 1_800_000_000_000_000
    server = VenueServer(KrakenDialect, tape("kraken"), rest_records()["kraken"], clock_us=lambda: now_us)
    async with server:
        assert server.market.books["BTC/USDT"].ts_us == now_us
        recorded = tape("kraken").events[:40]
        now_us += 1_000_000
        played = await server.play(40)
        assert {event.ts_us for event in played} == {now_us}
        assert [replace(event, ts_us=0) for event in played] == [replace(event, ts_us=0) for event in recorded]
        now_us -= 500_000
        (earlier,) = await server.play(1)
        assert earlier.ts_us == now_us + 500_000, "time never goes back"
        now_us += 900_000
        assert server.market.now_us == now_us


async def test_a_client_gets_what_it_subscribed_to_and_faults_change_only_that() -> None:
    async with venue_server("binance") as server, aiohttp.ClientSession() as http:
        async with http.ws_connect(f"{server.ws_url}/0") as socket:
            await socket.send_json({"method": "SUBSCRIBE", "params": ["btcusdt@depth@100ms"], "id": 9})
            assert await socket.receive_json() == {"result": None, "id": 9}
            server.faults.drop_delta(1)
            server.faults.duplicate_delta(2)
            server.faults.swap_delta(3)
            played: list[BookChange] = []
            while len(played) < 4:
                played += [event for event in await server.play(1) if isinstance(event, BookChange)]
            got = [(await socket.receive_json())["u"] for _ in range(4)]
            first, second, third, fourth = (event.last_id for event in played)
            assert got == [second, second, fourth, third]
            assert first not in got
            assert server.asked["depth BTC/USDT"] == 1
            await socket.send_json({"method": "SUBSCRIBE", "params": ["nosuch@depth"], "id": 10})
            assert (await socket.receive_json())["error"]["code"] == 2
            server.cut()
            assert (await asyncio.wait_for(socket.receive(), 5)).type in (
                aiohttp.WSMsgType.CLOSED,
                aiohttp.WSMsgType.ERROR,
            )
        await eventually(lambda: server.connections == 0)
        server.faults.answer(429, path="depth", retry_after_s=3)
        async with http.get(f"{server.rest_url}/depth?symbol=BTCUSDT") as refused:
            assert (refused.status, refused.headers["Retry-After"]) == (429, "3")
            assert (await refused.json())["code"] == -1003
        async with http.get(f"{server.rest_url}/depth?symbol=BTCUSDT&limit=5") as answer:
            body = await answer.json()
        assert [len(body["bids"]), len(body["asks"])] == [5, 5]
        assert body["lastUpdateId"] == server.market.books["BTC/USDT"].last_id
