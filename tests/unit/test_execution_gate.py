"""The attacks on the gate: whatever is altered, late, replayed or out of place reaches no venue."""

from __future__ import annotations

import base64
import json
from dataclasses import fields, replace
from decimal import Decimal
from typing import Any

import pytest

from mcp_servers.execution.gate import GateCode
from tests.execution_support import RISK, Desk, sealed
from trading.adapters import codec
from trading.adapters.signing import Envelope, seal, seal_together
from trading.domain.approvals import (
    APPROVAL_PAYLOAD_TYPE,
    HEARTBEAT_PAYLOAD_TYPE,
    Approval,
    ApprovedOrder,
    Effect,
    Epoch,
    TradingState,
)
from trading.domain.market_data import Side
from trading.domain.orders import OrderStatus
from trading.domain.proposals import Mode, OrderType
from trading.domain.standing_exits import EXIT_LIFE_MAX_MS, ExitTerms, StopPlan
from trading.testing.builders import build_book, build_exit_terms
from trading.testing.keys import make_test_signer

D = Decimal
NOW_MS = 1_750_000_000_000


async def _refused(desk: Desk, code: GateCode, approval_id: str) -> None:
    """Assert the refusal, and that neither the venue nor the ledger has seen anything."""
    before = len(desk.ledger.events)
    assert await desk.refusal(approval_id) == code.value
    assert desk.faulty.handed_over == []
    assert len(desk.ledger.events) == before
    assert await desk.ledger.rows("approval_fates") == []


def _other(value: Any) -> Any:
    """Return a different value of the same JSON type."""
    match value:
        case bool():
            return not value
        case str() if value.replace(".", "").isdigit():
            return str(Decimal(value) + 1)
        case str():
            return value + "x"
        case int():
            return value + 1
        case list():
            return [_other(value[0]), *value[1:]]
        case dict():
            first = next(iter(value))
            return {**value, first: _other(value[first])}
        case None:
            return "1"
        case _:
            raise AssertionError(value)


TOP = [field.name for field in fields(Approval) if field.name != "order"]
INNER = [
    *(f"order.{field.name}" for field in fields(ApprovedOrder)),
    *(f"standing_exit.{field.name}" for field in fields(ExitTerms)),
    *(f"standing_exit.plan.{field.name}" for field in fields(StopPlan)),
]


@pytest.mark.parametrize("path", [*TOP, *INNER])
async def test_an_approval_with_one_field_altered_is_refused(path: str) -> None:
    desk = await Desk().start()
    approval = desk.approval()
    envelope = Envelope.from_json(sealed(approval))
    data = json.loads(envelope.payload)
    *parts, name = path.split(".")
    holder = data
    for part in parts:
        holder = holder[part]
    holder[name] = _other(holder[name])
    forged = replace(envelope, payload=codec.canonical_json(data)).to_json()
    await _refused(desk, GateCode.SIGNATURE, await desk.issue(approval, envelope=forged))


async def test_an_approval_signed_by_another_key_is_refused() -> None:
    desk = await Desk().start()
    other = make_test_signer("mallory")
    approval = desk.approval()
    await _refused(desk, GateCode.KEY, await desk.issue(approval, envelope=sealed(approval, other)))


async def test_another_key_under_the_pinned_key_id_is_refused() -> None:
    desk = await Desk().start()
    approval = desk.approval()
    envelope = Envelope.from_json(sealed(approval, make_test_signer("mallory")))
    forged = replace(envelope, key_id=RISK.key_id).to_json()
    await _refused(desk, GateCode.SIGNATURE, await desk.issue(approval, envelope=forged))


async def test_a_payload_that_names_another_key_is_refused() -> None:
    desk = await Desk().start()
    await _refused(desk, GateCode.KEY, await desk.issue(changes={"key_id": "0" * 16}))


@pytest.mark.parametrize("cut", [1, 2, 10, 100, 400])
async def test_a_truncated_envelope_is_refused(cut: int) -> None:
    desk = await Desk().start()
    approval = desk.approval()
    await _refused(desk, GateCode.ENVELOPE, await desk.issue(approval, envelope=sealed(approval)[:-cut]))


