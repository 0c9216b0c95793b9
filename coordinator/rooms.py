"""A connection to another room's MCP server that comes back by itself.

The client lives in a task of its own, because a connection must be closed by the task that opened it. Callers see
either an answer, the server's refusal, or OutcomeUnknown: then they ask again with the same ids.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

from mcp import Client

from mcp_servers.hosting import ToolFailure, call
from trading.domain.errors import OutcomeUnknown, Unavailable

_log = logging.getLogger(__name__)

_BACKOFF_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0)


class Room(Protocol):
    """What the desk needs of another room: to call its tools."""

    async def call(self, tool: str, *, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Return the data of a tool's reply.

        Raises:
            ToolFailure: the tool refused.
            Unavailable: the room was not reached; nothing was done.
            OutcomeUnknown: no answer came back; it may have been done.
        """
        ...


class RoomLink:
    """Keeps one client connected.

    Args:
        name: the room, for the log and the status.
        connect: opens a client.
        patience: calls without an answer, one after the other, before the connection is given up and made anew. One
            for a socket; more where reconnecting would also restart the server.
    """

    def __init__(
        self, name: str, connect: Callable[[], AbstractAsyncContextManager[Client]], *, patience: int = 1
    ) -> None:
        self.name = name
        self._connect = connect
        self._patience = patience
        self._client: Client | None = None
        self._connected = asyncio.Event()
        self._broken = asyncio.Event()
        self._unanswered = 0
        self.connections = 0

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that is not known to be broken."""
        return self._connected.is_set()

    async def run(self) -> None:
        """Connect, and connect again whenever the connection ends, for ever."""
        failures = 0
        while True:
            try:
                async with self._connect() as client:
                    self._client, self._unanswered, failures = client, 0, 0
                    self._broken.clear()
                    self._connected.set()
                    self.connections += 1
                    await self._broken.wait()
                    self._connected.clear()
            except Exception as error:  # noqa: BLE001  whatever ended the connection, the remedy is another one
                if failures == 0:
                    _log.info("%s is not reachable: %s", self.name, type(error).__name__)
            finally:
                self._connected.clear()
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            failures += 1

    async def call(self, tool: str, *, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Call a tool; see ``Room.call``."""
        sent = False
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
                client = self._client
                assert client is not None
                sent = True
                data = await call(client, tool, **arguments)
        except TimeoutError as error:
            if not sent:
                raise Unavailable(f"{self.name} is not reachable", code="ROOM_UNREACHABLE") from error
            self._count_silence()
            raise OutcomeUnknown(f"{tool} did not answer within {timeout_s} s", code="NO_ANSWER") from error
        except OutcomeUnknown:
            self._count_silence()
            raise
        except ToolFailure:
            self._unanswered = 0
            raise
        self._unanswered = 0
        return data

    def _count_silence(self) -> None:
        self._unanswered += 1
        if self._unanswered >= self._patience:
            self._connected.clear()
            self._broken.set()
