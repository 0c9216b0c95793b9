"""The live market as a user starts it: three venues on the wire, the server as a process, and its bad days."""

from __future__ import annotations

import os
import signal
from decimal import Decimal

import pytest
from mcp import Client

from tests.live_market_support import (
    MINUTE_MS,
    SYMBOL,
    VENUES,
    MarketProcess,
    Venues,
    ask,
    configuration,
    market_home,
    redis_pid,
    refused,
    running_market,
    three_venues,
    ticker,
    until,
    venue_rows,
)

NONSENSE = ("garbage", "", "null", "[1,2]", "{}", "[" * 5_000, '{"e":"depthUpdate"}', "<html>502 Bad Gateway</html>")


async def all_fresh(client: Client) -> bool:
    return not any([(await ticker(client, venue))["stale"] for venue in VENUES])


async def safe(client: Client) -> bool:
    return (await ask(client, "get_status"))["safe_to_trade"]


async def answered_by(client: Client, venue: str) -> bool:
    """Return whether that venue answers for whoever names none, with a book that may be used."""
    row = await ticker(client)
    return (row["venue"], row["stale"]) == (venue, False)


async def is_troubled(client: Client, venue: str, *codes: str) -> bool:
    return (await venue_rows(client))[venue]["code"] in codes


async def check_prices_are_the_venues_own(client: Client, venues: Venues) -> None:
    async with venues.still():

        async def agree() -> bool:
            for venue in VENUES:
                (bid, *_), (ask_, *_) = venues[venue].top(SYMBOL, 1)
                row = await ticker(client, venue)
                if (row["bid"], row["ask"], row["stale"]) != (bid[0], ask_[0], False):
                    return False
            return True

        await until(agree, "every venue's ticker is the top of its true book", timeout_s=2.5)


async def check_candles_are_true(client: Client, venues: Venues, *, sources: set[str], partly_known: int = 0) -> None:
    """Compare every closed minute with the trades that happened at the venue; a wrong one must be said to be."""
    for venue in VENUES:
        found = await ask(client, "get_candles", symbol=SYMBOL, timeframe="1m", lookback="10m", venue=venue)
        columns = (found[name] for name in ("open", "high", "low", "close", "volume"))
        rows = dict(zip(found["open_ts_ms"], zip(*columns, strict=True), strict=True))
        truth = venues.truth(venue)
        closed = [opened for opened in truth if opened + MINUTE_MS <= found["open_ts_ms"][-1]]
        wrong = [opened for opened in closed if rows.get(opened) != truth[opened]]
        assert len(closed) >= 4
        assert len(wrong) <= found["gaps"] <= partly_known, (venue, wrong, found)
        assert found["first_complete"] is True
        assert sources <= set(found["sources"]), found["sources"]


@pytest.mark.timeout(120)
async def test_three_venues_are_one_market_with_a_past() -> None:
    async with (
        three_venues(past_minutes=5) as venues,
        market_home(configuration(venues)) as home,
        venues.trading(),
    ):
        async with running_market(home) as market, market.client() as client:
            await until(lambda: all_fresh(client), "all three venues are fresh", market.tail)
            await until(lambda: safe(client), "it is safe to trade", market.tail)
            await check_prices_are_the_venues_own(client, venues)
            await check_comparison(client)
            await check_candles_are_true(client, venues, sources={"venue"})
            assert await market.stop() == 0, market.tail()
        asked = {venue: dict(venues[venue].asked) for venue in VENUES}
        async with running_market(home) as market, market.client() as client:
            await until(lambda: all_fresh(client), "all three venues are fresh again", market.tail)
            # A minute that began before this process and ended in it is known from the venue some seconds later.
            await check_candles_are_true(client, venues, sources={"venue"}, partly_known=1)
            counters = (await ask(client, "get_status"))["counters"]
            assert counters["archive_kept"] == 1
            assert counters.get("backfill_bars", 0) <= 3, "what was archived is not asked for again"
            assert await market.stop() == 0, market.tail()
        assert all(sum(asked[venue].values()) > 3 for venue in VENUES)