@pytest.mark.parametrize("how", ["spaces", "order", "extra", "second", "base64"])
async def test_a_re_encoded_envelope_is_refused(how: str) -> None:
    desk = await Desk().start()
    approval = desk.approval()
    text = sealed(approval)
    data = json.loads(text)
    if how == "spaces":
        forged = json.dumps(data, indent=1)
    elif how == "order":
        forged = json.dumps(dict(reversed(data.items())), separators=(",", ":"))
    elif how == "extra":
        forged = json.dumps({**data, "note": "x"}, separators=(",", ":"))
    elif how == "second":
        forged = json.dumps({**data, "signatures": data["signatures"] * 2}, separators=(",", ":"))
    else:
        payload = base64.urlsafe_b64encode(base64.b64decode(data["payload"])).decode().rstrip("=") + "\n"
        forged = json.dumps({**data, "payload": payload}, separators=(",", ":"))
    assert forged != text
    await _refused(desk, GateCode.ENVELOPE, await desk.issue(approval, envelope=forged))


async def test_approvals_that_were_signed_together_are_good_one_by_one() -> None:
    desk = await Desk().start()
    approvals = [desk.approval() for _ in range(3)]
    texts = seal_together([codec.canonical(item) for item in approvals], APPROVAL_PAYLOAD_TYPE, RISK)
    for approval, envelope in reversed(list(zip(approvals, texts, strict=True))):
        await desk.order(await desk.issue(approval, envelope=envelope.to_json()))


@pytest.mark.parametrize("how", ["payload", "number", "path", "cut", "alone"])
async def test_an_approval_in_the_place_of_another_is_refused(how: str) -> None:
    desk = await Desk().start()
    approvals = [desk.approval() for _ in range(3)]
    first, second, _ = seal_together([codec.canonical(item) for item in approvals], APPROVAL_PAYLOAD_TYPE, RISK)
    assert first.place is not None
    assert second.place is not None
    forged = {
        "payload": replace(first, place=second.place),
        "number": replace(first, place=first.place._replace(number=2)),
        "path": replace(first, place=first.place._replace(path=first.place.path[::-1])),
        "cut": replace(first, place=first.place._replace(path=first.place.path[:-32])),
        "alone": replace(first, place=None),
    }[how]
    await _refused(desk, GateCode.SIGNATURE, await desk.issue(approvals[0], envelope=forged.to_json()))


async def test_a_well_signed_payload_in_another_spelling_is_refused() -> None:
    desk = await Desk().start()
    approval = desk.approval()
    spelled = json.dumps(json.loads(codec.canonical(approval)), indent=1).encode()
    envelope = seal(spelled, APPROVAL_PAYLOAD_TYPE, RISK).to_json()
    await _refused(desk, GateCode.PAYLOAD_FORM, await desk.issue(approval, envelope=envelope))


async def test_an_unknown_field_in_a_signed_payload_is_refused() -> None:
    desk = await Desk().start()
    approval = desk.approval()
    data = {**json.loads(codec.canonical(approval)), "note": "x"}
    envelope = seal(codec.canonical_json(data), APPROVAL_PAYLOAD_TYPE, RISK).to_json()
    await _refused(desk, GateCode.PAYLOAD_FORM, await desk.issue(approval, envelope=envelope))


@pytest.mark.parametrize("kind", [HEARTBEAT_PAYLOAD_TYPE, APPROVAL_PAYLOAD_TYPE.replace("v=1", "v=2")])
async def test_another_payload_type_is_refused(kind: str) -> None:
    desk = await Desk().start()
    approval = desk.approval()
    envelope = seal(codec.canonical(approval), kind, RISK).to_json()
    await _refused(desk, GateCode.PAYLOAD_TYPE, await desk.issue(approval, envelope=envelope))


async def test_the_envelope_of_another_approval_is_refused() -> None:
    desk = await Desk().start()
    asked, held = desk.approval(), desk.approval()
    await _refused(desk, GateCode.ORDER_MISMATCH, await desk.issue(asked, envelope=sealed(held)))


async def test_an_unknown_approval_is_refused() -> None:
    desk = await Desk().start()
    await _refused(desk, GateCode.NOT_FOUND, "approval-of-nobody")


