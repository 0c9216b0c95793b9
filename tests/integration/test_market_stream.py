"""Market data between processes: over a real server, through its death, and against somebody who writes lies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.bus_support import BUNDLED, DESK, eventually, server_of, settings_for, short_home
from tests.market_support import BTC, KEY
from trading.adapters.config import DeskHome
from trading.adapters.embedded_redis import open_redis
from trading.adapters.market_stream import (
    BookUpdate,
    MarketStreamPublisher,
    MarketStreamView,
    StreamKeys,
    TradeUpdate,
    create_feed_key,
    load_feed_key,
)
from trading.adapters.market_wire import encode_book, encode_trades, mac
from trading.domain.errors import ConfigurationError
from trading.domain.market_data import Feed, Side
from trading.testing.builders import build_instrument
from trading.testing.clock import ManualClock

KEYS = StreamKeys(DESK)
ALL_FEEDS = frozenset(Feed)


def a_book(bid: str = "100", ask: str = "101") -> BookUpdate:
    return BookUpdate(BTC, [[bid, "1.5"]], [[ask, "2"]], 11, 12)


def a_trade(number: int) -> TradeUpdate:
    return TradeUpdate(BTC, str(number), "100.5", "0.25", Side.SELL, 11, 12)


@pytest.fixture
def home() -> Iterator[DeskHome]:
    with short_home() as home:
        yield home


@pytest.fixture
async def redis(home: DeskHome) -> AsyncIterator[Redis]:
    async with open_redis(home, settings_for(home), "market", bus=BUNDLED) as client:
        yield client


@pytest.fixture
async def reader(home: DeskHome, redis: Redis) -> AsyncIterator[Redis]:
    async with open_redis(home, settings_for(home), "risk", bus=BUNDLED) as client:
        yield client


@asynccontextmanager
async def publishing(
    redis: Redis, clock: ManualClock, *, feed: Feed = Feed.REPLAY
) -> AsyncIterator[MarketStreamPublisher]:
    async with MarketStreamPublisher(redis, desk=DESK, key=KEY, clock=clock, feed=feed) as publisher:
        publisher.publish_instrument(build_instrument(venue="binance"))
        publisher.publish_book(a_book())
        await publisher.drained()
        yield publisher


@asynccontextmanager
async def viewing(
    redis: Redis, clock: ManualClock, *, feeds: frozenset[Feed] = ALL_FEEDS
) -> AsyncIterator[MarketStreamView]:
    async with MarketStreamView(redis, DESK, KEY, clock, feeds) as view:
        assert await view.ready()
        yield view


async def test_what_is_published_is_what_another_room_reads(redis: Redis, reader: Redis) -> None:
    clock = ManualClock()
    async with publishing(redis, clock) as publisher, viewing(reader, clock) as view:
        assert view.instrument(BTC) == build_instrument(venue="binance")
        trades = view.subscribe_trades()
        for number in range(600):
            publisher.publish_trade(a_trade(number))
        publisher.publish_book(a_book("99.5"))
        async with asyncio.timeout(5):
            taken = [await anext(trades) for _ in range(600)]
        assert [trade.trade_id for trade in taken] == [str(number) for number in range(600)]
        sequences = [trade.sequence for trade in taken]
        assert sequences == list(range(sequences[0], sequences[0] + 600))
        await eventually(lambda: (book := view.book(BTC)) is not None and book.bids[0].price == Decimal("99.5"))
        book = view.book(BTC)
        assert book is not None
        assert view.book(BTC) is book  # decoded once
        assert book.sequence > sequences[-1]
        assert (book.venue_ts_ms, book.received_ts_ms, book.published_ts_ms) == (11, 12, clock.now_ms())
        assert view.last_trade(BTC) == taken[-1]
        clock.advance(1_500)
        assert view.status().instruments[0].book_age_ms == 1_500


async def test_a_new_reader_starts_with_the_newest_book_and_not_with_history(redis: Redis, reader: Redis) -> None:
    clock = ManualClock()
    async with publishing(redis, clock) as publisher:
        for price in ("97", "98", "99"):
            publisher.publish_book(a_book(price))
            await publisher.drained()
        async with viewing(reader, clock) as view:
            book = view.book(BTC)
            assert book is not None
            assert book.bids[0].price == 99
            assert view.status().counters["books"] == 1


async def test_books_and_trades_come_in_the_order_of_publication(redis: Redis, reader: Redis) -> None:
    clock = ManualClock()
    async with publishing(redis, clock) as publisher, viewing(reader, clock) as view:
        updates = view.subscribe()
        for number in range(5):
            publisher.publish_trade(a_trade(number))
            publisher.publish_book(a_book(str(90 + number)))
            await publisher.drained()
        async with asyncio.timeout(5):
            taken = [await anext(updates) for _ in range(10)]
        sequences = [update.sequence for update in taken]
        assert sequences == sorted(sequences)


def forged(data: bytes, tag: bytes | None = None, *, stream: str | None = None, key: bytes = KEY) -> dict[str, bytes]:
    return {"d": data, "h": tag if tag is not None else mac(key, stream or KEYS.book(BTC), data)}


def book_bytes(sequence: int, clock: ManualClock, *, feed: Feed = Feed.REPLAY, ahead_ms: int = 0) -> bytes:
    return encode_book(a_book("50", "51"), sequence=sequence, feed=feed, published_ts_ms=clock.now_ms() + ahead_ms)


ATTACKS = {
    "bad_mac": lambda seq, clock: forged(book_bytes(seq, clock), key=b"x" * 32),
    "bad_mac empty": lambda seq, clock: forged(book_bytes(seq, clock), b""),
    "bad_mac other stream": lambda seq, clock: forged(book_bytes(seq, clock), stream=KEYS.trade(BTC)),
    "bad_mac other desk": lambda seq, clock: forged(book_bytes(seq, clock), stream=StreamKeys("x").book(BTC)),
    "bad_mac changed": lambda seq, clock: {
        "d": book_bytes(seq, clock).replace(b'"50"', b'"70"'),
        "h": mac(KEY, KEYS.book(BTC), book_bytes(seq, clock)),
    },
    "bad_mac no fields": lambda _seq, _clock: {"x": b"y"},
    "old_sequence": lambda _seq, clock: forged(book_bytes(1, clock)),
    "wrong_feed": lambda seq, clock: forged(book_bytes(seq, clock, feed=Feed.SYNTHETIC)),
    "from_future": lambda seq, clock: forged(book_bytes(seq, clock, ahead_ms=60_000)),
    "malformed": lambda _seq, _clock: forged(b"{}"),
    "malformed text": lambda _seq, _clock: forged(b"\xff"),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_lie_in_the_stream_is_dropped_and_counted(name: str, redis: Redis, reader: Redis) -> None:
    clock = ManualClock()
    writer: Any = redis
    async with publishing(redis, clock) as publisher, viewing(reader, clock, feeds=frozenset({Feed.REPLAY})) as view:
        before = view.book(BTC)
        assert before is not None
        await writer.xadd(KEYS.book(BTC), ATTACKS[name](before.sequence + 1_000, clock))
        reason = name.split(" ")[0]
        await eventually(lambda: view.status().counters[reason] == 1)
        assert view.book(BTC) is before
        publisher.publish_book(a_book("98"))  # and the honest publisher is still heard
        await eventually(lambda: view.book(BTC) is not before)


async def test_a_message_sent_twice_counts_once(redis: Redis, reader: Redis) -> None:
    clock = ManualClock()
    writer: Any = redis
    async with publishing(redis, clock), viewing(reader, clock) as view:
        trades = view.subscribe_trades()
        data = encode_trades([a_trade(1)], sequence=10**15 * 2, feed=Feed.REPLAY, published_ts_ms=clock.now_ms())
        fields = forged(data, stream=KEYS.trade(BTC))
        await writer.xadd(KEYS.trade(BTC), fields)
        await writer.xadd(KEYS.trade(BTC), fields)
        await eventually(lambda: view.status().counters["old_sequence"] == 1)
        assert len(trades.drain()) == 1


@pytest.mark.parametrize(("feed", "counted"), [(Feed.LIVE, 4), (Feed.REPLAY, 6)])
async def test_live_trades_that_a_new_publisher_repeats_count_once(
    redis: Redis, reader: Redis, feed: Feed, counted: int
) -> None:
    clock = ManualClock()
    async with viewing(reader, clock) as view:
        trades = view.subscribe_trades()
        for numbers in (range(3), range(1, 4)):  # a venue sends its last trades again with every connection
            async with publishing(redis, clock, feed=feed) as publisher:
                for number in numbers:
                    publisher.publish_trade(a_trade(number))
            newest = str(numbers[-1])
            await eventually(lambda: (last := view.last_trade(BTC)) is not None and last.trade_id == newest)  # noqa: B023
        assert len(trades.drain()) == counted == view.status().counters["trades"]
        assert view.status().counters["trades_repeated"] == 6 - counted


async def test_a_new_live_publisher_empties_the_book_of_the_one_before(redis: Redis, reader: Redis) -> None:
    clock = ManualClock()
    async with viewing(reader, clock) as view:
        trades = view.subscribe_trades()
        for number in range(2):
            async with MarketStreamPublisher(redis, desk=DESK, key=KEY, clock=clock, feed=Feed.LIVE) as publisher:
                publisher.publish_instrument(build_instrument(venue="binance"))
                await eventually(lambda: view.book_state(BTC) == "resync")
                assert (book := view.book(BTC)) is not None
                assert not book.bids
                publisher.publish_book(a_book())
                publisher.publish_trade(a_trade(number))
                await eventually(lambda: view.book_state(BTC) == "ok")
        before, after = trades.drain()
        assert view.begun_anew(BTC, before.sequence, after.sequence)
        assert not view.begun_anew(BTC, after.sequence, after.sequence + 100)


async def test_an_authentic_message_with_a_broken_body_is_no_book(redis: Redis, reader: Redis) -> None:
    clock = ManualClock()
    writer: Any = redis
    async with publishing(redis, clock), viewing(reader, clock) as view:
        data = book_bytes(10**15 * 2, clock).replace(b'"50"', b'"fifty"')
        await writer.xadd(KEYS.book(BTC), forged(data))
        await eventually(lambda: view.status().counters["books"] == 2)
        assert view.book(BTC) is None  # fail closed: the newest word is nonsense


async def test_rules_with_a_wrong_mac_are_not_believed(redis: Redis, reader: Redis) -> None:
    clock = ManualClock()
    writer: Any = redis
    async with publishing(redis, clock):
        field = f"{BTC.venue}:{BTC.symbol}"
        value = await writer.hget(KEYS.instruments, field)
        await writer.hset(KEYS.instruments, field, value.replace(b'"0.01"', b'"0.02"'))
        async with viewing(reader, clock) as view:
            assert view.instrument(BTC) is None
            assert view.status().counters["bad_mac"] >= 1


async def test_only_the_market_room_can_write(reader: Redis) -> None:
    client: Any = reader
    with pytest.raises(RedisError):
        await client.xadd(KEYS.book(BTC), {"d": b"{}", "h": b""})


async def test_sequences_rise_across_a_restart_of_the_publisher(redis: Redis, reader: Redis) -> None:
    clock = ManualClock()
    async with viewing(reader, clock) as view:
        async with publishing(redis, clock):
            await eventually(lambda: view.book(BTC) is not None)
        first = view.book(BTC)
        earlier = ManualClock(clock.now_ms() - 3_600_000)  # the restarted process has a clock that went back
        async with publishing(redis, earlier):
            await eventually(lambda: view.book(BTC) is not first)
        second = view.book(BTC)
        assert first is not None
        assert second is not None
        assert second.sequence > first.sequence
        assert view.status().counters["old_sequence"] == 0


async def test_the_position_is_stored_signed(redis: Redis) -> None:
    clock = ManualClock()
    writer: Any = redis
    async with publishing(redis, clock) as publisher:
        assert await publisher.load_position() is None
        publisher.set_position(b"rec 0 17")
        await publisher.drained()
        assert await publisher.load_position() == b"rec 0 17"
        stored = await writer.get(KEYS.position)
        await writer.set(KEYS.position, stored.replace(b"17", b"99"))
        assert await publisher.load_position() is None


async def test_a_killed_server_loses_no_trade_and_the_view_goes_on(home: DeskHome, redis: Redis, reader: Redis) -> None:
    clock = ManualClock()
    async with publishing(redis, clock) as publisher, viewing(reader, clock) as view:
        trades = view.subscribe_trades()
        publisher.publish_trade(a_trade(0))
        async with asyncio.timeout(5):
            assert (await anext(trades)).trade_id == "0"
        pid = server_of(home).pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        for number in range(1, 50):
            publisher.publish_trade(a_trade(number))
            await asyncio.sleep(0)
        publisher.publish_book(a_book("77"))
        async with asyncio.timeout(15):
            taken = [(await anext(trades)).trade_id for _ in range(49)]
        assert taken == [str(number) for number in range(1, 50)]
        await eventually(lambda: (book := view.book(BTC)) is not None and book.bids[0].price == 77)


async def test_a_server_that_forgot_everything_is_filled_again(home: DeskHome, redis: Redis, reader: Redis) -> None:
    clock = ManualClock()
    async with publishing(redis, clock) as publisher, viewing(reader, clock) as view:
        await server_of(home).admin("FLUSHALL")
        publisher.publish_book(a_book("76"))
        await eventually(lambda: (book := view.book(BTC)) is not None and book.bids[0].price == 76)
        async with viewing(reader, clock) as late:
            assert late.instrument(BTC) is None
            publisher.publish_instrument(build_instrument(venue="binance"))
            publisher.publish_book(a_book("75"))
            await eventually(lambda: late.instrument(BTC) is not None)


async def test_streams_stay_bounded(redis: Redis) -> None:
    clock = ManualClock()
    writer: Any = redis
    async with publishing(redis, clock) as publisher:
        for number in range(1_500):
            publisher.publish_book(a_book(str(number + 1), "99999"))
            await publisher.drained()
        assert await writer.xlen(KEYS.book(BTC)) < 500


def test_the_feed_key_is_made_once_and_never_read_when_others_could(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "feed.hmac"
    first = create_feed_key(path)
    assert len(first) == 32
    assert create_feed_key(path) == first == load_feed_key(path)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError):
        load_feed_key(path)
    path.chmod(0o600)
    path.write_text("abc")
    with pytest.raises(ConfigurationError):
        load_feed_key(path)
    with pytest.raises(ConfigurationError):
        load_feed_key(tmp_path / "none")


# ---- several venues


class _AnotherComes:
    """A client of Redis that lets another venue's rules arrive while it answers."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis
        self.publisher: MarketStreamPublisher | None = None
        self.coming = ["kraken", "coinbase"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._redis, name)

    async def xrevrange(self, *arguments: Any, **options: Any) -> Any:
        answer = await self._redis.xrevrange(*arguments, **options)
        if self.publisher is not None and self.coming:
            self.publisher.publish_instrument(build_instrument(venue=self.coming.pop()))
        return answer


