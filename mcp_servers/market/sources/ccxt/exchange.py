"""Opens ccxt exchanges for public data, and sends them to other addresses for tests and testnets.

Rules kept here:

- ccxt is imported only when an exchange is opened: it is large.
- An exchange opened here has no credentials and is never the one that orders go through.
- With another REST or WebSocket address every URL of that kind is moved there, each with its own path: nothing leaks
  to the real venue, and one local server can stand for all of its hosts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, Protocol, cast
from urllib.parse import urlsplit

import orjson

from trading.domain.errors import ConfigurationError

TICK_SIZE: Final = 4  # ccxt.TICK_SIZE: precisions are steps, not numbers of decimal places
TRADES_LIMIT: Final = 5_000  # trades that ccxt keeps of one symbol between two reads

_REST_TIMEOUT_MS: Final = 8_000
_PING_MS: Final = 10_000  # so a half-open socket is found within 20 to 30 s; Binance's own 3 minutes are too long

#: Which markets to load, where ccxt lets one choose; everything else loads what it has.
_MARKET_TYPES: Final[dict[str, dict[str, list[str]]]] = {
    "binance": {"spot": ["spot"], "perpetual": ["linear"]},
    "okx": {"spot": ["spot"], "perpetual": ["swap"]},
    "bybit": {"spot": ["spot"], "perpetual": ["linear"]},
}

#: What one WebSocket message costs, in ccxt's REST intervals. Coinbase takes 8 a second before it drops us, where ccxt
#: sends 29; Kraken's interval of a second is for REST, and 20 symbols would take 40 s to subscribe to.
_MESSAGE_COSTS: Final = {"coinbase": 4, "kraken": 0.1}

#: Levels to ask for; venues that are not named here give enough without being asked. Kraken's default is 10.
BOOK_LIMITS: Final = {"kraken": 100, "bybit": 50}

Kind = Literal["spot", "perpetual"]


class WsClient(Protocol):
    """The part of a ccxt WebSocket connection that is used here."""

    url: str
    error: Exception | None
    subscriptions: dict[str, Any]
    handle_message: Callable[[Any], None]
    on_message_callback: Callable[[WsClient, Any], None]

    def on_error(self, error: Exception) -> None:
        """Give up the connection and fail everything that waits for it."""
        ...

    def reject(self, result: Exception) -> object:
        """Fail everything that waits for this connection."""
        ...


class Exchange(Protocol):
    """The part of a ccxt.pro exchange that is used here."""

    precisionMode: int  # noqa: N815  ccxt's names
    has: dict[str, Any]
    markets: dict[str, Any] | None
    orderbooks: dict[str, Any]
    client: Callable[[str], WsClient]

    async def load_markets(self, reload: bool = ...) -> dict[str, Any]:
        """Return the venue's markets by symbol."""
        ...

    def set_markets(self, markets: list[Any]) -> object:
        """Take markets that were loaded before."""
        ...

    async def watch_order_book(self, symbol: str, limit: int | None = ...) -> dict[str, Any]:
        """Return the book after its next change."""
        ...

    async def watch_trades(self, symbol: str, *, params: dict[str, Any] = ...) -> list[dict[str, Any]]:
        """Return the trades since the last call."""
        ...

    async def fetch_time(self) -> int | None:
        """Return the venue's time in milliseconds."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


class RestExchange(Exchange, Protocol):
    """What is asked over REST besides."""

    timeframes: dict[str, str] | None
    fees: dict[str, Any]

    async def fetch_ohlcv(self, symbol: str, timeframe: str, since: int, limit: int) -> list[list[Any]]:
        """Return candles as [open time ms, open, high, low, close, volume], oldest first."""
        ...

    async def fetch_ticker(self, symbol: str) -> dict[str, Any]:
        """Return best prices and the last trade."""
        ...

    async def fetch_funding_rate(self, symbol: str) -> dict[str, Any]:
        """Return the funding rate of a perpetual contract."""
        ...

    def feature_value_by_type(self, market_type: str, sub_type: str | None, method: str, parameter: str) -> Any:
        """Return a documented limit of a method, None when ccxt does not know it."""
        ...


def open_exchange(
    venue: str, *, rest_url: str | None = None, ws_url: str | None = None, kind: Kind = "spot"
) -> RestExchange:
    """Make a ccxt.pro exchange for public data.

    Args:
        venue: ccxt's id, such as ``binance``; ``coinbase`` is Coinbase Advanced.
        rest_url: another base address for REST; the paths of the venue's API are added to it.
        ws_url: another base address for WebSockets, likewise.
        kind: which markets to load, where that can be chosen.

    Raises:
        ConfigurationError: ccxt has no such venue, or none with public WebSockets.
    """
    import ccxt.pro as ccxt_pro  # pyright: ignore[reportMissingTypeStubs]

    maker: Any = getattr(ccxt_pro, venue, None) if venue in ccxt_pro.exchanges else None
    if maker is None:
        raise ConfigurationError(f"no public live data for venue {venue!r}", suggestion="use a ccxt exchange id")
    exchange: Any = maker({"enableRateLimit": True, "timeout": _REST_TIMEOUT_MS, "newUpdates": True})
    options = cast("dict[str, Any]", exchange.options)
    options["defaultType"] = "spot" if kind == "spot" else "swap"
    options["tradesLimit"] = TRADES_LIMIT
    if venue == "coinbase":
        options["fetchTime"] = "v3PublicGetBrokerageTime"  # the trading API's clock, not that of the accounts
    types = _MARKET_TYPES.get(venue)
    if types is not None:  # Coinbase keeps the name of a method under the same key
        options["fetchMarkets"] = {**cast("dict[str, Any]", options["fetchMarkets"]), "types": types[kind]}
    if venue in _MESSAGE_COSTS:
        options["ws"] = {**cast("dict[str, Any]", options.get("ws") or {}), "cost": _MESSAGE_COSTS[venue]}
    # Currencies are not needed, and on several venues a key is.
    exchange.has = {**exchange.has, "fetchCurrencies": False}
    streaming = cast("dict[str, Any]", exchange.streaming)
    exchange.streaming = {**streaming, "keepAlive": min(int(streaming["keepAlive"]), _PING_MS)}
    exchange.on_rest_response = _readable
    _redirect(venue, exchange.urls["api"], rest_url, ws_url)
    return cast("RestExchange", exchange)


class HttpFailure(Exception):
    """An HTTP status that says enough, whatever the venue's words beside it.

    Attributes:
        status: 418, 429 or 5xx.
        retry_after_s: what the answer asks for, None when it asks for nothing.
    """

    def __init__(self, status: int, retry_after_s: float | None) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status
        self.retry_after_s = retry_after_s


def _readable(
    code: int, _reason: str, _url: str, _method: str, headers: dict[str, str], body: str, *_request: object
) -> str:
    """Return an answer as ccxt's own hook does, unless ccxt would misunderstand it.

    Real world: Coinbase's words for 429 and 503 become a refusal for good, Binance's for 503 an unnamed failure, and a
    proxy's web page with status 200 a venue that lists nothing.

    Raises:
        HttpFailure: the status says that we ask too often, or that the venue does not work.
        ValueError: a good answer is no JSON.
    """
    text = body.strip()
    if code in (418, 429) or code >= 500:
        raise HttpFailure(code, _retry_after(headers))
    if 200 <= code < 300:
        orjson.loads(text)
    return text


def _redirect(venue: str, urls: dict[str, Any], rest_url: str | None, ws_url: str | None) -> None:
    """Move every URL of a kind to another base address; see the module's rules."""
    if rest_url:
        base = rest_url.rstrip("/").removesuffix("/api/v3") if venue.startswith("binance") else rest_url
        for name in [key for key in urls if key != "ws"]:
            urls[name] = _moved(urls[name], base)
    if ws_url and "ws" in urls:
        # ccxt knows Binance's spot connections by "/stream" in the address.
        base = ws_url.rstrip("/").removesuffix("/ws") if venue.startswith("binance") else ws_url
        if venue.startswith("binance") and not urlsplit(base).path.endswith("/stream"):
            base = f"{base.rstrip('/')}/stream"
        urls["ws"] = _moved(urls["ws"], base)