@pytest.mark.parametrize(
    ("fields_", "code"),
    [
        ({"changes": {"mode": Mode.LIVE}}, GateCode.MODE),
        ({"changes": {"mode": Mode.TESTNET}}, GateCode.MODE),
        ({"account_id": "paper-other"}, GateCode.ACCOUNT),
        ({"venue": "kraken"}, GateCode.VENUE),
        ({"ttl_ms": 120_001}, GateCode.TTL_TOO_LONG),
        ({"epoch": Epoch(1, 1)}, GateCode.EPOCH),
        ({"epoch": Epoch(0, 9)}, GateCode.EPOCH),
        ({"epoch": Epoch(2, 0)}, GateCode.EPOCH),
        ({"changes": {"policy_version": 0}}, GateCode.POLICY_VERSION),
        ({"changes": {"band_low": D("60001")}}, GateCode.PRICE_BAND),
        ({"changes": {"max_notional": D("600.00")}}, GateCode.ORDER_MISMATCH),
        ({"limit_price": "60301"}, GateCode.ORDER_MISMATCH),
        ({"side": Side.SELL, "limit_price": "59699"}, GateCode.ORDER_MISMATCH),
        ({"quantity": "0.010001"}, GateCode.ORDER_MISMATCH),
        ({"limit_price": "60000.001"}, GateCode.ORDER_MISMATCH),
        ({"order_type": OrderType.MARKET, "limit_price": None}, GateCode.ORDER_MISMATCH),
        ({"side": Side.SELL, "effect": Effect.REDUCE, "limit_price": "60000"}, GateCode.REDUCE_ONLY),
        ({"side": Side.SELL, "reduce_only": True, "limit_price": "60000"}, GateCode.REDUCE_ONLY),
    ],
)
async def test_a_well_signed_approval_out_of_place_is_refused(fields_: dict[str, Any], code: GateCode) -> None:
    desk = await Desk().start()
    await _refused(desk, code, await desk.issue(**fields_))


@pytest.mark.parametrize(
    "terms",
    [
        None,
        {"side": Side.BUY},
        {"floor": D("59700")},
        {"floor": D(0)},
        {"floor": D("30000.001")},
        {"side": Side.BUY, "floor": D("90000")},
        {"expires_ms": NOW_MS + 3_000},
        {"expires_ms": NOW_MS + EXIT_LIFE_MAX_MS + 1},
    ],
)
async def test_an_increase_without_an_exit_that_fits_it_is_refused(terms: dict[str, Any] | None) -> None:
    desk = await Desk().start()
    assert desk.clock.now_ms() == NOW_MS
    exit_terms = None if terms is None else replace(build_exit_terms(now_ms=NOW_MS), **terms)
    await _refused(desk, GateCode.STANDING_EXIT, await desk.issue(changes={"standing_exit": exit_terms}))


async def test_an_exit_that_buys_back_lies_above_the_band() -> None:
    desk = await Desk().start()
    await desk.bought("0.5")
    bad = build_exit_terms(entry=Side.SELL, floor="60300", now_ms=desk.clock.now_ms())
    sale = {"side": Side.SELL, "limit_price": "60000", "quantity": "0.6"}
    assert await desk.refusal(await desk.issue(**sale, changes={"standing_exit": bad})) == GateCode.STANDING_EXIT


async def test_a_reduce_with_an_exit_of_its_own_is_refused() -> None:
    desk = await Desk().start()
    await desk.bought()
    terms = build_exit_terms(entry=Side.SELL, now_ms=desk.clock.now_ms())
    assert await desk.refusal(await desk.exit(changes={"standing_exit": terms})) == GateCode.STANDING_EXIT


async def test_a_client_order_id_that_is_not_the_approvals_is_refused() -> None:
    desk = await Desk().start()
    approval = desk.approval()
    approval = replace(approval, order=replace(approval.order, client_order_id=desk.approval().order.client_order_id))
    await _refused(desk, GateCode.ORDER_MISMATCH, await desk.issue(approval))


async def test_an_expired_approval_is_refused_at_the_millisecond() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(ttl_ms=1_000)
    await desk.tick(1_000)
    await _refused(desk, GateCode.EXPIRED, approval_id)


async def test_an_approval_is_good_until_the_millisecond_before() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(ttl_ms=1_000)
    await desk.tick(999)
    await desk.order(approval_id)


async def test_an_approval_from_the_future_is_refused() -> None:
    desk = await Desk().start()
    await _refused(desk, GateCode.FROM_FUTURE, await desk.issue(now_ms=desk.clock.now_ms() + 251))


async def test_an_approval_within_the_clock_skew_is_taken() -> None:
    desk = await Desk().start()
    await desk.order(await desk.issue(now_ms=desk.clock.now_ms() + 250))


async def test_a_wall_clock_that_is_set_back_gives_an_approval_no_second_life() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(ttl_ms=1_000)
    await desk.follow_risk()
    desk.clock.advance(1_000)
    desk.clock._now_ns -= 900_000_000  # the wall clock steps back ...
    desk.clock._start_ns -= 900_000_000  # ... the monotonic one does not
    desk.refresh()
    await desk.beat()
    await _refused(desk, GateCode.TTL_MONOTONIC, approval_id)


async def test_a_stale_price_is_refused() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(ttl_ms=10_000)
    desk.clock.advance(2_001)
    await desk.beat()
    await _refused(desk, GateCode.PRICE_STALE, approval_id)


