"""The cache within one process: never older than promised, one load per question, bounded, and forgetful when told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_servers.market import cache as module
from mcp_servers.market.cache import AnswerCache, CachedAnswer
from mcp_servers.market.settings import CacheSettings
from trading.domain.errors import InvalidValue, Unavailable
from trading.testing.clock import ManualClock


class Outside:
    """Counts what is asked of it; answers wait for ``gate`` while there is one."""

    def __init__(self) -> None:
        self.asked = 0
        self.gate: asyncio.Event | None = None
        self.failure: Exception | None = None

    async def __call__(self) -> bytes:
        self.asked += 1
        number = self.asked
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return b"%d" % number


def cache_of(clock: ManualClock, entries: int = 100) -> AnswerCache:
    return AnswerCache(CacheSettings(entries=entries), clock)


def constant(data: bytes) -> Callable[[], Awaitable[bytes]]:
    async def load() -> bytes:
        return data

    return load


async def test_an_answer_is_served_until_it_is_as_old_as_its_time_to_live() -> None:
    clock, outside = ManualClock(), Outside()
    cache = cache_of(clock)
    assert await cache.get("quote", "a", 1, outside) == CachedAnswer(b"1", 0, "loaded")
    clock.advance(999)
    assert await cache.get("quote", "a", 1, outside) == CachedAnswer(b"1", 999, "l1")
    clock.advance(1)
    assert await cache.get("quote", "a", 1, outside) == CachedAnswer(b"2", 0, "loaded")


async def test_kinds_and_keys_do_not_mix() -> None:
    cache = cache_of(ManualClock())
    for slot in (("a", "b"), ("a", "c"), ("ab", "b")):
        assert (await cache.get(*slot, 1, constant("/".join(slot).encode()))).data == "/".join(slot).encode()


async def test_age_counts_from_the_beginning_of_the_load() -> None:
    clock, outside = ManualClock(), Outside()
    cache = cache_of(clock)
    outside.gate = asyncio.Event()
    asking = asyncio.create_task(cache.get("quote", "a", 2, outside))
    await asyncio.sleep(0.001)
    clock.advance(1_500)
    outside.gate.set()
    assert await asking == CachedAnswer(b"1", 1_500, "loaded")
    clock.advance(500)
    assert (await cache.get("quote", "a", 2, outside)).data == b"2"


async def test_an_answer_from_a_clock_that_went_back_is_not_young() -> None:
    clock, outside = ManualClock(), Outside()
    cache = cache_of(clock)
    await cache.get("quote", "a", 1, outside)
    cache._clock = ManualClock(clock.now_ms() - 1)  # a clock that is set back
    assert (await cache.get("quote", "a", 1, outside)).data == b"2"


async def test_many_who_ask_at_once_cause_one_load() -> None:
    outside = Outside()
    outside.gate = asyncio.Event()
    cache = cache_of(ManualClock())
    asking = [asyncio.create_task(cache.get("quote", "a", 1, outside)) for _ in range(50)]
    await asyncio.sleep(0.001)
    outside.gate.set()
    assert {answer.data for answer in await asyncio.gather(*asking)} == {b"1"}
    assert (outside.asked, cache.counters["joined"]) == (1, 49)


async def test_who_stops_waiting_does_not_stop_the_load_for_the_others() -> None:
    outside = Outside()
    outside.gate = asyncio.Event()
    cache = cache_of(ManualClock())
    first = asyncio.create_task(cache.get("quote", "a", 1, outside))
    await asyncio.sleep(0.001)
    second = asyncio.create_task(cache.get("quote", "a", 1, outside))
    await asyncio.sleep(0.001)
    first.cancel()
    outside.gate.set()
    assert (await second).data == b"1"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    outside = Outside()
    outside.gate = asyncio.Event()
    outside.failure = Unavailable("the venue is down", code="VENUE_DOWN")
    cache = cache_of(ManualClock())
    asking = [asyncio.create_task(cache.get("quote", "a", 1, outside)) for _ in range(3)]
    await asyncio.sleep(0.001)
    outside.gate.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert [getattr(result, "code", None) for result in results] == ["VENUE_DOWN"] * 3
    outside.failure = None
    assert (await cache.get("quote", "a", 1, outside)).data == b"2"
    assert cache.counters["failed"] == 1


async def test_what_was_used_least_recently_goes_first() -> None:
    cache, outside = cache_of(ManualClock(), entries=10), Outside()
    for number in range(10):
        await cache.get("quote", str(number), 1, constant(b"x"))
    await cache.get("quote", "0", 1, outside)
    await cache.get("quote", "10", 1, constant(b"x"))
    assert (await cache.get("quote", "0", 1, outside)).level == "l1"
    assert (await cache.get("quote", "1", 1, outside)).level == "loaded"
    assert (cache.counters["entries"], cache.counters["evicted"]) == (10, 2)


async def test_memory_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BYTES_MAX", 8_000)
    cache = cache_of(ManualClock())
    for number in range(50):
        await cache.get("quote", str(number), 1, constant(b"x" * 1_000))
    assert (cache.counters["bytes"], cache.counters["entries"]) == (8_000, 8)
    await cache.get("quote", "huge", 1, constant(b"x" * 1_001))
    assert cache.counters["entries"] == 8


async def test_what_is_forgotten_is_loaded_again_and_the_rest_stays() -> None:
    cache = cache_of(ManualClock())
    for kind, key in (("rules", "kraken:BTC/USD"), ("rules", "kraken:ETH/USD"), ("quote", "kraken:BTC/USD")):
        await cache.get(kind, key, 60, constant(b"old"))
    cache.invalidate("rules", "kraken:BTC")
    new = constant(b"new")
    assert (await cache.get("rules", "kraken:BTC/USD", 60, new)).data == b"new"
    assert (await cache.get("rules", "kraken:ETH/USD", 60, new)).data == b"old"
    assert (await cache.get("quote", "kraken:BTC/USD", 60, new)).data == b"old"
    cache.invalidate("quote")
    assert (await cache.get("quote", "kraken:BTC/USD", 60, new)).data == b"new"


async def test_a_load_that_began_before_the_forgetting_is_not_kept() -> None:
    outside = Outside()
    outside.gate = asyncio.Event()
    cache = cache_of(ManualClock())
    before = asyncio.create_task(cache.get("rules", "a", 60, outside))
    await asyncio.sleep(0.001)
    cache.invalidate("rules")
    after = asyncio.create_task(cache.get("rules", "a", 60, outside))
    await asyncio.sleep(0.001)
    outside.gate.set()
    assert ((await before).data, (await after).data) == (b"1", b"2")
    assert await cache.get("rules", "a", 60, outside) == CachedAnswer(b"2", 0, "l1")


@pytest.mark.parametrize(
    ("event_type", "kind", "key", "forgotten"),
    [
        ("market.rules_changed", "rules", "kraken", True),
        ("market.rules_changed", "rules", "binance", False),
        ("market.candle_closed", "candles", "kraken:BTC/USD:1m:100", True),
        ("market.candle_closed", "candles", "kraken:BTC/USD:1h:100", False),
        ("market.feed_lost", "rules", "kraken", False),
    ],
)
async def test_events_make_answers_forgotten(event_type: str, kind: str, key: str, forgotten: bool) -> None:
    cache = cache_of(ManualClock())
    await cache.get(kind, key, 60, constant(b"old"))
    cache.heed(event_type, {"venue": "kraken", "symbol": "BTC/USD", "timeframe": "1m"})
    assert (await cache.get(kind, key, 60, constant(b"new"))).data == (b"new" if forgotten else b"old")


@pytest.mark.parametrize(("kind", "key"), [("Quote!", "a"), ("quote", ""), ("quote", "x" * 2_049)])
async def test_a_name_that_is_none_is_refused(kind: str, key: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        await cache_of(ManualClock()).get(kind, key, 1, constant(b""))
    assert caught.value.code == "INVALID_NAME"


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.integers(0, 2_500), st.booleans()), max_size=40)
)
@settings(deadline=None)
def test_nothing_kept_is_ever_older_than_asked(steps: list[tuple[str, int, int, bool]]) -> None:
    async def play() -> None:
        clock = ManualClock()
        cache = cache_of(clock, entries=10)
        for key, ttl_s, wait_ms, forget in steps:
            clock.advance(wait_ms)
            if forget:
                cache.invalidate("quote", key)
            made_ms = clock.now_ms()
            answer = await cache.get("quote", key, ttl_s, constant(b"%d" % made_ms))
            assert answer.age_ms == clock.now_ms() - int(answer.data) < ttl_s * 1_000
            assert not (forget and answer.level == "l1")

    asyncio.run(play())
