"""Every entry is signed together with the exit that closes it; reduces carry none."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from mcp_servers.risk.assessment import Approved
from mcp_servers.risk.limits import RiskLimits, SymbolLimits
from mcp_servers.risk.payload import approval_payload
from mcp_servers.risk.protection import ProtectionLimits, floor_of
from mcp_servers.risk.rows import limits_row
from mcp_servers.risk.scopes import ScopeLimits
from tests.risk_support import Desk, market, open_desk, order, sell, wide_limits, wide_symbol
from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier, open_envelope
from trading.domain.approvals import APPROVAL_PAYLOAD_TYPE, Approval, Effect
from trading.domain.errors import InvalidValue
from trading.domain.identifiers import AgentId
from trading.domain.market_data import Side
from trading.domain.standing_exits import PROTECTION, StopPlan
from trading.testing.builders import BTC_USDT, build_exit_terms
from trading.testing.keys import make_test_signer

D = Decimal
DAY_MS = 86_400_000


def protected(**stops: Any) -> RiskLimits:
    return wide_limits(symbols={BTC_USDT: wide_symbol(protection=ProtectionLimits(**stops))})


async def one(desk: Desk, request: Any) -> Approved:
    answer = await desk.ask(request)
    assert not answer.denied, answer.denied[0].failures
    return answer.approved[0]


async def test_an_entry_is_signed_with_the_exit_that_closes_it() -> None:
    desk = await open_desk(limits=protected(stop_bps=D(300), trailing_bps=D(200), hold_max_ms=5_000))
    item = await one(desk, order())
    terms = item.approval.standing_exit
    assert terms is not None
    assert (terms.side, terms.expires_ms) == (Side.SELL, desk.clock.now_ms() + DAY_MS)
    assert terms.floor == D("30000.25")  # half of the mid
    assert terms.plan == StopPlan(stop_bps=D(300), trailing_bps=D(200), hold_max_ms=5_000)
    assert terms.floor < item.approval.band_low


async def test_the_exit_is_inside_the_one_signature() -> None:
    desk = await open_desk()
    item = await one(desk, order())
    payload = open_envelope(
        item.envelope, Ed25519Verifier.of(make_test_signer("risk").public_key), APPROVAL_PAYLOAD_TYPE
    )
    assert payload == codec.canonical(item.approval)
    assert codec.decode(Approval, payload).standing_exit == item.approval.standing_exit


@pytest.mark.parametrize("stops", [{}, {"trailing_bps": D("12.5"), "atr_multiple": D(3), "hold_max_ms": 60_000}])
async def test_the_bytes_of_an_approval_with_an_exit_are_the_canonical_ones(stops: dict[str, Any]) -> None:
    desk = await open_desk(limits=protected(**stops))
    approval = (await one(desk, market("0.5"))).approval
    bought = replace(approval, standing_exit=build_exit_terms(entry=Side.SELL))
    for each in (approval, bought, replace(approval, standing_exit=None)):
        assert approval_payload(each) == codec.canonical(each)


async def test_a_reduce_carries_no_exit_and_what_goes_beyond_the_position_does() -> None:
    desk = await open_desk()
    await desk.hold("0.5")
    reduce = (await one(desk, sell("0.5"))).approval
    assert (reduce.effect, reduce.standing_exit) == (Effect.REDUCE, None)


async def test_orders_of_one_batch_share_their_terms() -> None:
    desk = await open_desk()
    answer = await desk.ask(order(), order(amount="0.02"))
    first, second = (item.approval.standing_exit for item in answer.approved)
    assert first is second


async def test_an_exit_lives_as_long_as_the_limits_say() -> None:
    desk = await open_desk(limits=wide_limits(exit_ttl_ms=14_400_000, portfolio_loss_pct=D(5)))
    terms = (await one(desk, order())).approval.standing_exit
    assert terms is not None
    assert terms.expires_ms == desk.clock.now_ms() + 14_400_000
    assert terms.plan.portfolio_loss_pct == 5


async def test_a_scope_tightens_the_stop_and_shows_where_it_comes_from() -> None:
    limits = protected(stop_bps=D(300)).model_copy(
        update={"agents": {AgentId("tester"): ScopeLimits(stop_bps=D(100), portfolio_loss_pct=D(3))}}
    )
    desk = await open_desk(limits=limits)
    terms = (await one(desk, order())).approval.standing_exit
    assert terms is not None
    assert (terms.plan.stop_bps, terms.plan.portfolio_loss_pct) == (D(100), D(3))
    shown = limits_row(desk.risk, BTC_USDT, AgentId("tester"))
    assert (shown.values["stop_bps"], shown.sources["stop_bps"]) == ("100", "agent:tester")
    assert shown.values["floor_bps"] == "5000"
    other = limits_row(desk.risk, BTC_USDT, AgentId("other"))
    assert (other.values["stop_bps"], other.sources["stop_bps"]) == ("300", f"symbol:{BTC_USDT}")


async def test_a_scope_never_loosens_a_stop() -> None:
    limits = protected(stop_bps=D(300)).model_copy(update={"agents": {AgentId("tester"): ScopeLimits(stop_bps=D(400))}})
    desk = await open_desk(limits=limits)
    terms = (await one(desk, order())).approval.standing_exit
    assert terms is not None
    assert terms.plan.stop_bps == D(300)


@pytest.mark.parametrize(
    "stops",
    [
        {"stop_bps": D(5_000)},
        {"stop_bps": D(0)},
        {"trailing_bps": D(5_000)},
        {"trailing_bps": D(-1)},
        {"floor_bps": D(10_000)},
        {"atr_bars": 1},
        {"atr_multiple": D(0)},
        {"hold_max_ms": 0},
        {"stop_bps": 0.5},
        {"stop": D(1)},
    ],
)
def test_stops_that_could_not_work_are_refused(stops: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ProtectionLimits(**stops)


def test_a_floor_inside_the_approved_band_is_refused() -> None:
    near = SymbolLimits(protection=ProtectionLimits(stop_bps=D(50), floor_bps=D(100)))
    with pytest.raises(ValidationError, match="floor_bps"):
        RiskLimits(symbols={BTC_USDT: near})


@pytest.mark.parametrize("life_ms", [14_399_999, 7 * DAY_MS + 1])
def test_an_exit_lives_between_four_hours_and_a_week(life_ms: int) -> None:
    with pytest.raises(ValidationError):
        RiskLimits(exit_ttl_ms=life_ms)


@pytest.mark.parametrize(("side", "floor"), [(Side.SELL, D("33.34")), (Side.BUY, D("166.66"))])
def test_a_floor_is_rounded_toward_the_market(side: Side, floor: Decimal) -> None:
    assert floor_of(side, D("99.998"), D("6666.4"), D("0.01")) == floor


async def test_no_agent_may_act_under_the_name_of_the_stops() -> None:
    with pytest.raises(InvalidValue) as refused:
        order(agent_id=PROTECTION)
    assert refused.value.code == "AGENT_RESERVED"