async def check_comparison(client: Client) -> None:
    compared = await ask(client, "compare_venues", symbol=SYMBOL)
    assert [row["venue"] for row in compared["venues"]] == list(VENUES)
    assert all(row["marks"] == [] and row["source"] == "live" for row in compared["venues"])
    assert Decimal(compared["bid"]) == max(Decimal(row["bid"]) for row in compared["venues"])
    assert Decimal(compared["ask"]) == min(Decimal(row["ask"]) for row in compared["venues"])
    assert all(abs(row["skew_ms"]) < 1_000 for row in compared["venues"])
    found = await ask(client, "estimate_fill", symbol=SYMBOL, side="both", amount="3", venue="all")
    for side in (found, found["opposite"]):
        assert side["fee_assumed"] is True
        assert set(side["parts"]) <= set(VENUES)
        assert sum(map(Decimal, side["parts"].values())) == Decimal(side["filled"])
    assert found["left_out"] == {}
    for venue in VENUES:
        rules = await ask(client, "get_instrument", symbol=SYMBOL, venue=venue)
        assert rules["fees_assumed"] is True
        assert Decimal(rules["taker_fee"]) > 0


@pytest.mark.timeout(120)
async def test_a_venue_without_the_symbol_says_so_and_hurts_nobody() -> None:
    async with (
        three_venues(without="coinbase") as venues,
        market_home(configuration(venues)) as home,
        venues.trading(),
        running_market(home) as market,
        market.client() as client,
    ):
        await until(lambda: is_troubled(client, "coinbase", "UNKNOWN_INSTRUMENT"), "Coinbase is named", market.tail)
        await until(lambda: answered_by(client, "binance"), "Binance answers", market.tail)
        await until(lambda: safe(client), "it is safe to trade", market.tail)
        assert SYMBOL in (await venue_rows(client))["coinbase"]["message"]
        error = await refused(client, "get_tickers", symbols=[SYMBOL], venue="coinbase")
        assert error.code == "UNKNOWN_INSTRUMENT"
        compared = await ask(client, "compare_venues", symbol=SYMBOL)
        assert [row["venue"] for row in compared["venues"]] == ["binance", "kraken"]
        assert "coinbase" in compared["left_out"]


@pytest.mark.soak
@pytest.mark.timeout(180)
async def test_bad_days_of_the_venues_have_names_and_pass() -> None:
    async with (
        three_venues() as venues,
        market_home(configuration(venues)) as home,
        venues.trading(),
        running_market(home) as market,
        market.client() as client,
    ):
        await until(lambda: all_fresh(client), "all three venues are fresh", market.tail)
        await nonsense_from_every_venue(client, venues, market)
        await the_own_venue_is_lost_and_refuses_to_come_back(client, venues, market)
        await every_venue_is_lost(client, venues, market)
        assert market.is_up
        assert await market.stop() == 0, market.tail()


async def nonsense_from_every_venue(client: Client, venues: Venues, market: MarketProcess) -> None:
    for server in venues.servers.values():
        for text in NONSENSE:
            await server.send_text(text)
            await server.send_bytes(b"\xff\xfe" + text.encode())
        await server.settle()
    await until(lambda: all_fresh(client), "the venues are fresh after nonsense", market.tail)
    await check_prices_are_the_venues_own(client, venues)
    counters = (await ask(client, "get_status"))["counters"]
    assert sum(count for name, count in counters.items() if name.endswith("garbage")) > 0


async def the_own_venue_is_lost_and_refuses_to_come_back(client: Client, venues: Venues, market: MarketProcess) -> None:
    await venues.lose("binance")
    await until(lambda: answered_by(client, "coinbase"), "Coinbase stands in", market.tail)
    status, row = await ask(client, "get_status"), await ticker(client)
    assert row["failed_over_from"] == "binance"
    assert len(status["failover"]) == 1
    assert "coinbase answers" in status["failover"][0]
    assert (await refused(client, "estimate_fill", symbol=SYMBOL, side="buy", amount="1", venue="binance")).code in (
        "STALE_DATA",
        "NO_NETWORK",
    )
    assert (
        "binance"
        in (await ask(client, "estimate_fill", symbol=SYMBOL, side="buy", amount="1", venue="all"))["left_out"]
    )
    await until(lambda: is_troubled(client, "binance", "NO_NETWORK"), "the reason is named", market.tail)
    venues["binance"].faults.answer(429, path=venues["binance"].ws_path, retry_after_s=1, times=1)
    await venues.bring_back("binance")
    await until(lambda: is_troubled(client, "binance", "RATE_LIMITED"), "the limit is named", market.tail)
    await until(lambda: answered_by(client, "binance"), "Binance answers again", market.tail)
    row = await ticker(client)
    assert row["failed_over_from"] is None
    assert (await ask(client, "get_status"))["failover"] == []


