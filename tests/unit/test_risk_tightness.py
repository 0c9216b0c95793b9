"""Which way a limit is tighter: every field is classified, and nothing that loosens passes for a tightening."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mcp_servers.risk.limits import QuorumLimits, RiskLimits, SymbolLimits, policy_of
from mcp_servers.risk.protection import ProtectionLimits
from mcp_servers.risk.scopes import InForce, ScopeLimits
from mcp_servers.risk.tightness import DIRECTIONS, Direction, Tightness, compare, loosening
from tests.risk_support import wide_limits, wide_symbol
from trading.adapters.config import SectionModel
from trading.domain.identifiers import AgentId, Symbol, Venue
from trading.domain.proposals import Mode, OrderType, TimeInForce
from trading.testing.builders import ACCOUNT, BTC_USDT, PAPER

ETH = Symbol("ETH/USDT")
AGENTS = (AgentId("a"), AgentId("b"))


def models_in(kind: type[SectionModel]) -> set[type[SectionModel]]:
    """Every model that a document is made of."""
    found = {kind}
    for field in kind.model_fields.values():
        pending: list[Any] = [field.annotation]
        while pending:
            part = pending.pop()
            pending.extend(get_args(part))
            if isinstance(part, type) and issubclass(part, SectionModel):
                found |= models_in(part)
    return found


def test_every_field_of_the_document_has_a_direction() -> None:
    assert models_in(RiskLimits) == set(DIRECTIONS)
    for model, directions in DIRECTIONS.items():
        assert set(directions) == set(model.model_fields), model.__name__


def test_no_number_of_the_document_takes_a_float_or_a_truth_value() -> None:
    for model, directions in DIRECTIONS.items():
        for name, direction in directions.items():
            if direction in (Direction.TRUE, Direction.FALSE, Direction.PART):
                continue
            for wrong in (1.0, True):
                with pytest.raises(ValidationError):
                    model.model_validate({name: wrong})


@pytest.mark.parametrize(
    ("changes", "path", "tightness"),
    [
        ({"daily_loss_max": 1}, "daily_loss_max", Tightness.TIGHTER),
        ({"daily_loss_max": 10**9}, "daily_loss_max", Tightness.LOOSER),
        ({"leverage_max": 3}, "leverage_max", Tightness.TIGHTER),
        ({"turnover_window_ms": 90_000}, "turnover_window_ms", Tightness.TIGHTER),
        ({"turnover_window_ms": 1_000}, "turnover_window_ms", Tightness.LOOSER),
        ({"duplicate_window_ms": 5}, "duplicate_window_ms", Tightness.TIGHTER),
        ({"reactivate_after_unclean_stop": False}, "reactivate_after_unclean_stop", Tightness.TIGHTER),
        ({"undecided_modes": ("paper",)}, "undecided_modes", Tightness.TIGHTER),
        ({"undecided_modes": ("live",)}, "undecided_modes", Tightness.LOOSER),
        ({"order_types": ("limit",)}, "order_types", Tightness.TIGHTER),
        ({"order_types": ("stop_limit",)}, "order_types", Tightness.UNDECIDABLE),
        ({"band_bps_exit": 299}, "band_bps_exit", Tightness.UNDECIDABLE),
        ({"band_bps_exit": 301}, "band_bps_exit", Tightness.UNDECIDABLE),
        ({"symbols": {}}, "symbols.BTC/USDT", Tightness.TIGHTER),
        ({"symbols": {BTC_USDT: wide_symbol(), ETH: {}}}, "symbols.ETH/USDT", Tightness.LOOSER),
        ({"symbols": {BTC_USDT: wide_symbol(collar_bps=1)}}, "symbols.BTC/USDT.collar_bps", Tightness.TIGHTER),
        ({"agents": {"a": {"turnover_max": 5}}}, "agents.a.turnover_max", Tightness.TIGHTER),
        ({"agents": {"a": {"order_types": ["stop"]}}}, "agents.a.order_types", Tightness.UNDECIDABLE),
        ({"quorum": {"threshold_numerator": 2, "threshold_denominator": 3}}, "quorum.threshold", Tightness.TIGHTER),
        ({"quorum": {"threshold_denominator": 6}}, "quorum.threshold", Tightness.LOOSER),
        ({"quorum": {"require_risk_consent": False}}, "quorum.require_risk_consent", Tightness.LOOSER),
        ({"quorum": {"consent_agents": ["a"]}}, "quorum.consent_agents", Tightness.UNDECIDABLE),
    ],
)
def test_one_change_is_named_by_its_path_and_judged(changes: dict[str, Any], path: str, tightness: Tightness) -> None:
    (change,) = compare(wide_limits(), wide_limits(**changes))
    assert (change.path, change.tightness) == (path, tightness)
    (back,) = compare(wide_limits(**changes), wide_limits())
    assert (back.path, back.old, back.new) == (path, change.new, change.old)
    assert back.needs_signature or change.needs_signature


def test_removing_a_scope_loosens_and_the_order_of_a_list_means_nothing() -> None:
    scoped = wide_limits(agents={"a": {"turnover_max": 5}})
    assert [str(c) for c in compare(scoped, wide_limits())] == ["agents.a.turnover_max 5 -> none (looser)"]
    assert compare(wide_limits(), wide_limits(order_types=tuple(reversed(OrderType)))) == ()
    consent = {"quorum": {"consent_agents": ("a", "b")}}
    assert not loosening(compare(wide_limits(**consent), wide_limits(quorum={"consent_agents": ("b",)})))


def test_a_field_without_a_direction_is_undecidable(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**DIRECTIONS, RiskLimits: {"symbols": Direction.GRANTS}}
    monkeypatch.setattr("mcp_servers.risk.tightness.DIRECTIONS", known)
    (change,) = compare(wide_limits(), wide_limits(daily_loss_max=1))
    assert change.tightness is Tightness.UNDECIDABLE


# -- what is in force for any order ---------------------------------------------------------------------------------

amounts = st.integers(1, 4).map(Decimal)
maybe = st.none() | amounts
lists = st.none() | st.lists(st.sampled_from(list(OrderType)), unique=True, max_size=4).map(tuple)
scopes = st.builds(
    ScopeLimits,
    order_notional_max=maybe,
    turnover_max=maybe,
    concentration_pct_max=maybe,
    order_types=lists,
    symbols=st.none() | st.lists(st.sampled_from([BTC_USDT, ETH]), unique=True).map(tuple),
)
symbol_limits = st.builds(SymbolLimits, order_notional_max=amounts, trade_size_multiple_max=maybe)


@st.composite
def documents(draw: st.DrawFn) -> RiskLimits:
    return RiskLimits(
        symbols=draw(st.dictionaries(st.sampled_from([BTC_USDT, ETH]), symbol_limits)),
        agents=draw(st.dictionaries(st.sampled_from(AGENTS), scopes, max_size=2)),
        modes=draw(st.dictionaries(st.sampled_from([Mode.PAPER, Mode.LIVE]), scopes, max_size=2)),
        venues=draw(st.dictionaries(st.just(Venue("paper")), scopes, max_size=1)),
        turnover_max=draw(amounts),
        concentration_pct_max=draw(maybe),
        turnover_window_ms=draw(st.integers(1, 3)),
        times_in_force=draw(st.lists(st.sampled_from(list(TimeInForce)), unique=True).map(tuple)),
        quorum=QuorumLimits(min_yes=draw(st.integers(1, 3)), threshold_denominator=draw(st.integers(3, 6))),
    )


def in_force(limits: RiskLimits) -> list[InForce]:
    resolve = policy_of(limits, version=1).scopes.of
    return [resolve(ACCOUNT, mode, PAPER, agent, s) for mode in Mode for agent in AGENTS for s in (BTC_USDT, ETH)]


def may_do_more(direction: Direction, old: Any, new: Any) -> bool:
    if direction in (Direction.SUBSET, Direction.EXIT_TYPES):
        return old is not None and (new is None or not set(new) <= set(old))
    if direction is Direction.SMALLER:
        return old is not None and (new is None or new > old)
    if direction is Direction.LARGER:
        return bool(new < old)
    return False


@settings(max_examples=60)
@given(old=documents(), new=documents())
def test_what_is_called_tighter_lets_no_order_do_more(old: RiskLimits, new: RiskLimits) -> None:
    if loosening(compare(old, new)):
        return
    for before, after in zip(in_force(old), in_force(new), strict=True):
        assert before.symbol is not None or after.symbol is None
        assert not may_do_more(Direction.SUBSET, before.symbols, after.symbols)
        for name, direction in DIRECTIONS[RiskLimits].items():
            values = getattr(before.limits, name), getattr(after.limits, name)
            assert not may_do_more(direction, *values), name
        for name, direction in DIRECTIONS[SymbolLimits].items() if before.symbol and after.symbol else ():
            assert not may_do_more(direction, getattr(before.symbol, name), getattr(after.symbol, name)), name


@settings(max_examples=60)
@given(one=documents(), other=documents())
def test_a_change_and_its_reverse_are_never_both_harmless(one: RiskLimits, other: RiskLimits) -> None:
    there, back = compare(one, other), compare(other, one)
    assert sorted(change.path for change in there) == sorted(change.path for change in back)
    assert bool(there) == bool(loosening(there) or loosening(back))
    assert compare(one, one) == ()


@settings(max_examples=60)
@given(old=documents(), factor=amounts)
def test_a_document_made_smaller_everywhere_needs_no_signature(old: RiskLimits, factor: Decimal) -> None:
    smaller = old.model_copy(update={"turnover_max": old.turnover_max / (factor + 1), "symbols": {}})
    assert not loosening(compare(old, smaller))


def test_protection_is_judged_by_its_parts() -> None:
    closer = wide_symbol(protection=ProtectionLimits(stop_bps=Decimal(100), floor_bps=Decimal(4_000)))
    changes = compare(wide_limits(), wide_limits(symbols={BTC_USDT: closer}))
    assert {change.path.rpartition(".")[2]: change.tightness for change in changes} == {
        "stop_bps": Tightness.TIGHTER,
        "floor_bps": Tightness.UNDECIDABLE,
    }
