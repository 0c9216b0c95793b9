"""Recorded candles as a market: each bar is given once a virtual clock has passed its end, never before.

Rules kept here:

- There are no trades and no book in such a recording, and none are invented: nothing can be priced from it.
- The virtual clock starts at the end of the first bar and runs ``speed`` times as fast as the desk's; 0 gives the bars
  as fast as the desk can take them. Gaps in the recording (outages of the exchange) stay gaps and take their time.
- A malformed line, or one that is not later than the line before it, is counted and left out.
- With ``loop`` a later pass is moved on by the recording's length, so time never goes back; passes and positions are
  as in :mod:`mcp_servers.market.sources.replay`.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from mcp_servers.market.sources.base import Bar, Rules, SourceState, SourceStatus, SourceUpdate
from mcp_servers.market.sources.ohlcv_files import OhlcvRecording
from trading.domain.identifiers import Venue
from trading.domain.market_data import Candle, Feed
from trading.ports.clock import Clock

_YIELD_EVERY: Final = 50  # bars between two chances for the rest of the process: about a millisecond of work


class OhlcvSource:
    """Plays recorded candles of one venue, those of all instruments in order of their ends.

    Args:
        recordings: at least one, each of another instrument.
        clock: paces the bars.
        speed: recorded seconds per second, 0 for as fast as possible.
        loop: start again at the end instead of ending.
        resume: a position that an earlier source of the same recordings gave.
        sleep: waits for seconds; a test's clock replaces it.
    """

    feed = Feed.REPLAY

    def __init__(
        self,
        recordings: Sequence[OhlcvRecording],
        clock: Clock,
        *,
        speed: float = 1.0,
        loop: bool = False,
        resume: bytes | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._recordings = tuple(recordings)
        self._clock = clock
        self._speed = speed
        self._loop = loop
        self._sleep = sleep
        self._name = "+".join(f"{recording.name}:{len(recording.lines)}" for recording in recordings)
        self._span_ms = _pass_length(recordings)
        self._pass, self._next = self._parse_position(resume)
        self._state = SourceState.STARTING
        self._garbage = 0
        self.catching_up = True

    @property
    def venue(self) -> Venue:
        """Whose prices were recorded."""
        return self._recordings[0].instrument.venue

    def position(self) -> bytes:
        """Return recordings, pass and the next bar, as text."""
        return f"{self._name} {self._pass} {self._next}".encode()

    def fresh_start(self) -> bytes:
        """Return the beginning of the next pass: only a killed process goes on in the middle of one."""
        return f"{self._name} {self._pass + 1} 0".encode()

    def status(self) -> SourceStatus:
        """Return state, pass (from 0) and bars given."""
        ended = self._state is SourceState.ENDED
        return SourceStatus(
            self._state,
            "RECORDING_ENDED" if ended else "",
            "the recording is over; start the market with --loop to play it again" if ended else "",
            {"pass": self._pass, "bar": self._next, "of": self._lines, "garbage": self._garbage},
        )

    async def updates(self) -> AsyncIterator[SourceUpdate]:
        """Yield the bars when they are due."""
        yield Rules(tuple(recording.instrument for recording in self._recordings))
        self._state = SourceState.RUNNING
        while True:
            async for bar in self._play_pass():
                yield bar
            if not self._loop:
                break
            self._pass, self._next = self._pass + 1, 0
        self._state = SourceState.ENDED

    async def _play_pass(self) -> AsyncIterator[Bar]:
        resumed_at, shift = self._next, self._pass * self._span_ms
        origin_ms = began_ns = 0
        for index, candle in enumerate(self._merged()):
            if index % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            self.catching_up = index < resumed_at
            if not self.catching_up:
                if not began_ns:
                    origin_ms, began_ns = _end(candle), self._clock.monotonic_ns() or 1
                await self._wait(_end(candle) - origin_ms, began_ns)
                self._next = index + 1
            yield Bar(replace(candle, open_ts_ms=candle.open_ts_ms + shift) if shift else candle)
        self.catching_up = False

    async def _wait(self, offset_ms: int, began_ns: int) -> None:
        """Return when the virtual clock has passed a bar's end; a sleep may end a little early, a bar may not."""
        while self._speed > 0:
            ahead_ns = began_ns + int(offset_ms * 1_000_000 / self._speed) - self._clock.monotonic_ns()
            if ahead_ns <= 0:
                break
            await self._sleep(ahead_ns / 1_000_000_000)

    def _merged(self) -> Iterator[Candle]:
        return heapq.merge(*(self._counted(recording) for recording in self._recordings), key=_end)

    def _counted(self, recording: OhlcvRecording) -> Iterator[Candle]:
        for candle in recording.bars():
            if candle is None:
                self._garbage += 1
            else:
                yield candle

    @property
    def _lines(self) -> int:
        return sum(len(recording.lines) for recording in self._recordings)

    def _parse_position(self, position: bytes | None) -> tuple[int, int]:
        """Return pass and next bar; the beginning when the position is of other recordings or makes no sense."""
        try:
            name, number, index = (position or b"").decode().rsplit(" ", 2)
            found = int(number), int(index)
        except ValueError:
            return 0, 0
        return found if name == self._name and found[0] >= 0 and 0 <= found[1] <= self._lines else (0, 0)


def _end(candle: Candle) -> int:
    return candle.open_ts_ms + candle.interval_ms


def _pass_length(recordings: Sequence[OhlcvRecording]) -> int:
    """Return by how much a pass is later than the one before: whole bars of the longest kind, so all stay aligned."""
    longest = max(recording.interval_ms for recording in recordings)
    span = max(recording.end_ms for recording in recordings) - min(recording.begin_ms for recording in recordings)
    return -(-span // longest) * longest