async def every_venue_is_lost(client: Client, venues: Venues, market: MarketProcess) -> None:
    for venue in VENUES:
        await venues.lose(venue)

    async def lost() -> bool:
        rows = await venue_rows(client)
        return all(rows[venue]["code"] == "NO_NETWORK" for venue in VENUES)

    await until(lost, "every venue says why it is silent", market.tail)
    before_mb = market.rss_mb
    assert (await ticker(client))["stale"] is True
    for arguments in ({}, {"venue": "all"}, {"venue": "kraken"}):
        error = await refused(client, "estimate_fill", symbol=SYMBOL, side="buy", amount="1", **arguments)
        assert error.code == "STALE_DATA", arguments
    status = await ask(client, "get_status")
    assert status["safe_to_trade"] is False
    assert any("binance" in reason for reason in status["reasons"])
    for _ in range(200):
        await ask(client, "get_tickers", symbols=[SYMBOL])
        await refused(client, "get_tickers", symbols=["NO/SUCH"])
    assert market.rss_mb - before_mb < 10
    for venue in VENUES:
        await venues.bring_back(venue)
    await until(lambda: all_fresh(client), "all three venues are back", market.tail)
    await check_prices_are_the_venues_own(client, venues)


@pytest.mark.timeout(120)
async def test_a_killed_redis_costs_no_price_and_a_killed_publisher_is_replaced() -> None:
    async with (
        three_venues(past_minutes=4) as venues,
        market_home(configuration(venues)) as home,
        venues.trading(),
        running_market(home) as publisher,
        running_market(home, "follower") as follower,
        publisher.client() as first,
        follower.client() as second,
    ):
        for client, market in ((first, publisher), (second, follower)):
            await until(lambda client=client: all_fresh(client), "all venues are fresh", market.tail)
        pid = redis_pid(home)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert (await ticker(first))["stale"] is False, "the publisher answers from its memory"
        await until(lambda: redis_pid(home) not in (None, pid), "Redis is started again", publisher.tail)
        for client, market in ((first, publisher), (second, follower)):
            await until(lambda client=client: safe(client), "the bus is connected again", market.tail)
        await check_prices_are_the_venues_own(second, venues)
        assert [(await ask(client, "get_status"))["role"] for client in (first, second)] == ["publisher", "follower"]
        await publisher.kill()

        async def took_over() -> bool:
            status = await ask(second, "get_status")
            return status["role"] == "publisher" and status["safe_to_trade"]

        await until(took_over, "the follower publishes", follower.tail)
        await until(lambda: all_fresh(second), "all venues are fresh again", follower.tail)
        await check_prices_are_the_venues_own(second, venues)
        await check_candles_are_true(second, venues, sources={"venue"}, partly_known=1)
        assert await follower.stop() == 0, follower.tail()


@pytest.mark.soak
@pytest.mark.timeout(240)
async def test_minutes_around_a_kill_are_true_or_said_to_be_incomplete() -> None:
    async with (
        three_venues(past_minutes=4) as venues,
        market_home(configuration(venues)) as home,
        venues.trading(),
    ):
        async with running_market(home) as market, market.client() as client:
            await until(lambda: all_fresh(client), "all three venues are fresh", market.tail)
            await minute_of(venues, 35)
            await market.kill()
        async with running_market(home) as market, market.client() as client:
            await until(lambda: all_fresh(client), "all three venues are fresh again", market.tail)
            cut_ms = venues.clock.now_ms() // MINUTE_MS * MINUTE_MS
            await until(
                lambda: venues.clock.now_ms() > cut_ms + 2 * MINUTE_MS + 20_000, "two minutes are over", timeout_s=180
            )
            await check_candles_are_true(client, venues, sources={"venue", "trades"})


async def minute_of(venues: Venues, second: int) -> None:
    await until(
        lambda: second * 1_000 <= venues.clock.now_ms() % MINUTE_MS < (second + 5) * 1_000, "that second", timeout_s=61
    )


@pytest.mark.soak
@pytest.mark.timeout(180)
async def test_a_half_open_connection_is_found_and_dialled_again() -> None:
    async with (
        three_venues() as venues,
        market_home(configuration(venues)) as home,
        venues.trading(),
        running_market(home) as market,
        market.client() as client,
    ):
        await until(lambda: all_fresh(client), "all three venues are fresh", market.tail)
        for venue in VENUES:
            server = venues[venue]
            server.faults.silent = True
            before = server.asked["connect"]

            async def stale(venue: str = venue) -> bool:
                return "stale" in (await ticker(client, venue))["marks"]

            await until(stale, f"{venue} is stale", market.tail, timeout_s=10)
            await until(
                lambda server=server, before=before: server.asked["connect"] > before,
                f"{venue} is dialled again",
                market.tail,
                timeout_s=45,
            )
            server.faults.heal()
            await until(lambda: all_fresh(client), f"{venue} is back", market.tail, timeout_s=45)
        await check_prices_are_the_venues_own(client, venues)
