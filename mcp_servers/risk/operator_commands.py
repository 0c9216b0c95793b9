"""The operator's word, as signed files: halting, freezing and, which no tool can do, resuming.

``grekko halt`` and ``grekko resume`` write ``run/operator/<command>-<uuid>.json`` (0600, by rename); risk answers in
``run/operator/<uuid>.result.json``. The command file is a DSSE envelope of type ``COMMAND_PAYLOAD_TYPE`` by the
operator's key, over the RFC 8785 form of :class:`OperatorCommand`. ``grekko approvals approve`` and ``refuse`` go the
same way, with ``ANSWER_PAYLOAD_TYPE`` over an :class:`OperatorAnswer`. Other kinds of command have a payload type each
(:class:`CommandKind`) and pass the same checks.

Rules kept here:

- Verified before parsed; the file's name decides nothing.
- For this desk and account only, at most 60 seconds old, used once: the id is kept in memory
  for as long as it could still be fresh, and what loosens is refused when it is from before this run.
- A command that was read is removed, whatever came of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from trading.adapters import codec
from trading.adapters.config import check_private
from trading.adapters.signing import ENVELOPE_MAX, Envelope, open_envelope
from trading.domain.approvals import TradingState
from trading.domain.denials import Rule
from trading.domain.errors import ConfigurationError, InvalidValue, SignatureRefused, TradingError
from trading.domain.identifiers import AccountId
from trading.domain.pending import PendingState
from trading.domain.trading_states import DESK, ScopeState
from trading.ports.clock import Clock
from trading.ports.signing import Verifier

from .breaker import BreakerAnswer

log = logging.getLogger("grekko.risk")

COMMAND_PAYLOAD_TYPE: Final = "application/vnd.grekko.operator-command+json;v=1"
ANSWER_PAYLOAD_TYPE: Final = "application/vnd.grekko.operator-answer+json;v=1"
FRESH_MS: Final = 60_000
_FILE_MAX: Final = ENVELOPE_MAX  # bytes
_PENDING_MAX: Final = 32  # command files looked at in one pass
#: What an operator can only loosen to; HALTED may loosen FROZEN, which is for the breaker's side to know.
_LOOSENING: Final = (TradingState.ACTIVE, TradingState.REDUCING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What every command says.

    Attributes:
        command_id: a fresh UUID; used once.
        reason: kept in the audit log; whoever loosens must give one.
        by: who signs, as the operator's machine knows them.
        issued_ms: the operator's clock; at most a minute ago.
    """

    command_id: str
    desk: str
    account_id: AccountId
    reason: str
    by: str
    issued_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCommand(Command):
    """What the operator wants of the breaker.

    Attributes:
        state: the trading state wanted: active resumes, the others restrict.
        scope: desk, account:ID, agent:NAME or symbol:BASE/QUOTE.
    """

    state: TradingState
    scope: str = DESK


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorAnswer(Command):
    """The operator's word on one waiting order.

    Attributes:
        approve: whether the order may be judged again and signed; otherwise it is refused for good.
        overrides: rules that may fail this once; each must be named in the limits.
    """

    pending_id: str
    approve: bool
    overrides: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """What came of it, as the answer file tells it.

    Attributes:
        state: what the scope is in now.
        restricted: every scope that is restricted now.
    """

    command_id: str
    ok: bool
    code: str
    message: str
    state: str
    generation: int
    counter: int
    durable: bool
    scope: str = DESK
    restricted: tuple[ScopeState, ...] = ()
    suggestion: str = ""


@dataclass(frozen=True, slots=True)
class CommandKind:
    """Commands beside the breaker's.

    Attributes:
        payload_type: of the envelope; the signature covers it.
        form: the dataclass that the payload is decoded to.
        act: applies one that passed every check, given with its envelope, and returns what to tell the operator;
            raises ``TradingError`` to refuse it.
    """

    payload_type: str
    form: type[Command]
    act: Callable[[Any, str], Awaitable[str]]


Act = Callable[[OperatorCommand], Awaitable[BreakerAnswer]]
#: Applies an answer and returns what became of the waiting order, and why.
Hear = Callable[[OperatorAnswer], Awaitable[tuple[PendingState, str]]]

_FORMS: Final[Mapping[str, type[Command]]] = {
    COMMAND_PAYLOAD_TYPE: OperatorCommand,
    ANSWER_PAYLOAD_TYPE: OperatorAnswer,
}


