"""Folds committed hashes into the Merkle frontier and signs it now and then."""

from __future__ import annotations

import asyncio
import logging

from trading.adapters.sql.checkpoints import Checkpoint, CheckpointFile, Checkpointing, origin_of, sign_checkpoint
from trading.adapters.sql.merkle import Frontier
from trading.ports.clock import Clock

_log = logging.getLogger(__name__)

_RETRY_S = 1.0


class HeadSigner:
    """Keeps the frontier of a ledger and, if told how, writes checkpoints.

    A checkpoint that cannot be written is tried again; trading does not wait for it.

    Args:
        room: names the default origin.
        frontier: of all events so far.
        how: where and when to sign, or None for never.
        signed: size of the newest checkpoint in the file.
        clock: stamps checkpoints.
    """

    def __init__(self, room: str, frontier: Frontier, how: Checkpointing | None, signed: int, clock: Clock) -> None:
        self._room = room
        self._frontier = frontier
        self._how = how
        self._signed = signed
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def head(self) -> tuple[int, bytes]:
        """Size and root as they are now."""
        return self._frontier.size, self._frontier.root()

    def extend(self, hashes: list[bytes]) -> None:
        """Fold in the hashes of events that have just become durable."""
        self._frontier.extend(hashes)
        if self._how is None:
            return
        if self._frontier.size - self._signed >= self._how.every_rows:
            self._start()
        elif self._timer is None:
            self._wait(self._how.every_s)

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._start)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is None and self._how is not None and self._frontier.size > self._signed:
            self._task = asyncio.create_task(self._sign(self._how), name=f"checkpoint-{self._room}")

    async def _sign(self, how: Checkpointing) -> None:
        size, root = self.head
        checkpoint = Checkpoint(how.origin or origin_of(self._room), size, root, self._clock.now_ms())
        try:
            note = sign_checkpoint(checkpoint, how.signer, how.public_key)
            await asyncio.to_thread(CheckpointFile(how.path).append, note)
        except OSError as error:
            _log.warning("the %s checkpoint could not be written: %s", self._room, error)
            self._wait(_RETRY_S)
        else:
            self._signed = size
        finally:
            self._task = None
        if self._frontier.size > self._signed and self._timer is None:
            self._wait(how.every_s)

    async def close(self) -> None:
        """Sign what has not been signed yet."""
        if self._task is not None:
            await asyncio.wait({self._task})
        if self._how is not None and self._frontier.size > self._signed:
            await self._sign(self._how)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
