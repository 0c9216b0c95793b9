"""The checks beyond a single order's own terms: pass, deny, the boundary between, and deny when nothing is known."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from mcp_servers.risk.assessment import Approved
from mcp_servers.risk.limits import RiskLimits
from mcp_servers.risk.orders import OrderRequest
from mcp_servers.risk.policies import exposure, portfolio, price
from mcp_servers.risk.policies import size as size_rules
from mcp_servers.risk.policies.pipeline import RuleFunction
from mcp_servers.risk.pricing import build_context
from mcp_servers.risk.scopes import ScopeLimits
from mcp_servers.risk.unrest import SIZES_MIN, Unrest
from tests.risk_support import BINANCE, DATA_ID, Desk, codes, market, open_desk, order, sell, wide_limits, wide_symbol
from trading.domain.approvals import TradingState
from trading.domain.denials import Rule
from trading.domain.events import AlarmRaised
from trading.domain.identifiers import AgentId, TradeId, Venue
from trading.domain.market_data import Feed, Side, TradePrint
from trading.domain.proposals import OrderType, TimeInForce
from trading.testing.builders import BTC_USDT

Setup = Callable[[Desk], Awaitable[object]]
TESTER = AgentId("tester")


def symbol_limits(**changes: Any) -> RiskLimits:
    return wide_limits(symbols={BTC_USDT: wide_symbol(**changes)})


async def nothing(desk: Desk) -> None:
    pass


async def first(desk: Desk, *orders: OrderRequest) -> list[Approved]:
    answer = await desk.ask(*(orders or (order(),)))
    assert not answer.denied, codes(answer)
    return answer.approved


async def one_open(desk: Desk) -> None:
    await first(desk)


async def spread(desk: Desk, bid: str, ask: str) -> None:
    desk.price([(bid, "50")], [(ask, "50")])


async def moved(desk: Desk) -> None:
    """100 bps up and back again between two orders: only the wick remembers."""
    desk.risk.frame()
    desk.price([("60600.5", "50")], [("60600.51", "50")])
    desk.risk.frame()
    desk.price()


async def entered(desk: Desk, count: int, agent_id: str = "tester") -> None:
    for _ in range(count):
        (item,) = await first(desk, order(agent_id=agent_id))
        await desk.consume(item)
        await desk.fill(item, "0.01")


async def trade(desk: Desk, profit: str, agent_id: str = "tester") -> None:
    """Buy at 60001 and sell so much a coin dearer."""
    (item,) = await first(desk, order(agent_id=agent_id))
    await desk.consume(item)
    await desk.fill(item, "0.01")
    (item,) = await first(desk, sell(agent_id=agent_id))
    await desk.consume(item)
    await desk.fill(item, "0.01", price=str(Decimal(60001) + Decimal(profit)))


async def lost_a_fifth(desk: Desk) -> None:
    """10 coins bought at 60001, now worth 20,000 less each: 200,010 lost of a million."""
    await first(desk, order(amount="10"))
    (item,) = desk.risk.reservations
    approved = (await desk.risk.get_approval(item.approval_id)).approved
    assert approved is not None
    await desk.consume(approved)
    await desk.fill(approved, "10")
    desk.risk.frame()
    desk.price([("40000", "50")], [("40000.01", "50")])


#: name, rule, limits, what happens first, an order that passes at the boundary, and one just beyond it
BOUNDARIES: list[tuple[str, Rule, RiskLimits, Setup, OrderRequest, OrderRequest]] = [
    (
        "venue",
        Rule.VENUE_RESTRICTED,
        wide_limits(agents={TESTER: ScopeLimits(venues=(BINANCE,))}),
        nothing,
        order(agent_id="other"),
        order(),
    ),
    (
        "time in force",
        Rule.TIME_IN_FORCE,
        wide_limits(times_in_force=(TimeInForce.GTC,)),
        nothing,
        order(),
        order(time_in_force=TimeInForce.IOC),
    ),
    (
        "agent's turnover",
        Rule.TURNOVER_MAX,
        wide_limits(turnover_max=Decimal("1200.02")),
        one_open,
        order(),
        order(limit_price="60001.01"),
    ),
    (
        "desk's turnover",
        Rule.TURNOVER_MAX,
        wide_limits(desk_turnover_max=Decimal("1200.02")),
        one_open,
        order(agent_id="other"),
        order(agent_id="other", limit_price="60001.01"),
    ),
    (
        "symbol's turnover",
        Rule.TURNOVER_MAX,
        symbol_limits(symbol_turnover_max=Decimal("1200.02")),
        one_open,
        order(),
        order(limit_price="60001.01"),
    ),
    (
        "drift",
        Rule.DRIFT_MAX,
        symbol_limits(symbol_drift_max=Decimal("1200.02")),
        one_open,
        order(),
        order(limit_price="60001.01"),
    ),
    (
        "open orders of the symbol",
        Rule.OPEN_ORDERS_MAX,
        symbol_limits(symbol_open_orders_max=3),
        lambda desk: first(desk, order(), order()),
        order(),
        order(),
    ),
    (
        "open orders of the desk",
        Rule.OPEN_ORDERS_MAX,
        wide_limits(desk_open_orders_max=3),
        lambda desk: first(desk, order(), order()),
        order(),
        order(),
    ),
    (
        "open orders of the venue",
        Rule.OPEN_ORDERS_MAX,
        wide_limits(venue_open_orders_max=3),
        lambda desk: first(desk, order(), order()),
        order(),
        order(),
    ),
    (
        "net exposure",
        Rule.EXPOSURE_NET_MAX,
        wide_limits(net_exposure_max=Decimal("1200.02")),
        one_open,
        order(),
        order(limit_price="60001.01"),
    ),
    (
        "concentration",
        Rule.CONCENTRATION_MAX,
        wide_limits(concentration_pct_max=Decimal("6.0001")),
        nothing,
        order(amount="1"),
        order(amount="1.00001"),
    ),
    (
        "leverage",
        Rule.LEVERAGE_MAX,
        wide_limits(leverage_max=Decimal("0.060001")),
        nothing,
        order(amount="1"),
        order(amount="1.00001"),
    ),
]


@pytest.mark.parametrize(
    ("rule", "limits", "setup", "within", "beyond"), [b[1:] for b in BOUNDARIES], ids=[b[0] for b in BOUNDARIES]
)
async def test_a_rule_passes_on_its_boundary_and_denies_one_step_beyond(
    rule: Rule, limits: RiskLimits, setup: Setup, within: OrderRequest, beyond: OrderRequest
) -> None:
    desk = await open_desk(limits=limits)
    await setup(desk)
    report = desk.risk.check_order(within)
    assert report.passed, [result for result in report.results if not result.passed]
    if within == beyond:  # a count: the order that reaches the boundary is the one before
        await first(desk, within)
    assert codes(await desk.ask(beyond)) == {rule.value}


# -- exposure with missing data ---------------------------------------------------------------------------------------

MISSING: list[tuple[Rule, RuleFunction, dict[str, Any]]] = [
    (Rule.EXPOSURE_NET_MAX, exposure.exposure_net_max, {}),
    (Rule.CONCENTRATION_MAX, exposure.concentration_max, {"concentration_pct_max": Decimal(50)}),
    (Rule.LEVERAGE_MAX, exposure.leverage_max, {"leverage_max": Decimal(1)}),
    (Rule.DRAWDOWN_MAX, portfolio.drawdown_max, {}),
    (Rule.UNRESOLVED_ORDERS_MAX, portfolio.unresolved_orders_max, {}),
    (Rule.SPREAD_MAX, price.spread_max, {}),
    (Rule.VOLATILITY_MAX, price.volatility_max, {}),
]


@pytest.mark.parametrize(("rule", "judge", "limits"), MISSING, ids=[str(m[0]) for m in MISSING])
async def test_a_rule_denies_when_it_has_nothing_to_judge_by(
    rule: Rule, judge: RuleFunction, limits: dict[str, Any]
) -> None:
    desk = await open_desk(limits=wide_limits(**limits))
    frame = desk.risk.frame()
    intent = desk.risk.check_order(order()).intent
    assert judge(build_context(frame, intent, TESTER, decided=False)).passed
    blind = {item: replace(found, mid=None, book=None, unrest=Unrest()) for item, found in frame.markets.items()}
    nothing_known = replace(frame, markets=blind, equity=None, drawdown_pct=None, unresolved=None, others={})
    result = judge(build_context(nothing_known, intent, TESTER, decided=False))
    assert (result.rule, result.passed, result.observed) == (rule, False, "")


async def test_limits_of_a_symbol_that_has_none_deny() -> None:
    desk = await open_desk(limits=wide_limits(symbols={"ETH/USDT": wide_symbol()}))
    missing = {Rule.TURNOVER_MAX, Rule.DRIFT_MAX, Rule.OPEN_ORDERS_MAX, Rule.SPREAD_MAX, Rule.VOLATILITY_MAX}
    assert missing <= {Rule(code) for code in codes(await desk.ask(order()))}


# -- the market's unrest ----------------------------------------------------------------------------------------------


async def test_a_spread_at_its_limit_passes_and_a_wider_one_denies() -> None:
    desk = await open_desk(limits=symbol_limits(spread_bps_max=Decimal(10)))
    await spread(desk, "59970", "60030")
    assert desk.risk.check_order(order(limit_price="60030")).passed
    await spread(desk, "59970", "60030.01")
    assert codes(await desk.ask(order(limit_price="60030"))) == {"SPREAD_MAX"}


async def test_a_wick_between_two_orders_counts_until_it_leaves_the_window() -> None:
    desk = await open_desk(limits=symbol_limits(move_bps_max=Decimal(99)))
    await moved(desk)
    assert codes(await desk.ask(order())) == {"VOLATILITY_MAX"}
    desk.clock.advance(61_000)
    await desk.refresh()
    assert desk.risk.check_order(order()).passed


async def test_a_move_of_exactly_the_limit_passes() -> None:
    desk = await open_desk(limits=symbol_limits(move_bps_max=Decimal(100)))
    await spread(desk, "59999", "60001")
    desk.risk.frame()
    await spread(desk, "60599", "60601")
    assert desk.risk.check_order(order(limit_price="60600")).passed
    await spread(desk, "60599", "60601.02")
    assert codes(await desk.ask(order(limit_price="60600"))) >= {"VOLATILITY_MAX"}


def _print(number: int, quantity: str) -> TradePrint:
    return TradePrint(
        DATA_ID, TradeId(str(number)), Decimal(60_000), Decimal(quantity), Side.BUY, number, 0, 0, 0, Feed.REPLAY
    )


async def test_an_order_is_measured_by_the_median_public_trade_once_enough_were_seen() -> None:
    prints: list[TradePrint] = []
    limits = symbol_limits(trade_size_multiple_max=Decimal(10))
    desk = await open_desk(limits=limits, last_trade=lambda _: prints[-1] if prints else None)
    assert codes(await desk.ask(order())) == {"TRADE_SIZE_MULTIPLE"}  # nothing seen is no permission
    for number in range(SIZES_MIN):
        prints.append(_print(number, "0.01" if number % 4 else "50"))  # some whales do not change what is usual
        desk.risk.frame()
    assert desk.risk.check_order(order(amount="0.1")).passed
    answer = await desk.ask(order(amount="0.10001"))
    assert codes(answer) == {"TRADE_SIZE_MULTIPLE"}
    assert (nearest := answer.denied[0].nearest_legal) is not None
    assert nearest.quantity == Decimal("0.1")


async def test_without_a_bound_on_trade_sizes_nothing_is_asked_of_the_feed() -> None:
    desk = await open_desk()
    context = build_context(desk.risk.frame(), desk.risk.check_order(order()).intent, TESTER, decided=False)
    assert size_rules.trade_size_multiple(context).passed
    assert size_rules.usual_size(context) is None


# -- lately -----------------------------------------------------------------------------------------------------------


async def test_turnover_counts_what_was_approved_and_never_used_until_the_window_has_passed() -> None:
    desk = await open_desk(limits=wide_limits(turnover_max=Decimal(1_000)))
    (item,) = await first(desk)
    await desk.end(item)
    assert codes(await desk.ask(order())) == {"TURNOVER_MAX"}
    desk.clock.advance(61_001)
    await desk.refresh()
    assert desk.risk.check_order(order()).passed


async def test_sells_count_as_turnover_and_against_drift() -> None:
    desk = await open_desk(limits=symbol_limits(symbol_drift_max=Decimal(1_300)))
    await entered(desk, 2)
    assert codes(await desk.ask(order())) == {"DRIFT_MAX"}
    await first(desk, sell("0.01", limit_price="60400"))
    assert desk.risk.check_order(order()).passed
    assert desk.risk.portfolio.activity.flow.desk.turnover > Decimal(1_800)


async def test_turnover_of_approvals_and_of_orders_survives_a_restart() -> None:
    desk = await open_desk(limits=wide_limits(turnover_max=Decimal(1_300)))
    (used, _) = await first(desk, order(), order())
    await desk.consume(used)
    await desk.fill(used, "0.01")
    await desk.restart(clean=False)
    assert desk.risk.portfolio.activity.flow.desk.turnover == Decimal("1200.02")
    assert codes(await desk.ask(order())) == {"TURNOVER_MAX"}


async def test_an_agent_that_enters_too_often_stays_stopped_until_the_operator_resumes() -> None:
    desk = await open_desk(limits=wide_limits(entries_max=3))
    await entered(desk, 3)
    assert desk.risk.check_order(order()).passed  # three are allowed
    await entered(desk, 1)
    assert codes(await desk.ask(order())) == {"REPEATED_EXECUTION"}
    assert desk.risk.check_order(order(agent_id="other")).passed
    alarms = [event.payload.code for event in desk.ledger.events if isinstance(event.payload, AlarmRaised)]
    assert alarms == ["REPEATED_EXECUTION"]
    desk.clock.advance(3_600_000)
    await desk.refresh()
    assert codes(await desk.ask(order())) == {"REPEATED_EXECUTION"}  # time does not heal it
    assert (await desk.ask(sell("0.01", limit_price="60400"))).approved  # and it traps no exit
    await desk.restart(clean=False)
    assert codes(await desk.ask(order())) == {"REPEATED_EXECUTION"}  # nor does a restart
    live = desk.risk.live
    live.memory.rearm(desk.risk.portfolio.activity, desk.clock.now_ms())
    assert desk.risk.check_order(order()).passed
    await desk.risk.tick()
    await desk.restart(clean=False)
    assert desk.risk.check_order(order()).passed  # a person's word outlives a restart too


async def test_entries_that_are_far_enough_apart_stop_nobody() -> None:
    desk = await open_desk(limits=wide_limits(entries_max=1, entries_window_ms=1_000))
    for _ in range(4):
        await entered(desk, 1)
        desk.clock.advance(1_001)
        await desk.refresh()
    assert desk.risk.check_order(order()).passed


async def test_a_partly_filled_order_is_one_entry() -> None:
    desk = await open_desk(limits=wide_limits(entries_max=1))
    (item,) = await first(desk)
    await desk.consume(item)
    for _ in range(5):
        await desk.fill(item, "0.001")
    assert desk.risk.check_order(order()).passed


async def test_losing_orders_in_a_row_stop_their_agent_until_it_wins_or_time_passes() -> None:
    desk = await open_desk(limits=wide_limits(loss_streak_max=2, daily_loss_max=Decimal(10_000)))
    await trade(desk, "-1")
    assert desk.risk.check_order(order()).passed
    await trade(desk, "-1")
    assert codes(await desk.ask(order())) == {"LOSS_STREAK"}
    assert desk.risk.check_order(order(agent_id="other")).passed
    desk.clock.advance(86_400_001)
    await desk.refresh()
    assert desk.risk.check_order(order()).passed
    await trade(desk, "-1")
    await trade(desk, "5")
    await trade(desk, "-1")
    assert desk.risk.check_order(order()).passed


# -- the account ------------------------------------------------------------------------------------------------------


async def test_a_drawdown_denies_from_its_limit_on_and_a_restart_does_not_forgive_it() -> None:
    limits = wide_limits(drawdown_pct_max=Decimal("20.0"), daily_loss_max=Decimal(1_000_000))
    desk = await open_desk(limits=limits)
    await lost_a_fifth(desk)
    frame = desk.risk.frame()
    assert frame.drawdown_pct is not None
    assert Decimal(20) < frame.drawdown_pct < Decimal("20.01")
    assert codes(await desk.ask(order(limit_price="40000"))) == {"DRAWDOWN_MAX"}
    await desk.risk.tick()
    await desk.restart()
    desk.price([("40000", "50")], [("40000.01", "50")])
    assert codes(await desk.ask(order(limit_price="40000"))) == {"DRAWDOWN_MAX"}
    desk.price([("40100", "50")], [("40100.01", "50")])
    assert desk.risk.check_order(order(limit_price="40100")).passed


async def test_orders_of_unknown_outcome_deny_new_risk_beyond_their_limit() -> None:
    desk = await open_desk(limits=wide_limits(unresolved_orders_max=1))
    await desk.hold("0.5")
    for unresolved, expected in ((1, set[str]()), (2, {"UNRESOLVED_ORDERS_MAX"})):
        desk.clock.advance(1)
        desk.risk.hear_execution(
            sent_ms=desk.clock.now_ms(), ledger_seq=len(desk.execution.events), unresolved=unresolved, safe=True
        )
        assert codes(await desk.ask(order())) == expected
    assert (await desk.ask(sell("0.5"))).approved


# -- conduct ----------------------------------------------------------------------------------------------------------


async def test_a_buy_may_not_reach_our_own_resting_sell() -> None:
    desk = await open_desk()
    await desk.hold("1")
    (resting,) = await first(desk, sell("0.5", limit_price="60100"))
    assert desk.risk.check_order(order(limit_price="60099.99")).passed
    answer = await desk.ask(order(limit_price="60100"))
    assert codes(answer) == {"SELF_TRADE"}
    nearest = answer.denied[0].nearest_legal
    assert nearest is not None
    assert (nearest.limit_price, nearest.quantity) == (Decimal("60099.99"), Decimal("0.01"))
    assert codes(await desk.ask(market())) == {"SELF_TRADE"}
    await desk.end(resting)
    assert desk.risk.check_order(order(limit_price="60100")).passed


async def test_an_exit_and_an_order_that_does_not_rest_are_no_self_trade() -> None:
    desk = await open_desk()
    await desk.hold("1")
    await first(desk, order(limit_price="60000.5"))
    assert (await desk.ask(sell("0.2", limit_price="60000"))).approved  # an exit is never trapped
    desk = await open_desk()
    await desk.hold("1")
    stop = sell("0.2", order_type=OrderType.STOP_LIMIT, stop_price="59000", limit_price="58900")
    await first(desk, sell("0.2", time_in_force=TimeInForce.IOC), stop)
    assert desk.risk.check_order(order(limit_price="60001")).passed


async def test_refused_orders_use_up_the_rate_and_exits_are_counted_but_not_stopped() -> None:
    desk = await open_desk(limits=wide_limits(order_rate_per_s=1, order_burst=3))
    await desk.hold("1")
    assert "QUANTITY_RANGE" in codes(await desk.ask(order(amount="9001")))
    assert (await desk.ask(sell("0.1", limit_price="60400"))).approved
    assert codes(await desk.ask(order())) == {"ORDER_RATE"}
    assert (await desk.ask(sell("0.1", limit_price="60400"))).approved


@pytest.mark.parametrize("limit", ["symbol_rate_per_s", "venue_rate_per_s"])
async def test_symbol_and_venue_have_rates_of_their_own_for_all_agents_together(limit: str) -> None:
    desk = await open_desk(limits=wide_limits(**{limit: 2}))
    await first(desk, order(agent_id="one"), order(agent_id="two"))
    assert codes(await desk.ask(order(agent_id="three"))) == {"ORDER_RATE"}
    desk.clock.advance(500)
    assert (await desk.ask(order(agent_id="three"))).approved


async def test_in_reducing_state_an_order_that_would_flip_the_position_is_denied() -> None:
    desk = await open_desk()
    await desk.hold("0.5")
    await desk.risk.live.breaker.trip("test", "test", TradingState.REDUCING)
    assert codes(await desk.ask(sell("0.50001"))) >= {"TRADING_STATE"}
    assert (await desk.ask(sell("0.5"))).approved


# -- every denial of the new rules spares exits -----------------------------------------------------------------------


async def test_no_limit_of_this_kind_traps_an_exit() -> None:
    limits = wide_limits(
        symbols={BTC_USDT: wide_symbol(spread_bps_max=Decimal("0.001"), move_bps_max=Decimal("0.001"))},
        times_in_force=(TimeInForce.IOC,),
        agents={TESTER: ScopeLimits(venues=(Venue("elsewhere"),), symbols=())},
        turnover_max=Decimal(1),
        net_exposure_max=Decimal(1),
        concentration_pct_max=Decimal("0.001"),
        leverage_max=Decimal("0.001"),
        drawdown_pct_max=Decimal("0.0001"),
        desk_open_orders_max=1,
        unresolved_orders_max=0,
    )
    desk = await open_desk()
    await desk.hold("1")
    await desk.restart(limits=limits)
    await moved(desk)
    desk.clock.advance(1)
    desk.risk.hear_execution(
        sent_ms=desk.clock.now_ms(), ledger_seq=len(desk.execution.events), unresolved=9, safe=False
    )
    assert len(codes(await desk.ask(order()))) >= 10
    assert codes(await desk.ask(sell("1"))) == set()
