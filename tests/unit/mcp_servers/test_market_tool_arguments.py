"""What the market tools' shared arguments refuse, and what they say instead."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from mcp_servers.market.candles import TIMEFRAMES
from mcp_servers.market.tools.arguments import Timeframe
from trading.domain.errors import InvalidValue

TYPE: TypeAdapter[str] = TypeAdapter(Timeframe)


def test_a_timeframe_is_one_of_those_that_candles_are_kept_in() -> None:
    assert [TYPE.validate_python(name) for name in TIMEFRAMES] == list(TIMEFRAMES)
    assert TYPE.json_schema() == {"enum": list(TIMEFRAMES), "type": "string"}


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("7m", "5m"), ("30m", "15m"), ("2h", "1h"), ("12h", "1d"), ("1w", "1d"), ("1M", "1m"), ("60min", "1h")],
)
def test_another_timeframe_gets_the_nearest(text: str, nearest: str) -> None:
    assert refusal(text).suggestion == f"the nearest is {nearest}"


@pytest.mark.parametrize(
    "value", ["", "0m", "-5m", "60", "m", "soon", "9" * 1_000_000 + "m", "\u0665m", 5, 1e999, None, [], {}]
)
def test_what_is_no_length_of_time_gets_the_whole_list(value: object) -> None:
    error = refusal(value)
    assert (error.code, error.allowed) == ("INVALID_TIMEFRAME", tuple(TIMEFRAMES))
    assert error.suggestion == "name one of the allowed"


def refusal(value: object) -> InvalidValue:
    with pytest.raises(ValidationError) as caught:
        TYPE.validate_python(value)
    (detail,) = caught.value.errors()
    error = detail.get("ctx", {}).get("error")
    assert isinstance(error, InvalidValue)
    return error
