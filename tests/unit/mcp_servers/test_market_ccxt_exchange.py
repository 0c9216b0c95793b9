"""What is opened of ccxt, where it is sent, and what its failures mean."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mcp_servers.market.sources.ccxt.exchange import HttpFailure, open_exchange, parse_retry_after
from mcp_servers.market.sources.ccxt.failures import (
    Resync,
    Silent,
    TooManyResyncs,
    VenueRefused,
    VenueUnavailable,
    error_of,
    trouble_of,
)
from trading.domain.errors import ConfigurationError, UnknownInstrument

HOST = "127.0.0.1:9"


def urls_of(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [url for inner in value.values() for url in urls_of(inner)]
    return [value]


@pytest.mark.parametrize("venue", ["coinbase", "binance", "kraken", "okx", "bybit", "kucoin", "krakenfutures"])
def test_no_address_of_a_redirected_venue_is_left_where_it_was(venue: str) -> None:
    exchange: Any = open_exchange(venue, rest_url=f"http://{HOST}", ws_url=f"ws://{HOST}")
    api = exchange.urls["api"]
    assert all(url.startswith(f"ws://{HOST}") for url in urls_of(api["ws"]))
    rest = {name: value for name, value in api.items() if name != "ws"}
    assert rest
    assert all(url.startswith(f"http://{HOST}") for url in urls_of(rest))


@pytest.mark.parametrize(
    ("venue", "rest", "ws", "expected"),
    [
        ("coinbase", "", "/ws", {"rest": "", "ws": "/ws"}),
        ("binance", "/api/v3", "/stream/ws", {"public": "/api/v3", "fapiPublic": "/fapi/v1", "ws.spot": "/stream/ws"}),
        ("binance", "", "", {"public": "/api/v3", "ws.spot": "/stream/ws"}),
        ("binance", "/bn/api/v3", "/bn", {"public": "/bn/api/v3", "ws.spot": "/bn/stream/ws"}),
        ("kraken", "", "/v2", {"public": "", "ws.publicV2": "/v2"}),
        ("kraken", "", "", {"public": "", "ws.publicV2": "/v2"}),
        ("okx", "", "", {"rest": "", "ws": "/ws/v5"}),
        ("okx", "", "/ws/v5", {"rest": "", "ws": "/ws/v5"}),
        ("bybit", "", "", {"public": "", "ws.public.spot": "/v5/public/spot"}),
    ],
)
def test_each_venue_keeps_its_paths(venue: str, rest: str, ws: str, expected: dict[str, str]) -> None:
    exchange: Any = open_exchange(venue, rest_url=f"http://{HOST}{rest}", ws_url=f"ws://{HOST}{ws}")
    for path, url in expected.items():
        found = exchange.urls["api"]
        for step in path.split("."):
            found = found[step]
        assert found == f"{'ws' if path.startswith('ws') else 'http'}://{HOST}{url}"


def test_without_other_addresses_a_venue_keeps_its_own() -> None:
    exchange: Any = open_exchange("coinbase")
    assert exchange.urls["api"] == {"rest": "https://api.coinbase.com", "ws": "wss://advanced-trade-ws.coinbase.com"}


def test_an_exchange_for_data_holds_no_key_and_loads_only_what_is_asked_for() -> None:
    spot: Any = open_exchange("binance")
    perpetual: Any = open_exchange("binance", kind="perpetual")
    assert not any((spot.apiKey, spot.secret, spot.password, spot.uid, spot.privateKey))
    assert (spot.options["fetchMarkets"]["types"], perpetual.options["fetchMarkets"]["types"]) == (["spot"], ["linear"])
    assert spot.has["fetchCurrencies"] is False
    assert open_exchange("coinbase").options["fetchMarkets"] == "fetchMarketsV3"  # type: ignore[attr-defined]


@pytest.mark.parametrize("venue", ["no_such_venue", "pro", "__class__"])
def test_a_venue_that_ccxt_does_not_have_is_refused(venue: str) -> None:
    with pytest.raises(ConfigurationError, match="no public live data"):
        open_exchange(venue)


def test_half_open_sockets_are_looked_for_every_few_seconds() -> None:
    exchange: Any = open_exchange("binance")
    assert exchange.streaming["keepAlive"] == 10_000
    kraken: Any = open_exchange("kraken")
    assert kraken.streaming["keepAlive"] == 6_000  # its own is shorter


def test_an_answer_that_ccxt_would_misunderstand_is_refused_first() -> None:
    exchange: Any = open_exchange("coinbase")

    def answer(code: int, body: str, **headers: str) -> str:
        return exchange.on_rest_response(code, "", "", "GET", headers, body, {}, None)

    assert answer(200, ' {"a": 1} ') == '{"a": 1}'
    assert answer(400, "no such thing") == "no such thing"  # the venue's own words go to ccxt
    for body in ("<html>", '{"broken', ""):
        with pytest.raises(ValueError, match=r"."):
            answer(200, body)
    with pytest.raises(HttpFailure) as failure:
        answer(429, "{}", **{"retry-after": "3"})
    assert (failure.value.status, failure.value.retry_after_s) == (429, 3.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5.0), ("0.5", 0.5), ("-1", 0.0), ("1e9", 3600.0), ("nan", None), ("", None), (None, None),
     ("Wed, 21 Oct 2026 07:28:00 GMT", None)],
)  # fmt: skip
def test_retry_after_is_read_as_seconds_and_bounded(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text) == seconds


# ---- failures, told apart by the names of ccxt's own classes


def ccxt_error(name: str, message: object = "x", *, cause: BaseException | None = None) -> BaseException:
    import ccxt

    error = getattr(ccxt, name)(message)
    error.__cause__ = cause
    return error


HANDSHAKE = SimpleNamespace(status=503, headers={"Retry-After": "2"})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ccxt_error("NetworkError"), "NO_NETWORK"),
        (ccxt_error("ExchangeNotAvailable", "binance GET https://x", cause=OSError()), "NO_NETWORK"),
        (OSError("no route"), "NO_NETWORK"),
        (ccxt_error("ExchangeNotAvailable", "binance GET https://x 451 Unavailable {}"), "VENUE_REFUSED"),
        (ccxt_error("ExchangeNotAvailable", "binance GET https://x 403 Forbidden {}"), "VENUE_REFUSED"),
        (HttpFailure(502, None), "VENUE_DOWN"),
        (ccxt_error("NetworkError", HANDSHAKE), "VENUE_DOWN"),
        (ccxt_error("RequestTimeout"), "VENUE_DOWN"),
        (ccxt_error("OnMaintenance"), "VENUE_DOWN"),
        (ccxt_error("OperationFailed"), "VENUE_DOWN"),
        (TimeoutError(), "VENUE_DOWN"),
        (Silent(), "VENUE_DOWN"),
        (ccxt_error("RateLimitExceeded"), "RATE_LIMITED"),
        (ccxt_error("DDoSProtection"), "RATE_LIMITED"),
        (HttpFailure(418, None), "RATE_LIMITED"),
        (ccxt_error("NetworkError", SimpleNamespace(status=429, headers={})), "RATE_LIMITED"),
        (ccxt_error("BadSymbol"), "UNKNOWN_INSTRUMENT"),
        (ccxt_error("AuthenticationError"), "VENUE_REFUSED"),
        (ccxt_error("ExchangeError"), "VENUE_REFUSED"),
        (ccxt_error("BadResponse"), "GARBAGE"),
        (ccxt_error("NullResponse"), "GARBAGE"),
        (KeyError("missing"), "GARBAGE"),
        (TypeError(), "GARBAGE"),
        (TooManyResyncs(), "GARBAGE"),
        (ExceptionGroup("both", [ccxt_error("BadSymbol"), Resync()]), "UNKNOWN_INSTRUMENT"),  # type: ignore[list-item]
    ],
    ids=repr,
)  # fmt: skip
def test_every_failure_has_a_code(error: BaseException, code: str) -> None:
    assert trouble_of(error).code == code


def test_the_wait_that_a_venue_asks_for_is_handed_on() -> None:
    limited = ccxt_error("NetworkError", SimpleNamespace(status=429, headers={"Retry-After": "7"}))
    assert trouble_of(limited).after_ms == 7_000
    assert trouble_of(HttpFailure(429, 3.5)).after_ms == 3_500
    assert trouble_of(HttpFailure(429, None)).after_ms == 10_000
    error = error_of("binance", trouble_of(HttpFailure(429, 3.5)))
    assert isinstance(error, VenueUnavailable)
    assert (error.code, error.after_ms) == ("RATE_LIMITED", 3_500)


def test_only_what_can_help_is_to_be_asked_again() -> None:
    refused = error_of("okx", trouble_of(ccxt_error("PermissionDenied")))
    assert isinstance(refused, VenueRefused)
    assert isinstance(error_of("okx", trouble_of(ccxt_error("BadSymbol"))), UnknownInstrument)
    down = error_of("okx", trouble_of(TimeoutError()))
    assert isinstance(down, VenueUnavailable)
    assert "okx does not answer" in str(down)
