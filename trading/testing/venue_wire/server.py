"""The server itself: one loopback port, REST and WebSocket, and the switches a test turns."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Self, cast

from aiohttp import WSMsgType, web

from trading.testing.venue_wire.dialect import Answer, Dialect, Frame, Json, Session
from trading.testing.venue_wire.faults import Faults, HttpFault
from trading.testing.venue_wire.market import Top, WireMarket
from trading.testing.venue_wire.recorded import Event, Print, Tape

_MAX_CLIENT_FRAME: Final = 1_000_000  # bytes a client may send


class VenueServer:
    """A venue that plays a tape, while its context is open.

    Args:
        dialect: whose words it speaks, such as ``BinanceDialect``.
        tape: what happens.
        records: the venue's recorded REST answers, ``load_rest(path)["binance"]``.
        clock_us: the venue's clock in microseconds, when events are to happen at the time they are played.

    Attributes:
        market: what is true now.
        faults: how it misbehaves.
        asked: how often clients asked for what: ``GET <path>``, ``connect``, ``ping``, ``pong`` and every subscription
            as ``<channel> <symbol>``.
    """

    def __init__(
        self,
        dialect: Callable[[WireMarket, Mapping[str, object]], Dialect],
        tape: Tape,
        records: Mapping[str, object],
        *,
        clock_us: Callable[[], int] | None = None,
    ) -> None:
        self.market = WireMarket(tape, clock_us)
        self.faults = Faults()
        self.asked: Counter[str] = Counter()
        self._dialect = dialect(self.market, records)
        self._clients: dict[web.WebSocketResponse, tuple[Session, web.Request]] = {}
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._port = 0
        self._settles = 0

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._request)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.02)
        await self._runner.setup()
        await self.listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.faults.silent = True
        self.cut()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def port(self) -> int:
        """The loopback port; the same for the server's whole life."""
        return self._port

    @property
    def rest_url(self) -> str:
        """The address to give a client for REST."""
        return self.rest_url_at(self._port)

    @property
    def ws_url(self) -> str:
        """The address to give a client for WebSockets."""
        return self.ws_url_at(self._port)

    @property
    def ws_path(self) -> str:
        """The path of WebSockets, for faults that concern only them."""
        return self._dialect.ws_path

    def rest_url_at(self, port: int) -> str:
        """Return the REST address behind another loopback port, such as a proxy's."""
        return f"http://127.0.0.1:{port}{self._dialect.rest_root}"

    def ws_url_at(self, port: int) -> str:
        """Return the WebSocket address behind another loopback port, such as a proxy's."""
        return f"ws://127.0.0.1:{port}{self._dialect.ws_path}"

    @property
    def connections(self) -> int:
        """How many WebSockets are open."""
        return len(self._clients)

    def subscribers(self, channel: str, symbol: str) -> int:
        """Return how many open connections are subscribed to a channel such as ``level2``."""
        return sum((channel, symbol) in session.channels for session, _ in self._clients.values())

    async def listen(self) -> None:
        """Accept connections (again, on the same port)."""
        if self._site is None and self._runner is not None:
            self._site = web.TCPSite(self._runner, "127.0.0.1", self._port)
            await self._site.start()
            self._port = int(self._runner.addresses[0][1])

    async def refuse(self) -> None:
        """Accept no connections any more; those that are open stay."""
        if self._site is not None:
            await self._site.stop()
            self._site = None

    async def play(self, count: int = 1) -> list[Event]:
        """Let the next events happen, send them to whom they concern, and return them."""
        played: list[Event] = []
        for event in self.market.take(count):
            played.append(event)
            for socket, (session, _) in tuple(self._clients.items()):
                await self._send(socket, session, self._dialect.event(session, event))
        return played

    async def run(self, *, speed: float = 1.0, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Play to the end in recorded time divided by ``speed``, or as fast as clients read for 0."""
        before = self.market.peek_ts_us()
        while (ts_us := self.market.peek_ts_us()) is not None:
            wait_us = max(0, ts_us - (before or ts_us)) if speed else 0
            await sleep(wait_us / speed / 1_000_000 if wait_us else 0)
            before = ts_us
            await self.play(1)

    def top(self, symbol: str, count: int = 50) -> Top:
        """Return the true best levels now, rebuilt independently of any client."""
        return self.market.books[symbol].top(count)

    def prints(self, symbol: str) -> list[Print]:
        """Return every trade that has happened, oldest first."""
        return self.market.prints_of(symbol)

    async def beat(self) -> None:
        """Send every client what the venue sends while nothing happens."""
        for socket, (session, _) in tuple(self._clients.items()):
            await self._send(socket, session, self._dialect.heartbeat(session))

    async def send_text(self, text: str) -> None:
        """Send every client a frame of any text: garbage, half a message, a huge one."""
        for socket in tuple(self._clients):
            await self._write(socket, text)

    async def send_bytes(self, data: bytes) -> None:
        """Send every client a binary frame."""
        for socket in tuple(self._clients):
            if not self.faults.silent and not socket.closed:
                await socket.send_bytes(data)

    async def settle(self) -> None:
        """Return when every client has read all that it was sent: each is pinged, and answers in order or goes away."""
        self._settles += 1
        mark = str(self._settles).encode()
        for socket, (session, _) in tuple(self._clients.items()):
            session.read.clear()
            session.mark = mark
            with contextlib.suppress(ConnectionError):
                await socket.ping(mark)
                await session.read.wait()

    async def close(self, code: int = 1001) -> None:
        """Close every WebSocket in good order."""
        for socket in tuple(self._clients):
            await socket.close(code=code)

    def cut(self) -> None:
        """End every WebSocket without a word."""
        for _, request in tuple(self._clients.values()):
            if request.transport is not None:
                request.transport.abort()

    async def _request(self, request: web.Request) -> web.StreamResponse:
        is_socket = request.headers.get("Upgrade", "").lower() == "websocket"
        self.asked["connect" if is_socket else f"GET {request.path}"] += 1
        fault = self.faults.take_http(request.path)
        if fault is not None and (replaced := await self._replaced(fault)) is not None:
            return replaced
        if is_socket:
            return await self._socket(request)
        answer = self._dialect.rest(request.path, request.query)
        return _response(answer or self._dialect.refusal(404))

    async def _replaced(self, fault: HttpFault) -> web.Response | None:
        if fault.hold is not None:
            await fault.hold.wait()
            return None
        if fault.body is not None:
            headers = dict(fault.headers)
            return web.Response(status=fault.status, text=fault.body, content_type=fault.content_type, headers=headers)
        return _response(self._dialect.refusal(fault.status), fault.headers)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        socket, session = web.WebSocketResponse(autoping=False, max_msg_size=_MAX_CLIENT_FRAME), Session()
        await socket.prepare(request)
        self._clients[socket] = (session, request)
        try:
            await self._send(socket, session, self._dialect.greeting(session))
            async for message in socket:
                if self.faults.silent:
                    continue
                if message.type is WSMsgType.TEXT:
                    await self._send(socket, session, self._receive(session, str(message.data)))
                elif message.type is WSMsgType.PING:
                    self.asked["ping"] += 1
                    await socket.pong(message.data)
                elif message.type is WSMsgType.PONG:
                    self.asked["pong"] += 1
                    if bytes(message.data) == session.mark:
                        session.read.set()
        except ConnectionError:
            pass  # the client is gone, or the test cut it off
        finally:
            self._clients.pop(socket, None)
            session.read.set()
        return socket

    def _receive(self, session: Session, text: str) -> list[Frame]:
        try:
            message: object = json.loads(text)
        except ValueError:
            self.asked["garbage"] += 1
            return []
        if not isinstance(message, dict):
            self.asked["garbage"] += 1
            return []
        before = set(session.channels)
        frames = self._dialect.message(session, cast("Json", message))
        self.asked.update(f"{channel} {symbol}" for channel, symbol in set(session.channels) - before)
        return frames

    async def _send(self, socket: web.WebSocketResponse, session: Session, frames: list[Frame]) -> None:
        for text, is_delta in frames:
            for leaving in self.faults.pass_delta(text, session.delayed) if is_delta else [text]:
                await self._write(socket, leaving)

    async def _write(self, socket: web.WebSocketResponse, text: str) -> None:
        if self.faults.silent or socket.closed:
            return
        try:
            await socket.send_str(text)
        except ConnectionError:
            self._clients.pop(socket, None)


def _response(answer: Answer, headers: Mapping[str, str] | None = None) -> web.Response:
    text = json.dumps(answer.body, separators=(",", ":"))
    return web.Response(status=answer.status, text=text, content_type="application/json", headers=headers or {})