def _moved(value: Any, base: str) -> Any:
    """Return a URL, or a table of them, with scheme and host replaced; a path that ``base`` ends with stays single."""
    if isinstance(value, dict):
        return {key: _moved(inner, base) for key, inner in cast("dict[str, Any]", value).items()}
    if not isinstance(value, str):
        return value
    path = urlsplit(value).path
    kept = base.rstrip("/")
    stripped = path.rstrip("/")
    return (kept.removesuffix(stripped) if stripped else kept) + path


def book_limit(venue: str) -> int | None:
    """Return how many levels to ask a venue for, None for its own default."""
    return BOOK_LIMITS.get(venue)


def trade_parameters(venue: str) -> dict[str, Any]:
    """Return what to add to a subscription of trades: Kraken gives its last 50 only when asked.

    They bridge a reconnect; those that are known are dropped by their ids.
    """
    return {"snapshot": True} if venue == "kraken" else {}


def heartbeat_of(venue: str, exchange: Exchange) -> Awaitable[object] | None:
    """Subscribe to a venue's heartbeats where that helps; what is returned never ends but with the socket.

    Coinbase closes a quiet connection without them, and their sequence numbers show that the last change was lost
    when nothing follows it.
    """
    if venue != "coinbase":
        return None
    subscribe: Callable[[str, bool], Awaitable[object]] = cast("Any", exchange).subscribe
    return subscribe("heartbeats", False)  # noqa: FBT003  ccxt's signature


def _retry_after(headers: Mapping[str, str]) -> float | None:
    return parse_retry_after(next((text for name, text in headers.items() if name.lower() == "retry-after"), None))


def parse_retry_after(text: str | None) -> float | None:
    """Return a ``Retry-After`` header in seconds, None unless it is a number of seconds; at most an hour.

    Its other form, a date, is not read: it would compare the venue's clock with ours.
    """
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return min(max(seconds, 0.0), 3_600.0) if seconds == seconds else None
