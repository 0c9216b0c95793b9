"""Questions to one venue over REST: a deadline for each, and no more of them while the venue is dead.

Rules kept here:

- An exchange of its own, opened at the first question, so that a live connection's reconnects do not touch it.
- Every failure becomes one of our codes (``failures``); nothing of ccxt's gets out.
- After three failures in a row the venue is left alone for 5 s, then 10, up to a minute; a rate limit counts at once
  and for as long as the venue asks. Meanwhile callers get the same refusal without a request.
- At most eight questions at a time; the others wait within their own deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

from mcp_servers.market.sources.ccxt.exchange import RestExchange
from mcp_servers.market.sources.ccxt.failures import Trouble, VenueUnavailable, error_of, trouble_of
from trading.domain.errors import TradingError
from trading.ports.clock import Clock

DEADLINE_S: Final = 10.0
MARKETS_S: Final = 3_600.0
_TOGETHER: Final = 8
_TRIES: Final = 3
_PAUSES_MS: Final = (5_000, 10_000, 20_000, 40_000, 60_000)
_COUNTED: Final = frozenset({"NO_NETWORK", "VENUE_DOWN"})

T = TypeVar("T")


class Circuit:
    """Whether a venue may be asked now."""

    def __init__(self, venue: str, clock: Clock) -> None:
        self._venue = venue
        self._clock = clock
        self._failures = 0
        self._until_ns = 0
        self._trouble: Trouble | None = None

    def check(self) -> None:
        """Raise while the venue is to be left alone.

        Raises:
            VenueUnavailable: with the code of the failure that led to it, and when to come back.
        """
        left_ms = (self._until_ns - self._clock.monotonic_ns()) // 1_000_000
        if self._trouble is not None and left_ms > 0:
            raise VenueUnavailable(
                f"{self._venue} {self._trouble.reason} ({self._trouble.kind}); it is left alone for a while",
                code=self._trouble.code,
                after_ms=left_ms,
            )

    def worked(self) -> None:
        """Note an answer, whatever it says."""
        self._failures, self._trouble = 0, None

    def failed(self, trouble: Trouble) -> None:
        """Note a failure."""
        if trouble.code == "RATE_LIMITED":
            self._trouble, pause_ms = trouble, trouble.after_ms
        elif trouble.code in _COUNTED:
            self._failures += 1
            if self._failures < _TRIES:
                return
            self._trouble = trouble
            pause_ms = _PAUSES_MS[min(self._failures - _TRIES, len(_PAUSES_MS) - 1)]
        else:
            self.worked()
            return
        self._until_ns = self._clock.monotonic_ns() + pause_ms * 1_000_000


class RestVenue:
    """One venue's REST.

    Args:
        venue: its name in messages.
        open_: makes the exchange; may take a second, so it runs in a thread.
        deadline_s: longest wait for one question, loading the markets included.
    """

    def __init__(
        self, venue: str, open_: Callable[[], RestExchange], clock: Clock, *, deadline_s: float = DEADLINE_S
    ) -> None:
        self._venue = venue
        self._open = open_
        self._clock = clock
        self._deadline_s = deadline_s
        self._circuit = Circuit(venue, clock)
        self._together = asyncio.Semaphore(_TOGETHER)
        self._opening = asyncio.Lock()
        self._exchange: RestExchange | None = None
        self._loaded_ns: int | None = None

    async def exchange(self) -> RestExchange:
        """Return the exchange without asking the venue anything.

        Raises:
            ConfigurationError: ccxt has no such venue.
        """
        async with self._opening:
            if self._exchange is None:
                self._exchange = await asyncio.to_thread(self._open)
            return self._exchange

    async def ask(self, question: Callable[[RestExchange, Mapping[str, Any]], Awaitable[T]]) -> T:
        """Return the answer to a question.

        Args:
            question: is given the exchange and its markets by symbol.

        Raises:
            VenueUnavailable: NO_NETWORK, VENUE_DOWN, RATE_LIMITED or GARBAGE, with ``after_ms``.
            TradingError: VENUE_REFUSED, UNKNOWN_INSTRUMENT, or what the question raises itself.
        """
        self._circuit.check()
        exchange = await self.exchange()
        try:
            async with asyncio.timeout(self._deadline_s), self._together:
                found = await question(exchange, await self._markets(exchange))
        except TradingError:
            self._circuit.worked()  # it answered; the question was wrong
            raise
        except Exception as error:
            trouble = trouble_of(error)
            self._circuit.failed(trouble)
            raise error_of(self._venue, trouble) from error
        self._circuit.worked()
        return found

    async def close(self) -> None:
        """Close the exchange; the next question opens another one."""
        exchange, self._exchange, self._loaded_ns = self._exchange, None, None
        if exchange is not None:
            with contextlib.suppress(Exception):
                await exchange.close()

    async def _markets(self, exchange: RestExchange) -> Mapping[str, Any]:
        now_ns = self._clock.monotonic_ns()
        old = self._loaded_ns is not None and now_ns - self._loaded_ns > MARKETS_S * 1e9
        markets = await exchange.load_markets(old)
        if self._loaded_ns is None or old:
            self._loaded_ns = now_ns
        return markets
