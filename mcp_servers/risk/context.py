"""What a rule may look at: one moment of the desk (Frame) and one order within it (OrderContext).

A frame is built once for every step of a batch; what changes inside a step (reservations, rates) is read live, because
nothing else runs between reading it and reserving.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, NamedTuple, cast

from trading.domain.approvals import Effect, Epoch, TradingState
from trading.domain.denials import Rule, RuleResult
from trading.domain.identifiers import AgentId, Currency, Symbol
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import OrderBook
from trading.domain.money import MAX_SCALE, plain, quantize_nearest, subtract
from trading.domain.proposals import Mode, OrderIntent
from trading.domain.trading_states import DESK, ScopeState, strictest

from .activity import Activity
from .limits import Policy, RiskLimits, SymbolLimits
from .portfolio import Portfolio
from .reservations import AgentUse, Exposure, ReservationBook
from .scopes import InForce
from .score.live import NO_SCORES, LiveScores
from .unrest import Unrest


@dataclass(slots=True, kw_only=True)  # a frozen one takes twice as long, and a frame may make hundreds
class MarketFrame:
    """One instrument's rules and prices at the frame's moment; nobody changes it.

    Attributes:
        mid: the newest two-sided mid, however old; None if there never was one.
        problem: why the market may not price new risk; empty when it may.
        unrest: what is remembered of it beyond this moment; None when it was never looked at.
    """

    instrument: Instrument | None
    instrument_age_ms: int | None
    book: OrderBook | None
    mid: Decimal | None
    age_ms: int | None
    problem: str
    unrest: Unrest | None = None


class Others(NamedTuple):
    """Worst-case values in quote of all instruments but one.

    Attributes:
        gross: sum of each one's larger worst case, >= 0.
        long: sum of the signed values if every buy fills and no sell does.  short: the other way round.
    """

    gross: Decimal
    long: Decimal
    short: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The desk at one moment, as risk itself read it; nothing in here comes from a request.

    Attributes:
        state: the desk's; ``scopes`` may restrict some orders more.
        marks: quote per unit of each other currency, fresh mids only.
        execution_age_ms: since execution's last heartbeat; None when there never was one.
        daily_result: quote earned by trading since 00:00 UTC, negative is a loss; None when it cannot be known.
        equity: quote; None when it cannot be known.
        drawdown_pct: how far equity lies below its peak, deposits apart, percent; None when it cannot be known.
        unresolved: orders whose outcome execution does not know; None when it was never heard.
        scores: risk scores by instrument; what is not known scores 1.
        others: what ``policies.exposure`` remembers of all instruments but one, while nothing in them changes.
        standing: what ``policies.pipeline`` remembers of rules that hold for all orders of a kind at this moment.
    """

    now_ms: int
    mode: Mode
    policy: Policy
    state: TradingState
    epoch: Epoch
    markets: Mapping[InstrumentId, MarketFrame]
    marks: Mapping[Currency, Decimal]
    portfolio: Portfolio
    portfolio_age_ms: int | None
    execution_age_ms: int | None
    daily_result: Decimal | None
    equity: Decimal | None
    drawdown_pct: Decimal | None = None
    unresolved: int | None = None
    scopes: tuple[ScopeState, ...] = ()
    scores: LiveScores = NO_SCORES
    others: dict[InstrumentId, tuple[tuple[int, int], Others | None]] = field(
        default_factory=dict[InstrumentId, tuple[tuple[int, int], Others | None]], compare=False, repr=False
    )
    standing: dict[tuple[object, ...], bool] = field(
        init=False, default_factory=dict[tuple[object, ...], bool], compare=False, repr=False
    )  # never taken over by a changed copy of the frame

    def state_for(self, agent_id: AgentId, symbol: Symbol) -> ScopeState:
        """Return the strictest state that holds for such an order, and the scope it comes from."""
        if not self.scopes:
            return ScopeState(DESK, self.state)
        account_id = self.portfolio.account_id
        return strictest(self.state, self.scopes, account_id=account_id, agent_id=agent_id, symbol=symbol)

    @property
    def limits(self) -> RiskLimits:
        """The limits in force."""
        return self.policy.limits

    @property
    def activity(self) -> Activity:
        """What agents did lately."""
        return self.portfolio.activity

    @property
    def reservations(self) -> ReservationBook:
        """The live reservations."""
        return self.portfolio.reservations


_SHOWN: Final = 6  # digits after the point of a ratio that has no end

#: Shared results of rules that passed and whose figures nobody asked for.
_PASSED: Final = {rule: RuleResult(rule=rule, passed=True, limit="", observed="", message="") for rule in Rule}


