"""One exchange instance with its raw frames watched: loss, garbage and silence are seen here, before ccxt's books are.

Rules kept here:

- A frame that cannot be read is counted and survived. ccxt alone would stop reading the socket at the first one.
- When a change was lost, the frame that shows it is not applied. The books of that socket are forgotten, their symbols
  are marked, and the socket is dropped; the next ``watch`` call dials again and begins with a fresh snapshot.
- A venue without a sequence check loses its socket after garbage: what the frame would have changed is unknown.
- Sockets may be dropped so a few times a minute; after that the whole connection counts as broken.
- A refusal that ccxt recognises fails the connection. Of one that it passes over the symbol stays without a book; when
  no book came at all, that refusal is the reason.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, cast

from mcp_servers.market.sources.ccxt.exchange import Exchange, WsClient
from mcp_servers.market.sources.ccxt.failures import Resync, Silent, SubscriptionRefused, TooManyResyncs
from mcp_servers.market.sources.ccxt.sequences import Seen, SequenceCheck
from trading.domain.identifiers import Symbol
from trading.ports.clock import Clock

_log = logging.getLogger(__name__)

MAX_DROPS: Final = 5  # within the window; one more ends the connection
_WINDOW_NS: Final = 60_000_000_000
_QUIET_NS: Final = 300_000_000_000  # a quiet market is subscribed to again at most so often: its socket has other users
_TOKENS: Final = re.compile(r"[:@#]+")  # what separates channel and symbol in ccxt's names of subscriptions

T = TypeVar("T")


class Connection:
    """Everything one exchange instance receives.

    Args:
        exchange: fresh; its ``client`` is replaced so that every socket is watched from its first frame.
        symbols: what is subscribed.
        new_check: makes the sequence check of each socket.
        counts: ``garbage``, ``old``, ``gaps``, ``resyncs``, ``refused`` and ``silent`` are added up here.

    Attributes:
        received_ms: when the newest readable frame arrived; 0 before the first.
    """

    def __init__(
        self,
        exchange: Exchange,
        symbols: Sequence[Symbol],
        *,
        new_check: Callable[[], SequenceCheck],
        clock: Clock,
        counts: dict[str, int],
    ) -> None:
        self.exchange = exchange
        self.received_ms = 0
        self._symbols = tuple(symbols)
        self._new_check = new_check
        self._clock = clock
        self._counts = counts
        self._make_client = exchange.client
        self._clients: dict[str, WsClient] = {}
        self._broken: dict[Symbol, str] = {}
        self._refusal: Exception | None = None
        self._declined: SubscriptionRefused | None = None
        self._drops: deque[int] = deque(maxlen=MAX_DROPS + 1)
        self._quiet: dict[Symbol, int] = {}
        exchange.client = self._client

    async def next(self, answer: Awaitable[T], *, limit_s: float | None = None) -> T:
        """Wait for ccxt's answer.

        Args:
            limit_s: longest wait; None for no limit.

        Raises:
            Resync: the socket was dropped while waiting.
            TimeoutError: nothing came within the limit.
            Exception: whatever ccxt raises, or the venue's refusal.
        """
        try:
            async with asyncio.timeout(limit_s):
                found = await answer
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # ccxt cancels its futures when it closes a socket; that must not end us without a word.
            raise Resync("the socket was closed") from None
        if self._refusal is not None:
            raise self._refusal
        return found

    def take_broken(self, symbol: Symbol) -> str:
        """Return why a symbol's book became worthless since the last call; empty when it did not."""
        return self._broken.pop(symbol, "")

    def check_silence(self, symbol: Symbol, limit_s: float, *, running: bool) -> None:
        """Deal with a book that gave nothing for ``limit_s``: its sockets are dropped, at most every five minutes.

        Other symbols or heartbeats keep the connection alive, but not this book.

        Args:
            running: whether any book has come over this connection.

        Raises:
            Silent: nothing at all has arrived for that long, or no book.
            SubscriptionRefused: no book came, and a subscription was refused.
        """
        self._counts["silent"] += 1
        if not running or self._clock.now_ms() - self.received_ms >= limit_s * 1_000:
            raise self._declined or Silent
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._quiet.get(symbol, now_ns - _QUIET_NS) < _QUIET_NS:
            return
        self._quiet[symbol] = now_ns
        for client in [client for client in self._clients.values() if symbol in self._symbols_of(client)]:
            self.drop(client, "silent")

    def drop_all(self, reason: str) -> None:
        """Drop every socket: ccxt found a loss itself, and does not say on which one."""
        for client in list(self._clients.values()):
            self.drop(client, reason)

    def drop(self, client: WsClient, reason: str) -> None:
        """Forget the books of a socket and close it; whoever waits for it gets :class:`Resync`."""
        if client.error is not None:
            return
        self._counts["resyncs"] += 1
        for symbol in self._symbols_of(client):
            self.exchange.orderbooks.pop(symbol, None)
            if symbol.endswith("/USDC"):  # Coinbase's USDC markets have the book of their USD alias
                self.exchange.orderbooks.pop(symbol[:-1], None)
            self._broken[symbol] = reason
        now_ns = self._clock.monotonic_ns()
        self._drops.append(now_ns)
        if len(self._drops) > MAX_DROPS and now_ns - self._drops[0] < _WINDOW_NS:
            self._refusal = TooManyResyncs()
        client.on_error(self._refusal or Resync(reason))

    def _client(self, url: str) -> WsClient:
        client = self._make_client(url)
        if self._clients.get(url) is not client:
            self._clients[url] = client
            self._attach(client, self._new_check())
        return client

    def _attach(self, client: WsClient, check: SequenceCheck) -> None:
        read, deliver = client.handle_message, client.on_message_callback

        def read_safely(message: Any) -> None:
            try:
                read(message)
            except Exception as error:  # noqa: BLE001  the boundary of a frame: anything may be in it
                self._unreadable(client, check, error)
            else:
                self.received_ms = self._clock.now_ms()

        def take(source: WsClient, frame: Any) -> None:
            if client.error is not None:  # what a dropped socket had still in its buffer
                return
            if not isinstance(frame, dict):
                deliver(source, frame)
                return
            fields = cast("dict[str, Any]", frame)
            if fields.get("success") is False:  # Kraken and Bybit; ccxt lets whoever waits wait for ever
                self._counts["refused"] += 1
                self._declined = SubscriptionRefused()
                _log.warning("the venue refuses a request: %r", str(fields.get("error") or fields.get("ret_msg"))[:200])
            seen = check.arrived(fields)
            if seen is Seen.FINE:
                deliver(source, frame)
                seen = check.applied(fields, self.exchange.orderbooks)
            if seen is Seen.OLD:
                self._counts["old"] += 1
            elif seen is Seen.GAP:
                self._counts["gaps"] += 1
                self.drop(client, "gap")

        client.handle_message = read_safely
        client.on_message_callback = take

    def _unreadable(self, client: WsClient, check: SequenceCheck, error: Exception) -> None:
        if any(kind.__name__ == "BaseError" for kind in type(error).__mro__):
            _log.warning("the venue refuses a subscription: %s", type(error).__name__)
            self._refusal = error
            client.reject(error)
            return
        self._counts["garbage"] += 1
        if not check.checks:
            self.drop(client, "garbage")

    def _symbols_of(self, client: WsClient) -> list[Symbol]:
        """Return the symbols subscribed on a socket; all of them when its subscriptions do not say."""
        tokens = {token for name in client.subscriptions for token in _TOKENS.split(str(name))}
        return [symbol for symbol in self._symbols if symbol in tokens] or list(self._symbols)
