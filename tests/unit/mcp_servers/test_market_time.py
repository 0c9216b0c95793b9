"""The present of a market, and the text that names a moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_servers.market.candles import CandleStore
from mcp_servers.market.market_time import MarketTime, parse_as_of
from tests.market_support import BTC
from trading.domain.errors import InvalidValue, Unavailable
from trading.testing.clock import ManualClock


def test_live_now_is_the_clock_whatever_the_trades_say() -> None:
    clock, candles = ManualClock(5_000), CandleStore()
    candles.add(BTC, 9_000, Decimal(1), Decimal(1))
    time = MarketTime(candles, clock=clock)
    assert time.is_live
    assert time.now_ms(BTC) == 5_000
    clock.advance(70)
    assert time.check_as_of(None, BTC) == 5_070
    assert time.check_as_of(5_070, BTC) == 5_070


def test_in_a_replay_now_is_how_far_it_has_come() -> None:
    candles = CandleStore()
    time = MarketTime(candles, clock=None)
    assert not time.is_live
    for ask in (time.now_ms, lambda instrument: time.check_as_of(1, instrument)):
        with pytest.raises(Unavailable) as starting:
            ask(BTC)
        assert starting.value.code == "MARKET_STARTING"
    candles.add(BTC, 9_000, Decimal(1), Decimal(1))
    candles.advance(BTC, 9_500)
    assert time.now_ms(BTC) == 9_500


def test_looking_ahead_is_refused_to_the_millisecond() -> None:
    candles = CandleStore()
    candles.advance(BTC, 1_000_000)
    time = MarketTime(candles, clock=None)
    assert time.check_as_of(1_000_000, BTC) == 1_000_000
    with pytest.raises(InvalidValue) as refused:
        time.check_as_of(1_000_001, BTC)
    assert refused.value.code == "LOOK_AHEAD"
    assert "1970-01-01T00:16:40.000Z" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2024-08-08T23:54:13.1239Z", 1_723_161_253_123),
        ("2024-08-09T01:54:13.123+02:00", 1_723_161_253_123),
        ("2024-08-08t23:54:13z", 1_723_161_253_000),
        ("2024-08-08 23:54:13.5-00:00", 1_723_161_253_500),
        ("2024-02-29T00:00:00.000000001Z", 1_709_164_800_000),
    ],
)
def test_rfc_3339_text_becomes_milliseconds(text: str, expected: int) -> None:
    assert parse_as_of(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "5d", "2024-08-08", "2024-08-08T23:54:13", "2024-W32-4T00:00:00Z", "20240808T235413Z",
        "2024-13-01T00:00:00Z", "2023-02-29T00:00:00Z", "2024-08-08T24:00:00Z", "2024-08-08T23:59:60Z",
        "2024-08-08T23:54:13+25:00", "1969-12-31T23:59:59Z", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59",
        "٢٠٢٤-08-08T00:00:00Z", "2024-08-08T00:00:00Z\n", "NaN", "1723161253", "9" * 10_000,
    ],
)  # fmt: skip
def test_any_other_text_is_refused_as_no_time(text: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        parse_as_of(text)
    assert refused.value.code == "INVALID_TIME"


@given(st.integers(2 * 86_400 * 10**6, 250_000_000_000 * 10**6), st.integers(-23 * 60 - 59, 23 * 60 + 59))
def test_every_moment_survives_being_written_in_any_offset(microseconds: int, offset_minutes: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    text = moment.astimezone(timezone(timedelta(minutes=offset_minutes))).isoformat(timespec="microseconds")
    assert parse_as_of(text) == microseconds // 1_000