class OrderContext:
    """One order against one frame, with the figures that several rules share.

    Attributes:
        limit_price: what would be signed: for a market order the edge of the band.
        worst: quote per base that the order may trade at, at worst for us; None without a market.
        notional: quantity at ``worst``.  unit_cost: quote per base with fees.  cost: quantity at ``unit_cost``.
        after: signed position, base, if everything open on the order's side fills and this order too.
        held: base held of the instrument.  closable: base that an order on this side could still reduce.
        reduces: whether the order can only bring the position nearer to zero.
        own_value: worst-case quote of the instrument with this order, once a rule has asked for it.
        walked: base that the book gives inside the band, for market orders.
        limits, symbol_limits: the strictest of all scopes; ``in_force`` says where each value comes from.
        rate_ok: whether the agent, the symbol, the venue and the desk were within their rates when it was asked.
        duplicate_ms: age of the same content, approved before; None when there is none.
        decided: whether a verified decision stands behind it.  decision_problem: why one that was named does not.
        human: whether the operator's word stands behind it.
        explain: whether rules that pass must say so in words.
    """

    __slots__ = (
        "after",
        "agent_id",
        "band_high",
        "band_low",
        "closable",
        "cost",
        "decided",
        "decision_problem",
        "duplicate_ms",
        "effect",
        "explain",
        "exposure",
        "fee_rate",
        "frame",
        "held",
        "human",
        "in_force",
        "instrument",
        "instrument_id",
        "intent",
        "limit_price",
        "limits",
        "market",
        "notional",
        "own_value",
        "quantity",
        "rate_ok",
        "reduces",
        "symbol_limits",
        "unit_cost",
        "use",
        "walked",
        "worst",
    )

    frame: Frame
    in_force: InForce
    limits: RiskLimits
    symbol_limits: SymbolLimits | None
    market: MarketFrame
    instrument: Instrument | None
    instrument_id: InstrumentId
    intent: OrderIntent
    agent_id: AgentId
    quantity: Decimal
    effect: Effect
    reduces: bool
    held: Decimal
    closable: Decimal
    limit_price: Decimal | None
    worst: Decimal | None
    notional: Decimal | None
    unit_cost: Decimal | None
    cost: Decimal | None
    after: Decimal
    own_value: Decimal | None
    fee_rate: Decimal
    band_low: Decimal | None
    band_high: Decimal | None
    walked: Decimal | None
    exposure: Exposure
    use: AgentUse
    rate_ok: bool
    duplicate_ms: int | None
    decided: bool
    decision_problem: str
    human: bool
    explain: bool

    def judge(
        self,
        rule: Rule,
        passed: bool,
        limit: object,
        observed: object,
        message: str,
        headroom: object = "",
    ) -> RuleResult:
        """Return the verdict; texts and differences are only made when somebody will read them.

        Args:
            headroom: what is left, or the pair (most, used) whose difference it is.
        """
        if passed and not self.explain:
            return _PASSED[rule]
        return RuleResult(
            rule=rule,
            passed=passed,
            limit=_text(limit),
            observed=_text(observed),
            message=message,
            headroom=_headroom(headroom),
        )

    def agree(self, rule: Rule, limit: object, observed: object, message: str) -> RuleResult:
        """Return a verdict that passes."""
        if not self.explain:
            return _PASSED[rule]
        return RuleResult(rule=rule, passed=True, limit=_text(limit), observed=_text(observed), message=message)

    def refuse(self, rule: Rule, limit: object, observed: object, message: str) -> RuleResult:
        """Return a verdict that fails."""
        return RuleResult(rule=rule, passed=False, limit=_text(limit), observed=_text(observed), message=message)

    def missing(self, rule: Rule, message: str, limit: object = "") -> RuleResult:
        """Refuse because there is nothing to judge by."""
        return RuleResult(rule=rule, passed=False, limit=_text(limit), observed="", message=message)

    def exempt(self, rule: Rule, limit: object = "") -> RuleResult:
        """Let a reducing order pass a rule that guards increases only, so that no exit is trapped."""
        return self.agree(rule, limit, "", "guards increases only; this order reduces")


def _headroom(value: object) -> str:
    if isinstance(value, tuple):
        most, used = cast("tuple[Decimal, Decimal]", value)
        return _text(subtract(most, used))
    return _text(value)


def _text(value: object) -> str:
    if not isinstance(value, Decimal):
        return str(value)
    text = plain(value)
    return text if len(text.partition(".")[2]) <= MAX_SCALE else plain(quantize_nearest(value, _SHOWN))
