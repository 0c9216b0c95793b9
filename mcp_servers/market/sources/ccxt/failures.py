"""What a failed venue call means, under our codes.

===================  =========================================================================================
NO_NETWORK           the venue was not reached
VENUE_DOWN           it was reached and does not work, or does not answer, or gives no data
RATE_LIMITED         we ask too often; the wait it asks for is known or assumed
VENUE_REFUSED        it understood and says no: asking again cannot help
UNKNOWN_INSTRUMENT   it has no such market
GARBAGE              its answer is not what it documents
===================  =========================================================================================

ccxt's exceptions are told apart by the names of their classes: importing ccxt for that would cost a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, cast

from mcp_servers.market.sources.ccxt.exchange import HttpFailure, parse_retry_after
from trading.domain.errors import InvalidValue, TradingError, Unavailable, UnknownInstrument

DEFAULT_RATE_WAIT_MS: Final = 10_000  # when the venue does not say how long
_STATUS: Final = re.compile(r"^\S+ [A-Z]+ \S+ (\d{3}) ")  # "binance GET https://… 503 Service Unavailable …"


class Resync(Exception):
    """A change was lost: the connection was dropped on purpose, and its books must be built again."""


class Silent(Exception):
    """Nothing has arrived for too long; the socket is half open, or the venue asleep."""


class SubscriptionRefused(Exception):
    """The venue does not give what was subscribed to."""


class TooManyResyncs(Exception):
    """The books do not stay in sequence."""


class VenueUnavailable(Unavailable):
    """A venue did not give what was asked; nothing was changed.

    Attributes:
        after_ms: when asking again makes sense.
    """

    def __init__(self, message: str, *, code: str, after_ms: int, suggestion: str = "") -> None:
        super().__init__(message, code=code, suggestion=suggestion)
        self.after_ms = after_ms


class VenueRefused(TradingError):
    """The venue refused for good; the same question gets the same answer."""

    code = "VENUE_REFUSED"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a venue does not serve us.

    Attributes:
        reason: what happened, after the venue's name in a sentence.
        kind: the class of the exception, for whoever looks at the log.
        after_ms: the least wait before the next try; 0 when nothing is known of one.
    """

    code: str
    reason: str
    kind: str
    after_ms: int = 0


def trouble_of(error: BaseException) -> Trouble:
    """Return what an exception of ccxt, the network or our own checks means.

    Args:
        error: a group counts as its first member.
    """
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    names = frozenset(kind.__name__ for kind in type(error).__mro__)
    status, wait_s = _status_of(error)
    kind = type(error).__name__

    def trouble(code: str, reason: str, after_ms: int = 0) -> Trouble:
        return Trouble(code, reason, kind, after_ms)

    if isinstance(error, TradingError):
        return trouble(error.code, str(error))
    if names & {"RateLimitExceeded", "DDoSProtection"} or status in (418, 429):
        after_ms = DEFAULT_RATE_WAIT_MS if wait_s is None else int(wait_s * 1_000)
        return trouble("RATE_LIMITED", "says that we ask too often", after_ms)
    if "BadSymbol" in names:
        return trouble("UNKNOWN_INSTRUMENT", "has no such market")
    if isinstance(error, TooManyResyncs):
        return trouble("GARBAGE", "does not keep its books in sequence")
    if isinstance(error, (Silent, TimeoutError)) or names & {"RequestTimeout", "OnMaintenance"}:
        return trouble("VENUE_DOWN", "does not answer")
    if status is not None:
        down = status >= 500
        return trouble("VENUE_DOWN", "is not working") if down else trouble("VENUE_REFUSED", "refuses to answer")
    if isinstance(error, OSError) or "NetworkError" in names or _is_transport(error.__cause__):
        return trouble("NO_NETWORK", "cannot be reached")
    if "BadResponse" in names or ("BaseError" not in names and isinstance(error, _MALFORMED)):
        return trouble("GARBAGE", "gives answers that make no sense")
    if "OperationFailed" in names:
        return trouble("VENUE_DOWN", "is not working")
    return trouble("VENUE_REFUSED", "does not give its data")


#: What parsing an answer of the wrong shape raises.
_MALFORMED: Final = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def _status_of(error: BaseException) -> tuple[int | None, float | None]:
    """Return the HTTP status behind an exception and the wait its answer asks for, as far as they are known."""
    if isinstance(error, HttpFailure):
        return error.status, error.retry_after_s
    inner: Any = error.args[0] if error.args else None
    if isinstance(getattr(inner, "status", None), int):  # a refused WebSocket handshake
        headers: Any = getattr(inner, "headers", None) or {}
        return int(inner.status), parse_retry_after(headers.get("Retry-After"))
    found = _STATUS.match(str(error))
    return (int(found[1]) if found else None), None


def _is_transport(error: BaseException | None) -> bool:
    return error is not None and (isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "aiohttp")


def error_of(venue: str, trouble: Trouble) -> TradingError:
    """Return the exception that a caller of a venue's REST gets."""
    message = f"{venue} {trouble.reason} ({trouble.kind})"
    if trouble.code == "UNKNOWN_INSTRUMENT":
        return UnknownInstrument(f"{venue} {trouble.reason}", suggestion="use market_search_instruments")
    if trouble.code == "VENUE_REFUSED":
        return VenueRefused(message, suggestion="ask another venue, or look at the server's log")
    if trouble.code in ("NO_NETWORK", "VENUE_DOWN", "RATE_LIMITED", "GARBAGE"):
        return VenueUnavailable(message, code=trouble.code, after_ms=trouble.after_ms or 1_000)
    return InvalidValue(trouble.reason, code=trouble.code)
