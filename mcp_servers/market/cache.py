"""Answers fetched from outside, kept for a while: in this process first, then in Redis for all processes of the desk.

Rules kept here:

1. No kept answer is served that is as old as its time to live. Age counts from when its loading began, so it is never
   understated; a clock that went back makes an answer unusable, not young.
2. One load per key at a time: whoever asks meanwhile waits for the same one. Somebody who stops waiting does not stop
   it for the others. A failure is not kept: all who wait get it, the next one loads again.
3. What is forgotten is forgotten in every process, also while it is being loaded: such a load still answers those who
   asked before, and is not kept.
4. Memory is bounded by entries and by bytes; what was used least recently goes first.
5. Without Redis this process still has its own level; the other is skipped.

Keys start with what they depend on, ``<venue>[:<symbol>[:<timeframe>]]`` and then more, so that events can name them
by a prefix.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self

from redis.asyncio import Redis

from mcp_servers.market.settings import CacheSettings
from mcp_servers.market.shared_cache import Forgotten, SharedAnswers
from trading.domain.errors import InvalidValue
from trading.domain.identifiers import parse_name
from trading.ports.clock import Clock

BYTES_MAX: Final = 64 * 1024 * 1024  # of answers in this process
KEY_MAX: Final = 2_048  # characters
_LATE_MS: Final = 10_000  # by then another process's word has come

Load = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An answer and where it was found.

    Attributes:
        age_ms: since its loading began.
        level: this process's memory, the desk's Redis, or just loaded.
    """

    data: bytes
    age_ms: int
    level: Literal["l1", "l2", "loaded"]


class _Entry:
    __slots__ = ("began_ms", "data")

    def __init__(self, began_ms: int, data: bytes) -> None:
        self.began_ms = began_ms
        self.data = data


class _Flight:
    """A load that is under way, or whose answer is on its way to Redis."""

    __slots__ = ("forgotten",)

    def __init__(self) -> None:
        self.forgotten = False


_Slot = tuple[str, str]
_Task = asyncio.Task[CachedAnswer]


