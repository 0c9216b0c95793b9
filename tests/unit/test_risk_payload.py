"""The bytes of an approval that are written directly are the ones the reference gives."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from mcp_servers.risk.payload import approval_payload
from trading.adapters import codec
from trading.domain.approvals import Approval, ApprovedOrder, Effect, Epoch
from trading.domain.market_data import Side
from trading.domain.proposals import Mode, OrderType, TimeInForce
from trading.domain.standing_exits import ExitTerms, StopPlan
from trading.testing.builders import build_approval

TEXT: Any = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.decimals(min_value="-1e23", max_value="1e23", allow_nan=False, allow_infinity=False)
WHOLE = st.integers(0, 2**53 - 1)


def maybe(strategy: Any) -> Any:
    return st.none() | strategy


PLANS = st.builds(
    StopPlan,
    stop_bps=NUMBERS,
    trailing_bps=maybe(NUMBERS),
    atr_multiple=maybe(NUMBERS),
    atr_bars=WHOLE,
    atr_bar_ms=WHOLE,
    hold_max_ms=maybe(WHOLE),
    portfolio_loss_pct=maybe(NUMBERS),
)
ORDERS = st.builds(
    ApprovedOrder,
    account_id=TEXT,
    venue=TEXT,
    symbol=TEXT,
    client_order_id=TEXT,
    side=st.sampled_from(Side),
    order_type=st.sampled_from(OrderType),
    time_in_force=st.sampled_from(TimeInForce),
    quantity=NUMBERS,
    limit_price=maybe(NUMBERS),
    stop_price=maybe(NUMBERS),
    post_only=st.booleans(),
    reduce_only=st.booleans(),
)
APPROVALS = st.builds(
    Approval,
    approval_id=TEXT,
    request_id=TEXT,
    decision_id=maybe(TEXT),
    agent_id=TEXT,
    mode=st.sampled_from(Mode),
    order=ORDERS,
    effect=st.sampled_from(Effect),
    band_low=NUMBERS,
    band_high=NUMBERS,
    max_notional=NUMBERS,
    policy_version=WHOLE,
    policy_digest=TEXT,
    epoch=st.builds(Epoch, WHOLE, WHOLE),
    risk_score=NUMBERS,
    issued_ms=WHOLE,
    expires_ms=WHOLE,
    key_id=TEXT,
    standing_exit=maybe(st.builds(ExitTerms, side=st.sampled_from(Side), floor=NUMBERS, plan=PLANS, expires_ms=WHOLE)),
)


@given(APPROVALS)
def test_the_bytes_of_any_approval_are_the_canonical_ones(approval: Approval) -> None:
    assert approval_payload(approval) == codec.canonical(approval)


@given(APPROVALS, APPROVALS)
def test_approvals_that_share_an_exit_spell_it_alike(first: Approval, second: Approval) -> None:
    shared = replace(second, standing_exit=first.standing_exit)
    for each in (first, shared, second, first):
        assert approval_payload(each) == codec.canonical(each)


def test_an_approval_has_no_field_that_the_bytes_leave_out() -> None:
    data = orjson.loads(approval_payload(build_approval(key_id="k")))
    assert set(data) == {field.name for field in fields(Approval)}
    assert set(data["order"]) == {field.name for field in fields(ApprovedOrder)}
    assert set(data["standing_exit"]) == {field.name for field in fields(ExitTerms)}
    assert set(data["standing_exit"]["plan"]) == {field.name for field in fields(StopPlan)}
