"""A proxy between a client and a server that can be made to fail, in process and without root.

It listens on a loopback port or a unix socket and relays bytes to its target. Faults are switched while connections
are open: delay and throttle slow both directions, half-open swallows bytes without closing, garble corrupts what the
server answers, cut ends connections at once, refuse ends new ones.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

_CHUNK: Final = 16_384

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class FaultProxy:
    """Relays to ``target`` while its context is open.

    Args:
        target: a unix socket, or a host and port.
        listen: a path for a unix socket; a free loopback port when absent.

    Attributes:
        delay_s: added to every chunk, each direction, >= 0.
        bytes_per_s: throughput per connection and direction; None is unlimited.
        half_open: swallow everything, answer nothing, close nothing.
        refuse: close new connections at once.
        accepted: how many connections were accepted in all.
        relayed: how many bytes have passed, both directions together.
    """

    def __init__(self, target: Path | tuple[str, int], *, listen: Path | None = None) -> None:
        self._target = target
        self._listen = listen
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._garble = 0
        self.delay_s = 0.0
        self.bytes_per_s: int | None = None
        self.half_open = False
        self.refuse = False
        self.accepted = 0
        self.relayed = 0

    async def __aenter__(self) -> Self:
        if self._listen is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        else:
            self._server = await asyncio.start_unix_server(self._accept, self._listen)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for link in tuple(self._links):
            link.cancel()
        if self._links:
            await asyncio.wait(self._links)

    @property
    def port(self) -> int:
        """The loopback port; only without ``listen``."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def open_connections(self) -> int:
        """How many connections are being relayed."""
        return len(self._links)

    def garble(self, chunks: int) -> None:
        """Corrupt the next ``chunks`` pieces of what the server answers: every bit of every byte is flipped."""
        self._garble = chunks

    def cut(self) -> None:
        """End every open connection at once, with a reset where the transport knows one."""
        for writer in tuple(self._writers):
            _abort(writer)

    def heal(self) -> None:
        """Switch every fault off; a connection that was half-open stays mute, as its bytes are gone."""
        self.delay_s = 0.0
        self.bytes_per_s = None
        self.half_open = False
        self.refuse = False
        self._garble = 0

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refuse:
            _abort(writer)
            return
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        self._writers.add(writer)
        try:
            await self._link((reader, writer))
        finally:
            self._links.discard(link)
            self._writers.discard(writer)
            _abort(writer)

    async def _link(self, client: Streams) -> None:
        try:
            server = await self._connect()
        except OSError:
            return  # the target is down: the client sees its connection end
        self._writers.add(server[1])
        ways = {
            asyncio.create_task(self._relay(client[0], server[1], lambda chunk: chunk)),
            asyncio.create_task(self._relay(server[0], client[1], self._corrupt)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            self._writers.discard(server[1])
            _abort(server[1])

    async def _connect(self) -> Streams:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(*self._target)

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]
    ) -> None:
        try:
            while chunk := await reader.read(_CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.bytes_per_s:
                    await asyncio.sleep(len(chunk) / self.bytes_per_s)
                if self.half_open:
                    continue
                self.relayed += len(chunk)
                writer.write(change(chunk))
                await writer.drain()
        except OSError:
            pass  # either end is gone; the other is told by closing it

    def _corrupt(self, chunk: bytes) -> bytes:
        if not self._garble:
            return chunk
        self._garble -= 1
        return bytes(byte ^ 0xFF for byte in chunk)


def _abort(writer: asyncio.StreamWriter) -> None:
    end = writer.get_extra_info("socket")
    if end is not None and end.family in (socket.AF_INET, socket.AF_INET6) and not writer.transport.is_closing():
        # Zero linger turns the close into a reset, as a crashed host or a firewall would.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
