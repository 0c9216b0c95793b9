"""What the tests of the market room share."""

from __future__ import annotations

from functools import cache

from mcp_servers.market.sources.base import SourceUpdate
from mcp_servers.market.sources.binance_messages import parse_message
from mcp_servers.market.sources.replay import Recording, load_recording
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.testing.clock import ManualClock

BTC = InstrumentId(Venue("binance"), Symbol("BTC/USDT"))
KEY = b"k" * 32


@cache
def recording() -> Recording:
    """Return the recording that ships with the package."""
    return load_recording()


@cache
def recorded_updates() -> tuple[SourceUpdate, ...]:
    """Return every update of the recording, in order."""
    updates: list[SourceUpdate] = []
    for line in recording().lines:
        received, _, message = line.partition(b" ")
        update = parse_message(BTC, message, int(received) // 1_000_000)
        assert update is not None
        updates.append(update)
    return tuple(updates)


def part(count: int, *, start: int = 0) -> Recording:
    """Return some consecutive messages of the recording as a recording of their own."""
    whole = recording()
    return Recording("part", whole.instrument, whole.lines[start : start + count])


class JumpingSleep:
    """Sleeps by moving a manual clock, so that paced code runs at once and the same way every time."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._owed_s = 0.0

    async def __call__(self, seconds: float) -> None:
        self._owed_s += seconds
        whole_ms = int(self._owed_s * 1_000)
        self._owed_s -= whole_ms / 1_000
        self._clock.advance(whole_ms)