class AnswerCache:
    """Keeps answers. Without Redis it needs no context manager.

    Args:
        settings: how many answers are kept in this process.
        clock: the desk's.
        redis: a client whose ACL user may use ``market:*``; None for this process's level alone.
        desk, key: the desk's name and its shared feed key, with ``redis``.

    Attributes:
        counters: answers by where they were found, and what else happened.
    """

    def __init__(
        self, settings: CacheSettings, clock: Clock, *, redis: Redis | None = None, desk: str = "", key: bytes = b""
    ) -> None:
        self._limit = settings.entries
        self._clock = clock
        self._entries: OrderedDict[_Slot, _Entry] = OrderedDict()
        self._bytes = 0
        self._flights: dict[_Slot, tuple[_Flight, _Task]] = {}
        self._storing: dict[_Slot, _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._shared = (
            None
            if redis is None
            else SharedAnswers(redis, desk=desk, key=key, clock=clock, on_forget=self._forgotten_elsewhere)
        )
        self._counts = dict.fromkeys(("l1", "l2", "loaded", "joined", "failed", "evicted", "forgotten"), 0)

    async def __aenter__(self) -> Self:
        if self._shared is not None:
            for job in (self._shared.run_writer, self._shared.run_reader):
                self._spawn(job())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._shared is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._shared.drained()
        flights = [task for _, task in self._flights.values()]
        for task in (*flights, *self._tasks):
            task.cancel()
        if waiting := [*flights, *self._tasks]:
            await asyncio.wait(waiting, timeout=5)

    @property
    def counters(self) -> dict[str, int]:
        """Return what happened so far; ``shared_`` are Redis's."""
        shared = {} if self._shared is None else {f"shared_{k}": v for k, v in self._shared.counters.items()}
        return {**self._counts, "entries": len(self._entries), "bytes": self._bytes, **shared}

    async def get(self, kind: str, key: str, ttl_s: float, load: Load) -> CachedAnswer:
        """Return an answer, loaded now if there is none young enough.

        Args:
            kind: a name for answers that are forgotten together: ``quote``, ``candles``, ``rules``, ``news``.
            key: names the question completely; the venue first.
            ttl_s: an answer this old is not served any more, > 0.
            load: asks outside; what it raises is raised here, and not kept.

        Raises:
            InvalidValue: the kind is no name, or the key is empty or longer than 2,048 characters.
        """
        slot, ttl_ms = (parse_name(kind, what="kind"), key), int(ttl_s * 1_000)
        if not 0 < len(key) <= KEY_MAX:
            raise InvalidValue(f"a cache key has 1 to {KEY_MAX} characters", code="INVALID_NAME")
        while True:
            entry = self._entries.get(slot)
            if entry is not None and 0 <= (age_ms := self._clock.now_ms() - entry.began_ms) < ttl_ms:
                self._entries.move_to_end(slot)
                self._counts["l1"] += 1
                return CachedAnswer(entry.data, age_ms, "l1")
            under_way = self._flights.get(slot)
            joined = under_way is not None
            self._counts["joined"] += joined
            answer = await asyncio.shield(under_way[1] if under_way else self._take_off(slot, ttl_ms, load))
            # What another caller found in Redis may be too old for this one; what was loaded is as new as can be.
            if not joined or answer.level == "loaded" or answer.age_ms < ttl_ms:
                return answer

    def invalidate(self, kind: str, key_prefix: str = "") -> None:
        """Forget the answers of a kind whose key starts so, in every process; here at once. Never waits."""
        what = Forgotten(parse_name(kind, what="kind"), key_prefix)
        self._forget(what)
        if self._shared is not None:
            self._shared.forget(what)

    def heed(self, event_type: str, payload: Mapping[str, object]) -> None:
        """Forget what a market event has made wrong; give this to ``MarketEvents.listen``."""
        venue, symbol = payload.get("venue"), payload.get("symbol")
        if event_type == "market.rules_changed":
            self.invalidate("rules", f"{venue}")  # a venue's rules are kept as one answer
        elif event_type == "market.candle_closed":
            self.invalidate("candles", f"{venue}:{symbol}:{payload.get('timeframe')}")

    def _take_off(self, slot: _Slot, ttl_ms: int, load: Load) -> _Task:
        flight = _Flight()
        task = asyncio.create_task(self._fly(slot, ttl_ms, load, flight), name="market-cache-load")
        self._flights[slot] = (flight, task)
        task.add_done_callback(lambda task: self._landed(slot, task))
        return task

    def _landed(self, slot: _Slot, task: _Task) -> None:
        if (under_way := self._flights.get(slot)) is not None and under_way[1] is task:
            del self._flights[slot]
        if not task.cancelled() and task.exception() is not None:  # looked at, even if all who waited have gone
            self._counts["failed"] += 1

    async def _fly(self, slot: _Slot, ttl_ms: int, load: Load, flight: _Flight) -> CachedAnswer:
        if self._shared is not None:
            found = await self._shared.load(*slot)
            if found is not None and not flight.forgotten and 0 <= (age := self._clock.now_ms() - found[0]) < ttl_ms:
                self._keep(slot, _Entry(*found))
                self._counts["l2"] += 1
                return CachedAnswer(found[1], age, "l2")
        began_ms = self._clock.now_ms()
        data = await load()
        self._counts["loaded"] += 1
        if not flight.forgotten:
            self._keep(slot, _Entry(began_ms, data))
            if self._shared is not None:
                self._spawn(self._store(self._shared, slot, data, began_ms, ttl_ms, flight))
        return CachedAnswer(data, max(0, self._clock.now_ms() - began_ms), "loaded")

    async def _store(
        self, shared: SharedAnswers, slot: _Slot, data: bytes, began_ms: int, ttl_ms: int, flight: _Flight
    ) -> None:
        self._storing[slot] = flight
        await shared.store(*slot, data, began_ms=began_ms, ttl_ms=ttl_ms)
        if self._storing.get(slot) is flight:
            del self._storing[slot]
        if flight.forgotten:
            await shared.drop(*slot)

    def _keep(self, slot: _Slot, entry: _Entry) -> None:
        self._remove(slot)
        if len(entry.data) > BYTES_MAX // 8:
            return
        self._entries[slot] = entry
        self._bytes += len(entry.data)
        while len(self._entries) > self._limit or self._bytes > BYTES_MAX:
            self._remove(next(iter(self._entries)))
            self._counts["evicted"] += 1

    def _remove(self, slot: _Slot) -> None:
        entry = self._entries.pop(slot, None)
        if entry is not None:
            self._bytes -= len(entry.data)

    def _forget(self, what: Forgotten) -> list[_Slot]:
        """Forget here; return the answers that may have reached Redis while they were being forgotten elsewhere."""
        found = [slot for slot in self._entries if what.covers(*slot)]
        recent_ms = self._clock.now_ms() - _LATE_MS
        late = [slot for slot in found if self._entries[slot].began_ms >= recent_ms]
        for slot in found:
            self._remove(slot)
        self._counts["forgotten"] += len(found)
        for slot, flight in self._storing.items():
            flight.forgotten = flight.forgotten or what.covers(*slot)
        for slot in [slot for slot in self._flights if what.covers(*slot)]:
            self._flights.pop(slot)[0].forgotten = True  # who asks from now on starts a load of their own
        return late

    def _forgotten_elsewhere(self, what: Forgotten) -> None:
        shared, late = self._shared, self._forget(what)
        if shared is not None and late:
            self._spawn(_drop_all(shared, late))

    def _spawn(self, job: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(job, name="market-cache")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _drop_all(shared: SharedAnswers, slots: Sequence[_Slot]) -> None:
    for slot in slots:
        await shared.drop(*slot)
