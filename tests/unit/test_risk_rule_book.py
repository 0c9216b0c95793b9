"""Rules that orders of one moment share say what they would say of each order alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mcp_servers.risk.context import Frame, OrderContext
from mcp_servers.risk.orders import OrderRequest, intent_of
from mcp_servers.risk.policies.pipeline import RULES, STANDING, RuleBook, RuleFunction
from mcp_servers.risk.pricing import build_context
from tests.risk_support import open_desk, order, sell, wide_limits
from trading.domain.approvals import TradingState
from trading.domain.proposals import Mode

#: What the key of a shared answer holds, and what follows from it within one frame.
KNOWN = {"account_id", "venue", "symbol", "order_type", "time_in_force"}
FOLLOWS = {
    "agent_id",
    "decided",
    "decision_problem",
    "effect",
    "explain",
    "frame",
    "in_force",
    "instrument",
    "instrument_id",
    "limits",
    "market",
    "reduces",
    "symbol_limits",
}


class Watched:
    """Passes attributes on and remembers which were read."""

    def __init__(self, inner: object, read: set[str], **instead: object) -> None:
        self.inner, self.read, self.instead = inner, read, instead

    def __getattr__(self, name: str) -> Any:
        if callable(found := getattr(self.inner, name)):
            return found
        self.read.add(name)
        return self.instead.get(name, found)


def context(frame: Frame, request: OrderRequest, **about: Any) -> OrderContext:
    return build_context(
        frame, intent_of(frame, request, decided=False), request.agent_id, decided=about.pop("decided", False), **about
    )


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule in STANDING])
@pytest.mark.parametrize("explain", [False, True])
async def test_a_standing_rule_reads_nothing_of_an_order_that_its_key_does_not_hold(
    rule: RuleFunction, explain: bool
) -> None:
    desk = await open_desk()
    await desk.hold("1")
    frame = desk.risk.frame()
    for request in (order(), sell("0.5"), order(symbol="ETH/USDT")):
        for state in TradingState:
            c = context(replace(frame, state=state), request, explain=explain)
            of_order, of_intent = set[str](), set[str]()
            rule(Watched(c, of_order, intent=Watched(c.intent, of_intent)))  # pyright: ignore[reportArgumentType]  # a stand-in
            assert of_intent <= KNOWN
            assert of_order - {"intent"} <= FOLLOWS


async def test_a_changed_copy_of_a_frame_shares_no_answers_with_it() -> None:
    desk = await open_desk()
    book, frame = RuleBook(), desk.risk.frame()
    assert book.passes(context(frame, order()))
    assert not book.passes(context(replace(frame, state=TradingState.HALTED), order()))


async def test_orders_that_differ_in_what_a_standing_rule_looks_at_do_not_share_its_answer() -> None:
    limits = wide_limits(undecided_modes=(Mode.PAPER,), agents={"quiet": {"times_in_force": ("ioc",)}})
    desk = await open_desk(limits=limits)
    await desk.hold("1")
    book, frame = RuleBook(), desk.risk.frame()
    assert book.passes(context(frame, order()))
    assert not book.passes(context(frame, order(agent_id="quiet")))
    assert not book.passes(context(frame, order(), decision_problem="it does not hold"))
    reducing = replace(frame, state=TradingState.REDUCING)
    assert not book.passes(context(reducing, order()))
    assert book.passes(context(reducing, sell("0.5")))


async def test_no_rules_pass_nothing() -> None:
    desk = await open_desk()
    assert not RuleBook(()).passes(context(desk.risk.frame(), order()))


async def test_every_single_rule_that_fails_is_enough_to_refuse() -> None:
    desk = await open_desk()
    frame = desk.risk.frame()
    c = context(frame, order())
    assert RuleBook().passes(c)
    for position, rule in enumerate(RULES):

        def broken(c: OrderContext, rule: RuleFunction = rule) -> Any:
            return replace(rule(c), passed=False)

        rules = (*RULES[:position], broken, *RULES[position + 1 :])
        assert not RuleBook(rules).passes(c), rule.__name__
        assert [item.rule for item in RuleBook(rules).evaluate(c).failures] == [rule(c).rule]


async def test_the_book_says_what_all_rules_together_say(desk_orders: list[OrderRequest]) -> None:
    desk = await open_desk()
    await desk.hold("1")
    book, frame = RuleBook(), desk.risk.frame()
    for each in (frame, *[replace(frame, state=state) for state in TradingState]):
        for request in desk_orders:
            c = context(each, request)
            assert book.passes(c) == book.evaluate(c).passed


@pytest.fixture
def desk_orders() -> list[OrderRequest]:
    """Orders of many kinds, good and bad, in an order that lets them share."""
    sizes, prices = ("0.0000001", "0.01", "1", "1000"), ("1", "59990", "60001", "60001.005", "90000")
    made = [order(amount=size, limit_price=price) for size in sizes for price in prices]
    made += [order(amount=size, symbol="ETH/USDT") for size in sizes] + [sell(size) for size in sizes]
    return made + made[::-1]