@pytest.mark.parametrize("bids", [[], [("60001", "1")]])
async def test_a_book_that_cannot_price_is_refused(bids: list[tuple[str, str]]) -> None:
    desk = await Desk().start()
    desk.prices.current = build_book(bids=bids, now_ms=desk.clock.now_ms())
    await _refused(desk, GateCode.PRICE_STALE, await desk.issue())


async def test_no_book_at_all_is_refused() -> None:
    desk = await Desk().start()
    desk.prices.current = None
    await _refused(desk, GateCode.PRICE_STALE, await desk.issue())


async def test_a_market_outside_the_band_is_refused() -> None:
    desk = await Desk().start()
    desk.show(build_book([("60400", "1")], [("60401", "1")], now_ms=desk.clock.now_ms()))
    await _refused(desk, GateCode.PRICE_BAND, await desk.issue())


async def test_a_stop_limit_far_below_the_market_is_not_kept_from_protecting_a_position() -> None:
    desk = await Desk().start()
    await desk.bought("0.5")
    stop = {"order_type": OrderType.STOP_LIMIT, "stop_price": "57000", "limit_price": "56900"}
    order = await desk.order(await desk.exit(**stop))
    assert (order.status, order.terms.stop_price) == (OrderStatus.ACCEPTED, D("57000"))


async def test_a_plain_limit_outside_the_band_is_refused() -> None:
    desk = await Desk().start()
    await _refused(desk, GateCode.ORDER_MISMATCH, await desk.issue(limit_price="70000"))


async def test_nothing_is_sent_before_the_first_heartbeat() -> None:
    desk = await Desk().start(heard=False)
    await _refused(desk, GateCode.NO_HEARTBEAT, await desk.issue())


async def test_an_increase_is_refused_when_risk_fell_silent() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(ttl_ms=10_000)
    desk.clock.advance(3_001)
    desk.refresh()
    await _refused(desk, GateCode.HEARTBEAT_STALE, approval_id)


async def test_a_reduce_is_sent_though_risk_fell_silent() -> None:
    desk = await Desk().start()
    await desk.bought()
    approval_id = await desk.exit(ttl_ms=10_000)
    desk.clock.advance(3_001)
    desk.refresh()
    await desk.order(approval_id)


@pytest.mark.parametrize("state", [TradingState.REDUCING, TradingState.HALTED, TradingState.FROZEN])
async def test_an_increase_is_refused_unless_trading_is_active(state: TradingState) -> None:
    desk = await Desk().start()
    await desk.trip(state)
    await _refused(desk, GateCode.STATE, await desk.issue())


@pytest.mark.parametrize(
    ("state", "sent"), [(TradingState.REDUCING, True), (TradingState.HALTED, True), (TradingState.FROZEN, False)]
)
async def test_a_reduce_is_sent_unless_frozen(state: TradingState, sent: bool) -> None:
    desk = await Desk().start()
    await desk.bought()
    await desk.trip(state)
    approval_id = await desk.exit()
    if sent:
        await desk.order(approval_id)
    else:
        assert await desk.refusal(approval_id) == GateCode.STATE


async def test_an_approval_of_an_earlier_epoch_dies_with_the_trip_and_the_reset() -> None:
    desk = await Desk().start()
    approval_id = await desk.issue(ttl_ms=60_000)
    await desk.trip(TradingState.HALTED)
    await desk.trip(TradingState.ACTIVE)
    await _refused(desk, GateCode.EPOCH, approval_id)


async def test_two_exits_in_one_batch_cannot_sell_the_position_twice() -> None:
    desk = await Desk().start()
    await desk.bought("0.5")
    first, second = await desk.exit("0.3"), await desk.exit("0.3")
    outcomes = await desk.service.submit([first, second])
    assert [getattr(outcome, "code", "sent") for outcome in outcomes] == ["sent", GateCode.REDUCE_ONLY]


async def test_an_exit_counts_working_exits() -> None:
    desk = await Desk().start()
    await desk.bought("0.5")
    await desk.order(await desk.exit("0.3"))
    assert await desk.refusal(await desk.exit("0.3")) == GateCode.REDUCE_ONLY
    await desk.order(await desk.exit("0.2"))


async def test_a_refused_exit_leaves_the_position_reducible() -> None:
    desk = await Desk().start()
    await desk.bought("0.5")
    assert await desk.refusal(await desk.exit("0.5", changes={"policy_version": 0})) == GateCode.POLICY_VERSION
    await desk.order(await desk.exit("0.5"))
