"""What time it is on the market, and the guard against looking ahead of it.

Live, now is this machine's clock. In a replay it is the newest recorded time the pipeline has reached for that
instrument: nothing that was recorded later has happened yet, however much of the recording is already in memory.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from mcp_servers.envelope import timestamp
from mcp_servers.market.candles import CandleStore
from trading.domain.errors import InvalidValue, Unavailable
from trading.domain.instruments import InstrumentId
from trading.ports.clock import Clock

_RFC_3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]([01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}"
    r"(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class MarketTime:
    """The present of each instrument.

    Args:
        candles: know how far a replay has come.
        clock: the present of a live market; None in a replay.
    """

    def __init__(self, candles: CandleStore, *, clock: Clock | None) -> None:
        self._candles = candles
        self._clock = clock

    @property
    def is_live(self) -> bool:
        """Whether the present is the machine's."""
        return self._clock is not None

    def now_ms(self, instrument_id: InstrumentId) -> int:
        """Return the present of an instrument, milliseconds since the epoch.

        Raises:
            Unavailable: code MARKET_STARTING: a replay has not given anything of this instrument yet.
        """
        if self._clock is not None:
            return self._clock.now_ms()
        reached = self._candles.now_ms(instrument_id)
        if reached <= 0:
            raise Unavailable(
                f"the recording has not reached any data of {instrument_id.symbol} yet",
                code="MARKET_STARTING",
                suggestion="ask again in a moment, or ask market_get_status",
            )
        return reached

    def check_as_of(self, as_of_ms: int | None, instrument_id: InstrumentId) -> int:
        """Return the moment history may be shown up to: ``as_of_ms``, or the present when it is None.

        Raises:
            InvalidValue: code LOOK_AHEAD: it lies after the present.
            Unavailable: code MARKET_STARTING.
        """
        now = self.now_ms(instrument_id)
        if as_of_ms is None:
            return now
        if as_of_ms > now:
            raise InvalidValue(
                f"as_of lies after the market's present, {timestamp(now)}",
                code="LOOK_AHEAD",
                suggestion="leave as_of out for the present, or name an earlier moment",
            )
        return as_of_ms


def parse_as_of(text: str) -> int:
    """Return the moment that RFC 3339 text names, in whole milliseconds since the epoch (the rest is cut off).

    Raises:
        InvalidValue: code INVALID_TIME: another form, no offset, no such date, or before 1970.
    """
    suggestion = "write RFC 3339 with an offset, for example 2026-11-22T15:00:00Z"
    if _RFC_3339.fullmatch(text) is None:
        raise InvalidValue("as_of is not an RFC 3339 time", code="INVALID_TIME", suggestion=suggestion)
    try:
        since = datetime.fromisoformat(text.upper()) - _EPOCH
    except (ValueError, OverflowError) as error:
        raise InvalidValue("as_of names no real moment", code="INVALID_TIME", suggestion=suggestion) from error
    ms = since.days * 86_400_000 + since.seconds * 1_000 + since.microseconds // 1_000
    if ms < 0:
        raise InvalidValue("as_of lies before 1970", code="INVALID_TIME", suggestion=suggestion)
    return ms
