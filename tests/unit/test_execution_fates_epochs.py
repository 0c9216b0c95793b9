"""Fates that execution writes by its own clock, and what it believes of risk."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mcp_servers.execution.epochs import Ignored, Learned, remembered_pulse
from mcp_servers.execution.gate import GateCode
from mcp_servers.execution.walks import Refusal
from tests.execution_support import Desk
from trading.adapters.signing import Envelope
from trading.domain.approvals import Epoch, Fate, TradingState
from trading.domain.errors import LedgerUnavailable
from trading.domain.events import ApprovalEnded
from trading.domain.identifiers import ApprovalId
from trading.testing.keys import make_test_signer
from trading.testing.ledger import InMemoryLedger


async def _fate(desk: Desk, approval_id: str) -> str | None:
    rows = await desk.ledger.rows("approval_fates", {"approval_id": approval_id})
    return str(rows[0]["fate"]) if rows else None


# --- fates -----------------------------------------------------------------------------------------------------------


async def test_an_approval_that_nobody_brought_lapses_by_our_clock() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(ttl_ms=1_000)
    await desk.follow_risk()
    desk.clock.advance(999)
    assert await desk.service.fates.lapse_due() == 0
    desk.clock.advance(1)
    assert await desk.service.fates.lapse_due() == 1
    assert await _fate(desk, approval_id) == "lapsed"
    ended = desk.events(ApprovalEnded)
    assert [(each.approval_id, each.fate, each.reason) for each in ended] == [(approval_id, Fate.LAPSED, "EXPIRED")]
    assert await desk.service.fates.lapse_due() == 0
    assert await desk.refusal(approval_id) == GateCode.FATE_WRITTEN
    again = await desk.submit(approval_id)
    assert isinstance(again, Refusal)
    assert "expired unused" in str(again.error)


async def test_an_approval_given_while_we_were_away_lapses_at_the_start() -> None:
    desk = Desk()
    approval_id = await desk.issue(ttl_ms=1_000)
    desk.clock.advance(5_000)
    desk.refresh()
    await desk.start()
    assert await _fate(desk, approval_id) == "lapsed"


async def test_a_used_approval_does_not_lapse() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(ttl_ms=1_000)
    await desk.follow_risk()
    await desk.order(approval_id)
    desk.clock.advance(2_000)
    assert await desk.service.fates.lapse_due() == 0
    assert await _fate(desk, approval_id) == "consumed"


async def test_a_fate_that_memory_does_not_know_is_learned_from_the_claim() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(ttl_ms=1_000)
    await desk.order(approval_id)
    desk.service.fates._written.clear()
    await desk.follow_risk()
    desk.clock.advance(2_000)
    assert await desk.service.fates.lapse_due() == 0
    assert await _fate(desk, approval_id) == "consumed"
    assert desk.service.fates.fate(ApprovalId(approval_id)) is Fate.CONSUMED


async def test_a_lapse_that_the_ledger_could_not_take_is_tried_again() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(ttl_ms=1_000)
    await desk.follow_risk()
    desk.clock.advance(1_000)
    desk.ledger.fail_next_commit()
    with pytest.raises(Exception, match="injected"):
        await desk.service.fates.lapse_due()
    assert await _fate(desk, approval_id) is None
    assert await desk.service.fates.lapse_due() == 1


async def test_an_approval_that_risk_was_asked_to_release_is_voided() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(ttl_ms=60_000)
    await desk.request_release(approval_id)
    assert await desk.service.fates.void_requested() == 1
    assert await _fate(desk, approval_id) == "voided"
    assert await desk.service.fates.void_requested() == 0
    assert await desk.refusal(approval_id) == GateCode.FATE_WRITTEN
    assert desk.faulty.handed_over == []


async def test_a_release_that_comes_too_late_changes_nothing() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue()
    await desk.order(approval_id)
    await desk.request_release(approval_id)
    assert await desk.service.fates.void_requested() == 0
    assert await _fate(desk, approval_id) == "consumed"


async def test_a_newer_epoch_voids_what_was_approved_before() -> None:
    desk = await Desk().start()
    before = await desk.issue(ttl_ms=60_000)
    await desk.follow_risk()
    await desk.trip()
    assert await _fate(desk, before) == "voided"
    after = await desk.issue(ttl_ms=60_000)
    await desk.follow_risk()
    await desk.beat()
    assert await _fate(desk, after) is None


async def test_approvals_of_another_account_are_left_to_its_own_server() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(account_id="paper-other", ttl_ms=1)
    await desk.follow_risk()
    desk.clock.advance(10)
    assert await desk.service.fates.lapse_due() == 0
    assert await _fate(desk, approval_id) is None


# --- epochs ----------------------------------------------------------------------------------------------------------


async def test_a_lower_epoch_is_ignored_also_after_a_restart() -> None:
    desk = await Desk().start()
    old = desk.heartbeat()
    await desk.trip(TradingState.HALTED)
    assert await desk.beat(epoch=Epoch(1, 0)) is Ignored.OLD_EPOCH
    await desk.restart(heard=False)
    assert desk.service.learn(old) is Ignored.OLD_EPOCH
    assert desk.service.pulse.epoch == desk.epoch
    assert desk.service.pulse.heard_ns is None
    assert await remembered_pulse(desk.ledger, desk.rules.account_id) == desk.service.pulse


async def test_a_new_generation_counts_from_its_first_heartbeat() -> None:
    desk = await Desk().start()
    desk.epoch = Epoch(2, 0)
    assert isinstance(await desk.beat(counter=1), Learned)
    assert desk.service.pulse.epoch == Epoch(2, 0)


async def test_a_replayed_heartbeat_is_ignored() -> None:
    desk = await Desk().start()
    text = desk.heartbeat()
    assert isinstance(desk.service.learn(text), Learned)
    desk.clock.advance(2_000)
    assert desk.service.learn(text) is Ignored.REPLAYED
    assert desk.service.epochs.age_ms(desk.clock.monotonic_ns()) == 2_000


async def test_a_heartbeat_that_took_too_long_does_not_count_as_hearing() -> None:
    desk = await Desk().start(heard=False)
    text = desk.heartbeat()
    desk.clock.advance(3_001)
    desk.service.learn(text)
    assert not desk.service.epochs.is_fresh(desk.clock.monotonic_ns())
    assert await desk.refusal(await desk.issue()) == GateCode.NO_HEARTBEAT


async def test_a_late_heartbeat_of_a_newer_epoch_still_kills_the_older() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(ttl_ms=10_000)
    late = desk.heartbeat(epoch=Epoch(1, 2), state=TradingState.HALTED, sent_ms=desk.clock.now_ms() - 3_001)
    assert isinstance(desk.service.learn(late), Learned)
    assert desk.service.pulse.epoch == Epoch(1, 2)
    assert await desk.refusal(approval_id) == GateCode.NO_HEARTBEAT


async def test_the_age_of_a_heartbeat_counts_its_way_here() -> None:
    desk = await Desk().start()
    text = desk.heartbeat()
    desk.clock.advance(1_000)
    desk.service.learn(text)
    assert desk.service.epochs.age_ms(desk.clock.monotonic_ns()) == 1_000


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"signer": make_test_signer("mallory")}, Ignored.SIGNATURE),
        ({"account_id": "paper-other"}, Ignored.ACCOUNT),
        ({"sent_ms": 1_750_000_000_251}, Ignored.FROM_FUTURE),
        ({"sent_ms": 1_750_000_000_000 - 3_001}, Ignored.STALE),
    ],
)
async def test_a_heartbeat_that_is_not_risks_is_ignored(fields: dict[str, object], why: Ignored) -> None:
    desk = await Desk().start()
    before = desk.service.pulse
    assert await desk.beat(**fields) is why
    assert desk.service.pulse == before
    assert desk.service.epochs.ignored == {why: 1}


async def test_an_approval_is_no_heartbeat_and_rubbish_is_none() -> None:
    desk = await Desk().start()
    rows = await desk.risk.rows("approvals", {"approval_id": await desk.issue()})
    assert desk.service.learn(str(rows[0]["envelope"])) is Ignored.SIGNATURE
    assert desk.service.learn("") is Ignored.SIGNATURE
    envelope = Envelope.from_json(desk.heartbeat())
    assert desk.service.learn(replace(envelope, payload=b"{}").to_json()) is Ignored.SIGNATURE


async def test_the_policy_floor_never_falls() -> None:
    desk = await Desk().start()
    await desk.beat(min_policy_version=3)
    await desk.beat(min_policy_version=2)
    assert desk.service.pulse.min_policy_version == 3
    assert await desk.refusal(await desk.issue()) == GateCode.POLICY_VERSION


async def test_a_new_epoch_binds_before_it_is_written_down() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue()
    text = desk.heartbeat(epoch=Epoch(1, 1), state=TradingState.HALTED)
    desk.service.learn(text)  # nothing was awaited, nothing is durable yet
    assert await remembered_pulse(desk.ledger, desk.rules.account_id) != desk.service.pulse
    assert await desk.refusal(approval_id) == GateCode.EPOCH


async def test_nothing_is_remembered_of_an_empty_ledger() -> None:
    desk = Desk()
    pulse = await remembered_pulse(InMemoryLedger("execution", desk.clock, desk.ids), desk.rules.account_id)
    assert (pulse.epoch, pulse.state, pulse.heard_ns) == (Epoch(0, 0), TradingState.HALTED, None)


async def test_an_epoch_that_could_not_be_written_is_written_with_the_next_heartbeat() -> None:
    desk = await Desk().start()
    desk.ledger.fail_next_commit()
    with pytest.raises(LedgerUnavailable):
        await desk.trip()
    desk.service.news.clear()
    desk.service.learn(desk.heartbeat())
    assert desk.service.news.is_set()
    await desk.service.act_on_news()
    (row,) = await desk.ledger.rows("epochs")
    assert (row["generation"], row["counter"], row["state"]) == (*desk.epoch, "halted")
