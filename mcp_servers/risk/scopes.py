"""Limits of one account, mode, venue or agent, and what is in force for an order when all of them are asked.

Rules kept here:

- The strictest wins: of every value that holds for an order the smallest counts, of every list what all allow.
- A scope that says nothing inherits; where each value comes from is kept and shown (``risk_get_limits``).
- What is in force is worked out once for each combination of configured scopes, not for each order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Final, cast

from pydantic import Field

from trading.adapters.config import SectionModel
from trading.domain.denials import Rule
from trading.domain.identifiers import AccountId, AgentId, Symbol, Venue
from trading.domain.proposals import Mode, OrderType, TimeInForce
from trading.domain.standing_exits import StopPlan

from .authority import Needs, strictest
from .protection import ProtectionLimits, plan_of
from .values import Amount, Bps, Count, Percent, Share, Whole

if TYPE_CHECKING:
    from .limits import RiskLimits, SymbolLimits

#: Names under which a value's origin is shown beside ``symbol:BTC/USDT``, ``agent:NAME`` and so on.
DEFAULT: Final = "default"
DESK: Final = "desk"


class ScopeLimits(SectionModel):
    """Tighter limits for the orders of one account, mode, venue or agent; None inherits.

    A bound keeps its meaning: ``gross_exposure_max`` of an agent stops that agent once the account's gross exposure
    is there, ``turnover_max`` counts the agent's own approvals. Names are those of the desk and of a symbol.

    Attributes:
        symbols, venues: the only ones allowed; others count as restricted, except to reduce.
        order_types, times_in_force: the only ones allowed.
        overridable: of those that the desk names, the only ones.
    """

    symbols: tuple[Symbol, ...] | None = None
    venues: tuple[Venue, ...] | None = None
    order_types: tuple[OrderType, ...] | None = None
    times_in_force: tuple[TimeInForce, ...] | None = None
    order_notional_max: Amount | None = None
    collar_bps: Bps | None = None
    impact_bps_max: Bps | None = None
    spread_bps_max: Bps | None = None
    move_bps_max: Bps | None = None
    trade_size_multiple_max: Amount | None = None
    score_max: Share | None = None
    score_notional_max: Amount | None = None
    gross_exposure_max: Amount | None = None
    net_exposure_max: Amount | None = None
    concentration_pct_max: Percent | None = None
    leverage_max: Amount | None = None
    daily_loss_max: Amount | None = None
    drawdown_pct_max: Percent | None = None
    loss_streak_max: Count | None = None
    entries_max: Count | None = None
    order_rate_per_s: Count | None = None
    order_burst: Count | None = None
    turnover_max: Amount | None = None
    open_approvals_max: Count | None = None
    reserved_notional_max: Amount | None = None
    undecided_notional_max: Amount | None = None
    authority: Needs | None = None
    unattended_notional_max: Amount | None = None
    overridable: tuple[Rule, ...] | None = None
    pending_agent_max: Count | None = None
    unresolved_orders_max: Annotated[Whole, Field(ge=0)] | None = None
    portfolio_loss_pct: Percent | None = None
    stop_bps: Bps | None = None


@dataclass(frozen=True, slots=True)
class InForce:
    """The limits that hold for one order.

    Attributes:
        symbol: None when the symbol has no limits of its own, which restricts it.
        protection, plan: how a position in it is protected; the defaults, as tight as the scopes ask, without a symbol.
        symbols, venues: the only ones allowed; None allows every one that has limits.
        needs: who must agree to any new risk, however small.
        sources: for every value in ``limits`` and ``symbol`` the scope it comes from.
    """

    limits: RiskLimits
    symbol: SymbolLimits | None
    protection: ProtectionLimits
    plan: StopPlan
    symbols: tuple[Symbol, ...] | None
    venues: tuple[Venue, ...] | None
    needs: Needs
    sources: Mapping[str, str]


class Scopes:
    """Answers what is in force for an order.

    Args:
        limits: the whole document.
        defaults, symbol_defaults: to tell a value that somebody chose from one that nobody did.
    """

    def __init__(self, limits: RiskLimits, defaults: RiskLimits, symbol_defaults: SymbolLimits) -> None:
        self._limits = limits
        self._defaults = defaults
        self._symbol_defaults = symbol_defaults
        self._scoped = bool(limits.accounts or limits.modes or limits.venues or limits.agents)
        self._known: dict[tuple[str, str, str, str, str], InForce] = {}

    def of(self, account_id: AccountId, mode: Mode, venue: Venue, agent_id: AgentId, symbol: Symbol) -> InForce:
        """Return the strictest limits of everything that holds for such an order."""
        limits = self._limits
        named = symbol if symbol in limits.symbols else Symbol("")
        key = ("", "", "", "", named)
        if self._scoped:
            key = (
                account_id if account_id in limits.accounts else "",
                mode if mode in limits.modes else "",
                venue if venue in limits.venues else "",
                agent_id if agent_id in limits.agents else "",
                named,
            )
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._resolve(account_id, mode, venue, agent_id, symbol)
        return known

    def _resolve(self, account_id: AccountId, mode: Mode, venue: Venue, agent_id: AgentId, symbol: Symbol) -> InForce:
        limits, own = self._limits, self._limits.symbols.get(symbol)
        desk, sources = _values(limits, self._defaults, DESK)
        of_symbol: dict[str, object] = {}
        if own is not None:
            of_symbol, named = _values(own, self._symbol_defaults, f"symbol:{symbol}")
            sources.update(named)
        stops = self._symbol_defaults.protection if own is None else own.protection
        of_stops, named = _values(stops, self._symbol_defaults.protection, f"symbol:{symbol}")
        if own is not None:
            sources.update(named)
        allowed: dict[str, object] = {"symbols": None, "venues": None}
        for name, scope in (
            (f"account:{account_id}", limits.accounts.get(account_id)),
            (f"mode:{mode.value}", limits.modes.get(mode)),
            (f"venue:{venue}", limits.venues.get(venue)),
            (f"agent:{agent_id}", limits.agents.get(agent_id)),
        ):
            for field in ScopeLimits.model_fields if scope is not None else ():
                wanted = getattr(scope, field)
                held = next((known for known in (allowed, of_symbol, of_stops) if field in known), desk)
                if wanted is not None and field in held and (stricter := _stricter(held[field], wanted)) is not None:
                    held[field], sources[field] = stricter, name
        standing = Needs.NONE if mode in limits.undecided_modes else Needs.VOTE
        for wanted in (desk["authority"], of_symbol.get("symbol_authority", Needs.NONE)):
            standing = strictest(standing, cast("Needs", wanted))
        whole, protection = limits.model_copy(update=desk), stops.model_copy(update=of_stops)
        return InForce(
            whole,
            None if own is None else own.model_copy(update={**of_symbol, "protection": protection}),
            protection,
            plan_of(protection, whole.portfolio_loss_pct),
            cast("tuple[Symbol, ...] | None", allowed["symbols"]),
            cast("tuple[Venue, ...] | None", allowed["venues"]),
            standing,
            sources,
        )


#: Parts of the document that are not values of an order.
_STRUCTURE: Final = frozenset({"symbols", "accounts", "modes", "venues", "agents", "quorum", "protection", "breaker"})


def _values(model: SectionModel, defaults: SectionModel, name: str) -> tuple[dict[str, object], dict[str, str]]:
    """Return the values of a model, and for each whether somebody chose it."""
    values = {field: getattr(model, field) for field in type(model).model_fields if field not in _STRUCTURE}
    return values, {field: DEFAULT if value == getattr(defaults, field) else name for field, value in values.items()}


def _stricter(held: object, wanted: object) -> object | None:
    """Return ``wanted`` joined with what is held already when that is stricter, else None."""
    if held is None:
        return wanted
    if isinstance(held, Needs) and isinstance(wanted, Needs):
        return wanted if held is not wanted and strictest(held, wanted) is wanted else None
    if isinstance(held, tuple) and isinstance(wanted, tuple):
        both = tuple([item for item in cast("tuple[object, ...]", held) if item in wanted])
        return None if both == held else both
    return wanted if cast("Decimal | int", wanted) < cast("Decimal | int", held) else None
