"""The risk score as a limit: it may only tighten, and what is not known scores 1. Unset unless wanted."""

from __future__ import annotations

from decimal import Decimal

from mcp_servers.risk.context import OrderContext
from trading.domain.denials import Rule, RuleResult
from trading.domain.money import ONE, multiply, subtract


def risk_score_max(c: OrderContext) -> RuleResult:
    """While the market's score is above the bound no risk is added."""
    limit = None if c.symbol_limits is None else c.symbol_limits.score_max
    if c.reduces:
        return c.exempt(Rule.RISK_SCORE_MAX, "none" if limit is None else limit)
    if limit is None and not c.explain:
        return c.agree(Rule.RISK_SCORE_MAX, "none", "", "")
    score = c.frame.scores.of(c.instrument_id, c.frame.now_ms).value
    if limit is None:
        return c.agree(Rule.RISK_SCORE_MAX, "none", score, _words(c))
    passed = score <= limit
    return c.judge(Rule.RISK_SCORE_MAX, passed, limit, score, "" if passed and not c.explain else _words(c))


def risk_score_size(c: OrderContext) -> RuleResult:
    """One order is worth at most the bound times one less the score."""
    if c.reduces:
        return c.exempt(Rule.RISK_SCORE_SIZE)
    most = score_notional(c)
    if most is None:
        return c.agree(Rule.RISK_SCORE_SIZE, "none", "", "no bound set")
    if c.notional is None:
        return c.missing(Rule.RISK_SCORE_SIZE, "cannot be judged without a price", most)
    return c.judge(
        Rule.RISK_SCORE_SIZE,
        c.notional <= most,
        most,
        c.notional,
        "largest value of one order at the present risk score, quote",
        (most, c.notional),
    )


def score_notional(c: OrderContext) -> Decimal | None:
    """Return the most quote that the score allows one order to be worth; None without a bound."""
    bound = None if c.symbol_limits is None else c.symbol_limits.score_notional_max
    if bound is None:
        return None
    return multiply(bound, subtract(ONE, c.frame.scores.of(c.instrument_id, c.frame.now_ms).value))


def _words(c: OrderContext) -> str:
    return c.frame.scores.words(c.instrument_id, c.frame.now_ms)
