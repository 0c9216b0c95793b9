"""Which scopes of the breaker this desk has, so that a misspelt name halts nobody else and is said at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Final

from trading.domain.errors import InvalidValue
from trading.domain.identifiers import AgentId
from trading.domain.standing_exits import PROTECTION
from trading.domain.trading_states import ACCOUNT, AGENT, DESK, FORMS, SYMBOL, ScopeState, parse_scope

from .breaker import Breaker
from .limits import RiskLimits
from .parts import RiskParts
from .portfolio import Portfolio

_NEAR: Final = 0.6
_SHOWN: Final = 5


class KnownScopes:
    """Reads names of scopes.

    Args:
        parts: the account, the symbols, and the agents that have keys.
        limits: gives those in force; symbols and agents that have some can be named.
        portfolio: agents whose orders are known.
        asked: gives the agents that asked for approvals lately.
    """

    def __init__(
        self,
        parts: RiskParts,
        limits: Callable[[], RiskLimits],
        portfolio: Portfolio,
        asked: Callable[[], Iterable[AgentId]],
    ) -> None:
        self._parts = parts
        self._limits = limits
        self._portfolio = portfolio
        self._asked = asked

    def read(self, text: str) -> str:
        """Return the scope that is meant.

        Raises:
            InvalidValue: UNKNOWN_SCOPE; ``allowed`` has the nearest scopes of this desk, or the forms.
        """
        scope = parse_scope(text)
        if scope == DESK:
            return scope
        known = self.known()
        if scope in known:
            return scope
        kind, _, name = scope.partition(":")
        names = sorted([each.partition(":")[2] for each in known if each.startswith(f"{kind}:")])
        near = [f"{kind}:{each}" for each in difflib.get_close_matches(name, names, n=_SHOWN, cutoff=_NEAR)]
        raise InvalidValue(
            f"this desk has no {scope}; nothing was changed",
            code="UNKNOWN_SCOPE",
            suggestion=f"did you mean {near[0]}?" if near else "to stop everything, name the desk",
            allowed=(DESK, *near) if near else FORMS,
        )

    def known(self) -> set[str]:
        """Return every scope but the desk that can be named."""
        parts, limits, book = self._parts, self._limits(), self._portfolio.book
        agents = {*self._asked(), *self._portfolio.reservations.agents(), *limits.agents}
        agents.update(order.agent_id for order in (*book.open_orders.values(), *book.finished_orders()))
        if parts.keys is not None:
            agents.update(parts.keys.agents)
        symbols = {*parts.symbols, *limits.symbols}
        found = {f"{AGENT}:{agent}" for agent in agents - {PROTECTION}}
        return found | {f"{SYMBOL}:{symbol}" for symbol in symbols} | {f"{ACCOUNT}:{parts.account_id}"}


def restricted(breaker: Breaker) -> tuple[ScopeState, ...]:
    """Return everything that is restricted, the desk first."""
    desk = breaker.state
    return (*((ScopeState(DESK, desk),) if desk.is_restricted else ()), *breaker.scopes)


def restrictions_text(breaker: Breaker) -> str:
    """Return why trading is restricted, scope by scope; empty when it is not."""
    told = [breaker.reason] if breaker.reason else []
    told += [f"{each.scope} is {each.state.value}: {breaker.reason_of(each.scope)}" for each in breaker.scopes]
    return "; ".join(told)
