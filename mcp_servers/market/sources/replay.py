"""A recorded feed as a market: the recorded times stay, the desk's publication times are new.

Rules kept here:

- The stretch before the first snapshot is read silently, so the first published book is a good one.
- Recorded distances between messages are divided by ``speed``; 0 plays as fast as the desk can take it.
- With ``loop`` the recording starts again as a new pass. Time on the venue's clock never goes back: a later pass is
  moved on by the recording's length, and its trade ids carry the number of the pass.
- The position after every message is known, so a killed market process goes on where it was: it reads the messages
  before that silently to have the books, and publishes only what follows.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Final

from mcp_servers.market.sources.base import (
    Bar,
    BestQuote,
    Difference,
    Restarted,
    Rules,
    Snapshot,
    SourceState,
    SourceStatus,
    SourceUpdate,
)
from mcp_servers.market.sources.binance_messages import parse_message
from trading.adapters.codec import decode
from trading.adapters.market_wire import TradeUpdate
from trading.domain.errors import ConfigurationError, InvalidValue
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Feed
from trading.ports.clock import Clock

#: The recording that ships with the package.
BUNDLED: Final = "rawfeed_binance_spot_BTCUSDT_20240808.jsonl.gz"
_YIELD_EVERY: Final = 50  # messages between two chances for the rest of the process: about a millisecond of work
_YIELD_PACED: Final = 8  # the same while a pace is kept: a tool's call needs a dozen chances
_SLACK_NS: Final = 1_000_000  # a message due within this time is given now


@dataclass(frozen=True)
class Recording:
    """Raw messages of one instrument, ``<receive time ns> <JSON>`` each, in the order they were received."""

    name: str
    instrument: Instrument
    lines: tuple[bytes, ...]

    @cached_property
    def first_snapshot(self) -> int:
        """Index of the first snapshot; 0 when there is none."""
        return next((i for i, line in enumerate(self.lines) if b'"lastUpdateId"' in line[:60]), 0)

    @cached_property
    def span_ms(self) -> int:
        """Length of the recording on its own clock, rounded up to the next millisecond and at least one."""
        first, last = (int(self.lines[i].split(b" ", 1)[0]) for i in (0, -1))
        return max(1, -(-(last - first) // 1_000_000))


def bundled_instruments() -> tuple[Instrument, ...]:
    """Return the trading rules that ship with the recordings."""
    text = files("mcp_servers.market").joinpath("recordings", "instruments.json").read_bytes()
    return decode(tuple[Instrument, ...], text)


def load_recording(path: Path | None = None, *, symbol: str = "BTC/USDT", venue: str = "binance") -> Recording:
    """Read a gzipped recording into memory; the bundled one by default.

    Raises:
        ConfigurationError: it cannot be read, is empty, or no rules ship for its instrument.
    """
    wanted = InstrumentId(Venue(venue), Symbol(symbol))
    instrument = next((item for item in bundled_instruments() if item.id == wanted), None)
    if instrument is None:
        raise ConfigurationError(f"no recording and no rules for {wanted}")
    try:
        packed = path.read_bytes() if path else files("mcp_servers.market").joinpath("recordings", BUNDLED).read_bytes()
        lines = tuple(line for line in gzip.decompress(packed).split(b"\n") if line)
        int(lines[0].split(b" ", 1)[0])
        int(lines[-1].split(b" ", 1)[0])
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise ConfigurationError("the recording cannot be read, or is not one") from error
    return Recording(path.name if path else BUNDLED, instrument, lines)


class ReplaySource:
    """Plays a recording.

    Args:
        recording: what to play.
        clock: paces the messages.
        speed: recorded seconds per second, 0 for as fast as possible.
        loop: start again at the end instead of ending.
        resume: a position that an earlier source of the same recording gave.
        sleep: waits for seconds; a test's clock replaces it.
    """

    feed = Feed.REPLAY

    def __init__(
        self,
        recording: Recording,
        clock: Clock,
        *,
        speed: float = 1.0,
        loop: bool = False,
        resume: bytes | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._recording = recording
        self._clock = clock
        self._speed = speed
        self._loop = loop
        self._sleep = sleep
        self._pass, self._next = _parse_position(resume, recording)
        self._publish_from = max(self._next, recording.first_snapshot + 1)
        self._state = SourceState.STARTING
        self._garbage = 0
        self.catching_up = True

    @property
    def venue(self) -> Venue:
        """Whose data was recorded."""
        return self._recording.instrument.venue

    def position(self) -> bytes:
        """Return recording, pass and the next message, as text."""
        return _position(self._recording, self._pass, self._next)

    def fresh_start(self) -> bytes:
        """Return the beginning of the next pass: only a killed process goes on in the middle of one."""
        return _position(self._recording, self._pass + 1, 0)

    def status(self) -> SourceStatus:
        """Return state, pass (from 0) and messages given."""
        ended = self._state is SourceState.ENDED
        return SourceStatus(
            self._state,
            "RECORDING_ENDED" if ended else "",
            "the recording is over; start the market with --loop to play it again" if ended else "",
            {"pass": self._pass, "message": self._next, "of": len(self._recording.lines), "garbage": self._garbage},
        )

    async def updates(self) -> AsyncIterator[SourceUpdate]:
        """Yield the recording's updates when they are due."""
        yield Rules((self._recording.instrument,))
        self._state = SourceState.RUNNING
        while True:
            async for update in self._play_pass():
                yield update
            if not self._loop:
                break
            self._pass, self._next = self._pass + 1, 0
            self._publish_from = self._recording.first_snapshot + 1
            self.catching_up = True
            yield Restarted((self._recording.instrument.id,), "the recording starts again")
        self._state = SourceState.ENDED

    async def _play_pass(self) -> AsyncIterator[SourceUpdate]:
        start = self._publish_from
        lines: Sequence[bytes] = self._recording.lines
        for index in range(min(start, len(lines))):
            if index % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            for update in self._parse(lines[index]):
                yield update
        self.catching_up = False
        if start >= len(lines):
            return
        origin_ns = next((stamp for stamp in map(_stamp, lines[start:]) if stamp), 0)
        began_ns = self._clock.monotonic_ns()
        for index in range(start, len(lines)):
            line = lines[index]
            await self._wait(index, _stamp(line) - origin_ns, began_ns)
            self._next = index + 1
            for update in self._parse(line):
                yield update

    async def _wait(self, index: int, offset_ns: int, began_ns: int) -> None:
        if self._speed > 0:
            ahead_ns = began_ns + int(offset_ns / self._speed) - self._clock.monotonic_ns()
            if ahead_ns > _SLACK_NS:
                await self._sleep(ahead_ns / 1_000_000_000)
                return
        if index % (_YIELD_PACED if self._speed > 0 else _YIELD_EVERY) == 0:
            await asyncio.sleep(0)

    def _parse(self, line: bytes) -> list[SourceUpdate]:
        """Return the line's update, moved to this pass; a malformed line is counted and gives none."""
        shift = self._pass * self._recording.span_ms
        try:
            received, _, message = line.partition(b" ")
            update = parse_message(self._recording.instrument.id, message, int(received) // 1_000_000)
        except ValueError:  # InvalidValue is one
            self._garbage += 1
            return []
        if update is None:
            return []
        return [_shifted(update, shift, self._pass) if shift else update]


def _stamp(line: bytes) -> int:
    """Return the receive time in nanoseconds; 0, which is due at once, for a line that has none."""
    try:
        return int(line[: line.index(b" ")])
    except ValueError:
        return 0


def _shifted(update: SourceUpdate, ms: int, number: int) -> SourceUpdate:
    """Return the update of a later pass: later by ``ms``, its trade id marked with the pass."""
    match update:
        case TradeUpdate():
            trade_id = f"{number}-{update.trade_id}"
            venue_ts, received_ts = update.venue_ts_ms + ms, update.received_ts_ms + ms
            return replace(update, trade_id=trade_id, venue_ts_ms=venue_ts, received_ts_ms=received_ts)
        case Difference():
            return replace(update, venue_ts_ms=update.venue_ts_ms + ms, received_ts_ms=update.received_ts_ms + ms)
        case BestQuote() | Snapshot():  # a recorded snapshot has no venue time
            return replace(update, received_ts_ms=update.received_ts_ms + ms)
        case Rules() | Bar() | Restarted():
            return update


def _position(recording: Recording, number: int, index: int) -> bytes:
    return f"{recording.name} {number} {index}".encode()


def _parse_position(position: bytes | None, recording: Recording) -> tuple[int, int]:
    """Return pass and next message; the beginning when the position is of another recording or makes no sense."""
    try:
        name, number, index = (position or b"").decode().split(" ")
        if name != recording.name or not 0 <= int(index) <= len(recording.lines) or int(number) < 0:
            return 0, 0
        return int(number), int(index)
    except (ValueError, InvalidValue):
        return 0, 0
