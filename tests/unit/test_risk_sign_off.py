"""One answer for one request: idempotent, durable before it leaves, and never beyond a limit."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from decimal import Decimal

import pytest

from mcp_servers.risk.assessment import Approved
from mcp_servers.risk.limits import RiskLimits
from mcp_servers.risk.policies.exposure import other_exposure, worst_values
from tests.risk_support import DATA_ID, USDT, Desk, codes, market, open_desk, order, sell, wide_limits, wide_symbol
from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier, Envelope, digest, open_envelope
from trading.domain.approvals import APPROVAL_PAYLOAD_TYPE, Approval, Fate
from trading.domain.errors import InvalidValue, LeaseLost, LedgerUnavailable, SignatureRefused, Unavailable
from trading.domain.events import ReservationReleased, RiskApproved, RiskDenied
from trading.domain.identifiers import (
    CLIENT_ORDER_NAMESPACE,
    AgentId,
    ApprovalId,
    Currency,
    RequestId,
    Symbol,
    Venue,
    client_order_id_for,
)
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.proposals import OrderType
from trading.testing.builders import BTC_USDT, INSTRUMENT_ID
from trading.testing.keys import make_test_signer

VERIFIER = Ed25519Verifier.of(make_test_signer("risk").public_key)


def position_limit(quantity: str) -> RiskLimits:
    return wide_limits(symbols={BTC_USDT: wide_symbol(position_quantity_max=Decimal(quantity))})


# -- what leaves ------------------------------------------------------------------------------------------------------


async def test_approval_is_signed_over_exactly_what_the_ledger_holds() -> None:
    desk = await open_desk()
    item = (await desk.ask(order(), request_id="r-1")).approved[0]
    payload = open_envelope(item.envelope, VERIFIER, APPROVAL_PAYLOAD_TYPE)
    assert codec.decode(Approval, payload) == item.approval
    (row,) = await desk.ledger.rows("approvals", {"approval_id": item.approval.approval_id})
    assert row["envelope"] == item.envelope
    assert row["request_id"] == "r-1"
    event = desk.ledger.events[-1].payload
    assert isinstance(event, RiskApproved)
    assert event.envelope == item.envelope
    expected = client_order_id_for(item.approval.approval_id, item.approval.order.venue)
    assert item.approval.order.client_order_id == row["client_order_id"] == expected


async def test_orders_of_one_request_share_a_signature_and_each_opens_alone() -> None:
    desk = await open_desk()
    asked = [order(amount="0.01"), order(amount="1000"), order(amount="0.02"), order(amount="0.03")]
    answer = await desk.ask(*asked)
    envelopes = [Envelope.from_json(item.envelope) for item in answer.approved]
    assert [isinstance(item, Approved) for item in answer.outcomes] == [True, False, True, True]
    assert len({item.signature for item in envelopes}) == 1
    for item in answer.approved:
        payload = open_envelope(item.envelope, VERIFIER, APPROVAL_PAYLOAD_TYPE)
        assert payload == item.payload == codec.canonical(item.approval)
    alone = (await desk.ask(asked[0])).approved[0]
    assert Envelope.from_json(alone.envelope).place is None


async def test_a_signer_that_fails_leaves_no_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = await open_desk()

    def broken(_: bytes) -> bytes:
        raise RuntimeError("no entropy")

    monkeypatch.setattr(desk.parts.signer, "sign", broken)
    with pytest.raises(RuntimeError):
        await desk.ask(order(amount="0.01"), order(amount="0.02"))
    assert len(desk.risk.reservations) == 0
    monkeypatch.undo()
    assert len((await desk.ask(order(amount="0.01"), order(amount="0.02"))).approved) == 2


@pytest.mark.parametrize(
    "asked",
    [
        order(),
        market("0.5"),
        order(post_only=True, limit_price="59000", agent_id="ölivier-π"),
        order(order_type=OrderType.STOP_LIMIT, stop_price="60500", limit_price="60510"),
    ],
)
async def test_signed_bytes_are_the_canonical_form(asked: object) -> None:
    desk = await open_desk()
    item = (await desk.ask(asked)).approved[0]  # type: ignore[arg-type]
    payload = open_envelope(item.envelope, VERIFIER, APPROVAL_PAYLOAD_TYPE)
    assert payload == codec.canonical(item.approval)


async def test_sums_kept_while_orders_come_and_go_equal_sums_made_anew() -> None:
    other = Symbol("ETH/BTC")
    symbols = {BTC_USDT: wide_symbol(), other: wide_symbol()}
    desk = await open_desk(limits=wide_limits(symbols=symbols), symbols=(BTC_USDT, other))
    eth = desk.market.rules[DATA_ID]
    eth_id = InstrumentId(DATA_ID.venue, other)
    rules = {"id": eth_id, "base": Currency("ETH"), "quote": Currency("BTC"), "notional_min": Decimal(0)}
    desk.market.rules[eth_id] = replace(eth, **rules)
    desk.market.books[eth_id] = replace(desk.market.books[DATA_ID], instrument_id=eth_id)
    await desk.hold("2")
    frame = desk.risk.frame()
    context, _ = desk.risk.assessor.check(frame, desk.risk.check_order(order()).intent, AgentId("a"))
    high = "60400"  # nothing of our own in the way of the buys
    asked = [
        order(),
        sell("0.5", limit_price=high),
        order(amount="0.00001", symbol=other),
        sell("0.25", limit_price=high),
        order(amount="0.3"),
    ]
    given: list[Approved] = []
    for number, one in enumerate(asked):
        given += (await desk.ask(one, request_id=f"r-{number}")).approved
        if number % 2:
            await desk.end(given.pop(0))
        for currency in (USDT, Currency("BTC"), Currency("ETH")):
            assert desk.risk.reservations.promised(currency) == _promised(desk, currency)
        assert other_exposure(context) == worst_values(frame, without=context.instrument_id)
    assert len(given) == 3


def _promised(desk: Desk, currency: Currency) -> Decimal:
    total = Decimal(0)
    for item in desk.risk.reservations:
        base, quote = item.instrument_id.symbol.split("/")
        if item.side is Side.BUY and quote == currency:
            total += item.leaves * item.unit_cost
        if item.side is Side.SELL and base == currency:
            total += item.leaves
    return total


def test_client_order_id_is_uuid5_of_the_approval() -> None:
    approval_id = ApprovalId("0197a8b2-5a55-7c3e-8a58-0a9d5c1f2e3b")
    expected = uuid.uuid5(CLIENT_ORDER_NAMESPACE, approval_id)
    assert client_order_id_for(approval_id, Venue("binance")) == expected.hex
    assert client_order_id_for(approval_id, Venue("kraken")) == str(expected)


async def test_envelope_of_another_key_does_not_verify() -> None:
    desk = await open_desk()
    item = (await desk.ask(order())).approved[0]
    with pytest.raises(SignatureRefused):
        open_envelope(item.envelope, Ed25519Verifier.of(make_test_signer("x").public_key), APPROVAL_PAYLOAD_TYPE)


async def test_policy_is_named_by_version_and_digest_of_the_logged_document() -> None:
    desk = await open_desk()
    approval = (await desk.ask(order())).approved[0].approval
    (row,) = await desk.ledger.rows("policies")
    assert approval.policy_version == row["version"] == 1
    assert approval.policy_digest == row["digest"] == digest(str(row["document"]).encode())


# -- limits under concurrency -----------------------------------------------------------------------------------------


async def test_hundred_requests_each_inside_never_exceed_the_limit_together() -> None:
    desk = await open_desk(limits=position_limit("0.255"))
    answers = await asyncio.gather(*(desk.ask(order(amount="0.01")) for _ in range(100)))
    approved = [item for answer in answers for item in answer.approved]
    assert len(approved) == 25
    assert desk.risk.reservations.exposure(INSTRUMENT_ID).buy_open == Decimal("0.25")
    denied = [answer for answer in answers if answer.denied]
    assert all(codes(answer) == {"POSITION_MAX"} for answer in denied)


async def test_batch_shares_one_headroom_and_names_each_failure() -> None:
    desk = await open_desk(limits=position_limit("1"))
    answer = await desk.ask(*(order(amount="0.01") for _ in range(256)))
    assert len(answer.outcomes) == 256
    assert len(answer.approved) == 100
    assert len({item.approval.approval_id for item in answer.approved}) == 100
    assert len(desk.ledger.events) >= 256


async def test_two_agents_share_the_accounts_limit() -> None:
    desk = await open_desk(limits=position_limit("0.015"))
    assert (await desk.ask(order(agent_id="a"))).approved
    assert codes(await desk.ask(order(agent_id="b"))) == {"POSITION_MAX"}


@pytest.mark.parametrize("count", [0, 257])
async def test_size_of_a_batch_is_bounded(count: int) -> None:
    desk = await open_desk()
    with pytest.raises(InvalidValue, match="1 to 256"):
        await desk.ask(*(order() for _ in range(count)))


# -- idempotency ------------------------------------------------------------------------------------------------------


async def test_fifty_concurrent_requests_with_one_id_make_one_approval() -> None:
    desk = await open_desk()
    answers = await asyncio.gather(*(desk.ask(order(), request_id="same") for _ in range(50)))
    assert len({answer.approved[0].envelope for answer in answers}) == 1
    assert len(await desk.ledger.rows("approvals")) == 1
    assert len(desk.risk.reservations) == 1
    assert sum(not answer.replayed for answer in answers) == 1


async def test_same_content_gets_the_stored_answer_after_a_restart() -> None:
    desk = await open_desk()
    first = await desk.ask(order(), order(amount="50"), request_id="same")
    await desk.restart()
    again = await desk.ask(order(), order(amount="50"), request_id="same")
    assert again.replayed
    assert [item.approval for item in again.approved] == [item.approval for item in first.approved]
    assert again.denied == first.denied
    assert len(desk.risk.reservations) == 1


async def test_denial_is_the_stored_answer_too() -> None:
    desk = await open_desk()
    await desk.risk.trip("test", "test")
    first = await desk.ask(order(), request_id="same")
    await desk.risk.live.breaker.reset("test", "operator:test")
    again = await desk.ask(order(), request_id="same")
    assert again.denied == first.denied
    assert len([e for e in desk.ledger.events if isinstance(e.payload, RiskDenied)]) == 1


@pytest.mark.parametrize("restart", [False, True])
async def test_other_content_under_the_same_id_is_refused(restart: bool) -> None:
    desk = await open_desk()
    await desk.ask(order(), request_id="same")
    if restart:
        await desk.restart()
    with pytest.raises(InvalidValue) as caught:
        await desk.ask(order(amount="0.02"), request_id="same")
    assert caught.value.code == "REQUEST_ID_REUSED"
    assert len(desk.risk.reservations) == 1


async def test_other_content_while_the_first_is_under_way_is_refused() -> None:
    desk = await open_desk()
    results = await asyncio.gather(
        desk.ask(order(), request_id="same"), desk.ask(order(amount="0.02"), request_id="same"), return_exceptions=True
    )
    assert isinstance(results[1], InvalidValue)
    assert len(desk.risk.reservations) == 1


async def test_request_ids_of_two_principals_do_not_meet() -> None:
    desk = await open_desk()
    await desk.ask(order(), request_id="same", principal="a")
    answer = await desk.ask(order(amount="0.02"), request_id="same", principal="b")
    assert answer.approved
    assert not answer.replayed


async def test_caller_that_goes_away_finds_its_answer_again() -> None:
    desk = await open_desk()
    task = asyncio.create_task(desk.ask(order(), request_id="same"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    again = await desk.ask(order(), request_id="same")
    assert again.replayed
    assert len(desk.risk.reservations) == 1


# -- durability -------------------------------------------------------------------------------------------------------


async def test_no_signature_leaves_when_the_commit_fails_and_the_reservation_is_held_until_settled() -> None:
    desk = await open_desk()
    desk.ledger.fail_next_commit(LedgerUnavailable("lost"))
    with pytest.raises(Unavailable) as caught:
        await desk.ask(order(), request_id="same")
    assert caught.value.code == "COMMIT_UNKNOWN"
    assert len(desk.risk.reservations) == 1  # nobody knows yet
    await desk.risk.live.sign_off.settle()
    assert len(desk.risk.reservations) == 0
    assert desk.risk.reservations.exposure(INSTRUMENT_ID).buy_cost == 0
    with pytest.raises(InvalidValue) as voided:
        await desk.ask(order(), request_id="same")
    assert voided.value.code == "REQUEST_VOID"


async def test_commit_that_landed_without_an_answer_keeps_its_reservation_and_can_be_fetched() -> None:
    desk = await open_desk()
    desk.ledger.fail_next_commit(LedgerUnavailable("answer lost"), written=True)
    with pytest.raises(Unavailable):
        await desk.ask(order(), request_id="same")
    await desk.risk.live.sign_off.settle()
    assert len(desk.risk.reservations) == 1
    again = await desk.ask(order(), request_id="same")
    assert again.replayed
    assert desk.risk.reservations.get(again.approved[0].approval.approval_id) is not None


async def test_retry_that_wins_leaves_only_its_own_reservation() -> None:
    """The first commit failed, the retry landed before anybody looked: the first promise must not count for ever."""
    desk = await open_desk()
    desk.ledger.fail_next_commit(LedgerUnavailable("lost"))
    with pytest.raises(Unavailable):
        await desk.ask(order(), request_id="same")
    item = (await desk.ask(order(), request_id="same")).approved[0]
    assert len(desk.risk.reservations) == 2
    await desk.risk.live.sign_off.settle()
    assert [r.approval_id for r in desk.risk.reservations] == [item.approval.approval_id]


async def test_unsettled_commits_wait_for_the_ledger() -> None:
    desk = await open_desk()
    desk.ledger.fail_next_commit(LedgerUnavailable("lost"))
    with pytest.raises(Unavailable):
        await desk.ask(order())
    desk.ledger.fail_next_commit(LedgerUnavailable("still down"))
    await desk.risk.live.sign_off.settle()
    assert len(desk.risk.reservations) == 1
    assert desk.risk.live.sign_off.uncertain == 1


async def test_risk_that_lost_its_lease_signs_nothing_more() -> None:
    desk = await open_desk()
    desk.ledger.successor()
    with pytest.raises(LeaseLost):
        await desk.ask(order())
    assert len(desk.risk.reservations) == 0
    with pytest.raises(Unavailable, match="another process"):
        await desk.ask(order())


async def test_order_that_contradicts_itself_reserves_nothing_for_its_neighbours() -> None:
    desk = await open_desk()
    with pytest.raises(InvalidValue):
        await desk.ask(order(), order(limit_price=None))
    assert len(desk.risk.reservations) == 0


# -- reservations end on evidence only --------------------------------------------------------------------------------


async def test_reservation_outlives_its_approvals_expiry() -> None:
    desk = await open_desk(limits=position_limit("0.015"))
    item = (await desk.ask(order())).approved[0]
    desk.clock.advance(600_000)
    await desk.refresh()
    await desk.risk.tick()
    assert item.approval.expires_ms < desk.clock.now_ms()
    assert codes(await desk.ask(order())) == {"POSITION_MAX"}
    await desk.end(item, Fate.LAPSED)
    assert (await desk.ask(order())).approved
    releases = [e.payload for e in desk.ledger.events if isinstance(e.payload, ReservationReleased)]
    assert [(r.approval_id, r.evidence) for r in releases] == [(item.approval.approval_id, "lapsed")]
    (row,) = await desk.ledger.rows("approvals", {"approval_id": item.approval.approval_id})
    assert row["state"] == "released"


async def test_voided_releases_and_consumed_does_not() -> None:
    desk = await open_desk()
    one, two = (await desk.ask(order(), order(amount="0.02"))).approved
    await desk.end(one, Fate.VOIDED)
    await desk.consume(two)
    assert [r.approval_id for r in desk.risk.reservations] == [two.approval.approval_id]


async def test_fill_moves_quantity_from_promise_to_position_in_one_step() -> None:
    desk = await open_desk()
    item = (await desk.ask(order(amount="1"))).approved[0]
    await desk.consume(item)
    await desk.fill(item, "0.4")
    exposure = desk.risk.reservations.exposure(INSTRUMENT_ID)
    assert exposure.buy_open == Decimal("0.6")
    assert exposure.buy_cost == Decimal("0.6") * Decimal(60001) * Decimal("1.001")
    assert desk.risk.portfolio.held(INSTRUMENT_ID) == Decimal("0.4")
    await desk.cancel(item)
    assert len(desk.risk.reservations) == 0
    assert desk.risk.portfolio.held(INSTRUMENT_ID) == Decimal("0.4")


async def test_late_fill_after_a_cancel_still_counts_as_position_and_alarms() -> None:
    desk = await open_desk(limits=position_limit("1"))
    item = (await desk.ask(order(amount="1"))).approved[0]
    await desk.consume(item)
    await desk.cancel(item)
    await desk.fill(item, "0.9")
    assert desk.risk.portfolio.held(INSTRUMENT_ID) == Decimal("0.9")
    assert codes(await desk.ask(order(amount="0.2"))) == {"POSITION_MAX"}
    assert "FILL_AFTER_END" in [getattr(e.payload, "code", "") for e in desk.ledger.events]


async def test_order_that_risk_never_signed_counts_and_alarms() -> None:
    desk = await open_desk(limits=position_limit("1"))
    other = await open_desk()
    stranger = (await other.ask(order(amount="0.9"))).approved[0]
    await desk.consume(stranger)
    assert codes(await desk.ask(order(amount="0.2"))) == {"POSITION_MAX"}
    assert "ORDER_WITHOUT_APPROVAL" in [getattr(e.payload, "code", "") for e in desk.ledger.events]


@pytest.mark.parametrize("clean", [True, False])
async def test_restart_rebuilds_every_open_reservation(clean: bool) -> None:
    desk = await open_desk(limits=position_limit("2"))
    unused, working, done, gone = (await desk.ask(*(order(amount="0.5") for _ in range(4)))).approved
    await desk.consume(working)
    await desk.fill(working, "0.2")
    await desk.consume(done)
    await desk.fill(done, "0.5")
    await desk.end(gone)
    before = desk.risk.reservations.exposure(INSTRUMENT_ID)
    await desk.restart(clean=clean)
    after = desk.risk.reservations.exposure(INSTRUMENT_ID)
    assert {r.approval_id for r in desk.risk.reservations} == {
        unused.approval.approval_id,
        working.approval.approval_id,
    }
    assert (after.buy_open, after.buy_cost, after.sell_open) == (before.buy_open, before.buy_cost, before.sell_open)
    assert after.buy_open == Decimal("0.8")
    assert desk.risk.portfolio.held(INSTRUMENT_ID) == Decimal("0.7")
    assert codes(await desk.ask(order(amount="0.51"))) == {"POSITION_MAX"}
    assert (await desk.ask(order(amount="0.5"))).approved


async def test_release_that_could_not_be_written_is_written_later() -> None:
    desk = await open_desk()
    item = (await desk.ask(order())).approved[0]
    desk.ledger.fail_next_commit(LedgerUnavailable("down"))
    await desk.end(item)
    assert len(desk.risk.reservations) == 0
    await desk.risk.tick()
    (row,) = await desk.ledger.rows("approvals", {"approval_id": item.approval.approval_id})
    assert row["state"] == "released"


async def test_asking_for_release_counts_until_execution_has_voided_it() -> None:
    desk = await open_desk()
    item = (await desk.ask(order())).approved[0]
    report = await desk.risk.release_approval(item.approval.approval_id)
    assert report.state == "release_requested"
    assert len(desk.risk.reservations) == 1
    await desk.restart(clean=False)
    assert len(desk.risk.reservations) == 1
    await desk.end(item, Fate.VOIDED)
    assert len(desk.risk.reservations) == 0
    assert (await desk.risk.get_approval(item.approval.approval_id)).state == "released"


async def test_fate_is_told_as_execution_wrote_it() -> None:
    desk = await open_desk()
    item = (await desk.ask(order())).approved[0]
    assert (await desk.risk.get_approval(item.approval.approval_id)).fate == ""
    order_id = await desk.consume(item)
    report = await desk.risk.get_approval(item.approval.approval_id)
    assert (report.fate, report.order_id) == ("consumed", order_id)
    with pytest.raises(InvalidValue, match="no approval"):
        await desk.risk.get_approval(ApprovalId("nothing"))


async def test_account_of_another_desk_is_refused() -> None:
    desk = await open_desk()
    with pytest.raises(InvalidValue) as caught:
        await desk.risk.request_approval("local", RequestId("r"), (order(account_id="other"),))
    assert caught.value.code == "WRONG_ACCOUNT"


async def test_sum_of_reservations_is_exactly_zero_when_nothing_is_open() -> None:
    desk = await open_desk()
    await desk.hold("1")
    items = (await desk.ask(order(amount="0.12345"), sell("0.3", limit_price="60400"), market("0.00777"))).approved
    assert len(items) == 3
    for item in items:
        await desk.end(item)
    exposure = desk.risk.reservations.exposure(INSTRUMENT_ID)
    assert (exposure.buy_open, exposure.sell_open, exposure.buy_cost) == (0, 0, 0)
    assert desk.risk.reservations.agent(items[0].approval.agent_id).notional == 0
    assert desk.risk.reservations.agent(items[0].approval.agent_id).unused == 0


async def test_asking_in_invented_names_leaves_nothing_behind() -> None:
    desk = await open_desk(limits=wide_limits(desk_rate_per_s=1_000, desk_burst=1_000))
    before = len(desk.risk.reservations.exposures())
    for number in range(50):
        answer = await desk.ask(order(symbol=f"X{number}/USDT", agent_id=f"agent-{number}"), request_id=f"n-{number}")
        assert answer.denied
        desk.risk.check_order(order(symbol=f"Y{number}/USDT", agent_id=f"other-{number}"))
    assert len(desk.risk.reservations.exposures()) == before
    assert len(desk.risk.reservations._by_agent) == 0
