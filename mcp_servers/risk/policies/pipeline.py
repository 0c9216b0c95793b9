"""All rules in their order, and the verdict of all of them together.

Rules kept here:

- Every rule is asked, also after one has failed: a caller should hear everything at once.
- An empty list of rules denies. So does a rule list without a verdict: nothing is allowed by absence.
- Orders of one moment share the answers of rules that cannot tell them apart (``STANDING``). Such an answer only ever
  says that all of those rules passed; a refusal is always worked out in full, in the order of the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mcp_servers.risk.context import OrderContext
from trading.domain.denials import Rule, RuleResult

from . import activity, authority, conduct, exposure, instrument, portfolio, price, score, size

RuleFunction = Callable[[OrderContext], RuleResult]

RULES: Final[tuple[RuleFunction, ...]] = (
    instrument.instrument_known,
    instrument.instrument_restricted,
    instrument.venue_restricted,
    instrument.order_type,
    instrument.time_in_force,
    instrument.price_tick,
    instrument.quantity_step,
    instrument.quantity_range,
    instrument.notional_range,
    size.order_quantity_max,
    size.order_notional_max,
    size.trade_size_multiple,
    price.market_stale,
    price.price_collar,
    price.market_depth,
    price.spread_max,
    price.volatility_max,
    score.risk_score_max,
    score.risk_score_size,
    portfolio.portfolio_stale,
    portfolio.execution_silent,
    portfolio.unresolved_orders_max,
    exposure.position_max,
    exposure.exposure_gross_max,
    exposure.exposure_net_max,
    exposure.concentration_max,
    exposure.leverage_max,
    exposure.open_orders_max,
    portfolio.balance_free,
    portfolio.daily_loss,
    portfolio.drawdown_max,
    activity.turnover_max,
    activity.drift_max,
    activity.repeated_execution,
    activity.loss_streak,
    conduct.order_rate,
    conduct.order_duplicate,
    conduct.open_approvals_max,
    conduct.self_trade,
    authority.trading_state,
    authority.reduce_only,
    authority.decision_valid,
    authority.authority,
)


#: Rules that look at the frame and, of an order, at nothing but what :func:`_kind` names.
STANDING: Final = frozenset(
    {
        instrument.instrument_known,
        instrument.instrument_restricted,
        instrument.venue_restricted,
        instrument.order_type,
        instrument.time_in_force,
        price.market_stale,
        price.spread_max,
        price.volatility_max,
        score.risk_score_max,
        portfolio.portfolio_stale,
        portfolio.execution_silent,
        portfolio.unresolved_orders_max,
        portfolio.daily_loss,
        portfolio.drawdown_max,
        activity.repeated_execution,
        activity.loss_streak,
        authority.trading_state,
        authority.decision_valid,
    }
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all rules together say."""

    results: tuple[RuleResult, ...]

    @property
    def passed(self) -> bool:
        """Whether there are rules and every one of them passed."""
        return bool(self.results) and False not in [result.passed for result in self.results]

    @property
    def failures(self) -> tuple[RuleResult, ...]:
        """Every rule that failed, in the order they were asked; never empty for a refusal."""
        failed = tuple(result for result in self.results if not result.passed)
        return failed if failed or self.results else (_NO_RULES,)


_NO_RULES: Final = RuleResult(
    rule=Rule.AUTHORITY, passed=False, limit="at least one rule", observed="none", message="no rules are loaded"
)


def evaluate(context: OrderContext, rules: Sequence[RuleFunction] = RULES) -> Verdict:
    """Ask every rule about one order."""
    return Verdict(tuple([rule(context) for rule in rules]))


class RuleBook:
    """A list of rules, asked about many orders of one moment.

    Args:
        rules: in the order in which their refusals are told.
    """

    def __init__(self, rules: Sequence[RuleFunction] = RULES) -> None:
        self.rules = tuple(rules)
        self._standing = tuple([rule for rule in self.rules if rule in STANDING])
        self._single = tuple([rule for rule in self.rules if rule not in STANDING])

    def evaluate(self, context: OrderContext) -> Verdict:
        """Ask every rule about one order, sharing nothing."""
        return evaluate(context, self.rules)

    def passes(self, context: OrderContext) -> bool:
        """Return whether there are rules and every one of them passes."""
        known, kind = context.frame.standing, (self, *_kind(context))
        stands = known.get(kind)
        if stands is None:
            asked = [rule(context).passed for rule in self._standing]
            stands = known[kind] = bool(self.rules) and False not in asked
        return stands and False not in [rule(context).passed for rule in self._single]


def _kind(c: OrderContext) -> tuple[object, ...]:
    """Return all that the standing rules may know of an order; its market and its limits follow from it."""
    intent = c.intent
    return (
        c.agent_id,
        intent.account_id,
        intent.venue,
        intent.symbol,
        intent.order_type,
        intent.time_in_force,
        c.reduces,
        c.decided,
        c.decision_problem,
    )
