"""Every rule passes on an ordinary order and fails on its own, with its code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal

import pytest

from mcp_servers.risk.limits import RiskLimits
from mcp_servers.risk.orders import OrderRequest
from mcp_servers.risk.policies.pipeline import RULES
from tests.risk_support import DATA_ID, Desk, codes, market, open_desk, order, sell, wide_limits, wide_symbol
from trading.domain.approvals import Effect, TradingState
from trading.domain.denials import Rule
from trading.domain.errors import UnknownInstrument
from trading.domain.identifiers import Symbol
from trading.domain.market_data import Side
from trading.domain.proposals import Mode, OrderType, TimeInForce
from trading.domain.sizing import SizeUnit
from trading.testing.builders import BTC_USDT

Setup = Callable[[Desk], Awaitable[None]]


def symbol_limits(**changes: Decimal) -> RiskLimits:
    return wide_limits(symbols={BTC_USDT: wide_symbol(**changes)})


async def nothing(desk: Desk) -> None:
    pass


async def old_book(desk: Desk) -> None:
    desk.clock.advance(2_001)
    desk.pulse()


async def crossed(desk: Desk) -> None:
    desk.price([("60010", "1")], [("60000", "1")])


async def one_sided(desk: Desk) -> None:
    desk.price([("60000", "1")], [])


async def no_instrument(desk: Desk) -> None:
    desk.market.rules.clear()


async def old_rules(desk: Desk) -> None:
    desk.risk.frame()
    desk.clock.advance(86_400_001)
    desk.pulse()


async def unread(desk: Desk) -> None:
    desk.clock.advance(5_001)
    desk.price()
    desk.pulse()


async def silent(desk: Desk) -> None:
    desk.clock.advance(3_001)
    desk.price()
    await desk.risk.live.follower.step()


async def halted(desk: Desk) -> None:
    await desk.risk.trip("test", "test")


async def lost_money(desk: Desk) -> None:
    await desk.hold("1")
    desk.price([("57000", "50")], [("57001", "50")])


async def asked_before(desk: Desk) -> None:
    assert (await desk.ask(order())).approved


async def asked_twice(desk: Desk) -> None:
    await desk.ask(order(amount="0.02"), order(amount="0.03"))


FAILURES: list[tuple[str, Rule, RiskLimits, Setup, OrderRequest]] = [
    ("unknown instrument", Rule.INSTRUMENT_UNKNOWN, wide_limits(), no_instrument, order()),
    ("other symbol", Rule.INSTRUMENT_UNKNOWN, wide_limits(), nothing, order(symbol="ETH/USDT")),
    ("rules too old", Rule.INSTRUMENT_UNKNOWN, wide_limits(), old_rules, order()),
    (
        "restricted symbol",
        Rule.INSTRUMENT_RESTRICTED,
        wide_limits(symbols={"ETH/USDT": wide_symbol()}),
        nothing,
        order(),
    ),
    ("type", Rule.ORDER_TYPE, wide_limits(order_types=(OrderType.LIMIT,)), nothing, market()),
    ("buy stop", Rule.ORDER_TYPE, wide_limits(), nothing, order(order_type=OrderType.STOP, stop_price="60500")),
    ("tick", Rule.PRICE_TICK, wide_limits(), nothing, order(limit_price="60000.005")),
    ("step", Rule.QUANTITY_STEP, wide_limits(), nothing, order(amount="0.000001")),
    ("smallest", Rule.QUANTITY_RANGE, wide_limits(), nothing, order(amount="0.000001")),
    ("largest", Rule.QUANTITY_RANGE, wide_limits(), nothing, order(amount="9001")),
    ("notional too small", Rule.NOTIONAL_RANGE, wide_limits(), nothing, order(amount="0.00001")),
    ("notional too large", Rule.NOTIONAL_RANGE, wide_limits(), nothing, order(amount="200")),
    (
        "quantity",
        Rule.ORDER_QUANTITY_MAX,
        symbol_limits(order_quantity_max=Decimal("0.01")),
        nothing,
        order(amount="0.011"),
    ),
    (
        "notional",
        Rule.ORDER_NOTIONAL_MAX,
        symbol_limits(order_notional_max=Decimal(600)),
        nothing,
        order(amount="0.01"),
    ),
    ("collar buy", Rule.PRICE_COLLAR, wide_limits(), nothing, order(limit_price="60700")),
    ("collar sell", Rule.PRICE_COLLAR, wide_limits(), nothing, sell(limit_price="59300")),
    (
        "trigger on the wrong side",
        Rule.PRICE_COLLAR,
        wide_limits(),
        nothing,
        order(order_type=OrderType.STOP_LIMIT, stop_price="59000", limit_price="59100"),
    ),
    (
        "trigger too far",
        Rule.PRICE_COLLAR,
        wide_limits(),
        nothing,
        order(order_type=OrderType.STOP_LIMIT, stop_price="90000", limit_price="90000"),
    ),
    (
        "stop limit too far beyond its trigger",
        Rule.PRICE_COLLAR,
        wide_limits(),
        nothing,
        order(order_type=OrderType.STOP_LIMIT, stop_price="60500", limit_price="62000"),
    ),
    ("stale", Rule.MARKET_STALE, wide_limits(), old_book, order()),
    ("crossed", Rule.MARKET_STALE, wide_limits(), crossed, order()),
    ("one-sided", Rule.MARKET_STALE, wide_limits(), one_sided, order()),
    ("depth", Rule.MARKET_DEPTH, wide_limits(undecided_notional_max=Decimal(10_000_000)), nothing, market("101")),
    ("impact", Rule.MARKET_DEPTH, symbol_limits(impact_bps_max=Decimal(1)), nothing, market("51")),
    ("portfolio", Rule.PORTFOLIO_STALE, wide_limits(), unread, order()),
    ("execution", Rule.EXECUTION_SILENT, wide_limits(), silent, order()),
    ("position", Rule.POSITION_MAX, symbol_limits(position_quantity_max=Decimal("0.015")), asked_before, order()),
    ("exposure", Rule.EXPOSURE_GROSS_MAX, wide_limits(gross_exposure_max=Decimal(1_000)), asked_before, order()),
    ("balance", Rule.BALANCE_FREE, wide_limits(), nothing, order(amount="16.7")),
    ("nothing to sell", Rule.BALANCE_FREE, wide_limits(), nothing, sell()),
    ("daily loss", Rule.DAILY_LOSS, wide_limits(), lost_money, order(limit_price="57001")),
    ("rate", Rule.ORDER_RATE, wide_limits(order_rate_per_s=1, order_burst=1), asked_before, order()),
    ("desk rate", Rule.ORDER_RATE, wide_limits(desk_rate_per_s=1, desk_burst=1), asked_before, order(agent_id="other")),
    ("duplicate", Rule.ORDER_DUPLICATE, wide_limits(duplicate_window_ms=1_000), asked_before, order()),
    ("hoarding", Rule.OPEN_APPROVALS_MAX, wide_limits(open_approvals_max=2), asked_twice, order()),
    ("reserved", Rule.OPEN_APPROVALS_MAX, wide_limits(reserved_notional_max=Decimal(1_000)), asked_before, order()),
    ("state", Rule.TRADING_STATE, wide_limits(), halted, order()),
    ("reduce-only with nothing held", Rule.REDUCE_ONLY, wide_limits(), nothing, sell(reduce_only=True)),
    ("too large for one voice", Rule.AUTHORITY, wide_limits(undecided_notional_max=Decimal(600)), nothing, order()),
]


@pytest.mark.parametrize(("rule", "limits", "setup", "asked"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES])
async def test_rule_fails_with_its_code(rule: Rule, limits: RiskLimits, setup: Setup, asked: OrderRequest) -> None:
    desk = await open_desk(limits=limits)
    await setup(desk)
    before = len(desk.risk.reservations)
    answer = await desk.ask(asked)
    assert not answer.approved
    assert rule.value in codes(answer)
    assert len(desk.risk.reservations) == before


def test_every_rule_code_has_a_failing_case_or_tests_of_its_own() -> None:
    elsewhere = {Rule.DECISION_INVALID}  # test_risk_decisions
    elsewhere |= {  # test_risk_checks
        Rule.VENUE_RESTRICTED,
        Rule.TIME_IN_FORCE,
        Rule.TRADE_SIZE_MULTIPLE,
        Rule.SPREAD_MAX,
        Rule.VOLATILITY_MAX,
        Rule.TURNOVER_MAX,
        Rule.DRIFT_MAX,
        Rule.REPEATED_EXECUTION,
        Rule.LOSS_STREAK,
        Rule.OPEN_ORDERS_MAX,
        Rule.SELF_TRADE,
        Rule.EXPOSURE_NET_MAX,
        Rule.CONCENTRATION_MAX,
        Rule.LEVERAGE_MAX,
        Rule.DRAWDOWN_MAX,
        Rule.UNRESOLVED_ORDERS_MAX,
    }
    elsewhere |= {Rule.RISK_SCORE_MAX, Rule.RISK_SCORE_SIZE}  # test_risk_score_live
    assert {failure[1] for failure in FAILURES} | elsewhere == set(Rule)


async def test_every_rule_passes_on_an_ordinary_order_and_says_so() -> None:
    desk = await open_desk()
    report = desk.risk.check_order(order())
    assert report.passed
    assert len(report.results) == len(RULES)
    assert {result.rule for result in report.results} == set(Rule)
    assert all(result.passed for result in report.results)
    assert len(desk.risk.reservations) == 0


async def test_empty_rule_list_denies() -> None:
    desk = await open_desk(rules=())
    answer = await desk.ask(order())
    assert not answer.approved
    assert answer.denied[0].failures
    assert not desk.risk.check_order(order()).passed


async def test_every_failure_is_listed_not_only_the_first() -> None:
    desk = await open_desk(limits=symbol_limits(order_quantity_max=Decimal("0.001")))
    await halted(desk)
    answer = await desk.ask(order(limit_price="61000.001", amount="0.002"))
    assert {"PRICE_TICK", "ORDER_QUANTITY_MAX", "PRICE_COLLAR", "TRADING_STATE"} <= codes(answer)


async def test_live_mode_needs_a_decision_for_any_new_risk() -> None:
    desk = await open_desk(mode=Mode.LIVE)
    assert "AUTHORITY" in codes(await desk.ask(order()))


# -- exits are never trapped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", [old_book, crossed, unread, silent, halted], ids=lambda f: f.__name__)
async def test_reducing_order_passes_what_only_guards_increases(setup: Setup) -> None:
    desk = await open_desk(limits=symbol_limits(order_quantity_max=Decimal("0.5")))
    await desk.hold("0.5")
    await setup(desk)
    answer = await desk.ask(sell("0.5", reduce_only=True))
    assert codes(answer) == set()
    assert answer.approved[0].approval.effect is Effect.REDUCE


async def test_reduce_passes_when_the_day_is_lost_and_the_agent_over_its_rate() -> None:
    desk = await open_desk(limits=wide_limits(order_rate_per_s=1, order_burst=1))
    await lost_money(desk)
    await desk.risk.tick()
    assert desk.risk.live.breaker.state is TradingState.REDUCING
    answer = await desk.ask(sell("1", limit_price="57000"))
    assert answer.approved[0].approval.effect is Effect.REDUCE


async def test_frozen_lets_not_even_a_reduce_through() -> None:
    desk = await open_desk()
    await desk.hold("0.5")
    await desk.risk.live.breaker.trip("test", "operator", TradingState.FROZEN)
    assert codes(await desk.ask(sell("0.5", reduce_only=True))) == {"TRADING_STATE"}


async def test_reducing_order_must_still_be_true_to_tick_and_minimum() -> None:
    desk = await open_desk()
    await desk.hold("0.5")
    assert "PRICE_TICK" in codes(await desk.ask(sell("0.5", limit_price="60000.001")))
    assert "NOTIONAL_RANGE" in codes(await desk.ask(sell("0.00001")))


async def test_reduce_is_decided_on_the_position_less_what_is_already_on_its_way_out() -> None:
    desk = await open_desk()
    await desk.hold("1")
    first = await desk.ask(sell("0.6", reduce_only=True))
    assert first.approved[0].approval.effect is Effect.REDUCE
    second = await desk.ask(sell("0.6", reduce_only=True))
    assert codes(second) == {"REDUCE_ONLY", "BALANCE_FREE"}
    nearest = second.denied[0].nearest_legal
    assert nearest is not None
    assert nearest.quantity == Decimal("0.4")
    assert (await desk.ask(sell("0.4", reduce_only=True))).approved


async def test_a_limit_beyond_the_signed_band_is_denied_with_the_bands_edge() -> None:
    desk = await open_desk(limits=symbol_limits(collar_bps=Decimal(100)))
    (denial,) = (await desk.ask(order(limit_price="60300.51"))).denied
    (failure,) = denial.failures
    assert (failure.rule, failure.limit) == (Rule.PRICE_COLLAR, "60300.5")
    assert (await desk.ask(order(limit_price="60300.50"))).approved


# -- what is signed ---------------------------------------------------------------------------------------------------


async def test_market_order_becomes_an_immediate_limit_at_the_edge_of_the_band() -> None:
    desk = await open_desk()
    approval = (await desk.ask(market("0.01"))).approved[0].approval
    assert approval.order.order_type is OrderType.LIMIT
    assert approval.order.time_in_force is TimeInForce.IOC
    assert approval.order.limit_price == approval.band_high
    assert approval.band_low < Decimal("60000.5") < approval.band_high
    assert approval.band_high == Decimal("60300.50")  # 50 bps above the mid, cut to the tick
    assert approval.max_notional == Decimal("0.01") * approval.band_high * Decimal("1.001")
    assert approval.risk_score == 1  # no archive, so nothing is known
    assert approval.expires_ms == desk.clock.now_ms() + 60_000


@pytest.mark.parametrize(
    ("amount", "unit", "stop", "quantity"),
    [
        ("0.0123456", SizeUnit.BASE, None, "0.01234"),
        ("100", SizeUnit.QUOTE, None, "0.00166"),  # 100 / 60001 = 0.0016666, down
        ("1", SizeUnit.PERCENT_EQUITY, None, "0.16666"),  # 10,000 / 60001
        ("1", SizeUnit.RISK_PERCENT_TO_STOP, "50001", "1"),  # 10,000 / 10,000
    ],
)
async def test_every_unit_is_rounded_down_to_the_step(
    amount: str, unit: SizeUnit, stop: str | None, quantity: str
) -> None:
    desk = await open_desk()
    answer = await desk.ask(order(amount=amount, unit=unit, stop_price=stop))
    assert answer.approved[0].approval.order.quantity == Decimal(quantity)
    assert answer.approved[0].approval.order.stop_price is None


async def test_a_symbol_that_is_not_traded_here_is_not_called_late_data() -> None:
    desk = await open_desk()
    asked = replace(order(amount="500", unit=SizeUnit.QUOTE), symbol=Symbol("DOGE/USDT"))
    with pytest.raises(UnknownInstrument) as refused:
        desk.risk.check_order(asked)
    assert BTC_USDT in refused.value.allowed


@pytest.mark.parametrize(
    ("amount", "unit", "stop"),
    [
        ("0.1", SizeUnit.QUOTE, None),
        ("0.00001", SizeUnit.PERCENT_EQUITY, None),
        ("0.000001", SizeUnit.RISK_PERCENT_TO_STOP, "50001"),
    ],
)
async def test_a_size_below_one_step_is_never_read_as_an_amount_of_coins(
    amount: str, unit: SizeUnit, stop: str | None
) -> None:
    desk = await open_desk()
    answer = await desk.ask(order(amount=amount, unit=unit, stop_price=stop))
    (denial,) = answer.denied
    assert denial.order.quantity < Decimal("0.00001")
    assert {"QUANTITY_STEP", "NOTIONAL_RANGE"} <= codes(answer)
    assert denial.nearest_legal is not None
    assert denial.nearest_legal.quantity == Decimal("0.00009")


async def test_nearest_legal_order_is_the_largest_that_passes() -> None:
    desk = await open_desk(limits=symbol_limits(order_quantity_max=Decimal("0.5")))
    nearest = (await desk.ask(order(amount="0.7"))).denied[0].nearest_legal
    assert nearest is not None
    assert nearest.quantity == Decimal("0.5")
    assert (await desk.ask(order(amount="0.5"))).approved
    assert codes(await desk.ask(order(amount="0.50001"))) == {"ORDER_QUANTITY_MAX"}


async def test_nearest_legal_order_below_a_minimum_is_the_minimum() -> None:
    desk = await open_desk()
    nearest = (await desk.ask(order(amount="0.00002"))).denied[0].nearest_legal
    assert nearest is not None
    assert nearest.quantity == Decimal("0.00009")  # 5 USDT at 60001
    assert (await desk.ask(order(amount="0.00009"))).approved


async def test_no_nearest_order_when_no_size_would_help() -> None:
    desk = await open_desk()
    await halted(desk)
    assert (await desk.ask(order())).denied[0].nearest_legal is None


@pytest.mark.parametrize("asked", [order(amount="1"), market("1"), order(amount="50", limit_price="59000")])
async def test_largest_size_allowed_now_is_sharp(asked: OrderRequest) -> None:
    """The size that check_order names passes; one step more does not."""
    desk = await open_desk(cash="100000", limits=wide_limits(gross_exposure_max=Decimal(77_777)))
    await desk.ask(order(amount="0.1"))
    largest = desk.risk.check_order(asked).max_allowed_now
    assert largest is not None
    assert desk.risk.check_order(replace(asked, amount=largest.quantity)).passed
    assert not desk.risk.check_order(replace(asked, amount=largest.quantity + Decimal("0.00001"))).passed


async def test_sell_side_worst_case_ignores_buys_that_may_not_fill() -> None:
    """A resting buy must not make room for a sell that is not covered."""
    desk = await open_desk()
    await desk.ask(order(amount="1"))
    answer = await desk.ask(order(side=Side.SELL, amount="0.5", limit_price="60000"))
    assert "BALANCE_FREE" in codes(answer)


async def test_market_of_another_instrument_does_not_price_this_one() -> None:
    desk = await open_desk()
    del desk.market.books[DATA_ID]
    assert {"MARKET_STALE", "PRICE_COLLAR"} <= codes(await desk.ask(market()))
