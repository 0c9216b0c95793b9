"""`grekko halt` and `resume`: what is said when nobody listens, and when risk answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from grekko import control
from grekko.initialization import initialize
from mcp_servers.risk.operator_commands import COMMAND_PAYLOAD_TYPE, CommandResult, OperatorCommand
from tests.bus_support import eventually
from trading.adapters import codec
from trading.adapters.config import DeskSettings
from trading.adapters.signing import Ed25519Verifier, load_public_key, open_envelope
from trading.domain.approvals import TradingState
from trading.domain.errors import InvalidValue, Unavailable
from trading.domain.trading_states import ScopeState


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeskSettings:
    settings = DeskSettings.model_validate({"home": tmp_path / "desk", "REDIS_URL": None, "DATABASE_URL": None})
    initialize(settings)
    monkeypatch.setattr(control, "_UNKNOWN_TIMEOUT_S", 0.05)
    return settings


def commands(desk: DeskSettings) -> list[Path]:
    return [path for path in (desk.desk_home.run / "operator").glob("*.json") if ".result." not in path.name]


@pytest.mark.parametrize("act", [control.halt_desk, control.resume_desk])
async def test_a_command_that_nobody_took_is_taken_back_and_said_to_be_undone(act: object, desk: DeskSettings) -> None:
    with pytest.raises(Unavailable) as caught:
        await act(desk, "why not")  # type: ignore[operator]
    assert caught.value.code == "DESK_NOT_RUNNING"
    assert "nothing was" in str(caught.value)
    assert commands(desk) == []


async def test_a_command_that_was_taken_and_not_answered_may_still_be_carried_out(desk: DeskSettings) -> None:
    asked = asyncio.create_task(control.halt_desk(desk, "why not"))
    await eventually(lambda: commands(desk) != [])
    commands(desk)[0].unlink()
    with pytest.raises(Unavailable) as caught:
        await asked
    assert caught.value.code == "RISK_SILENT"


@pytest.mark.parametrize("reason", ["", "  \n "])
async def test_nothing_is_signed_without_a_reason(desk: DeskSettings, reason: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        await control.resume_desk(desk, reason)
    assert caught.value.code == "REASON_REQUIRED"
    assert commands(desk) == []


async def test_a_scope_of_no_known_form_is_refused_at_once(desk: DeskSettings) -> None:
    with pytest.raises(InvalidValue) as caught:
        await control.halt_desk(desk, "why", "venue:paper")
    assert (caught.value.code, "agent:NAME" in caught.value.allowed) == ("UNKNOWN_SCOPE", True)


async def test_the_answer_names_the_scope_and_what_is_still_restricted(desk: DeskSettings) -> None:
    asked = asyncio.create_task(control.resume_desk(desk, "it  works", "agent:Trend".lower()))
    await eventually(lambda: commands(desk) != [])
    (path,) = commands(desk)
    verifier = Ed25519Verifier.of(load_public_key(desk.desk_home.public_keys / "operator.pub"))
    payload = open_envelope(path.read_text(), verifier, COMMAND_PAYLOAD_TYPE)
    command = codec.decode(OperatorCommand, payload)
    assert (command.scope, command.state, command.reason) == ("agent:trend", TradingState.ACTIVE, "it works")
    answer = CommandResult(
        command_id=command.command_id,
        ok=True,
        code="",
        message="",
        state="active",
        generation=3,
        counter=4,
        durable=True,
        scope="agent:trend",
        restricted=(ScopeState("symbol:BTC/USDT", TradingState.REDUCING),),
    )
    path.unlink()
    (path.parent / f"{command.command_id}.result.json").write_bytes(codec.encode(answer))
    assert await asked == "agent:trend is active, epoch 3.4; still restricted: symbol:BTC/USDT reducing"
