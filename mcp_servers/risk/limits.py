"""The limits a human set: one frozen document with a version and a digest that every approval carries.

Amounts are decimal strings or integers in the file; a float is refused, because it cannot say exactly what was meant.
Unknown keys refuse to start. A symbol without limits of its own may not be traded, except to close it.
Scopes (``accounts``, ``modes``, ``venues``, ``agents``) may bound the same values again; the strictest of all that
hold for an order is in force (``scopes.py``), so a scope can tighten and never loosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Field, StrictBool, model_validator

from trading.adapters import codec
from trading.adapters.config import SectionModel
from trading.adapters.signing import digest
from trading.domain.denials import Rule
from trading.domain.identifiers import AccountId, AgentId, Symbol, Venue, parse_symbol
from trading.domain.proposals import Mode, OrderType, TimeInForce
from trading.domain.standing_exits import EXIT_LIFE_MAX_MS, EXIT_LIFE_MIN_MS
from trading.domain.voting import QuorumPolicy

from .authority import OVERRIDABLE, Needs
from .breaker_limits import BreakerLimits
from .protection import ProtectionLimits
from .scopes import ScopeLimits, Scopes
from .values import Amount, Bps, Count, Digest, Millis, Percent, Share, Whole


class SymbolLimits(SectionModel):
    """Limits of one symbol.

    Attributes:
        order_quantity_max: base in one order.
        order_notional_max: quote in one order, at its worst price.
        position_quantity_max: base held in the worst case, either way.
        collar_bps: how far a limit may lie on the adverse side of the mid.
        stop_band_bps: how far a trigger may lie from the mid, on its own side.
        impact_bps_max: how far a market order may walk the book from the mid.
        spread_bps_max: the widest spread at which new risk may be added.
        move_bps_max: how far the mid may have ranged within ``move_window_ms`` when new risk is added.
        symbol_open_orders_max: approvals and orders of the symbol that may still trade.
        symbol_turnover_max: quote approved in the symbol within ``turnover_window_ms``, both sides together.
        symbol_drift_max: quote by which the buys and sells approved in that window may differ.
        trade_size_multiple_max: one order in multiples of the median public trade; None judges no order by it.
        score_max: the highest risk score at which new risk may be added; what is not known scores 1. None: any.
        score_notional_max: quote in one order at a score of 0; times one less the score at any other. None: no bound.
        symbol_authority: who must agree to new risk in it; ``authority`` of the desk or a scope may ask for more.
        protection: the stops that every position in it has.
    """

    order_quantity_max: Amount = Decimal("0.5")
    order_notional_max: Amount = Decimal(25_000)
    position_quantity_max: Amount = Decimal(1)
    collar_bps: Bps = Decimal(100)
    stop_band_bps: Bps = Decimal(2_000)
    impact_bps_max: Bps = Decimal(50)
    spread_bps_max: Bps = Decimal(200)
    move_bps_max: Bps = Decimal(1_000)
    symbol_open_orders_max: Count = 200
    symbol_turnover_max: Amount = Decimal(500_000)
    symbol_drift_max: Amount = Decimal(250_000)
    trade_size_multiple_max: Amount | None = None
    score_max: Share | None = None
    score_notional_max: Amount | None = None
    symbol_authority: Needs = Needs.NONE
    protection: ProtectionLimits = ProtectionLimits()


class QuorumLimits(SectionModel):
    """Risk's own floor for every vote; see ``trading.domain.voting.QuorumPolicy``.

    Attributes:
        consent_agents: the only members whose yes is the risk role's consent; empty: whoever the roster calls risk.
    """

    threshold_numerator: Count = 3
    threshold_denominator: Count = 5
    min_yes: Count = 2
    min_yes_large: Count = 3
    quorum: Count = 2
    require_risk_consent: StrictBool = True
    consent_agents: tuple[AgentId, ...] = ()

    @model_validator(mode="after")
    def _countable(self) -> Self:
        self.policy()  # raises, as a validator should, for numbers that are no threshold
        return self

    def policy(self) -> QuorumPolicy:
        """Return the domain's form of these numbers."""
        return QuorumPolicy(**self.model_dump(exclude={"consent_agents"}))


def _symbols(value: object) -> object:
    if isinstance(value, dict):
        for key in value:  # pyright: ignore[reportUnknownVariableType]  # keys are checked right here
            parse_symbol(str(key))  # pyright: ignore[reportUnknownArgumentType]
    return value  # pyright: ignore[reportUnknownVariableType]  # pydantic validates it next


