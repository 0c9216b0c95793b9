"""All rules in their order, the verdict of all of them together, and the largest size that would pass.

Rules kept here:

- Every rule is asked, also after one has failed: a caller should hear everything at once.
- An empty list of rules denies. So does a rule list without a verdict: nothing is allowed by absence.
- The nearest legal order goes through the same rules before it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from mcp_servers.risk.context import OrderContext
from trading.domain.denials import Rule, RuleResult
from trading.domain.instruments import Instrument
from trading.domain.market_data import Side
from trading.domain.money import ZERO, divide, subtract
from trading.domain.proposals import OrderType

from . import authority, conduct, exposure, instrument, portfolio, price, size

RuleFunction = Callable[[OrderContext], RuleResult]

RULES: Final[tuple[RuleFunction, ...]] = (
    instrument.instrument_known,
    instrument.instrument_restricted,
    instrument.order_type,
    instrument.price_tick,
    instrument.quantity_step,
    instrument.quantity_range,
    instrument.notional_range,
    size.order_quantity_max,
    size.order_notional_max,
    price.market_stale,
    price.price_collar,
    price.market_depth,
    portfolio.portfolio_stale,
    portfolio.execution_silent,
    exposure.position_max,
    exposure.exposure_gross_max,
    portfolio.balance_free,
    portfolio.daily_loss,
    conduct.order_rate,
    conduct.order_duplicate,
    conduct.open_approvals_max,
    authority.trading_state,
    authority.reduce_only,
    authority.decision_valid,
    authority.authority,
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


def largest_quantity(c: OrderContext) -> Decimal | None:
    """Return the most base that the size rules would allow now, on the step; None when something essential is missing.

    An estimate by division: the caller puts it through the rules before believing it.
    """
    instrument_ = c.instrument
    if instrument_ is None or c.worst is None or c.unit_cost is None or c.market.mid is None:
        return None
    if c.intent.side is Side.SELL and c.closable > 0:
        best = instrument_.quantity_floor(c.closable)
        if best >= instrument_.smallest_quantity(c.worst):
            return best if instrument_.quantity_max is None else min(best, instrument_.quantity_max)
    if c.intent.reduce_only:
        return instrument_.quantity_floor(c.closable)
    caps = _increase_caps(c, instrument_)
    return None if caps is None else instrument_.quantity_floor(max(ZERO, min(caps)))


def _increase_caps(c: OrderContext, instrument_: Instrument) -> list[Decimal] | None:
    limits, symbol = c.limits, c.symbol_limits
    others = exposure.other_exposure(c)
    if symbol is None or others is None or not c.worst or not c.unit_cost or c.market.mid is None:
        return None
    open_side = c.exposure.buy_open if c.intent.side is Side.BUY else c.exposure.sell_open
    already = subtract(exposure.worst_position(c), c.quantity)
    free = portfolio.free_balance(c)
    gross_base = divide(subtract(limits.gross_exposure_max, others), max(c.market.mid, c.worst))
    caps = [
        symbol.order_quantity_max,
        divide(symbol.order_notional_max, c.worst),
        subtract(symbol.position_quantity_max, already),
        subtract(gross_base, max(already, open_side)),
        divide(free, c.unit_cost) if c.intent.side is Side.BUY else free,
        divide(subtract(limits.reserved_notional_max, c.use.notional), c.unit_cost),
    ]
    if instrument_.quantity_max is not None:
        caps.append(instrument_.quantity_max)
    if instrument_.notional_max is not None:
        caps.append(divide(instrument_.notional_max, c.worst))
    if not c.decided:
        caps.append(divide(limits.undecided_notional_max, c.worst))
    if c.intent.order_type is OrderType.MARKET and c.market.book is not None:
        caps.append(price.depth_inside_impact(c))
    return caps
