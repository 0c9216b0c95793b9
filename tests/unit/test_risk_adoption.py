"""A document comes into force: tighter by itself, looser by the operator's signature, and never by a restart."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mcp_servers.risk.limits import RiskLimits, document_of
from mcp_servers.risk.operator_commands import COMMAND_PAYLOAD_TYPE
from mcp_servers.risk.rows import limits_row
from mcp_servers.risk.scopes import ScopeLimits
from mcp_servers.risk.status import status_row
from tests.limits_support import LimitsDesk, open_limits_desk
from tests.risk_support import codes, open_desk, order, wide_limits, wide_symbol
from tests.unit.test_risk_decisions import Bundle, pinned
from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier, open_envelope, seal
from trading.domain.approvals import HEARTBEAT_PAYLOAD_TYPE, Heartbeat
from trading.domain.errors import ConfigurationError, LedgerUnavailable
from trading.domain.events import AlarmRaised
from trading.domain.identifiers import AgentId
from trading.ports.ledger import Unit, Upsert
from trading.testing.builders import BTC_USDT
from trading.testing.keys import make_test_signer

TESTER = AgentId("tester")
TIGHT = wide_limits(symbols={BTC_USDT: wide_symbol(order_notional_max=Decimal(500))})
LOOSE = wide_limits(symbols={BTC_USDT: wide_symbol(order_notional_max=Decimal(2_000_000))})


def last_beat(desk: LimitsDesk) -> Heartbeat:
    verifier = Ed25519Verifier.of(make_test_signer("risk").public_key)
    return codec.decode(Heartbeat, open_envelope(desk.desk.sink.sent[-1], verifier, HEARTBEAT_PAYLOAD_TYPE))


def alarms(desk: LimitsDesk) -> list[AlarmRaised]:
    return [event.payload for event in desk.desk.ledger.events if isinstance(event.payload, AlarmRaised)]


# -- tighter ----------------------------------------------------------------------------------------------------------


async def test_a_tighter_file_is_in_force_at_once_and_older_approvals_are_announced_as_refused(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path)
    before = await room.desk.ask(order())
    await room.put(TIGHT)
    assert (room.version, room.note) == (2, "")
    denied = await room.desk.ask(order())
    assert codes(denied) == {"ORDER_NOTIONAL_MAX"}
    allowed = await room.desk.ask(order(amount="0.005"))
    assert allowed.approved[0].approval.policy_version == 2
    assert last_beat(room).min_policy_version == 2 > before.approved[0].approval.policy_version
    event = room.loaded()[-1]
    assert (event.version, event.by, event.reason, event.envelope) == (2, "file", "limits.json", "")
    assert event.document == document_of(TIGHT)
    assert [row["version"] for row in await room.desk.ledger.rows("policies")] == [1, 2]


async def test_a_file_is_acted_on_only_when_it_was_read_twice_alike(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path)
    await room.put(TIGHT, looks=1)
    assert room.version == 1
    await room.put(document_of(TIGHT)[:-40], looks=1)  # it is being written
    assert (room.version, room.note) == (1, "")
    await room.put(TIGHT, looks=2)
    assert room.version == 2


async def test_a_document_that_no_ledger_could_hold_leaves_the_room_and_its_limits_alone(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path)
    for text in (f'{{"turnover_window_ms": {2**70}}}', "[" * 100_000, '{"agents": {"\\ud800": {"turnover_max": 5}}}'):
        await room.put(text)
        assert (room.version, "refused" in room.note) == (1, True)
    assert (await room.desk.ask(order())).approved


async def test_rates_windows_and_entries_follow_the_new_limits(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path)
    assert (await room.desk.ask(order())).approved
    await room.put(
        wide_limits(
            duplicate_window_ms=5_000,
            agents={TESTER: ScopeLimits(order_rate_per_s=1, order_burst=1, entries_max=1)},
        )
    )
    activity = room.desk.risk.portfolio.activity
    assert activity.entries_limit is not None
    assert activity.entries_limit(TESTER, next(iter(room.desk.risk.frame().markets)))[0] == 1
    room.desk.clock.advance(1_000)
    await room.desk.refresh()
    assert (await room.desk.ask(order())).approved
    assert codes(await room.desk.ask(order())) == {"ORDER_RATE", "ORDER_DUPLICATE"}


@pytest.mark.parametrize("meanwhile", [False, True])
async def test_votes_are_counted_by_the_limits_in_force_also_while_they_are_counted(
    tmp_path: Path, meanwhile: bool
) -> None:
    room = await open_limits_desk(tmp_path, keys=pinned())
    await Bundle(room.desk).write()
    strict = wide_limits(quorum={"min_yes": 6})
    read, pending = room.desk.coordinator.rows, [strict]

    async def rows(table: str, *args: Any, **options: Any) -> Any:
        if table == "votes" and pending:
            await room.put(pending.pop())
        return await read(table, *args, **options)

    room.desk.coordinator.rows = rows
    if not meanwhile:
        await room.put(pending.pop())
    answer = await room.desk.ask(order(agent_id="a"), decision_id="d-1")
    assert codes(answer) == {"DECISION_INVALID"}
    assert "RECOUNT_REJECTS" in answer.denied[0].failures[0].message


async def test_a_tighter_rate_gives_back_nothing_that_was_used(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path, wide_limits(order_burst=3, order_rate_per_s=1))
    for _ in range(3):
        assert (await room.desk.ask(order())).approved
    await room.put(wide_limits(order_burst=2, order_rate_per_s=1, symbol_rate_per_s=100, venue_rate_per_s=100))
    assert codes(await room.desk.ask(order())) == {"ORDER_RATE"}


async def test_a_policy_that_cannot_be_written_is_not_in_force_and_is_tried_again(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path)
    room.desk.ledger.fail_next_commit(LedgerUnavailable("lost"))
    with pytest.raises(LedgerUnavailable):
        await room.put(TIGHT)
    assert room.version == 1
    await room.desk.risk.live.adoption.look()
    assert room.version == 2


# -- looser -----------------------------------------------------------------------------------------------------------


async def test_nothing_of_a_document_that_loosens_anything_is_applied(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path)
    mixed = wide_limits(symbols=LOOSE.symbols, daily_loss_max=Decimal(1))
    await room.put(mixed)
    assert (room.version, room.limits) == (1, wide_limits())
    assert room.note == (
        "a looser document waits for the operator's signature: "
        "symbols.BTC/USDT.order_notional_max 1000000 -> 2000000 (looser)"
    )
    assert limits_row(room.desk.risk, "desk", TESTER).note == room.note
    status = status_row(room.desk.risk, TESTER)
    assert (status.limits_note, status.safe_to_trade) == (room.note, True)
    await room.put(wide_limits())
    assert (room.note, room.version) == ("", 1)


async def test_a_restart_loosens_nothing_and_tightens_by_the_same_rule(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path)
    await room.desk.restart(limits=LOOSE)
    assert (room.version, room.limits) == (1, wide_limits())
    assert room.note.startswith("a looser document waits")
    await room.desk.restart(limits=TIGHT)
    assert (room.version, room.limits, room.note) == (2, TIGHT, "")
    await room.desk.restart(limits=wide_limits())
    assert (room.version, room.limits) == (2, TIGHT)
    assert (await room.desk.ask(order())).denied
    assert [event.version for event in room.loaded()] == [1, 1, 2, 2]
    assert {event.by for event in room.loaded()} == {"start"}


async def test_limits_of_an_older_release_stay_in_force_under_a_version_of_their_own() -> None:
    desk = await open_desk()
    (row,) = await desk.ledger.rows("policies")
    stored = json.loads(str(row["document"]))
    del stored["clock_skew_ms"]
    stored["a_limit_that_was_dropped"] = 1
    document = codec.canonical(stored).decode()
    await desk.ledger.commit(Unit(writes=(Upsert("policies", {**row, "document": document}),)))
    await desk.restart(limits=LOOSE)
    policy = desk.risk.live.frames.policy
    assert (policy.version, policy.limits) == (2, wide_limits())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"daily_loss_max": 0.5}', "LIMITS_INVALID"),
        ('{"daily_los_max": "5"}', "LIMITS_INVALID"),
        ("{", "LIMITS_UNREADABLE"),
        ("{}", "LIMITS_EMPTY"),
    ],
)
async def test_a_bad_file_changes_nothing_and_is_told_once(tmp_path: Path, text: str, code: str) -> None:
    room = await open_limits_desk(tmp_path)
    await room.put(text, looks=5)
    assert [alarm.code for alarm in alarms(room)] == [code]
    assert code in room.note
    assert (room.version, room.limits) == (1, wide_limits())
    assert (await room.desk.ask(order())).approved
    await room.put(TIGHT)
    assert (room.note, room.version) == ("", 2)


async def test_a_file_that_goes_away_changes_nothing(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path, TIGHT)
    await room.put(TIGHT)
    room.file.unlink()
    for _ in range(3):
        await room.desk.risk.live.adoption.look()
    assert (room.limits, [alarm.code for alarm in alarms(room)]) == (TIGHT, ["LIMITS_FILE_MISSING"])


# -- signed -----------------------------------------------------------------------------------------------------------


async def test_the_operators_signature_loosens_and_a_restart_keeps_it(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path)
    await room.put(LOOSE)
    command = room.command(LOOSE)
    result = await room.send(command)
    assert result is not None
    assert (result.ok, result.message[:30]) == (True, "limits version 2 are in force "), result
    assert (room.limits, room.note) == (LOOSE, "")
    event = room.loaded()[-1]
    assert (event.version, event.by, event.reason) == (2, "operator:alice", "more room")
    verifier = Ed25519Verifier.of(make_test_signer("operator").public_key)
    assert b"more room" in open_envelope(event.envelope, verifier, "application/vnd.grekko.limits-command+json;v=1")
    await room.put(LOOSE)
    assert room.version == 2
    await room.desk.restart(limits=LOOSE)
    assert (room.version, room.limits) == (2, LOOSE)


async def refused(room: LimitsDesk, code: str, limits: RiskLimits = LOOSE, **changes: Any) -> None:
    result = await room.send(room.command(limits, **changes))
    assert result is not None
    assert (result.ok, result.code) == (False, code)
    assert (room.version, room.limits) == (1, wide_limits())


async def test_a_signed_document_must_be_whole_fresh_and_the_desks_own(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path)
    await room.put(LOOSE)
    await refused(room, "LIMITS_DIGEST", digest="0" * 64)
    await refused(room, "LIMITS_DIGEST", document=document_of(TIGHT))
    spaced = json.dumps(json.loads(document_of(LOOSE)))
    await refused(room, "LIMITS_DIGEST", document=spaced)
    await refused(room, "LIMITS_BASE", base_version=0)
    await refused(room, "LIMITS_BASE", base_version=2)
    await refused(room, "COMMAND_STALE", issued_ms=room.desk.clock.now_ms() - 60_000)
    await refused(room, "WRONG_DESK", desk="other")
    await refused(room, "REASON_REQUIRED", reason=" ")
    await refused(room, "LIMITS_NOT_THE_DOCUMENT", wide_limits(daily_loss_max=Decimal(10**9)))
    await room.put(wide_limits())
    await refused(room, "LIMITS_UNCHANGED", wide_limits())


async def test_a_signature_is_used_once_and_never_for_a_later_version(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path)
    await room.put(LOOSE)
    command = room.command(LOOSE)
    assert (await room.send(command)) is not None
    await room.put(TIGHT)
    await room.put(LOOSE)
    again = await room.send(command)
    assert again is not None
    assert again.code == "COMMAND_USED"
    renamed = await room.send(room.command(LOOSE, base_version=command.base_version))
    assert renamed is not None
    assert renamed.code == "LIMITS_BASE"
    assert (room.version, room.limits) == (3, TIGHT)


async def test_a_command_from_before_this_run_loosens_nothing(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path)
    await room.put(LOOSE)
    command = room.command(LOOSE, issued_ms=room.desk.clock.now_ms())
    room.desk.clock.advance(10)
    await room.desk.restart()
    result = await room.send(command)
    assert result is not None
    assert (result.code, room.version) == ("COMMAND_STALE", 1)


@pytest.mark.parametrize("key", ["mallory", "risk"])
async def test_another_key_loosens_nothing_and_gets_no_answer(tmp_path: Path, key: str) -> None:
    room = await open_limits_desk(tmp_path)
    await room.put(LOOSE)
    assert await room.send(room.command(LOOSE), key=key) is None
    assert room.version == 1


async def test_a_document_changed_after_signing_or_signed_as_something_else_is_refused(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path)
    await room.put(LOOSE)
    command = room.command(LOOSE)
    honest = json.loads(
        seal(
            codec.canonical(command), "application/vnd.grekko.limits-command+json;v=1", make_test_signer("operator")
        ).to_json()
    )
    payload = base64.b64decode(honest["payload"]).replace(b'\\"2000000\\"', b'\\"9000000\\"')
    honest["payload"] = base64.b64encode(payload).decode()
    assert b"9000000" in payload
    assert await room.send_text(json.dumps(honest, separators=(",", ":")), command) is None
    assert await room.send(command, kind=COMMAND_PAYLOAD_TYPE) is None
    assert room.version == 1


async def test_a_lost_answer_never_gives_one_version_to_two_documents(tmp_path: Path) -> None:
    room = await open_limits_desk(tmp_path)
    commit = room.desk.ledger.commit

    async def answer_lost(unit: Any) -> Any:
        await commit(unit)
        raise LedgerUnavailable("the answer was lost")

    room.desk.ledger.commit = answer_lost
    with pytest.raises(LedgerUnavailable):
        await room.put(TIGHT)
    room.desk.ledger.commit = commit
    tighter = wide_limits(symbols=TIGHT.symbols, daily_loss_max=Decimal(1))
    await room.put(tighter)
    rows = {row["version"]: row["document"] for row in await room.desk.ledger.rows("policies")}
    assert rows == {1: document_of(wide_limits()), 2: document_of(TIGHT), 3: document_of(tighter)}
    assert (room.version, room.limits) == (3, tighter)


async def test_limits_that_nobody_can_read_back_refuse_to_start() -> None:
    desk = await open_desk()
    (row,) = await desk.ledger.rows("policies")
    await desk.ledger.commit(Unit(writes=(Upsert("policies", {**row, "document": '{"daily_loss_max":"-1"}'}),)))
    with pytest.raises(ConfigurationError, match="daily_loss_max"):
        await desk.restart()