class RiskLimits(SectionModel):
    """Every limit of the desk. The defaults suit a paper account of 100,000 USDT on BTC/USDT.

    Attributes:
        symbols: limits by symbol; what is not listed is restricted.
        order_types, times_in_force: what may be asked for.
        accounts, modes, venues, agents: tighter limits for orders of that account, mode, venue or agent.
        gross_exposure_max: quote, sum over instruments of the worst case of each.
        net_exposure_max: quote, worst case of longs less shorts over all instruments, either way.
        concentration_pct_max: worst-case value of one asset in percent of equity; None sets no bound.
        leverage_max: worst-case gross value in multiples of equity; None sets no bound (spot cannot borrow).
        daily_loss_max: quote lost by trading since 00:00 UTC; reaching it trips to REDUCING.
        drawdown_pct_max: how far equity may lie below its peak, deposits and withdrawals apart, in percent.
        loss_streak_max, loss_window_ms: losing orders of one agent in a row, none of them older than the window.
        entries_max, entries_window_ms: filled entries of one agent in one symbol; one more stops it until the operator
            resumes.
        band_bps_decided, band_bps_interactive: half width of the approved band, with and without a decision.
        band_bps_exit: half width of the band of an order that only reduces.
        ttl_ms_decided, ttl_ms_interactive: longest life of an approval, with and without a decision.
        market_max_age_ms, instrument_max_age_ms, portfolio_max_age_ms, execution_max_age_ms: older counts as missing.
        order_rate_per_s, order_burst: orders of one agent, refused ones included.
        desk_rate_per_s, desk_burst: orders of all agents together.
        symbol_rate_per_s, venue_rate_per_s: orders of all agents in one symbol, at one venue; as many at once.
        turnover_window_ms: the length of "lately" for the three below and for a symbol's own.
        turnover_max, desk_turnover_max: quote approved lately for one agent, for all; both sides together.
        desk_open_orders_max, venue_open_orders_max: approvals and orders that may still trade.
        unresolved_orders_max: orders whose outcome execution does not know, above which no risk is added.
        move_window_ms: how far back a symbol's ``move_bps_max`` looks.
        duplicate_window_ms: how long the same order of the same agent is taken for a mistake; 0 turns the rule off.
        open_approvals_max: approvals of one agent that are not used yet.
        reserved_notional_max: quote reserved for one agent.
        authority: who must agree to new risk (``authority.Needs``); the bounds and modes below may ask for more.
        undecided_notional_max: quote; a larger order needs a decision of the vote, or the operator.
        undecided_modes: where orders that nobody agreed to are allowed at all; elsewhere a vote or the operator.
        unattended_notional_max: quote; a larger order needs the operator, whatever was voted; None sets no bound.
        overridable: rules that the operator may override for one order; what fails only these waits for the operator.
        ttl_ms_human: longest life of an approval that the operator gave.
        pending_ttl_ms: how long an order waits for the operator.
        pending_max, pending_agent_max: orders that wait for the operator at once, of all and of one agent.
        clock_skew_ms: how far another room's clock may be ahead of ours.
        portfolio_loss_pct: every position is closed once equity lies so far below its level at 00:00 UTC; None never.
        exit_ttl_ms: life of a standing exit; renewed before half of it is over while the position is open.
        breaker: when the breaker trips by itself.
        reactivate_after_unclean_stop: paper only: resume by policy after a crash instead of waiting for the operator.
        score_model_digest: SHA-256 of the only model file whose score counts; None: the one that ships with the room.
    """

    symbols: Annotated[dict[Symbol, SymbolLimits], BeforeValidator(_symbols)] = Field(
        default={Symbol("BTC/USDT"): SymbolLimits()}
    )
    accounts: dict[AccountId, ScopeLimits] = Field(default_factory=dict[AccountId, ScopeLimits])
    modes: dict[Mode, ScopeLimits] = Field(default_factory=dict[Mode, ScopeLimits])
    venues: dict[Venue, ScopeLimits] = Field(default_factory=dict[Venue, ScopeLimits])
    agents: dict[AgentId, ScopeLimits] = Field(default_factory=dict[AgentId, ScopeLimits])
    order_types: tuple[OrderType, ...] = tuple(OrderType)
    times_in_force: tuple[TimeInForce, ...] = tuple(TimeInForce)
    gross_exposure_max: Amount = Decimal(60_000)
    net_exposure_max: Amount = Decimal(60_000)
    concentration_pct_max: Percent | None = None
    leverage_max: Amount | None = None
    daily_loss_max: Amount = Decimal(2_000)
    drawdown_pct_max: Percent = Decimal(20)
    loss_streak_max: Count = 20
    loss_window_ms: Millis = 86_400_000
    entries_max: Count = 120
    entries_window_ms: Millis = 60_000
    band_bps_decided: Bps = Decimal(100)
    band_bps_interactive: Bps = Decimal(50)
    band_bps_exit: Bps = Decimal(300)
    ttl_ms_decided: Millis = 3_000
    ttl_ms_interactive: Annotated[Whole, Field(gt=0, le=120_000)] = 60_000
    market_max_age_ms: Millis = 2_000
    instrument_max_age_ms: Millis = 86_400_000
    portfolio_max_age_ms: Millis = 2_000
    execution_max_age_ms: Millis = 3_000
    order_rate_per_s: Count = 20
    order_burst: Count = 40
    desk_rate_per_s: Count = 200
    desk_burst: Count = 400
    symbol_rate_per_s: Count | None = None
    venue_rate_per_s: Count | None = None
    turnover_window_ms: Millis = 60_000
    turnover_max: Amount = Decimal(250_000)
    desk_turnover_max: Amount = Decimal(500_000)
    desk_open_orders_max: Count = 500
    venue_open_orders_max: Count = 500
    unresolved_orders_max: Annotated[Whole, Field(ge=0)] = 3
    move_window_ms: Millis = 60_000
    duplicate_window_ms: Annotated[Whole, Field(ge=0)] = 2_000
    open_approvals_max: Count = 20
    reserved_notional_max: Amount = Decimal(50_000)
    undecided_notional_max: Amount = Decimal(10_000)
    undecided_modes: tuple[Mode, ...] = (Mode.PAPER, Mode.TESTNET)
    authority: Needs = Needs.NONE
    unattended_notional_max: Amount | None = None
    overridable: tuple[Rule, ...] = ()
    ttl_ms_human: Annotated[Whole, Field(gt=0, le=30_000)] = 10_000
    pending_ttl_ms: Annotated[Whole, Field(gt=0, le=86_400_000)] = 900_000
    pending_max: Count = 20
    pending_agent_max: Count = 5
    clock_skew_ms: Millis = 1_000
    portfolio_loss_pct: Percent | None = None
    exit_ttl_ms: Annotated[Whole, Field(ge=EXIT_LIFE_MIN_MS, le=EXIT_LIFE_MAX_MS)] = 86_400_000
    reactivate_after_unclean_stop: StrictBool = True
    score_model_digest: Digest | None = None
    quorum: QuorumLimits = QuorumLimits()
    breaker: BreakerLimits = BreakerLimits()

    @model_validator(mode="after")
    def _only_amounts_are_overridable(self) -> Self:
        if wrong := set(self.overridable) - OVERRIDABLE:
            raise ValueError(f"no operator may override {', '.join(sorted(wrong))}")
        return self

    @model_validator(mode="after")
    def _tighter_when_undecided(self) -> Self:
        if self.band_bps_interactive > self.band_bps_decided:
            raise ValueError("band_bps_interactive must not be wider than band_bps_decided")
        for symbol, own in self.symbols.items():
            if own.protection.floor_bps <= self.band_bps_decided:
                raise ValueError(f"protection.floor_bps of {symbol} must be wider than band_bps_decided")
        return self


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits in force.

    Attributes:
        version: rises with every change of the document, never falls.
        digest: SHA-256 of the document, 64 hexadecimal digits.
        document: RFC 8785 text of the limits.
        min_version: approvals under an older version are refused by execution.
        scopes: what is in force for one order, by account, mode, venue, agent and symbol.
    """

    limits: RiskLimits
    version: int
    digest: str
    document: str
    min_version: int
    scopes: Scopes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scopes", Scopes(self.limits, DEFAULTS, SymbolLimits()))


def document_of(limits: RiskLimits) -> str:
    """Return the canonical text of the limits; equal limits have equal text."""
    data: dict[str, Any] = limits.model_dump()
    data["modes"] = {mode.value: scope for mode, scope in data["modes"].items()}  # JSON has no keys but text
    return codec.canonical(data).decode()


def policy_of(limits: RiskLimits, *, version: int, min_version: int | None = None) -> Policy:
    """Return the limits as a policy of that version.

    Args:
        limits: what the operator wrote.
        version: its number, >= 1.
        min_version: the oldest version still honoured; this one unless told otherwise.
    """
    document = document_of(limits)
    return Policy(limits, version, digest(document.encode()), document, min_version or version)


#: Names shown by risk_get_limits as the origin of a value that nobody changed.
DEFAULTS: Final = RiskLimits()


def changed_fields(limits: RiskLimits) -> frozenset[str]:
    """Return the names of top-level limits that differ from the defaults."""
    return frozenset(name for name in RiskLimits.model_fields if getattr(limits, name) != getattr(DEFAULTS, name))
