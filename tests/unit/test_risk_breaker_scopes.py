"""The breaker's scopes: each has a state of its own, the strictest holds, and only the operator loosens one."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_servers.risk.breaker import Breaker
from mcp_servers.risk.status import status_row
from tests.risk_support import Desk, codes, open_desk, order, sell, wide_limits
from tests.unit.test_risk_breaker import command, events, heartbeats, leave, operated, result
from trading.domain.approvals import TradingState
from trading.domain.errors import InvalidValue, LedgerUnavailable
from trading.domain.events import BreakerReset, BreakerTripped
from trading.domain.identifiers import AgentId
from trading.domain.trading_states import SCOPES_MAX, ScopeState, parse_scope, strictest

SCOPES = ("agent:tester", "symbol:BTC/USDT", "account:main", "desk")
HALTED = TradingState.HALTED


def scope_of(desk: Desk, scope: str) -> str:
    return f"account:{desk.parts.account_id}" if scope.startswith("account:") else scope


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("state", [TradingState.REDUCING, TradingState.HALTED])
async def test_a_tripped_scope_stops_increases_names_itself_and_lets_exits_pass(
    scope: str, state: TradingState
) -> None:
    desk = await open_desk()
    await desk.hold("0.5")
    scope = scope_of(desk, scope)
    await desk.risk.live.breaker.trip("test", "x", state, scope=scope)
    answer = await desk.ask(order())
    assert codes(answer) == {"TRADING_STATE"}
    (failure,) = answer.denied[0].failures
    assert failure.observed == (state.value if scope == "desk" else f"{state.value} ({scope})")
    assert (await desk.ask(sell("0.2"))).approved
    assert (await desk.ask(sell("0.1", reduce_only=True))).approved


async def test_a_scope_stops_nobody_else() -> None:
    desk = await open_desk()
    await desk.ask(order(agent_id="other"))
    await desk.risk.trip("test", "x", "agent:other")
    assert codes(await desk.ask(order(agent_id="other"))) == {"TRADING_STATE"}
    assert (await desk.ask(order())).approved
    assert desk.risk.live.breaker.state is TradingState.ACTIVE
    assert status_row(desk.risk, AgentId("tester")).safe_to_trade
    other = status_row(desk.risk, AgentId("other"))
    assert (other.safe_to_trade, other.reasons) == (False, ["agent:other is halted"])
    assert other.state_reason == "agent:other is halted: test"


async def test_every_change_of_any_scope_raises_the_one_epoch_and_is_announced_with_the_scope() -> None:
    desk = await open_desk()
    breaker, seen = desk.risk.live.breaker, [desk.risk.live.breaker.epoch]
    for scope in ("agent:tester", "symbol:BTC/USDT", "desk"):
        seen.append((await breaker.trip("test", "x", scope=scope)).epoch)
    seen.append((await breaker.reset("go", "operator:x", scope="agent:tester")).epoch)
    assert seen == sorted(set(seen))
    beat = heartbeats(desk)[-1]
    assert (beat.state, beat.scopes) == (HALTED, (ScopeState("symbol:BTC/USDT", HALTED),))
    assert [event.scope for event in events(desk, BreakerTripped)] == ["agent:tester", "symbol:BTC/USDT", "desk"]


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("state", [TradingState.REDUCING, TradingState.HALTED, TradingState.FROZEN])
@pytest.mark.parametrize("scope", SCOPES)
async def test_a_tripped_scope_outlives_every_kind_of_restart(scope: str, state: TradingState, clean: bool) -> None:
    desk = await open_desk(limits=wide_limits(reactivate_after_unclean_stop=True))
    scope = scope_of(desk, scope)
    await desk.risk.live.breaker.trip("why", "x", state, scope=scope)
    for _ in range(2):
        await desk.restart(clean=clean)
        assert desk.risk.live.breaker.state_of(scope) is state
        assert desk.risk.live.breaker.reason_of(scope) == "why"
        assert codes(await desk.ask(order())) == {"TRADING_STATE"}


@pytest.mark.parametrize("state", [TradingState.REDUCING, TradingState.HALTED])
async def test_a_trip_while_the_room_starts_stands_and_a_scopes_trip_lets_the_desk_open(state: TradingState) -> None:
    desk = await open_desk()

    async def announce() -> None:
        pass

    for scope, expected in (("desk", state), ("agent:tester", TradingState.ACTIVE)):
        breaker = Breaker(desk.ledger, desk.clock, announce, restored={})
        await breaker.trip("early", "x", state, scope=scope)
        assert breaker.state is TradingState.HALTED  # while it starts
        await breaker.open(clean=True, may_reactivate=False)
        assert (breaker.state, breaker.state_of(scope)) == (expected, state)
        (row,) = await desk.ledger.rows("desk_state", {"scope": scope})
        assert row["state"] == state.value


async def test_resuming_the_desk_resumes_no_scope_and_the_answer_says_what_is_left(tmp_path: Path) -> None:
    desk = await operated(tmp_path)
    await desk.risk.trip("a", "x", "symbol:BTC/USDT")
    await desk.risk.trip("b", "x")
    asked = command(desk, TradingState.ACTIVE)
    leave(tmp_path, asked)
    await desk.risk.tick()
    got = result(tmp_path, asked)
    assert got is not None
    assert (got.ok, got.state, got.scope) == (True, "active", "desk")
    assert got.restricted == (ScopeState("symbol:BTC/USDT", HALTED),)
    assert codes(await desk.ask(order())) == {"TRADING_STATE"}
    leave(tmp_path, command(desk, TradingState.ACTIVE, 2, scope="symbol:BTC/USDT"))
    await desk.risk.tick()
    assert (await desk.ask(order())).approved
    assert [event.scope for event in events(desk, BreakerReset)][-2:] == ["desk", "symbol:BTC/USDT"]


@pytest.mark.parametrize("reason", ["", "  \t"])
async def test_a_resume_without_a_reason_is_refused_and_a_halt_is_not(tmp_path: Path, reason: str) -> None:
    desk = await operated(tmp_path)
    for number, (state, ok) in enumerate(((HALTED, True), (TradingState.ACTIVE, False)), start=1):
        asked = command(desk, state, number, reason=reason)
        leave(tmp_path, asked)
        await desk.risk.tick()
        got = result(tmp_path, asked)
        assert got is not None
        assert (got.ok, got.code) == (ok, "" if ok else "REASON_REQUIRED")
    assert desk.risk.live.breaker.state is HALTED


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("agent:testr", "agent:tester"),
        ("symbol:BTC/USDC", "symbol:BTC/USDT"),
        ("BTC/USDT", "symbol:BTC/USDT"),
        ("everything", "agent:NAME"),
        ("agent:", "agent:NAME"),
        ("agent:protection", "agent:NAME"),
        ("desk:x", "agent:NAME"),
    ],
)
async def test_a_misspelt_scope_is_refused_with_what_is_possible_and_changes_nothing(text: str, allowed: str) -> None:
    desk = await open_desk()
    await desk.ask(order())
    before = desk.risk.live.breaker.epoch
    with pytest.raises(InvalidValue) as caught:
        await desk.risk.trip("x", "y", text)
    assert caught.value.code == "UNKNOWN_SCOPE"
    assert allowed in caught.value.allowed
    assert desk.risk.live.breaker.epoch == before


async def test_more_scopes_than_a_heartbeat_carries_restrict_the_desk() -> None:
    desk = await open_desk()
    breaker = desk.risk.live.breaker
    for number in range(SCOPES_MAX):
        await breaker.trip("x", "y", scope=f"agent:a{number}")
    assert breaker.state is TradingState.ACTIVE
    answer = await breaker.trip("one more", "y", TradingState.REDUCING, scope="agent:last")
    assert (answer.scope, breaker.state) == ("desk", TradingState.REDUCING)
    assert "agent:last: one more" in breaker.reason
    assert len(heartbeats(desk)[-1].scopes) == SCOPES_MAX


async def test_a_scopes_trip_that_cannot_be_written_is_written_later_and_beside_others() -> None:
    desk = await open_desk()
    breaker = desk.risk.live.breaker
    desk.ledger.fail_next_commit(LedgerUnavailable("down"))
    assert not (await breaker.trip("one", "x", scope="agent:a")).durable
    assert (await breaker.trip("two", "x", scope="agent:b")).durable
    rows = {row["scope"]: row["state"] for row in await desk.ledger.rows("desk_state")}
    assert (rows["agent:a"], rows["agent:b"]) == ("halted", "halted")


async def test_a_trip_of_another_scope_does_not_undo_a_reset_and_the_epoch_never_falls() -> None:
    desk = await open_desk()
    breaker, commit = desk.risk.live.breaker, desk.ledger.commit
    await breaker.trip("one", "x", scope="agent:a")

    async def trip_meanwhile(unit: object) -> object:
        desk.ledger.commit = commit
        await breaker.trip("two", "x", scope="agent:b")
        return await commit(unit)  # type: ignore[arg-type]

    desk.ledger.commit = trip_meanwhile  # type: ignore[method-assign,assignment]
    answer = await breaker.reset("go", "operator:x", scope="agent:a")
    assert answer.changed
    assert breaker.scopes == (ScopeState("agent:b", HALTED),)
    assert answer.epoch == breaker.epoch == heartbeats(desk)[-1].epoch


def test_an_unknown_kind_of_scope_covers_everything_and_the_strictest_wins() -> None:
    found = strictest(
        TradingState.REDUCING,
        (ScopeState("agent:a", TradingState.ACTIVE), ScopeState("venue:x", HALTED)),
        account_id="m",  # type: ignore[arg-type]
        agent_id="a",  # type: ignore[arg-type]
        symbol="BTC/USDT",  # type: ignore[arg-type]
    )
    assert found == ScopeState("venue:x", HALTED)


@pytest.mark.parametrize(
    ("text", "scope"),
    [("desk", "desk"), (" Agent:trend", "agent:trend"), ("symbol:btc/usdt", "symbol:BTC/USDT"), ("DESK", "desk")],
)
def test_scopes_are_read_in_any_case(text: str, scope: str) -> None:
    assert parse_scope(text) == scope
