"""`grekko halt`, `resume` and `approvals`: a command signed with the operator's key, left where risk looks for it.

Nothing else can resume: there is no tool for it. The answer is risk's own, so it is never assumed.
"""

from __future__ import annotations

import asyncio
import getpass
import os
from pathlib import Path

from grekko.processes import running
from mcp_servers.risk.operator_commands import (
    ANSWER_PAYLOAD_TYPE,
    COMMAND_PAYLOAD_TYPE,
    Command,
    CommandResult,
    OperatorAnswer,
    OperatorCommand,
)
from trading.adapters import codec
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.config import DeskSettings
from trading.adapters.signing import seal
from trading.adapters.signing_keys import load_signer
from trading.domain.approvals import TradingState
from trading.domain.denials import Rule
from trading.domain.errors import InvalidValue, TradingError, Unavailable
from trading.domain.trading_states import DESK, parse_scope

_ANSWER_TIMEOUT_S = 10.0
_UNKNOWN_TIMEOUT_S = 3.0  # risk looks twice a second
_POLL_S = 0.02


async def halt_desk(settings: DeskSettings, reason: str, scope: str = DESK) -> str:
    """Stop new risk and return what risk answered; exits and cancels stay possible."""
    return await _command(settings, TradingState.HALTED, reason, scope)


async def resume_desk(settings: DeskSettings, reason: str, scope: str = DESK) -> str:
    """Allow trading again and return what risk answered.

    Raises:
        InvalidValue: (REASON_REQUIRED) nobody resumes without saying why.
    """
    return await _command(settings, TradingState.ACTIVE, reason, scope)


async def answer_waiting(
    settings: DeskSettings, pending_id: str, *, approve: bool, reason: str, overrides: tuple[Rule, ...] = ()
) -> str:
    """Answer an order that waits for the operator and return what risk made of it.

    Raises:
        Unavailable: (DESK_NOT_RUNNING) there is nobody to tell; (RISK_SILENT) risk did not answer, `grekko approvals
            show` tells what became of it.
        TradingError: it was closed otherwise, or risk refused; the code and the reasons are risk's.
    """
    answer = OperatorAnswer(
        command_id=Uuid7Factory().new_id(),
        desk=settings.desk,
        account_id=settings.account_id,
        pending_id=pending_id,
        approve=approve,
        overrides=overrides,
        reason=reason_of(reason),
        by=getpass.getuser(),
        issued_ms=SystemClock().now_ms(),
    )
    not_done = "risk is not running, so nothing was answered; the order waits until it expires"
    result = await deliver(settings, answer, ANSWER_PAYLOAD_TYPE, name="answer", not_done=not_done)
    return f"{result.state}: {result.message}"


async def _command(settings: DeskSettings, state: TradingState, reason: str, scope: str) -> str:
    """Sign a command, leave it for risk and wait for the answer.

    Raises:
        Unavailable: (DESK_NOT_RUNNING) there is nobody to tell; (RISK_SILENT) risk did not answer, whether it acted
            is shown by `grekko status`.
        InvalidValue: the scope or the reason is none.
        TradingError: risk refused; the code is risk's.
    """
    command = OperatorCommand(
        command_id=Uuid7Factory().new_id(),
        desk=settings.desk,
        account_id=settings.account_id,
        state=state,
        reason=reason_of(reason),
        by=getpass.getuser(),
        issued_ms=SystemClock().now_ms(),
        scope=parse_scope(scope),
    )
    not_done = (
        f"risk is not running, so nothing was {'halted' if state.is_restricted else 'resumed'}; without risk"
        " execution sends nothing that adds risk, and a desk starts in the state that it stopped in"
    )
    return _said(await deliver(settings, command, COMMAND_PAYLOAD_TYPE, name=state.value, not_done=not_done))


async def deliver(
    settings: DeskSettings, command: Command, payload_type: str, *, name: str, not_done: str
) -> CommandResult:
    """Sign any command with the operator's key, leave it for risk and return its answer.

    Args:
        settings: the desk's.
        command: what the operator wants.
        payload_type: of its kind; covered by the signature.
        name: begins the file's name; decides nothing.
        not_done: what is said when nobody took it.

    Raises:
        Unavailable: DESK_NOT_RUNNING, nobody took the command; RISK_SILENT, it was taken and not answered.
        TradingError: risk refused; the code is risk's.
    """
    home = settings.desk_home.ensure()
    signer = load_signer(home.keys("operator") / "operator.key", "operator")
    text = seal(codec.canonical(command), payload_type, signer).to_json()
    directory = home.run / "operator"
    path = directory / f"{name}-{command.command_id}.json"
    await asyncio.to_thread(_leave, directory, path.name, text)
    # A risk room that another supervisor started is not known here; it takes commands all the same.
    patience_s = _ANSWER_TIMEOUT_S if running(home, "risk") is not None else _UNKNOWN_TIMEOUT_S
    result = await _answer(directory / f"{command.command_id}.result.json", patience_s)
    if result is None:
        raise await asyncio.to_thread(_unanswered, path, not_done)
    if not result.ok:
        raise TradingError(result.message, code=result.code, suggestion=result.suggestion)
    return result


def reason_of(text: str) -> str:
    """Return the operator's reason on one line; nobody commands without one.

    Raises:
        InvalidValue: (REASON_REQUIRED) it is empty.
    """
    reason = " ".join(text.split())
    if not reason:
        raise InvalidValue(
            "say why: the reason is kept in the audit log", code="REASON_REQUIRED", suggestion='--reason "..."'
        )
    return reason


def _said(result: CommandResult) -> str:
    what = "trading" if result.scope == DESK else result.scope
    already = " already" if result.code == "NO_CHANGE" else ""
    durable = "" if result.durable else "; it is in force but could not be written to the ledger yet"
    others = [f"{each.scope} {each.state}" for each in result.restricted if each.scope != result.scope]
    left = f"; still restricted: {', '.join(others)}" if others else ""
    return f"{what} is {result.state}{already}, epoch {result.generation}.{result.counter}{durable}{left}"


def _leave(directory: Path, name: str, text: str) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    part = directory / f".{name}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    part.replace(directory / name)


async def _answer(path: Path, patience_s: float) -> CommandResult | None:
    """Return risk's answer, None when there is none in time."""
    try:
        async with asyncio.timeout(patience_s):
            while True:
                try:
                    data = await asyncio.to_thread(path.read_bytes)
                except FileNotFoundError:
                    await asyncio.sleep(_POLL_S)
                    continue
                await asyncio.to_thread(path.unlink)
                return codec.decode(CommandResult, data)
    except TimeoutError:
        return None


def _unanswered(path: Path, not_done: str) -> Unavailable:
    """Take the command back and return what to say; one that is gone was taken by risk."""
    try:
        path.unlink()
    except FileNotFoundError:
        return Unavailable(
            "risk took the command and did not answer in time; it may still be carried out",
            code="RISK_SILENT",
            suggestion="see `grekko status`",
        )
    return Unavailable(
        not_done,
        code="DESK_NOT_RUNNING",
        suggestion="start the desk with `grekko run`, then repeat the command",
    )
