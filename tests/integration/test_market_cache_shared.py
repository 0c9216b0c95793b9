"""The cache of two processes over a real server: shared answers, shared forgetting, lies, and the server's death."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from mcp_servers.market import shared_cache
from mcp_servers.market.cache import AnswerCache, CachedAnswer
from mcp_servers.market.market_events import MarketEvents
from mcp_servers.market.settings import CacheSettings
from tests.bus_support import BUNDLED, DESK, eventually, server_of, settings_for, short_home
from tests.market_support import KEY
from trading.adapters.config import DeskHome
from trading.adapters.embedded_redis import open_redis
from trading.adapters.redis_client import unix_client
from trading.testing.clock import ManualClock

ANSWER = f"grekko:{{{DESK}}}:market:cache:quote:kraken:BTC/USD"
LOG = f"grekko:{{{DESK}}}:market:cache-log"


@pytest.fixture
def home() -> Iterator[DeskHome]:
    with short_home() as home:
        yield home


@pytest.fixture
async def redis(home: DeskHome) -> AsyncIterator[Any]:
    async with open_redis(home, settings_for(home), "market", bus=BUNDLED) as client:
        yield client


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def cache_on(redis: Redis, clock: ManualClock, key: bytes = KEY) -> AnswerCache:
    return AnswerCache(CacheSettings(), clock, redis=redis, desk=DESK, key=key)


@asynccontextmanager
async def caches(redis: Redis, clock: ManualClock, count: int = 2) -> AsyncIterator[list[AnswerCache]]:
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(cache_on(redis, clock)) for _ in range(count)]
        for cache in found:
            shared = cache._shared  # nobody else needs to wait for its reader
            assert shared is not None
            await shared.ready.wait()
        yield found


async def ask(
    cache: AnswerCache, data: bytes = b"new", *, kind: str = "quote", key: str = "kraken:BTC/USD"
) -> CachedAnswer:
    async def load() -> bytes:
        return data

    return await cache.get(kind, key, 60, load)


async def stored(redis: Any, name: str = ANSWER) -> None:
    async with asyncio.timeout(5):
        while not await redis.exists(name):
            await asyncio.sleep(0.002)


async def test_an_answer_of_one_process_is_found_by_another_with_its_age(redis: Any, clock: ManualClock) -> None:
    async with caches(redis, clock) as (one, two):
        assert await ask(one, b"first") == CachedAnswer(b"first", 0, "loaded")
        await stored(redis)
        clock.advance(1_000)
        assert await ask(two) == CachedAnswer(b"first", 1_000, "l2")
        assert await ask(two) == CachedAnswer(b"first", 1_000, "l1")
        assert 0 < await redis.pttl(ANSWER) <= 60_000
        clock.advance(59_000)
        assert (await ask(two)).level == "loaded"


async def test_what_one_process_forgets_all_forget(redis: Any, clock: ManualClock) -> None:
    async with caches(redis, clock, 3) as (one, two, three):
        await ask(one, b"old")
        await stored(redis)
        await ask(two)
        await ask(three, b"other", key="kraken:ETH/USD")
        await stored(redis, ANSWER.replace("BTC", "ETH"))
        one.invalidate("quote", "kraken:BTC")
        await eventually(lambda: two.counters["forgotten"] == 1)
        assert (await ask(two)).level == "loaded"
        assert (await ask(three, key="kraken:ETH/USD")).level == "l1"
        assert await redis.exists(ANSWER.replace("BTC", "ETH"))


async def test_changed_rules_are_forgotten_everywhere_by_way_of_their_event(redis: Any, clock: ManualClock) -> None:
    async with caches(redis, clock) as (one, two), MarketEvents(redis, desk=DESK, key=KEY, clock=clock) as events:
        events.listen(one.heed)
        await ask(two, b"old", kind="rules", key="kraken")
        events.publish("market.rules_changed", {"venue": "kraken", "symbol": "BTC/USD"})
        await eventually(lambda: two.counters["forgotten"] == 1)
        assert (await ask(two, kind="rules", key="kraken")).data == b"new"


async def test_an_answer_that_is_being_stored_when_it_is_forgotten_does_not_stay(
    redis: Any, clock: ManualClock
) -> None:
    async with caches(redis, clock) as (one, two):
        gate, began = asyncio.Event(), asyncio.Event()

        async def slow() -> bytes:
            began.set()
            await gate.wait()
            return b"old"

        asking = asyncio.create_task(one.get("quote", "kraken:BTC/USD", 60, slow))
        await began.wait()
        two.invalidate("quote")
        await eventually(lambda: not one._flights)  # the word has arrived
        gate.set()
        assert (await asking).data == b"old"  # asked before
        assert (await ask(one)).data == b"new"
        await stored(redis)
        assert (await redis.get(ANSWER)).endswith(b"new")


@pytest.mark.parametrize("lie", ["changed", "another key", "another place", "cut", "empty"])
async def test_a_lie_in_redis_is_not_believed(lie: str, redis: Any, clock: ManualClock) -> None:
    async with caches(redis, clock) as (one, two), cache_on(redis, clock, b"x" * 32) as stranger:
        await ask(
            stranger if lie == "another key" else one, b"true", key="x" if lie == "another place" else "kraken:BTC/USD"
        )
        source = ANSWER.replace("kraken:BTC/USD", "x") if lie == "another place" else ANSWER
        await stored(redis, source)
        value = await redis.get(source)
        forged = {"changed": value.replace(b"true", b"lies"), "cut": value[:70], "empty": b""}.get(lie, value)
        await redis.set(ANSWER, forged)
        assert await ask(two) == CachedAnswer(b"new", 0, "loaded")
        assert two.counters["shared_bad_mac"] == 1


async def test_a_forged_word_makes_nobody_forget(redis: Any, clock: ManualClock) -> None:
    async with caches(redis, clock, 1) as (cache,):
        await ask(cache)
        await redis.xadd(LOG, {"d": b'{"by":"x","kind":"","prefix":""}', "h": b"0" * 64})
        await eventually(lambda: cache.counters["shared_bad_mac"] == 1)
        assert (await ask(cache)).level == "l1"


async def test_with_the_server_killed_answers_go_on_and_forgetting_is_made_up_for(
    home: DeskHome, redis: Any, clock: ManualClock
) -> None:
    async with caches(redis, clock) as (one, two):
        await ask(two, b"old")
        pid = server_of(home).pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(5):
            assert (await ask(one, b"1", key="a")).data == b"1"
            assert (await ask(one, b"2", key="a")).level == "l1"
        one.invalidate("quote", "kraken")
        await eventually(lambda: two.counters["forgotten"] == 1, timeout_s=15)
        assert (await ask(two)).data == b"new"
        clock.advance(1_001)  # the second level is tried again
        await ask(one, b"back", key="b")
        await stored(redis, ANSWER.replace("kraken:BTC/USD", "b"))


async def test_a_server_that_hangs_costs_a_quarter_of_a_second_once(
    home: DeskHome, redis: Any, clock: ManualClock
) -> None:
    async with caches(redis, clock, 1) as (cache,):
        pid = server_of(home).pid()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            loop = asyncio.get_running_loop()
            began = loop.time()
            for number in range(20):
                assert (await ask(cache, key=str(number))).level == "loaded"
            assert loop.time() - began < 2
            assert cache.counters["shared_failures"] >= 1
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_without_a_server_from_the_start_the_first_level_works(clock: ManualClock) -> None:
    nowhere = unix_client(Path("/nonexistent/socket"), user="market", password="", retries=0)
    cache = cache_on(nowhere, clock)
    assert (await ask(cache)).level == "loaded"
    assert (await ask(cache)).level == "l1"


async def test_what_is_too_much_is_not_sent_to_redis(
    redis: Any, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_cache, "STORED_MAX", 250)
    async with caches(redis, clock, 1) as (cache,):
        for number in range(4):
            await ask(cache, b"x" * 100, key=str(number))
        await eventually(lambda: cache.counters["shared_full"] == 2)
        clock.advance(60_001)
        await ask(cache, b"x" * 100, key="later")
        await stored(redis, ANSWER.replace("kraken:BTC/USD", "later"))
        await ask(cache, b"x" * (shared_cache.ANSWER_MAX + 1), key="huge")
        await eventually(lambda: cache.counters["shared_too_large"] == 1)


async def test_too_much_to_forget_while_redis_is_away_becomes_everything(redis: Any, clock: ManualClock) -> None:
    async with cache_on(redis, clock) as two:
        shared = two._shared  # nobody else needs to wait for its reader
        assert shared is not None
        await shared.ready.wait()
        await ask(two, b"old", kind="rules", key="anything")
        one = cache_on(redis, clock)  # not running: as if its Redis were away
        for number in range(300):
            one.invalidate("quote", str(number))
        async with one:
            await eventually(lambda: two.counters["forgotten"] == 1)


async def test_long_and_strange_keys_are_kept_apart(redis: Any, clock: ManualClock) -> None:
    keys = ["k*[a]?" + "x" * 300 + end for end in ("1", "2")]
    async with caches(redis, clock) as (one, two):
        for key in keys:
            await ask(one, key.encode(), key=key)
        await eventually(lambda: not one._storing)  # both have been sent
        assert [(await ask(two, key=key)).data for key in keys] == [key.encode() for key in keys]
        await ask(one, b"other", key="kXaXx")
        one.invalidate("quote", "k*[a]?")
        await eventually(lambda: two.counters["forgotten"] == 2)
        assert (await ask(two, key="kXaXx")).data == b"other"
        assert [(await ask(two, key=key)).level for key in keys] == ["loaded", "loaded"]