async def test_rules_of_another_venue_may_come_at_any_moment(redis: Redis, reader: Redis) -> None:
    clock, client = ManualClock(), _AnotherComes(redis)
    async with MarketStreamPublisher(client, desk=DESK, key=KEY, clock=clock, feed=Feed.REPLAY) as publisher:  # type: ignore[arg-type]
        client.publisher = publisher
        publisher.publish_instrument(build_instrument(venue="binance"))
        publisher.publish_book(a_book())
        await publisher.drained()
        assert publisher.connected
        async with viewing(reader, clock) as view:
            assert {item.venue for item in view.instruments()} == {"binance", "kraken", "coinbase"}
            assert view.book(BTC) is not None


async def test_publishing_that_ends_of_something_unforeseen_is_heard_of(redis: Redis) -> None:
    async with MarketStreamPublisher(redis, desk=DESK, key=KEY, clock=ManualClock(), feed=Feed.REPLAY) as publisher:
        watch = asyncio.create_task(publisher.watch())
        publisher.publish_instrument(build_instrument(venue="binance"))
        await publisher.drained()
        assert not watch.done()
        publisher.publish_book(BookUpdate(BTC, [[object(), "1"]], [], 11, 12))  # type: ignore[list-item]
        with pytest.raises(TypeError):
            await asyncio.wait_for(watch, 5)