class OperatorCommands:
    """Reads command files and acts on them.

    Args:
        directory: ``run/operator``; made 0700.
        verifier: pins the operator's public key; None when there is none, then nothing is accepted.
        act: applies a command that passed every check.
        restricted: gives everything that is restricted at that moment.
        kinds: other commands that are understood.
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
        restricted: Callable[[], tuple[ScopeState, ...]] = tuple,
        hear: Hear,
        kinds: Sequence[CommandKind] = (),
    ) -> None:
        self._directory = directory
        self._verifier = verifier
        self._clock = clock
        self._desk = desk
        self._account_id = account_id
        self._act = act
        self._kinds = {kind.payload_type: kind for kind in kinds}
        self._restricted = restricted
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
            command, kind = self._verified(text)
        except (ConfigurationError, SignatureRefused, InvalidValue) as error:
            log.warning("operator command %s refused: %s", path.name[:80], error.code)
            return  # nobody is answered who did not prove to be the operator
        result = await self._apply(command, kind, text)
        match command:
            case OperatorCommand():
                what = command.state.value
            case OperatorAnswer():
                what = f"answer to {command.pending_id[:64]}"
            case _:
                what = type(command).__name__
        log.warning("operator command %s by %r: %s", what, command.by[:64], result.code or "done")
        answer = self._directory / f"{command.command_id}.result.json"
        try:
            await asyncio.to_thread(_write, answer, codec.encode(result))
        except OSError as error:  # a full disk must not end the room: what was asked for is done
            log.error("the operator's answer is not written (%s)", type(error).__name__)

    def _verified(self, text: str) -> tuple[Command, CommandKind | None]:
        if self._verifier is None:
            raise ConfigurationError("no operator key is pinned", code="NO_OPERATOR_KEY")
        # Which type it claims only chooses what it is verified as: the signature covers the type.
        claimed = Envelope.from_json(text).payload_type
        kind = self._kinds.get(claimed)
        form = _FORMS.get(claimed) if kind is None else kind.form
        if form is None:
            raise InvalidValue("no such command", code="INVALID_COMMAND")
        command: Command = codec.decode(form, open_envelope(text, self._verifier, claimed))
        if not _is_id(command.command_id):
            raise InvalidValue("command_id is not a UUID", code="INVALID_COMMAND")
        return command, kind

    async def _apply(self, command: Command, kind: CommandKind | None, text: str) -> CommandResult:
        try:
            self._check(command)
            if kind is not None:
                return _result(command, message=await kind.act(command, text))
            if isinstance(command, OperatorAnswer):
                return await self._answered(command)
            if not isinstance(command, OperatorCommand):
                raise AssertionError("what has no kind of its own was decoded as one")
            answer = await self._act(command)
        except TradingError as error:
            return _result(command, error, message=str(error))
        return CommandResult(
            command_id=command.command_id,
            ok=True,
            code="" if answer.changed else "NO_CHANGE",
            message="",
            state=answer.state.value,
            generation=answer.epoch.generation,
            counter=answer.epoch.counter,
            durable=answer.durable,
            scope=answer.scope,
            restricted=self._restricted(),
        )

    async def _answered(self, command: OperatorAnswer) -> CommandResult:
        state, message = await self._hear(command)
        good = state is (PendingState.APPROVED if command.approve else PendingState.REFUSED)
        code = "" if good else f"PENDING_{state.name}"
        # It is told only after its commit.
        return replace(_result(command, message=message), ok=good, code=code, state=state.value, durable=True)

    def _check(self, command: Command) -> None:
        now_ms = self._clock.now_ms()
        if command.desk != self._desk or command.account_id != self._account_id:
            raise InvalidValue("the command is for another desk", code="WRONG_DESK")
        if not -FRESH_MS < now_ms - command.issued_ms < FRESH_MS:
            raise InvalidValue("the command is not from the last minute", code="COMMAND_STALE")
        # A command from before this start could have been used by the run before; that memory is gone.
        state = command.state if isinstance(command, OperatorCommand) else TradingState.ACTIVE
        if state in _LOOSENING and command.issued_ms < self._started_ms:
            raise InvalidValue("the command is older than this run of risk", code="COMMAND_STALE")
        if state in _LOOSENING and not command.reason.strip():
            raise InvalidValue("whoever loosens says why", code="REASON_REQUIRED")
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


def _result(command: Command, error: TradingError | None = None, *, message: str) -> CommandResult:
    return CommandResult(
        command_id=command.command_id,
        ok=error is None,
        code="" if error is None else error.code,
        message=message,
        suggestion="" if error is None else error.suggestion,
        state="",
        generation=0,
        counter=0,
        durable=error is None,
    )
