"""Orders that wait for the operator: what waits, what is told, and what an answer does at the moment it comes."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from mcp_servers.risk.operator_commands import OperatorAnswer
from mcp_servers.risk.sign_off import Answer
from tests.risk_support import Desk, codes, market, open_desk, order, sell, wide_limits, wide_symbol
from tests.unit.test_risk_decisions import Bundle, pinned
from trading.adapters.signing import Ed25519Verifier
from trading.domain.denials import Rule
from trading.domain.errors import InvalidValue, LedgerUnavailable, TradingError, Unavailable
from trading.domain.events import HumanAnswered, HumanAsked, RiskApproved
from trading.domain.identifiers import ApprovalId
from trading.domain.pending import PendingHuman, PendingState
from trading.domain.proposals import Mode, OrderType, TimeInForce
from trading.testing.builders import ACCOUNT, BTC_USDT
from trading.testing.keys import make_test_signer

OPERATOR = Ed25519Verifier.of(make_test_signer("operator").public_key)
BOUND = {"unattended_notional_max": Decimal(1_000)}


async def desk_of(**limits: Any) -> Desk:
    return await open_desk(limits=wide_limits(**{**BOUND, **limits}), operator=OPERATOR)


def waiting(answer: Answer) -> PendingHuman:
    (item,) = answer.pending
    assert not answer.approved
    assert not answer.denied
    return item


async def say(desk: Desk, item: PendingHuman | str, *overrides: Rule, approve: bool = True) -> tuple[PendingState, str]:
    answer = OperatorAnswer(
        command_id=desk.ids.new_id(),
        desk="desk",
        account_id=ACCOUNT,
        pending_id=item if isinstance(item, str) else item.pending_id,
        approve=approve,
        overrides=overrides,
        reason="looks right",
        by="ann",
        issued_ms=desk.clock.now_ms(),
    )
    return await desk.risk.live.people.hear(answer)


def answered(desk: Desk) -> list[HumanAnswered]:
    return [each.payload for each in desk.ledger.events if isinstance(each.payload, HumanAnswered)]


async def state_of(desk: Desk, item: PendingHuman) -> str:
    return (await desk.risk.get_approval(ApprovalId(item.pending_id))).state


async def test_order_over_the_human_bound_waits_and_reserves_nothing() -> None:
    desk = await desk_of()
    item = waiting(await desk.ask(order(amount="0.02"), request_id="r"))
    assert len(desk.risk.reservations) == 0
    assert [each.rule for each in item.unmet] == [Rule.AUTHORITY]
    assert item.unmet[0].limit == "1000"
    assert {each.rule for each in item.rules} >= {Rule.POSITION_MAX, Rule.BALANCE_FREE}
    assert item.expires_ms == desk.clock.now_ms() + 900_000
    assert [each.payload for each in desk.ledger.events if isinstance(each.payload, HumanAsked)] == [
        HumanAsked(pending=item)
    ]
    assert await state_of(desk, item) == "pending"
    again = await desk.ask(order(amount="0.02"), request_id="r")
    assert again.replayed
    assert waiting(again) == item
    assert (await desk.ask(order(amount="0.01"))).approved


async def test_a_check_says_that_the_order_would_wait_and_not_that_it_would_be_denied() -> None:
    desk = await desk_of()
    report = desk.risk.check_order(order(amount="0.02"))
    assert [item.rule for item in report.results if not item.passed] == [Rule.AUTHORITY]
    assert "waits for the operator" in next(item.message for item in report.results if not item.passed)
    strict = await desk_of(authority="denied")
    denied = strict.risk.check_order(order(amount="0.02"))
    assert not any("waits" in item.message for item in denied.results)


async def test_yes_judges_again_and_signs_for_a_short_time() -> None:
    desk = await desk_of()
    item = waiting(await desk.ask(order(amount="0.02"), request_id="r"))
    desk.clock.advance(600_000)
    await desk.refresh()
    state, approval_id = await say(desk, item)
    assert state is PendingState.APPROVED
    report = await desk.risk.get_approval(ApprovalId(item.pending_id))
    assert report.approved is not None
    approval = report.approved.approval
    assert (approval.approval_id, approval.request_id, report.state) == (approval_id, "r", "approved")
    assert approval.expires_ms == desk.clock.now_ms() + 10_000
    assert approval.order.quantity == Decimal("0.02")
    assert len(desk.risk.reservations) == 1
    (event,) = answered(desk)
    assert (event.approval_id, event.by, event.reason) == (approval_id, "operator:ann", "looks right")


async def test_second_answer_finds_the_question_closed() -> None:
    desk = await desk_of()
    item = waiting(await desk.ask(order(amount="0.02")))
    await say(desk, item)
    for approve in (True, False):
        assert (await say(desk, item, approve=approve))[0] is PendingState.APPROVED
    assert len(desk.risk.reservations) == 1
    assert len(answered(desk)) == 1


async def test_refused_expired_and_withdrawn_orders_stay_closed() -> None:
    desk = await desk_of()
    refused, expired, withdrawn = [waiting(await desk.ask(order(amount=f"0.0{n}"))) for n in (2, 3, 4)]
    assert (await say(desk, refused, approve=False))[0] is PendingState.REFUSED
    assert (await desk.risk.release_approval(ApprovalId(withdrawn.pending_id), "bob")).state == "withdrawn"
    desk.clock.advance(900_000)
    await desk.refresh()
    assert await state_of(desk, expired) == "expired"  # already before it is written
    assert (await say(desk, expired))[0] is PendingState.EXPIRED
    await desk.risk.tick()
    assert [(e.state.value, e.by) for e in answered(desk)] == [
        ("refused", "operator:ann"),
        ("withdrawn", "bob"),
        ("expired", "risk"),
    ]
    for item in (refused, expired, withdrawn):
        assert (await say(desk, item))[0] is not PendingState.APPROVED
    assert len(desk.risk.reservations) == 0
    assert not [e for e in desk.ledger.events if isinstance(e.payload, RiskApproved)]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda d: d.price([("58000", "50")], [("58001", "50")]), Rule.PRICE_COLLAR),
        (lambda d: d.clock.advance(60_000), Rule.MARKET_STALE),
        (lambda d: d.risk.live.breaker.trip("stop", "test"), Rule.TRADING_STATE),
    ],
    ids=["price moved", "market silent", "halted"],
)
async def test_rule_that_fails_at_the_moment_of_the_yes_refuses_with_its_reason(change: Any, rule: Rule) -> None:
    desk = await desk_of()
    item = waiting(await desk.ask(order(amount="0.02")))
    found = change(desk)
    if found is not None and hasattr(found, "__await__"):
        await found
    state, why = await say(desk, item)
    assert state is PendingState.REFUSED
    assert rule.value in why
    assert rule in [failure.rule for failure in answered(desk)[0].failures]
    assert len(desk.risk.reservations) == 0


async def test_market_order_is_never_signed_beyond_the_price_that_was_shown() -> None:
    desk = await desk_of()
    item = waiting(await desk.ask(market("0.02")))
    assert item.price_limit == Decimal("60300.50")  # 50 bps above the mid
    desk.price([("60100", "50")], [("60101", "50")])
    await say(desk, item)
    report = await desk.risk.get_approval(ApprovalId(item.pending_id))
    assert report.approved is not None
    terms = report.approved.approval.order
    assert (terms.order_type, terms.time_in_force) == (OrderType.LIMIT, TimeInForce.IOC)
    assert terms.limit_price == Decimal("60300.50")  # and not 60401, the edge of now
    other = waiting(await desk.ask(market("0.02")))
    desk.price([("60900", "50")], [("60901", "50")])
    state, why = await say(desk, other)
    assert state is PendingState.REFUSED
    assert "MARKET_DEPTH" in why


async def test_question_outlives_risk_and_is_still_answered_once() -> None:
    desk = await desk_of()
    item = waiting(await desk.ask(order(amount="0.02"), request_id="r"))
    await desk.restart(clean=False)
    await desk.refresh()
    assert waiting(await desk.ask(order(amount="0.02"), request_id="r")) == item
    assert (await say(desk, item))[0] is PendingState.APPROVED
    await desk.restart(clean=False)
    assert (await say(desk, item))[0] is PendingState.APPROVED
    assert len(answered(desk)) == 1


@pytest.mark.parametrize("written", [True, False])
async def test_lost_commit_of_a_yes_is_one_approval_or_none(written: bool) -> None:
    desk = await desk_of()
    item = waiting(await desk.ask(order(amount="0.02")))
    desk.ledger.fail_next_commit(written=written)
    with pytest.raises(Unavailable):
        await say(desk, item)
    await desk.risk.live.sign_off.settle()
    assert len(desk.risk.reservations) == (1 if written else 0)
    if written:
        assert (await say(desk, item))[0] is PendingState.APPROVED
    else:
        with pytest.raises(TradingError) as caught:
            await say(desk, item)
        assert caught.value.code == "REQUEST_VOID"
        desk.clock.advance(900_000)
        await desk.risk.tick()
        assert await state_of(desk, item) == "expired"
    assert len(answered(desk)) == 1


async def test_lost_commit_of_a_question_leaves_no_ghost_in_the_counts() -> None:
    desk = await desk_of(pending_agent_max=1)
    desk.ledger.fail_next_commit(LedgerUnavailable("down"))
    with pytest.raises(Unavailable):
        await desk.ask(order(amount="0.02"), request_id="lost")
    assert "AUTHORITY" in codes(await desk.ask(order(amount="0.03")))  # it may have landed, so it counts
    await desk.risk.live.sign_off.settle()
    waiting(await desk.ask(order(amount="0.03")))


async def test_nobody_can_bury_the_operator_in_questions() -> None:
    desk = await desk_of(pending_agent_max=2, pending_max=3)
    batch = await desk.ask(*[order(amount=f"0.0{n}") for n in (2, 3, 4)])
    assert [type(item).__name__ for item in batch.outcomes] == ["PendingHuman", "PendingHuman", "RiskDenial"]
    assert "too many orders wait" in batch.denied[0].failures[0].message
    assert batch.denied[0].nearest_legal is not None  # what needs nobody
    waiting(await desk.ask(order(amount="0.02", agent_id="other")))
    assert codes(await desk.ask(order(amount="0.02", agent_id="third"))) == {"AUTHORITY"}
    await say(desk, batch.pending[0], approve=False)
    waiting(await desk.ask(order(amount="0.02", agent_id="third")))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"authority": "none"}, "approved"),
        ({"authority": "vote"}, "pending"),
        ({"authority": "human"}, "pending"),
        ({"authority": "vote_and_human"}, "denied"),
        ({"authority": "denied"}, "denied"),
        ({"agents": {"tester": {"authority": "denied"}}}, "denied"),
        ({"agents": {"other": {"authority": "denied"}}}, "approved"),
        ({"accounts": {str(ACCOUNT): {"authority": "human"}}}, "pending"),
        ({"modes": {"paper": {"authority": "human"}}, "authority": "vote"}, "pending"),
        ({"modes": {"paper": {"authority": "none"}}, "authority": "denied"}, "denied"),
        ({"symbols": {BTC_USDT: wide_symbol(symbol_authority="denied")}, "authority": "vote"}, "denied"),
        ({"undecided_notional_max": Decimal(100)}, "pending"),
        ({"undecided_modes": ()}, "pending"),
    ],
)
async def test_strictest_of_all_scopes_says_who_must_agree(limits: dict[str, Any], expected: str) -> None:
    desk = await desk_of(**limits)
    answer = await desk.ask(order())
    assert {"approved": answer.approved, "pending": answer.pending, "denied": answer.denied}[expected]
    if answer.denied:
        assert codes(answer) == {"AUTHORITY"}


async def test_exit_needs_nobody_whatever_the_limits_say() -> None:
    desk = await open_desk(limits=wide_limits(), operator=OPERATOR)
    await desk.hold("0.1")
    await desk.restart(limits=wide_limits(authority="denied"))
    await desk.refresh()
    assert (await desk.ask(sell("0.1"))).approved


async def test_live_desk_by_default_needs_a_decision_or_the_operator() -> None:
    desk = await open_desk(limits=wide_limits(), mode=Mode.LIVE, operator=OPERATOR)
    item = waiting(await desk.ask(order()))
    assert item.unmet[0].message == "needs a decision of the vote (decision_id), or the operator's word"
    assert (await say(desk, item))[0] is PendingState.APPROVED


async def test_without_an_operators_key_nobody_is_asked() -> None:
    desk = await open_desk(limits=wide_limits(**BOUND))
    assert codes(await desk.ask(order(amount="0.02"))) == {"AUTHORITY"}


async def test_what_something_else_forbids_does_not_wait() -> None:
    desk = await desk_of()
    assert codes(await desk.ask(order(amount="0.02", limit_price="66000"))) == {"AUTHORITY", "PRICE_COLLAR"}


async def test_vote_is_not_enough_above_the_human_bound_and_both_may_be_asked_for() -> None:
    for authority in ("none", "vote_and_human"):
        limits = wide_limits(**BOUND, authority=authority)
        desk = await open_desk(limits=limits, keys=pinned(), operator=OPERATOR)
        vote = await Bundle(desk).write()
        item = waiting(await vote.ask())
        assert item.decision_id == "d-1"
        assert item.expires_ms == desk.clock.now_ms() + 2_000  # with the proposal
        assert not await desk.ledger.rows("decisions_used")
        assert (await say(desk, item))[0] is PendingState.APPROVED
        (used,) = await desk.ledger.rows("decisions_used")
        assert used["proposal_id"] == "p-1"
        approval = (await desk.risk.get_approval(ApprovalId(item.pending_id))).approved
        assert approval is not None
        assert approval.approval.decision_id == "d-1"
        assert approval.approval.expires_ms == desk.clock.now_ms() + 2_000


async def test_two_questions_about_one_proposal_are_one_approval() -> None:
    desk = await open_desk(limits=wide_limits(**BOUND), keys=pinned(), operator=OPERATOR)
    vote = await Bundle(desk).write()
    first, second = [waiting(await vote.ask(request_id=name)) for name in ("one", "two")]
    assert (await say(desk, first))[0] is PendingState.APPROVED
    state, why = await say(desk, second)
    assert state is PendingState.REFUSED
    assert "PROPOSAL_USED" in why
    assert len(desk.risk.reservations) == 1


# -- override -------------------------------------------------------------------------------------------------------

SMALL = {"symbols": {BTC_USDT: wide_symbol(order_quantity_max=Decimal("0.015"))}}


async def test_operator_overrides_a_named_rule_for_one_order_and_it_is_written_down() -> None:
    desk = await desk_of(**SMALL, overridable=["ORDER_QUANTITY_MAX"], unattended_notional_max=None)
    item = waiting(await desk.ask(order(amount="0.02")))
    assert [each.rule for each in item.unmet] == [Rule.ORDER_QUANTITY_MAX]
    state, _ = await say(desk, item, Rule.ORDER_QUANTITY_MAX)
    assert state is PendingState.APPROVED
    (event,) = answered(desk)
    assert [(r.rule.value, r.limit, r.observed) for r in event.overridden] == [("ORDER_QUANTITY_MAX", "0.015", "0.02")]
    waiting(await desk.ask(order(amount="0.02")))  # the next one needs its own word


async def test_yes_without_the_override_refuses() -> None:
    desk = await desk_of(**SMALL, overridable=["ORDER_QUANTITY_MAX"])
    item = waiting(await desk.ask(order(amount="0.02")))
    state, why = await say(desk, item)
    assert (state, "ORDER_QUANTITY_MAX" in why) == (PendingState.REFUSED, True)


async def test_only_what_the_limits_name_can_be_overridden() -> None:
    desk = await desk_of(**SMALL, overridable=["TURNOVER_MAX"])
    assert "ORDER_QUANTITY_MAX" in codes(await desk.ask(order(amount="0.02")))
    other = await desk_of(overridable=["TURNOVER_MAX"])
    asked = waiting(await other.ask(order(amount="0.02")))
    with pytest.raises(InvalidValue) as caught:
        await say(other, asked, Rule.POSITION_MAX)
    assert caught.value.code == "NOT_OVERRIDABLE"
    assert await state_of(other, asked) == "pending"


@pytest.mark.parametrize(
    "rule", ["TRADING_STATE", "MARKET_STALE", "BALANCE_FREE", "PRICE_TICK", "REDUCE_ONLY", "AUTHORITY"]
)
def test_truth_is_not_overridable(rule: str) -> None:
    with pytest.raises(ValueError, match="no operator may override"):
        wide_limits(overridable=[rule])


async def test_scope_takes_an_override_away() -> None:
    desk = await desk_of(**SMALL, overridable=["ORDER_QUANTITY_MAX"], agents={"tester": {"overridable": []}})
    assert "ORDER_QUANTITY_MAX" in codes(await desk.ask(order(amount="0.02")))
