"""`grekko halt` and `grekko resume`: a command signed with the operator's key, left where risk looks for it.

Nothing else can resume: there is no tool for it. The answer is risk's own, so it is never assumed.
"""

from __future__ import annotations

import asyncio
import getpass
import os
from pathlib import Path

from mcp_servers.risk.operator_commands import COMMAND_PAYLOAD_TYPE, CommandResult, OperatorCommand
from trading.adapters import codec
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.config import DeskSettings
from trading.adapters.signing import seal
from trading.adapters.signing_keys import load_signer
from trading.domain.approvals import TradingState
from trading.domain.errors import TradingError, Unavailable

_ANSWER_TIMEOUT_S = 10.0
_POLL_S = 0.02


async def halt_desk(settings: DeskSettings, reason: str) -> str:
    """Stop new risk and return what risk answered; exits and cancels stay possible."""
    return await _command(settings, TradingState.HALTED, reason)


async def resume_desk(settings: DeskSettings, reason: str) -> str:
    """Allow trading again and return what risk answered."""
    return await _command(settings, TradingState.ACTIVE, reason)


async def _command(settings: DeskSettings, state: TradingState, reason: str) -> str:
    """Sign a command, leave it for risk and wait for the answer.

    Raises:
        Unavailable: (RISK_SILENT) risk did not answer; whether it acted is shown by `grekko status`.
        TradingError: risk refused; the code is risk's.
    """
    command = OperatorCommand(
        command_id=Uuid7Factory().new_id(),
        desk=settings.desk,
        account_id=settings.account_id,
        state=state,
        reason=reason,
        by=getpass.getuser(),
        issued_ms=SystemClock().now_ms(),
    )
    home = settings.desk_home.ensure()
    signer = load_signer(home.keys("operator") / "operator.key", "operator")
    text = seal(codec.canonical(command), COMMAND_PAYLOAD_TYPE, signer).to_json()
    directory = home.run / "operator"
    await asyncio.to_thread(_leave, directory, f"{state}-{command.command_id}.json", text)
    result = await _answer(directory / f"{command.command_id}.result.json")
    if not result.ok:
        raise TradingError(result.message, code=result.code)
    durable = "" if result.durable else "; it is in force but could not be written to the ledger yet"
    return f"trading is {result.state}, epoch {result.generation}.{result.counter}{durable}"


def _leave(directory: Path, name: str, text: str) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    part = directory / f".{name}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    part.replace(directory / name)


async def _answer(path: Path) -> CommandResult:
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            while True:
                try:
                    data = await asyncio.to_thread(path.read_bytes)
                except FileNotFoundError:
                    await asyncio.sleep(_POLL_S)
                    continue
                await asyncio.to_thread(path.unlink)
                return codec.decode(CommandResult, data)
    except TimeoutError:
        raise Unavailable(
            "risk did not answer within ten seconds; the command may still be carried out",
            code="RISK_SILENT",
            suggestion="see `grekko status`; is the desk running?",
        ) from None
