"""The operator's word, as signed files: halting, freezing and, which no tool can do, resuming.

``grekko halt`` and ``grekko resume`` write ``run/operator/<command>-<uuid>.json`` (0600, by rename); risk answers in
``run/operator/<uuid>.result.json``. The command file is a DSSE envelope of type ``COMMAND_PAYLOAD_TYPE`` by the
operator's key, over the RFC 8785 form of :class:`OperatorCommand`. ``grekko approvals approve`` and ``refuse`` go the
same way, with ``ANSWER_PAYLOAD_TYPE`` over an :class:`OperatorAnswer`.

Rules kept here:

- Verified before parsed; the file's name decides nothing.
- For this desk and account only, at most 60 seconds old, used once: the id is kept in memory
  for as long as it could still be fresh, and a resume from before this run is refused.
- A command that was read is removed, whatever came of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trading.adapters import codec
from trading.adapters.config import check_private
from trading.adapters.signing import Envelope, open_envelope
from trading.domain.approvals import TradingState
from trading.domain.denials import Rule
from trading.domain.errors import ConfigurationError, InvalidValue, SignatureRefused, TradingError
from trading.domain.identifiers import AccountId
from trading.domain.pending import PendingState
from trading.ports.clock import Clock
from trading.ports.signing import Verifier

from .breaker import BreakerAnswer

log = logging.getLogger("grekko.risk")

COMMAND_PAYLOAD_TYPE: Final = "application/vnd.grekko.operator-command+json;v=1"
ANSWER_PAYLOAD_TYPE: Final = "application/vnd.grekko.operator-answer+json;v=1"
FRESH_MS: Final = 60_000
_FILE_MAX: Final = 16 * 1024  # bytes
_PENDING_MAX: Final = 32  # command files looked at in one pass


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCommand:
    """What the operator wants.

    Attributes:
        command_id: a fresh UUID; used once.
        state: the trading state wanted: active resumes, the others restrict.
        issued_ms: the operator's clock; at most a minute ago.
    """

    command_id: str
    desk: str
    account_id: AccountId
    state: TradingState
    reason: str
    by: str
    issued_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorAnswer:
    """The operator's word on one waiting order.

    Attributes:
        command_id: a fresh UUID; used once.
        approve: whether the order may be judged again and signed; otherwise it is refused for good.
        overrides: rules that may fail this once; each must be named in the limits.
    """

    command_id: str
    desk: str
    account_id: AccountId
    pending_id: str
    approve: bool
    overrides: tuple[Rule, ...]
    reason: str
    by: str
    issued_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """What came of it, as the answer file tells it."""

    command_id: str
    ok: bool
    code: str
    message: str
    state: str
    generation: int
    counter: int
    durable: bool


Act = Callable[[OperatorCommand], Awaitable[BreakerAnswer]]
#: Applies an answer and returns what became of the waiting order, and why.
Hear = Callable[[OperatorAnswer], Awaitable[tuple[PendingState, str]]]

_KINDS: Final[Mapping[str, type[OperatorCommand] | type[OperatorAnswer]]] = {
    COMMAND_PAYLOAD_TYPE: OperatorCommand,
    ANSWER_PAYLOAD_TYPE: OperatorAnswer,
}


class OperatorCommands:
    """Reads command files and acts on them.

    Args:
        directory: ``run/operator``; made 0700.
        verifier: pins the operator's public key; None when there is none, then nothing is accepted.
        act: applies a command that passed every check.
        hear: applies an answer to a waiting order that passed every check.
    """

    def __init__(
        self,
        directory: Path,
        verifier: Verifier | None,
        clock: Clock,
        *,
        desk: str,
        account_id: AccountId,
        act: Act,
        hear: Hear,
    ) -> None:
        self._directory = directory
        self._verifier = verifier
        self._clock = clock
        self._desk = desk
        self._account_id = account_id
        self._act = act
        self._hear = hear
        self._used: dict[str, int] = {}
        self._started_ms = clock.now_ms()

    async def poll(self) -> int:
        """Take the commands that are there; return how many were looked at."""
        paths = await asyncio.to_thread(self._pending)
        for path in paths:
            await self._take(path)
        return len(paths)

    def _pending(self) -> list[Path]:
        if not self._directory.is_dir():
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = (p for p in self._directory.glob("*.json") if not p.name.endswith(".result.json"))
        return sorted(found)[:_PENDING_MAX]

    async def _take(self, path: Path) -> None:
        try:
            text = await asyncio.to_thread(_read_once, path)
            command = self._verified(text)
        except (ConfigurationError, SignatureRefused, InvalidValue) as error:
            log.warning("operator command %s refused: %s", path.name[:80], error.code)
            return  # nobody is answered who did not prove to be the operator
        result = await self._apply(command)
        what = command.state.value if isinstance(command, OperatorCommand) else f"answer to {command.pending_id[:64]}"
        log.warning("operator command %s by %r: %s", what, command.by[:64], result.code or "done")
        answer = self._directory / f"{command.command_id}.result.json"
        try:
            await asyncio.to_thread(_write, answer, codec.encode(result))
        except OSError as error:  # a full disk must not end the room: what was asked for is done
            log.error("the operator's answer is not written (%s)", type(error).__name__)

    def _verified(self, text: str) -> OperatorCommand | OperatorAnswer:
        if self._verifier is None:
            raise ConfigurationError("no operator key is pinned", code="NO_OPERATOR_KEY")
        kind = Envelope.from_json(text).payload_type
        if kind not in _KINDS:
            raise InvalidValue("no such command", code="INVALID_COMMAND")
        command = codec.decode(_KINDS[kind], open_envelope(text, self._verifier, kind))
        if not _is_id(command.command_id):
            raise InvalidValue("command_id is not a UUID", code="INVALID_COMMAND")
        return command

    async def _apply(self, command: OperatorCommand | OperatorAnswer) -> CommandResult:
        try:
            self._check(command)
            if isinstance(command, OperatorAnswer):
                state, message = await self._hear(command)
                good = state is (PendingState.APPROVED if command.approve else PendingState.REFUSED)
                code = "" if good else f"PENDING_{state.name}"
                return _result(command, ok=good, code=code, message=message, state=state.value)
            answer = await self._act(command)
        except TradingError as error:
            return _result(command, ok=False, code=error.code, message=str(error))
        return CommandResult(
            command_id=command.command_id,
            ok=True,
            code="" if answer.changed else "NO_CHANGE",
            message="",
            state=answer.state.value,
            generation=answer.epoch.generation,
            counter=answer.epoch.counter,
            durable=answer.durable,
        )

    def _check(self, command: OperatorCommand | OperatorAnswer) -> None:
        now_ms = self._clock.now_ms()
        if command.desk != self._desk or command.account_id != self._account_id:
            raise InvalidValue("the command is for another desk", code="WRONG_DESK")
        if not -FRESH_MS < now_ms - command.issued_ms < FRESH_MS:
            raise InvalidValue("the command is not from the last minute", code="COMMAND_STALE")
        # A command from before this start could have been used by the run before; that memory is gone.
        loosens = isinstance(command, OperatorAnswer) or command.state is TradingState.ACTIVE
        if loosens and command.issued_ms < self._started_ms:
            raise InvalidValue("the command is older than this run of risk", code="COMMAND_STALE")
        if command.command_id in self._used:
            raise InvalidValue("the command was used already", code="COMMAND_USED")
        self._used = {key: at for key, at in self._used.items() if now_ms - at < 2 * FRESH_MS}
        self._used[command.command_id] = now_ms


def _read_once(path: Path) -> str:
    """Return the file's text and remove it, so that it is looked at once."""
    try:
        check_private(path)
        with path.open("rb") as file:
            return file.read(_FILE_MAX).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue("the command file cannot be read", code="INVALID_COMMAND") from error
    finally:
        with suppress(OSError):  # what cannot be removed is refused again; a command acts once all the same
            path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    part = path.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    part.replace(path)


def _is_id(text: str) -> bool:
    return len(text) == 36 and all(c in "0123456789abcdef-" for c in text)


def _result(
    command: OperatorCommand | OperatorAnswer, *, ok: bool, code: str, message: str, state: str = ""
) -> CommandResult:
    return CommandResult(
        command_id=command.command_id,
        ok=ok,
        code=code,
        message=message,
        state=state,
        generation=0,
        counter=0,
        durable=bool(state),  # an answer to a waiting order is told only after its commit
    )
