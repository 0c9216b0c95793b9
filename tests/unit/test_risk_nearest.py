"""Whatever is asked and whichever limit binds: the legal order that a denial names passes every rule."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_servers.risk.limits import RiskLimits
from mcp_servers.risk.orders import OrderRequest
from mcp_servers.risk.scopes import ScopeLimits
from mcp_servers.risk.unrest import SIZES_MIN
from tests.risk_support import DATA_ID, codes, market, open_desk, order, sell, wide_limits, wide_symbol
from trading.domain.identifiers import AgentId, TradeId
from trading.domain.market_data import Feed, Side, TradePrint
from trading.domain.proposals import OrderType
from trading.testing.builders import BTC_USDT

STEP = Decimal("0.00001")

#: Each is small enough to bind for some of the orders below.
DESK_BOUNDS: dict[str, Decimal] = {
    "gross_exposure_max": Decimal(40_000),
    "net_exposure_max": Decimal(40_000),
    "concentration_pct_max": Decimal(35),
    "leverage_max": Decimal("0.35"),
    "turnover_max": Decimal(41_000),
    "desk_turnover_max": Decimal(41_000),
    "reserved_notional_max": Decimal(20_000),
    "undecided_notional_max": Decimal(9_000),
}
SYMBOL_BOUNDS: dict[str, Decimal] = {
    "order_quantity_max": Decimal("0.15"),
    "order_notional_max": Decimal(9_000),
    "position_quantity_max": Decimal("0.62"),
    "impact_bps_max": Decimal(1),
    "collar_bps": Decimal(7),
    "symbol_turnover_max": Decimal(41_000),
    "symbol_drift_max": Decimal(36_000),
    "trade_size_multiple_max": Decimal(20),
}


@st.composite
def limits(draw: st.DrawFn) -> RiskLimits:
    """Wide limits with a few that bind, some of them set for the agent alone."""
    desk = {name: DESK_BOUNDS[name] for name in draw(st.sets(st.sampled_from(sorted(DESK_BOUNDS)), max_size=3))}
    symbol = {name: SYMBOL_BOUNDS[name] for name in draw(st.sets(st.sampled_from(sorted(SYMBOL_BOUNDS)), max_size=3))}
    agent: dict[str, Any] = {
        name: value for name, value in desk.items() if name in ScopeLimits.model_fields and draw(st.booleans())
    }
    agents = {AgentId("tester"): ScopeLimits(**agent)} if agent else {}
    kept = {name: value for name, value in desk.items() if name not in agent}
    return wide_limits(symbols={BTC_USDT: wide_symbol(**symbol)}, agents=agents, **kept)


@st.composite
def orders(draw: st.DrawFn) -> OrderRequest:
    amount = Decimal(draw(st.integers(1, 2_000_000))) / 1_000_000  # up to 2 BTC, often off the step
    price = Decimal(draw(st.integers(5_960_000, 6_060_000))) / 100
    if draw(st.integers(0, 9)) == 0:
        price += Decimal("0.003")  # off the tick
    match draw(st.sampled_from(["buy", "buy", "market", "sell", "reduce", "stop"])):
        case "buy":
            return order(amount=amount, limit_price=str(price))
        case "market":
            return market(amount)
        case "stop":
            return order(
                amount=amount,
                order_type=OrderType.STOP_LIMIT,
                stop_price="60200",
                limit_price=str(price + 300),
            )
        case kind:
            return sell(amount, limit_price=str(price), reduce_only=kind == "reduce")


class Prints:
    """A new public trade of 0.01 each time it is asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _: object) -> TradePrint:
        self.count += 1
        name = TradeId(str(self.count))
        return TradePrint(DATA_ID, name, Decimal(60_000), Decimal("0.01"), Side.BUY, self.count, 0, 0, 0, Feed.REPLAY)


async def _hold(found: RiskLimits, asked: OrderRequest) -> None:
    desk = await open_desk(cash="100000", limits=wide_limits(), last_trade=Prints())
    await desk.hold("0.5")
    await desk.ask(sell("0.1", limit_price="60150"), order(amount="0.05", limit_price="59990"))
    await desk.restart(limits=found)
    for _ in range(SIZES_MIN):
        desk.risk.frame()
    report = desk.risk.check_order(asked)
    for named in (report.max_allowed_now, report.nearest_legal):
        if named is not None:
            same = replace(asked, amount=named.quantity, limit_price=named.limit_price, stop_price=named.stop_price)
            assert desk.risk.check_order(same).passed
    if report.max_allowed_now is not None and not report.passed and report.nearest_legal is not None:
        assert report.nearest_legal.quantity <= max(report.max_allowed_now.quantity, asked.amount)
    answer = await desk.ask(asked)
    assert bool(answer.approved) == report.passed, codes(answer)
    if answer.denied and (nearest := answer.denied[0].nearest_legal) is not None:
        again = replace(asked, amount=nearest.quantity, limit_price=nearest.limit_price, stop_price=nearest.stop_price)
        assert codes(await desk.ask(again)) == set()


@settings(max_examples=150, deadline=None)
@given(found=limits(), asked=orders())
def test_the_legal_order_that_is_named_passes_every_rule(found: RiskLimits, asked: OrderRequest) -> None:
    asyncio.run(_hold(found, asked))


async def _sharp(found: RiskLimits) -> None:
    desk = await open_desk(cash="100000", limits=wide_limits(), last_trade=Prints())
    await desk.hold("0.5")
    await desk.restart(limits=found)
    for _ in range(SIZES_MIN):
        desk.risk.frame()
    asked = order(amount="0.6", limit_price="60001")
    most = desk.risk.check_order(asked).max_allowed_now
    if most is None:
        return
    assert not desk.risk.check_order(replace(asked, amount=most.quantity + STEP)).passed


@settings(max_examples=60, deadline=None)
@given(found=limits())
def test_one_step_more_than_the_most_is_denied(found: RiskLimits) -> None:
    asyncio.run(_sharp(found))
