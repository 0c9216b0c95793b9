"""The kinds of arguments that several market tools take."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from mcp_servers.market.candles import TIMEFRAMES
from trading.domain.errors import InvalidValue

#: Registers a read-only tool: ``@read(title="Get tickers")``.
Register = Callable[..., Callable[[Any], Any]]

SymbolText = Annotated[str, Field(min_length=1, max_length=41)]
VenueText = Annotated[str | None, Field(max_length=64)]
SymbolTexts = Annotated[list[SymbolText], Field(min_length=1, max_length=20)]

_UNIT_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_LENGTH: Final = re.compile(r"([1-9][0-9]{0,4})([smhdw])[a-z]*", re.IGNORECASE | re.ASCII)


def _read_timeframe(value: object) -> object:
    text = value if isinstance(value, str) else ""
    if text in TIMEFRAMES:
        return text
    found = _LENGTH.fullmatch(text)
    nearest = _nearest(int(found[1]) * _UNIT_MS[found[2].lower()]) if found else ""
    raise InvalidValue(
        "there is no such timeframe",
        code="INVALID_TIMEFRAME",
        suggestion=f"the nearest is {nearest}" if nearest else "name one of the allowed",
        allowed=tuple(TIMEFRAMES),
    )


def _nearest(length_ms: int) -> str:
    """Return the timeframe whose length has the smallest ratio to another; of two equal ones the shorter."""
    return min(TIMEFRAMES, key=lambda name: round(abs(math.log(TIMEFRAMES[name] / length_ms)), 9))


Timeframe = Annotated[Literal["1s", "5s", "15s", "1m", "5m", "15m", "1h", "4h", "1d"], BeforeValidator(_read_timeframe)]
