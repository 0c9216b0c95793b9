"""What may be traded, and for whom: the breaker's states and the scopes that they hold for.

A scope is ``desk``, ``account:ID``, ``agent:NAME`` or ``symbol:BASE/QUOTE``. An order is judged by the strictest state
of all scopes that cover it; a scope of a kind that is not known here covers everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from trading.domain.errors import InvalidValue
from trading.domain.identifiers import AccountId, AgentId, Symbol, parse_name, parse_symbol

DESK: Final = "desk"
ACCOUNT: Final = "account"
AGENT: Final = "agent"
SYMBOL: Final = "symbol"
FORMS: Final = (DESK, "account:ID", "agent:NAME", "symbol:BASE/QUOTE")

#: More restricted scopes than this at once are not told apart: the desk is restricted instead.
SCOPES_MAX: Final = 32


class Effect(StrEnum):
    """Whether an order can add risk. Decided by risk, re-checked by execution."""

    INCREASE = "increase"
    REDUCE = "reduce"


class TradingState(StrEnum):
    """What may be traded. Anything but ACTIVE stops new risk; exits stay open except when FROZEN."""

    ACTIVE = "active"
    REDUCING = "reducing"
    HALTED = "halted"
    FROZEN = "frozen"

    def permits(self, effect: Effect) -> bool:
        """Return whether an order with that effect may be sent in this state."""
        if self is TradingState.ACTIVE:
            return True
        return effect is Effect.REDUCE and self is not TradingState.FROZEN

    def is_stricter_than(self, other: TradingState) -> bool:
        """Return whether less may be traded in this state than in the other."""
        return _RANK[self] > _RANK[other]

    @property
    def is_restricted(self) -> bool:
        """Whether anything may not be traded."""
        return self is not TradingState.ACTIVE

    @property
    def cancels_increases(self) -> bool:
        """Whether working orders that add risk are taken back in this state."""
        return self in (TradingState.HALTED, TradingState.FROZEN)


_RANK: Final = {state: rank for rank, state in enumerate(TradingState)}


@dataclass(frozen=True, slots=True)
class ScopeState:
    """A scope and what may be traded in it."""

    scope: str
    state: TradingState


def strictest(
    desk: TradingState,
    scopes: Iterable[ScopeState],
    *,
    account_id: AccountId,
    agent_id: AgentId,
    symbol: Symbol,
) -> ScopeState:
    """Return the strictest state of all that hold for such an order, and the scope it comes from."""
    found = ScopeState(DESK, desk)
    for each in scopes:
        if each.state.is_stricter_than(found.state) and _covers(each.scope, account_id, agent_id, symbol):
            found = each
    return found


def _covers(scope: str, account_id: AccountId, agent_id: AgentId, symbol: Symbol) -> bool:
    kind, _, name = scope.partition(":")
    match kind:
        case "agent":
            return name == agent_id
        case "symbol":
            return name == symbol
        case "account":
            return name == account_id
        case _:
            return True


def is_scope(text: str) -> bool:
    """Return whether the text is meant as a scope; other rows share their table."""
    return text == DESK or ":" in text


def parse_scope(text: str) -> str:
    """Return the scope as it is written everywhere.

    Raises:
        InvalidValue: UNKNOWN_SCOPE, not of one of the forms; ``allowed`` has a bare symbol's scope, or the forms.
    """
    kind, colon, name = text.strip().partition(":")
    kind, name = kind.strip().lower(), name.strip()
    try:
        if kind == DESK and not colon:
            return DESK
        if kind == SYMBOL:
            return f"{SYMBOL}:{parse_symbol(name.upper())}"
        if kind in (ACCOUNT, AGENT):
            return f"{kind}:{parse_name(name, what=kind)}"
        if not colon:
            near = f"{SYMBOL}:{parse_symbol(kind.upper())}"
            raise InvalidValue(f"{text[:64]!r} is not a scope", code="UNKNOWN_SCOPE", allowed=(near,))
    except InvalidValue as error:
        if error.code == "UNKNOWN_SCOPE":
            raise
    raise InvalidValue(f"{text[:64]!r} is not a scope", code="UNKNOWN_SCOPE", allowed=FORMS)
