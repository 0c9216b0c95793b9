"""Limits of accounts, modes, venues and agents: the strictest wins, nothing loosens, and the origin is shown."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mcp_servers.risk.limits import RiskLimits, policy_of
from mcp_servers.risk.rows import limits_row
from mcp_servers.risk.scopes import InForce, ScopeLimits
from tests.risk_support import codes, open_desk, order, sell, wide_limits, wide_symbol
from trading.domain.identifiers import AccountId, AgentId, Symbol
from trading.domain.proposals import Mode, OrderType, TimeInForce
from trading.testing.builders import ACCOUNT, BTC_USDT, PAPER

TESTER = AgentId("tester")
LEVELS = ("accounts", "modes", "venues", "agents")
KEYS: dict[str, Any] = {"accounts": ACCOUNT, "modes": Mode.PAPER, "venues": PAPER, "agents": TESTER}
NAMES = {
    "accounts": f"account:{ACCOUNT}",
    "modes": "mode:paper",
    "venues": f"venue:{PAPER}",
    "agents": "agent:tester",
}


def in_force(limits: RiskLimits, *, agent: str = "tester", mode: Mode = Mode.PAPER) -> InForce:
    return policy_of(limits, version=1).scopes.of(AccountId(ACCOUNT), mode, PAPER, AgentId(agent), BTC_USDT)


def scoped(**levels: ScopeLimits) -> RiskLimits:
    return wide_limits(**{level: {KEYS[level]: scope} for level, scope in levels.items()})


@given(values=st.dictionaries(st.sampled_from(LEVELS), st.integers(1, 20_000_000), max_size=4))
def test_the_strictest_of_all_scopes_is_in_force_and_named(values: dict[str, int]) -> None:
    limits = scoped(**{level: ScopeLimits(gross_exposure_max=Decimal(value)) for level, value in values.items()})
    found = in_force(limits)
    expected = min([*values.values(), 10_000_000])
    assert found.limits.gross_exposure_max == expected
    tightest = {NAMES[level] for level, value in values.items() if value == expected}
    assert found.sources["gross_exposure_max"] in (tightest if expected < 10_000_000 else {"desk"})


def test_a_scope_tightens_a_symbols_value_too_and_shows_where_it_comes_from() -> None:
    limits = scoped(agents=ScopeLimits(collar_bps=Decimal(20)), venues=ScopeLimits(order_notional_max=Decimal(500)))
    found = in_force(limits)
    assert found.symbol is not None
    assert (found.symbol.collar_bps, found.symbol.order_notional_max) == (Decimal(20), Decimal(500))
    assert found.sources["collar_bps"] == "agent:tester"
    assert found.sources["order_notional_max"] == f"venue:{PAPER}"
    assert found.sources["position_quantity_max"] == f"symbol:{BTC_USDT}"
    assert found.sources["stop_band_bps"] == "default"


def test_a_scope_bounds_what_the_desk_leaves_unbounded() -> None:
    found = in_force(scoped(modes=ScopeLimits(concentration_pct_max=Decimal(30))))
    assert found.limits.concentration_pct_max == Decimal(30)
    assert in_force(scoped()).limits.concentration_pct_max is None


def test_lists_are_what_every_scope_allows() -> None:
    limits = scoped(
        modes=ScopeLimits(order_types=(OrderType.LIMIT, OrderType.MARKET)),
        agents=ScopeLimits(order_types=(OrderType.STOP_LIMIT, OrderType.LIMIT)),
    )
    assert in_force(limits).limits.order_types == (OrderType.LIMIT,)
    assert in_force(limits, agent="other").limits.order_types == (OrderType.MARKET, OrderType.LIMIT)
    assert set(in_force(limits, mode=Mode.LIVE).limits.order_types) == {OrderType.STOP_LIMIT, OrderType.LIMIT}


def test_what_is_in_force_is_worked_out_once_and_names_nobody_configured_are_not_kept() -> None:
    scopes = policy_of(scoped(agents=ScopeLimits(turnover_max=Decimal(1))), version=1).scopes
    asked = [
        scopes.of(AccountId(ACCOUNT), Mode.PAPER, PAPER, AgentId(f"agent-{n}"), Symbol(f"S{n}/USDT")) for n in range(9)
    ]
    assert all(each is asked[0] for each in asked)
    assert asked[0].symbol is None


@pytest.mark.parametrize(
    "scope",
    [
        {"gross_exposure": "1"},
        {"gross_exposure_max": 1.5},
        {"gross_exposure_max": "0"},
        {"concentration_pct_max": "101"},
        {"order_types": ["iceberg"]},
        {"position_quantity_max": "1"},
    ],
)
def test_unknown_keys_and_values_that_are_not_exact_are_refused(scope: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RiskLimits.model_validate({"agents": {"tester": scope}})


def test_scopes_are_part_of_the_signed_document() -> None:
    plain, tight = policy_of(wide_limits(), version=1), policy_of(scoped(agents=ScopeLimits()), version=1)
    assert plain.digest != tight.digest
    assert policy_of(scoped(agents=ScopeLimits()), version=1).digest == tight.digest
    read_back = RiskLimits.model_validate_json(tight.document)
    assert policy_of(read_back, version=1).document == tight.document


async def test_one_agents_limits_bind_that_agent_alone() -> None:
    tight = ScopeLimits(
        symbols=(Symbol("ETH/USDT"),), times_in_force=(TimeInForce.IOC,), undecided_notional_max=Decimal(10)
    )
    desk = await open_desk(limits=scoped(agents=tight))
    assert codes(await desk.ask(order())) == {"INSTRUMENT_RESTRICTED", "TIME_IN_FORCE", "AUTHORITY"}
    assert (await desk.ask(order(agent_id="other"))).approved


async def test_an_agents_rate_is_its_own_and_a_scope_can_lower_it() -> None:
    desk = await open_desk(limits=scoped(agents=ScopeLimits(order_rate_per_s=1, order_burst=1)))
    assert (await desk.ask(order())).approved
    assert codes(await desk.ask(order())) == {"ORDER_RATE"}
    assert not (await desk.ask(order(agent_id="other"), order(agent_id="other"))).denied


async def test_a_restricted_symbol_may_still_be_sold() -> None:
    desk = await open_desk(limits=wide_limits())
    await desk.hold("1")
    await desk.restart(limits=scoped(agents=ScopeLimits(symbols=())))
    assert "INSTRUMENT_RESTRICTED" in codes(await desk.ask(order()))
    assert (await desk.ask(sell("1"))).approved


async def test_the_tool_shows_what_holds_for_the_agent_and_from_where() -> None:
    limits = scoped(agents=ScopeLimits(collar_bps=Decimal(20), turnover_max=Decimal(77)), modes=ScopeLimits())
    desk = await open_desk(limits=limits)
    row = limits_row(desk.risk, "desk", TESTER)
    assert (row.values["turnover_max"], row.sources["turnover_max"]) == ("77", "agent:tester")
    assert row.sources["gross_exposure_max"] == "desk"
    assert "daily_loss_max" not in row.sources  # a default is not a choice
    assert row.values["symbols"] == BTC_USDT
    other = limits_row(desk.risk, "desk", AgentId("other"))
    assert other.values["turnover_max"] == "100000000"
    symbol = limits_row(desk.risk, BTC_USDT, TESTER)
    assert (symbol.values["collar_bps"], symbol.sources["collar_bps"]) == ("20", "agent:tester")


async def test_the_strictest_scope_is_in_every_check() -> None:
    desk = await open_desk(
        limits=wide_limits(
            symbols={BTC_USDT: wide_symbol(order_notional_max=Decimal(900))},
            agents={TESTER: ScopeLimits(order_notional_max=Decimal("600.01"))},
            modes={Mode.PAPER: ScopeLimits(order_notional_max=Decimal(700))},
        )
    )
    report = desk.risk.check_order(order())
    (rule,) = [result for result in report.results if result.rule == "ORDER_NOTIONAL_MAX"]
    assert (rule.limit, rule.observed, rule.headroom) == ("600.01", "600.01", "0")
    assert report.max_allowed_now is not None
    assert report.max_allowed_now.quantity == Decimal("0.01")
