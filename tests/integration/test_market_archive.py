"""Candles in the ledger's database, on both databases, and what writes them there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from mcp_servers.market.candle_archive import CandleArchive
from mcp_servers.market.candles import MINUTE_MS, CandleStore
from mcp_servers.market.spans import Watch
from tests.bus_support import eventually
from tests.market_candle_support import HOUR, MINUTES, START, at, bar, opens, trade
from tests.market_support import BTC
from tests.postgres_support import scratch_database
from trading.adapters.market_wire import BookUpdate, TradeUpdate
from trading.adapters.sql import LedgerLocation, migrate
from trading.adapters.sql.candles import (
    CandleTables,
    StoredCandle,
    StoredSpan,
    open_candles,
    open_candles_in_memory,
)
from trading.adapters.sql.location import schema_of
from trading.adapters.sql.tables import metadata_for
from trading.domain.errors import ConfigurationError, LedgerUnavailable
from trading.domain.market_data import Candle, Feed, Side
from trading.testing.clock import ManualClock

NOW = START + 100 * HOUR


@pytest.fixture(params=["sqlite", "postgres"])
async def location(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[LedgerLocation]:
    """Where a desk keeps its ledgers, on each database."""
    if request.param == "sqlite":
        yield LedgerLocation.sqlite(tmp_path / "ledger")
    else:
        async with scratch_database(request.getfixturevalue("postgres_server")) as url:
            yield LedgerLocation.postgres(url)


@pytest.fixture(params=["sqlite", "postgres", "memory"])
async def tables(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[CandleTables]:
    """Empty tables that can be written, on each database and in memory."""
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield await stack.enter_async_context(open_candles_in_memory())
            return
        where = LedgerLocation.sqlite(tmp_path / "ledger")
        if request.param == "postgres":
            server = request.getfixturevalue("postgres_server")
            where = LedgerLocation.postgres(await stack.enter_async_context(scratch_database(server)))
        yield await stack.enter_async_context(open_candles(where, write=True))


def whole(candle: Candle) -> StoredCandle:
    return StoredCandle(candle, complete=True, source="trades")


def cut(candle: Candle) -> StoredCandle:
    return StoredCandle(candle, complete=False, source="trades")


def venues(candle: Candle) -> StoredCandle:
    return StoredCandle(candle, complete=True, source="venue")


async def kept(tables: CandleTables) -> list[StoredCandle]:
    return await tables.read(MINUTES, START, NOW)


# ---- the tables


async def test_what_is_written_is_read_as_it_was(tables: CandleTables) -> None:
    precise = replace(bar(7), volume=Decimal("0.000000000000000001"), high=Decimal("123456789012345678901234"))
    await tables.write(MINUTES, [whole(precise), venues(bar(5)), cut(bar(6))], [], now_ms=NOW)
    assert await kept(tables) == [venues(bar(5)), cut(bar(6)), whole(precise)]
    assert await tables.read(MINUTES, at(6), at(7)) == [cut(bar(6))]


async def test_series_do_not_meet(tables: CandleTables) -> None:
    await tables.write(MINUTES, [whole(bar(5))], [StoredSpan(at(5), at(6), "trades", NOW)], now_ms=NOW)
    others = [MINUTES._replace(feed=Feed.REPLAY), MINUTES._replace(interval_ms=HOUR)]
    others.append(MINUTES._replace(instrument_id=BTC._replace(symbol="ETH/USDT")))
    for other in others:
        assert await tables.read(other, START, NOW) == []
        assert await tables.spans(other) == []


@pytest.mark.parametrize(
    ("old", "new", "stays"),
    [
        (whole(bar(5)), venues(bar(5, 200)), True),
        (whole(bar(5)), cut(bar(5, 200, trades=9)), True),
        (whole(bar(5)), whole(bar(5, 200)), False),
        (venues(bar(5)), whole(bar(5, 200)), False),
        (venues(bar(5)), cut(bar(5, 200, trades=9)), True),
        (venues(bar(5)), venues(bar(5, 200)), False),
        (cut(bar(5, trades=3)), venues(bar(5, 200, trades=0)), False),
        (cut(bar(5, trades=3)), whole(bar(5, 200)), False),
        (cut(bar(5, trades=3)), cut(bar(5, 200, trades=4)), False),
        (cut(bar(5, trades=3)), cut(bar(5, 200, trades=2)), True),
    ],
)
async def test_a_candle_gives_way_to_a_better_one_alone(
    tables: CandleTables, old: StoredCandle, new: StoredCandle, stays: bool
) -> None:
    await tables.write(MINUTES, [old], [], now_ms=NOW)
    await tables.write(MINUTES, [new], [], now_ms=NOW)
    assert await kept(tables) == [old if stays else new]


async def test_a_thousand_candles_are_one_transaction(tables: CandleTables) -> None:
    await tables.write(MINUTES, [whole(bar(minute)) for minute in range(1_001)], [], now_ms=NOW)
    assert opens([item.candle for item in await kept(tables)]) == list(range(1_001))


async def test_spans_that_meet_become_one(tables: CandleTables) -> None:
    for start, end in ((0, 5), (10, 12), (20, 30), (5, 10), (25, 26), (12, 13)):
        await tables.write(MINUTES, [], [StoredSpan(at(start), at(end), "trades", NOW)], now_ms=NOW)
    assert await tables.spans(MINUTES) == [
        StoredSpan(at(0), at(13), "trades", NOW),
        StoredSpan(at(20), at(30), "trades", NOW),
    ]


async def test_emptiness_keeps_its_own_age(tables: CandleTables) -> None:
    for start, end, learned in ((0, 5, 1), (5, 9, 2), (4, 10, 3)):
        await tables.write(MINUTES, [], [StoredSpan(at(start), at(end), "empty", learned)], now_ms=NOW)
    assert await tables.spans(MINUTES) == [
        StoredSpan(at(0), at(5), "empty", 1),
        StoredSpan(at(4), at(10), "empty", 3),
    ]


async def test_what_is_forgotten_is_not_known_any_more(tables: CandleTables) -> None:
    spans = [StoredSpan(at(0), at(4), "trades", NOW), StoredSpan(at(2), at(9), "venue", NOW)]
    await tables.write(MINUTES, [whole(bar(minute)) for minute in range(9)], spans, now_ms=NOW)
    await tables.forget(MINUTES, at(5))
    assert opens([item.candle for item in await kept(tables)]) == [5, 6, 7, 8]
    assert await tables.spans(MINUTES) == [StoredSpan(at(5), at(9), "venue", NOW)]


async def test_a_reader_may_come_first_and_sees_what_is_written_later(location: LedgerLocation) -> None:
    async with open_candles(location, write=False) as reader:
        assert not reader.writable
        assert await kept(reader) == []
        assert await reader.spans(MINUTES) == []
        async with open_candles(location, write=True) as writer:
            await writer.write(MINUTES, [whole(bar(5))], [], now_ms=NOW)
            assert await kept(reader) == [whole(bar(5))]
        assert await kept(reader) == [whole(bar(5))]


async def test_there_is_one_writer(location: LedgerLocation) -> None:
    async with open_candles(location, write=True) as first:
        with pytest.raises(ConfigurationError) as refused:
            async with open_candles(location, write=True):
                pass
        assert refused.value.code == "LEDGER_IN_USE"
        await first.write(MINUTES, [whole(bar(5))], [], now_ms=NOW)
    async with open_candles(location, write=True) as next_one:
        assert await kept(next_one) == [whole(bar(5))]


async def test_sqlite_tables_are_those_of_the_metadata(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    await migrate.migrate_sqlite("market", tmp_path / "market.sqlite")
    with create_engine(f"sqlite:///{tmp_path}/market.sqlite", poolclass=NullPool).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata_for("market")) == []
    heads = ScriptDirectory.from_config(migrate._config("market", None)).get_heads()
    assert heads == [migrate.HEADS["market"]]


async def test_postgres_tables_are_those_of_the_metadata(postgres_server: str) -> None:
    import asyncpg

    async with scratch_database(postgres_server) as url:
        async with open_candles(LedgerLocation.postgres(url), write=True):
            pass
        connection = await asyncpg.connect(url)
        try:
            columns = await connection.fetch(
                "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns"
                " WHERE table_schema = $1 AND table_name <> 'alembic_version'",
                schema_of("market"),
            )
        finally:
            await connection.close()
    assert {tuple(row) for row in columns} == {
        (table.name, column.name, {"TEXT": "text", "BIGINT": "bigint"}[str(column.type)], "NO")
        for table in metadata_for("market").sorted_tables
        for column in table.columns
    }


async def test_a_write_that_is_cancelled_anywhere_leaves_nothing_half_done(tables: CandleTables) -> None:
    for turns in range(40):
        await tables.forget(MINUTES, NOW)
        span = StoredSpan(at(0), at(200), "trades", NOW)
        task = asyncio.create_task(tables.write(MINUTES, [whole(bar(i)) for i in range(200)], [span], now_ms=NOW))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert (len(await kept(tables)), len(await tables.spans(MINUTES))) in ((0, 0), (200, 1))
    await tables.write(MINUTES, [whole(bar(5))], [], now_ms=NOW)


# ---- what writes them


class Market:
    """A market that the test trades on, and its archive."""

    def __init__(self, tables: CandleTables, *, queue_max: int = 20_000) -> None:
        self.candles = CandleStore()
        self.watch = Watch(self.candles)
        self.clock = ManualClock(NOW)
        self.archive = CandleArchive(tables, self.candles, self.watch, self.clock, feed=Feed.LIVE, queue_max=queue_max)
        self.closed: list[tuple[int, bool]] = []
        self.archive.on_candle_closed.append(
            lambda candle, complete: self.closed.append((opens([candle])[0], complete))
        )

    def trades(self, *minutes: float) -> None:
        for minute in minutes:
            trade(self.candles, minute)


async def test_closed_minutes_are_kept_and_the_open_one_is_not(tables: CandleTables) -> None:
    market = Market(tables)
    market.trades(0, 0.5, 1, 2.5, 3.2)
    market.archive.collect()
    assert await market.archive.write()
    found = await kept(tables)
    assert opens([item.candle for item in found]) == [0, 1, 2]
    assert [item.complete for item in found] == [True, True, True]
    assert [item.candle.trades for item in found] == [2, 1, 1]
    assert market.closed == [(0, True), (1, True), (2, True)]
    assert await tables.spans(MINUTES) == [StoredSpan(at(0), at(3), "trades", NOW)]
    market.archive.collect()
    assert (market.archive.waiting, market.archive.counters["closed"]) == (0, 3)


async def test_a_minute_is_taken_a_second_after_its_end(tables: CandleTables) -> None:
    market = Market(tables)
    market.trades(0, 0.9)
    market.candles.advance(BTC, at(1) + 999)
    market.archive.collect()
    assert market.closed == []
    market.candles.advance(BTC, at(1) + 1_000)
    market.archive.collect()
    assert market.closed == [(0, True)]


async def test_a_listener_that_fails_costs_neither_candles_nor_the_other_listeners(
    tables: CandleTables, caplog: pytest.LogCaptureFixture
) -> None:
    market = Market(tables)
    market.archive.on_candle_closed.insert(0, lambda candle, complete: 1 // 0)  # type: ignore[arg-type,return-value]
    market.trades(0, 1.5)
    market.archive.collect()
    await market.archive.write()
    assert (market.closed, len(await kept(tables))) == ([(0, True)], 1)
    assert "ZeroDivisionError" in caplog.text


async def test_a_late_trade_makes_its_minute_be_written_again(tables: CandleTables) -> None:
    market = Market(tables)
    market.trades(0, 1, 2.1)
    market.archive.collect()
    await market.archive.write()
    market.trades(1.5, 3.1)
    market.archive.collect()
    await market.archive.write()
    assert [item.candle.trades for item in await kept(tables)] == [1, 2, 1]
    assert (market.archive.counters["late"], market.closed) == (1, [(0, True), (1, True), (2, True)])


async def test_a_restart_finds_what_was_and_marks_what_was_cut(location: LedgerLocation) -> None:
    async with open_candles(location, write=True) as tables:
        first = Market(tables)
        first.trades(0, 1, 2.5)
        task = asyncio.create_task(first.archive.run())
        await eventually(lambda: first.archive.counters["written"] == 2)
        task.cancel()
        await asyncio.wait({task})
    async with open_candles(location, write=True) as tables:
        assert [(*opens([item.candle]), item.complete) for item in await kept(tables)] == [
            (0, True),
            (1, True),
            (2, False),
        ]
        second = Market(tables)
        second.trades(4.5, 5, 6.1)
        second.archive.collect()
        await second.archive.write()
        found = await kept(tables)
        assert [(*opens([item.candle]), item.complete) for item in found] == [
            (0, True),
            (1, True),
            (2, False),
            (4, False),
            (5, True),
        ]
        assert [(span.from_ms, span.until_ms) for span in await tables.spans(MINUTES)] == [
            (at(0), at(2)),
            (at(5), at(6)),
        ]
        assert second.archive.counters["incomplete"] == 1


async def test_a_break_in_the_feed_makes_its_minutes_incomplete(tables: CandleTables) -> None:
    market = Market(tables)
    market.trades(0, 1.5)
    market.watch.publish_book(BookUpdate(BTC, [], [], at(1), at(1), "resync"))
    market.trades(3.5)
    market.watch.publish_trade(TradeUpdate(BTC, "1", "100", "1", Side.BUY, at(3.5), at(3.5)))
    market.trades(4, 5.1)
    market.archive.collect()
    await market.archive.write()
    assert market.closed == [(0, True), (1, False), (3, False), (4, True)]
    assert [(span.from_ms, span.until_ms) for span in await tables.spans(MINUTES)] == [(at(0), at(1)), (at(4), at(5))]


async def test_an_hour_seen_whole_is_kept_as_one(tables: CandleTables) -> None:
    market = Market(tables)
    for minute in range(30, 185):
        trade(market.candles, minute, 100 + minute)
        market.archive.collect()
    await market.archive.write()
    hours = MINUTES._replace(interval_ms=HOUR)
    found = [item.candle for item in await tables.read(hours, START, NOW)]
    assert opens(found) == [60, 120]  # the first was cut
    assert (found[0].open, found[0].close, found[0].volume, found[0].trades) == (160, 219, 60, 60)
    assert [(span.from_ms, span.until_ms) for span in await tables.spans(hours)] == [(at(60), at(180))]


class Broken:
    """Tables whose disk can be taken away."""

    def __init__(self, tables: CandleTables) -> None:
        self._tables = tables
        self.away = True

    async def write(
        self, series: object, candles: Sequence[StoredCandle], spans: Sequence[StoredSpan], *, now_ms: int
    ) -> None:
        if self.away:
            raise LedgerUnavailable("the disk is full")
        await self._tables.write(series, candles, spans, now_ms=now_ms)  # type: ignore[arg-type]

    async def forget(self, series: object, before_ms: int) -> None:
        await self._tables.forget(series, before_ms)  # type: ignore[arg-type]


async def test_when_the_disk_is_away_candles_wait_and_what_is_lost_is_counted_and_not_claimed() -> None:
    async with open_candles_in_memory() as tables:
        broken = Broken(tables)
        market = Market(broken, queue_max=10)  # type: ignore[arg-type]
        for minute in range(31):
            market.trades(minute)
            market.archive.collect()
            if minute % 10 == 5:
                assert not await market.archive.write()
        market.candles.advance(BTC, at(30.5))
        market.archive.collect()
        assert (market.archive.waiting, market.archive.counters["lost"]) == (10, 20)
        assert len(market.closed) == 30  # who listens to closed candles is told of all
        broken.away = False
        assert await market.archive.write()
        assert opens([item.candle for item in await kept(tables)]) == list(range(20, 30))
        assert [(span.from_ms, span.until_ms) for span in await tables.spans(MINUTES)] == [(at(20), at(30))]
        assert market.archive.counters["failures"] == 3


async def test_old_candles_are_deleted_by_their_own_markets_time() -> None:
    async with open_candles_in_memory() as tables:
        candles = CandleStore()
        archive = CandleArchive(
            tables,
            candles,
            Watch(candles),
            ManualClock(NOW),
            feed=Feed.LIVE,
            retention_ms={MINUTE_MS: 5 * MINUTE_MS},
        )
        for minute in range(20):
            trade(candles, minute)
        archive.collect()
        await archive.write()
        assert opens([item.candle for item in await kept(tables)]) == [14, 15, 16, 17]
        assert [(span.from_ms, span.until_ms) for span in await tables.spans(MINUTES)] == [(at(14), at(18))]
