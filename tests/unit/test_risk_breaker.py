"""The breaker: a trip holds at once and outlives everything; only the operator, or a written policy, resumes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcp_servers.risk.operator_commands import COMMAND_PAYLOAD_TYPE, CommandResult, OperatorCommand
from tests.risk_support import Desk, codes, open_desk, order, sell, wide_limits
from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier, open_envelope, seal
from trading.domain.approvals import HEARTBEAT_PAYLOAD_TYPE, Epoch, Heartbeat, TradingState
from trading.domain.errors import InvalidValue, LedgerUnavailable
from trading.domain.events import BreakerReset, BreakerTripped, HeadWitnessed, LimitsLoaded, ServiceStarted
from trading.domain.instruments import InstrumentId
from trading.domain.proposals import Mode
from trading.testing.keys import make_test_signer

VERIFIER = Ed25519Verifier.of(make_test_signer("risk").public_key)
OPERATOR = Ed25519Verifier.of(make_test_signer("operator").public_key)


def heartbeats(desk: Desk) -> list[Heartbeat]:
    return [codec.decode(Heartbeat, open_envelope(e, VERIFIER, HEARTBEAT_PAYLOAD_TYPE)) for e in desk.sink.sent]


def events(desk: Desk, kind: type) -> list[Any]:
    return [event.payload for event in desk.ledger.events if isinstance(event.payload, kind)]


# -- start ------------------------------------------------------------------------------------------------------------


async def test_start_is_halted_until_reservations_are_rebuilt_then_active() -> None:
    desk = await open_desk()
    beats = heartbeats(desk)
    assert [(b.state, b.epoch) for b in beats] == [
        (TradingState.HALTED, Epoch(1, 0)),
        (TradingState.ACTIVE, Epoch(1, 1)),
    ]
    assert events(desk, ServiceStarted)[0].clean is True
    assert events(desk, LimitsLoaded)[0].version == 1


async def test_every_start_is_a_new_generation() -> None:
    desk = await open_desk()
    before = desk.risk.live.breaker.epoch
    await desk.restart()
    after = desk.risk.live.breaker.epoch
    assert after.generation == before.generation + 1
    assert after > before
    assert desk.risk.live.breaker.state is TradingState.ACTIVE


async def test_paper_policy_resumes_after_an_unclean_stop_and_says_so() -> None:
    desk = await open_desk()
    await desk.restart(clean=False)
    assert desk.risk.live.breaker.state is TradingState.ACTIVE
    assert events(desk, ServiceStarted)[-1].clean is False
    reset = events(desk, BreakerReset)[-1]
    assert reset.by == "policy"
    assert "unclean" in reset.reason


@pytest.mark.parametrize(("mode", "policy"), [(Mode.PAPER, False), (Mode.LIVE, True), (Mode.TESTNET, True)])
async def test_after_an_unclean_stop_only_the_operator_resumes(mode: Mode, policy: bool) -> None:
    desk = await open_desk(mode=mode, limits=wide_limits(reactivate_after_unclean_stop=policy))
    await desk.restart(clean=False)
    assert desk.risk.live.breaker.state is TradingState.HALTED
    await desk.restart(clean=True)  # still: a clean stop does not forget it
    assert desk.risk.live.breaker.state is TradingState.HALTED


@pytest.mark.parametrize("clean", [True, False])
async def test_trip_outlives_a_restart(clean: bool) -> None:
    desk = await open_desk()
    await desk.risk.trip("test", "tester")
    await desk.restart(clean=clean)
    assert desk.risk.live.breaker.state is TradingState.HALTED
    assert codes(await desk.ask(order())) == {"TRADING_STATE"}


async def test_stop_with_an_unknown_commit_is_not_a_clean_stop() -> None:
    desk = await open_desk()
    desk.ledger.fail_next_commit(LedgerUnavailable("lost"))
    with pytest.raises(Exception, match="did not confirm"):
        await desk.ask(order())
    desk.ledger.fail_next_commit(LedgerUnavailable("still"))
    await desk.restart(clean=True)
    assert events(desk, ServiceStarted)[-1].clean is False


async def test_limits_keep_their_version_until_they_change() -> None:
    desk = await open_desk()
    await desk.restart()
    assert desk.risk.live.frames.policy.version == 1
    await desk.restart(limits=wide_limits(daily_loss_max=1))
    assert desk.risk.live.frames.policy.version == 2
    assert heartbeats(desk)[-1].min_policy_version == 2
    assert len(await desk.ledger.rows("policies")) == 2


# -- trip -------------------------------------------------------------------------------------------------------------


async def test_trip_takes_effect_and_is_announced_before_it_is_written() -> None:
    desk = await open_desk()
    order_of_things: list[str] = []
    send, commit = desk.sink.send, desk.ledger.commit

    async def watched_send(envelope: str) -> None:
        order_of_things.append(f"announced {desk.risk.live.breaker.state}")
        await send(envelope)

    async def watched_commit(unit: Any) -> Any:
        order_of_things.append("written")
        return await commit(unit)

    desk.sink.send = watched_send
    desk.ledger.commit = watched_commit
    before = desk.risk.live.breaker.epoch
    answer = await desk.risk.trip("test", "tester")
    assert order_of_things == ["announced halted", "written"]
    assert answer.epoch > before
    assert heartbeats(desk)[-1].epoch == answer.epoch


async def test_trip_holds_when_neither_bus_nor_ledger_takes_it() -> None:
    desk = await open_desk()
    desk.sink.down = True
    desk.ledger.fail_next_commit(LedgerUnavailable("down"))
    answer = await desk.risk.trip("test", "tester")
    assert (answer.changed, answer.durable) == (True, False)
    assert codes(await desk.ask(order())) == {"TRADING_STATE"}
    await desk.risk.tick()
    assert events(desk, BreakerTripped)[-1].epoch == answer.epoch
    (row,) = await desk.ledger.rows("desk_state", {"scope": "desk"})
    assert row["state"] == "halted"


async def test_second_trip_changes_nothing_and_never_loosens() -> None:
    desk = await open_desk()
    first = await desk.risk.live.breaker.trip("test", "x", TradingState.FROZEN)
    second = await desk.risk.trip("again", "y")
    assert (second.changed, second.state, second.epoch) == (False, TradingState.FROZEN, first.epoch)
    with pytest.raises(InvalidValue):
        await desk.risk.live.breaker.trip("x", "y", TradingState.ACTIVE)


async def test_approvals_after_a_trip_carry_the_new_epoch() -> None:
    desk = await open_desk()
    await desk.hold("0.5")
    old = (await desk.ask(order())).approved[0].approval.epoch
    await desk.risk.trip("test", "x")
    new = (await desk.ask(sell("0.5"))).approved[0].approval.epoch
    assert new > old


async def test_daily_loss_trips_to_reducing_by_itself_and_survives_a_restart() -> None:
    desk = await open_desk()
    await desk.risk.tick()
    await desk.hold("1")
    desk.price([("58100", "50")], [("58101", "50")])
    await desk.risk.tick()
    assert desk.risk.live.breaker.state is TradingState.ACTIVE  # -1900
    desk.price([("57900", "50")], [("57901", "50")])
    await desk.risk.tick()
    assert desk.risk.live.breaker.state is TradingState.REDUCING
    tripped = events(desk, BreakerTripped)[-1]
    assert tripped.by == "policy"
    assert "2000" in tripped.reason
    await desk.restart(clean=False)
    assert desk.risk.live.breaker.state is TradingState.REDUCING
    assert desk.risk.frame().daily_result is not None
    assert desk.risk.frame().daily_result < -2_000  # type: ignore[operator]  # checked above


async def test_new_day_starts_with_a_new_allowance_and_a_restart_does_not() -> None:
    desk = await open_desk()
    await desk.risk.tick()
    await desk.hold("1")
    desk.price([("58500", "50")], [("58501", "50")])
    await desk.risk.tick()
    before = desk.risk.frame().daily_result
    await desk.restart(clean=False)
    assert desk.risk.frame().daily_result == before
    desk.clock.advance(86_400_000)
    desk.price([("58500", "50")], [("58501", "50")])
    assert desk.risk.frame().daily_result == 0


# -- heartbeats -------------------------------------------------------------------------------------------------------


async def test_heartbeat_counters_rise_and_carry_state_and_policy() -> None:
    desk = await open_desk()
    await desk.risk.tick()
    await desk.risk.tick()
    beats = heartbeats(desk)
    assert [b.counter for b in beats] == [1, 2, 3, 4]
    assert beats[-1].sent_ms == desk.clock.now_ms()
    assert beats[-1].min_policy_version == 1


async def test_bus_that_is_down_does_not_stop_risk() -> None:
    desk = await open_desk()
    desk.sink.down = True
    await desk.risk.tick()
    assert (await desk.ask(order())).approved


async def test_old_pulse_of_execution_is_not_believed() -> None:
    desk = await open_desk()
    now = desk.clock.now_ms()
    assert not desk.risk.pulse.hear(sent_ms=now - 1, ledger_seq=9, unresolved=0, safe=True, now_ms=now)
    desk.clock.advance(5_000)
    desk.risk.hear_execution(sent_ms=now + 1, ledger_seq=0, unresolved=0, safe=True)
    assert desk.risk.pulse.age_ms(desk.clock.now_ms()) == 4_999


async def test_portfolio_that_stays_behind_executions_ledger_is_stale() -> None:
    desk = await open_desk()
    desk.risk.hear_execution(
        sent_ms=desk.clock.now_ms() + 1, ledger_seq=len(desk.execution.events) + 5, unresolved=0, safe=True
    )
    desk.clock.advance(5_002)
    desk.price()
    desk.risk.hear_execution(sent_ms=desk.clock.now_ms(), ledger_seq=99, unresolved=0, safe=True)
    await desk.risk.live.follower.step()
    assert codes(await desk.ask(order())) == {"PORTFOLIO_STALE"}


async def test_other_rooms_heads_are_witnessed_once() -> None:
    head = HeadWitnessed(service="execution", size=7, root="ab")
    desk = await open_desk(heads=[lambda: head, lambda: None])
    assert await desk.risk.witness() == 1
    assert await desk.risk.witness() == 0
    assert events(desk, HeadWitnessed) == [head]


# -- the operator -----------------------------------------------------------------------------------------------------


async def operated(tmp_path: Path) -> Desk:
    return await open_desk(operator=OPERATOR, operator_directory=tmp_path / "operator")


def command(on: Desk, state: TradingState, number: int = 1, **changes: Any) -> OperatorCommand:
    made = OperatorCommand(
        command_id=f"00000000-0000-0000-0000-{number:012d}",
        desk="desk",
        account_id=on.parts.account_id,
        state=state,
        reason="because",
        by="alice",
        issued_ms=on.clock.now_ms(),
    )
    return replace(made, **changes)


def leave(tmp_path: Path, asked: OperatorCommand, *, key: str = "operator", mode: int = 0o600) -> Path:
    directory = tmp_path / "operator"
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / f"any-{asked.command_id}.json"
    path.write_text(seal(codec.canonical(asked), COMMAND_PAYLOAD_TYPE, make_test_signer(key)).to_json())
    path.chmod(mode)
    return path


def result(tmp_path: Path, asked: OperatorCommand) -> CommandResult | None:
    path = tmp_path / "operator" / f"{asked.command_id}.result.json"
    return codec.decode(CommandResult, path.read_bytes()) if path.exists() else None


async def test_operator_halts_freezes_and_resumes(tmp_path: Path) -> None:
    desk = await operated(tmp_path)
    for number, state in enumerate((TradingState.HALTED, TradingState.FROZEN, TradingState.ACTIVE), start=1):
        asked = command(desk, state, number)
        path = leave(tmp_path, asked)
        await desk.risk.tick()
        got = result(tmp_path, asked)
        assert got is not None
        assert (got.ok, got.state) == (True, state.value)
        assert not path.exists()
        assert desk.risk.live.breaker.state is state
    assert events(desk, BreakerReset)[-1].by == "operator:alice"
    assert (await desk.ask(order())).approved


async def test_only_the_operators_resume_lets_a_stopped_agent_go_on(tmp_path: Path) -> None:
    desk = await operated(tmp_path)
    name = order().agent_id, InstrumentId(desk.parts.venue, order().symbol)
    desk.risk.portfolio.activity.stopped[name] = desk.clock.now_ms()
    for number, state in enumerate((TradingState.HALTED, TradingState.REDUCING), start=1):
        leave(tmp_path, command(desk, state, number))
        await desk.risk.tick()
        assert "REPEATED_EXECUTION" in codes(await desk.ask(order()))
    leave(tmp_path, command(desk, TradingState.ACTIVE, 3))
    await desk.risk.tick()
    assert (await desk.ask(order())).approved


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"issued_ms": 1}, "COMMAND_STALE"),
        ({"issued_ms": 9_000_000_000_000}, "COMMAND_STALE"),
        ({"desk": "other"}, "WRONG_DESK"),
        ({"account_id": "other"}, "WRONG_DESK"),
    ],
)
async def test_command_for_another_time_or_desk_is_refused(changes: dict[str, Any], code: str, tmp_path: Path) -> None:
    desk = await operated(tmp_path)
    await desk.risk.trip("test", "x")
    asked = command(desk, TradingState.ACTIVE, **changes)
    leave(tmp_path, asked)
    await desk.risk.tick()
    got = result(tmp_path, asked)
    assert got is not None
    assert (got.ok, got.code) == (False, code)
    assert desk.risk.live.breaker.state is TradingState.HALTED


@pytest.mark.parametrize(("key", "mode"), [("mallory", 0o600), ("risk", 0o600), ("operator", 0o644)])
async def test_command_not_proven_to_be_the_operators_is_removed_unanswered(
    key: str, mode: int, tmp_path: Path
) -> None:
    desk = await operated(tmp_path)
    await desk.risk.trip("test", "x")
    asked = command(desk, TradingState.ACTIVE)
    path = leave(tmp_path, asked, key=key, mode=mode)
    await desk.risk.tick()
    assert not path.exists()
    assert result(tmp_path, asked) is None
    assert desk.risk.live.breaker.state is TradingState.HALTED


async def test_what_cannot_be_read_or_answered_in_the_command_directory_does_not_end_the_room(tmp_path: Path) -> None:
    desk = await operated(tmp_path)
    (tmp_path / "operator" / "directory.json").mkdir(parents=True)
    asked = command(desk, TradingState.HALTED)
    (tmp_path / "operator" / f"{asked.command_id}.result.json").mkdir()  # so that the answer cannot be put there
    leave(tmp_path, asked)
    await desk.risk.tick()
    assert desk.risk.live.breaker.state is TradingState.HALTED


async def test_command_is_used_once_and_not_kept_for_the_next_run(tmp_path: Path) -> None:
    desk = await operated(tmp_path)
    asked = command(desk, TradingState.ACTIVE)
    await desk.risk.trip("one", "x")
    leave(tmp_path, asked)
    await desk.risk.tick()
    await desk.risk.trip("two", "x")
    leave(tmp_path, asked)
    await desk.risk.tick()
    assert desk.risk.live.breaker.state is TradingState.HALTED
    got = result(tmp_path, asked)
    assert got is not None
    assert got.code == "COMMAND_USED"
    desk.clock.advance(10)
    await desk.restart()
    leave(tmp_path, asked)
    await desk.risk.tick()
    assert desk.risk.live.breaker.state is TradingState.HALTED


@pytest.mark.parametrize("state", [TradingState.REDUCING, TradingState.HALTED])
async def test_a_command_from_before_a_start_lifts_no_halt_and_no_freeze(state: TradingState, tmp_path: Path) -> None:
    desk = await operated(tmp_path)
    await desk.risk.live.breaker.trip("worse", "x", TradingState.FROZEN)
    asked = command(desk, state)
    leave(tmp_path, asked)
    await desk.risk.tick()
    assert desk.risk.live.breaker.state is state
    await desk.risk.live.breaker.trip("worse again", "x", TradingState.FROZEN)
    desk.clock.advance(10)
    await desk.restart()
    leave(tmp_path, asked)  # whoever kept a copy puts it there again
    await desk.risk.tick()
    assert desk.risk.live.breaker.state is TradingState.FROZEN
    got = result(tmp_path, asked)
    assert got is not None
    assert got.code == "COMMAND_STALE"


@pytest.mark.parametrize("state", [TradingState.HALTED, TradingState.FROZEN])
async def test_trip_during_a_reset_wins(state: TradingState) -> None:
    """Also when the desk is halted already: somebody means it now, after the resume was asked for."""
    desk = await open_desk()
    await desk.risk.trip("one", "x")
    gate, commit = asyncio.Event(), desk.ledger.commit

    async def slow_commit(unit: Any) -> Any:
        desk.ledger.commit = commit
        await gate.wait()
        return await commit(unit)

    desk.ledger.commit = slow_commit
    breaker = desk.risk.live.breaker
    reset = asyncio.create_task(breaker.reset("resume", "operator:x"))
    await asyncio.sleep(0)
    tripped = await breaker.trip("no, stay", "y", state)
    gate.set()
    answer = await reset
    assert (answer.changed, answer.state, answer.epoch) == (False, state, tripped.epoch)
    assert breaker.state is state
    (row,) = await desk.ledger.rows("desk_state", {"scope": "desk"})
    assert (row["state"], row["counter"]) == (state.value, tripped.epoch.counter)
    assert codes(await desk.ask(order())) == {"TRADING_STATE"}


async def test_reset_that_cannot_be_written_loosens_nothing() -> None:
    desk = await open_desk()
    await desk.risk.trip("one", "x")
    desk.ledger.fail_next_commit(LedgerUnavailable("down"))
    with pytest.raises(LedgerUnavailable):
        await desk.risk.live.breaker.reset("resume", "operator:x")
    assert desk.risk.live.breaker.state is TradingState.HALTED


async def test_a_reset_whose_commit_landed_without_an_answer_does_not_loosen_the_next_start() -> None:
    desk = await open_desk()
    await desk.risk.trip("one", "x")
    desk.ledger.fail_next_commit(LedgerUnavailable("no answer"), written=True)
    with pytest.raises(LedgerUnavailable):
        await desk.risk.live.breaker.reset("resume", "operator:x")
    await desk.restart()
    assert desk.risk.live.breaker.state is TradingState.HALTED
