"""Which way every limit is tighter, and what a change of the document does.

Rules kept here:

- Every field has a direction; one that is missing here counts as undecidable, and a test fails.
- A change is tighter only if no order, of whatever agent or symbol, may do more after it than before.
- Undecidable is treated as looser: where a narrower value could trap an exit and a wider one adds risk, a person
  decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Final, cast

from trading.adapters.config import SectionModel
from trading.domain.money import plain
from trading.domain.proposals import OrderType

from .authority import Needs, strictest
from .breaker_limits import BreakerLimits
from .limits import QuorumLimits, RiskLimits, SymbolLimits
from .protection import ProtectionLimits
from .scopes import ScopeLimits

#: A position can always be closed with one of these; a list that has neither could trap it.
_EXIT_TYPES: Final = frozenset({OrderType.MARKET, OrderType.LIMIT})


class Direction(StrEnum):
    """What makes a value tighter."""

    SMALLER = "smaller"  # None sets no bound
    LARGER = "larger"
    SUBSET = "subset"  # None allows everything
    EXIT_TYPES = "subset that still lets a position be closed"
    CONSENT = "subset that is not empty"  # empty leaves it to the roster
    STRICTER = "stricter"  # who must agree
    TRUE = "true"
    FALSE = "false"
    RATIO = "larger fraction of numerator and denominator"
    EITHER = "a person decides"
    PART = "by its parts"
    GRANTS = "by key; a key allows something"
    BOUNDS = "by key; a key restricts something"


class Tightness(StrEnum):
    """What a change does."""

    TIGHTER = "tighter"
    LOOSER = "looser"
    UNDECIDABLE = "undecidable"


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs.

    Attributes:
        path: as in the document, for example ``symbols.BTC/USDT.order_notional_max``.
        old, new: as text; ``none`` for no bound.
    """

    path: str
    old: str
    new: str
    tightness: Tightness

    @property
    def needs_signature(self) -> bool:
        """Whether it comes into force only with the operator's signature."""
        return self.tightness is not Tightness.TIGHTER

    def __str__(self) -> str:
        return f"{self.path} {self.old} -> {self.new} ({self.tightness})"


def _named(direction: Direction, *names: str) -> dict[str, Direction]:
    return dict.fromkeys(names, direction)


_ORDER: Final = {
    **_named(
        Direction.SMALLER,
        *("order_notional_max", "collar_bps", "impact_bps_max", "spread_bps_max", "move_bps_max"),
        *("trade_size_multiple_max", "score_max", "score_notional_max"),
    )
}
_DESK: Final = {
    "order_types": Direction.EXIT_TYPES,
    "times_in_force": Direction.SUBSET,  # does not bind orders that reduce
    **_named(
        Direction.SMALLER,
        *("gross_exposure_max", "net_exposure_max", "concentration_pct_max", "leverage_max", "daily_loss_max"),
        *("drawdown_pct_max", "loss_streak_max", "entries_max", "order_rate_per_s", "order_burst", "turnover_max"),
        *("open_approvals_max", "reserved_notional_max", "undecided_notional_max", "unresolved_orders_max"),
        *("portfolio_loss_pct", "unattended_notional_max", "pending_agent_max"),
    ),
    "authority": Direction.STRICTER,
    "overridable": Direction.SUBSET,
}

#: The direction of every field of the document, by the model it stands in.
DIRECTIONS: Final[Mapping[type[SectionModel], Mapping[str, Direction]]] = {
    RiskLimits: {
        **_DESK,
        "symbols": Direction.GRANTS,
        **_named(Direction.BOUNDS, "accounts", "modes", "venues", "agents"),
        **_named(
            Direction.SMALLER,
            *("band_bps_decided", "band_bps_interactive", "ttl_ms_decided", "ttl_ms_interactive"),
            *("market_max_age_ms", "instrument_max_age_ms", "portfolio_max_age_ms", "execution_max_age_ms"),
            *("desk_rate_per_s", "desk_burst", "symbol_rate_per_s", "venue_rate_per_s"),
            *("desk_turnover_max", "desk_open_orders_max", "venue_open_orders_max", "clock_skew_ms"),
            *("ttl_ms_human", "pending_ttl_ms", "pending_max"),
        ),
        # A longer look back counts more against the same bound.
        **_named(
            Direction.LARGER,
            *("loss_window_ms", "entries_window_ms", "turnover_window_ms", "move_window_ms", "duplicate_window_ms"),
        ),
        "band_bps_exit": Direction.EITHER,  # narrower could trap an exit, wider sells for less
        "exit_ttl_ms": Direction.EITHER,  # shorter could leave a position without an exit, longer keeps an old one good
        "undecided_modes": Direction.SUBSET,
        "reactivate_after_unclean_stop": Direction.FALSE,
        "quorum": Direction.PART,
        "breaker": Direction.PART,
        "score_model_digest": Direction.EITHER,  # which of two models is stricter differs from hour to hour
    },
    SymbolLimits: {
        **_ORDER,
        **_named(
            Direction.SMALLER,
            *("order_quantity_max", "position_quantity_max", "stop_band_bps", "symbol_open_orders_max"),
            *("symbol_turnover_max", "symbol_drift_max"),
        ),
        "symbol_authority": Direction.STRICTER,
        "protection": Direction.PART,
    },
    ScopeLimits: {**_ORDER, **_DESK, **_named(Direction.SUBSET, "symbols", "venues"), "stop_bps": Direction.SMALLER},
    QuorumLimits: {
        **_named(Direction.RATIO, "threshold_numerator", "threshold_denominator"),
        **_named(Direction.LARGER, "min_yes", "min_yes_large", "quorum"),
        "require_risk_consent": Direction.TRUE,
        "consent_agents": Direction.CONSENT,
    },
    BreakerLimits: {
        **_named(
            Direction.SMALLER,
            *("daily_loss_halt", "drawdown_pct", "loss_streak", "spread_bps", "range_bps", "stale_ms", "rejections"),
            *("denials", "orders", "agent_orders", "order_children", "order_value", "orders_without_approval"),
            "differences",
        ),
        **_named(Direction.LARGER, "range_window_ms", "window_ms"),
    },
    ProtectionLimits: {
        **_named(Direction.SMALLER, "stop_bps", "trailing_bps", "atr_multiple", "hold_max_ms"),
        **_named(Direction.EITHER, "atr_bars", "atr_bar_ms"),
        "floor_bps": Direction.EITHER,  # narrower could trap an exit, wider sells for less
    },
}


def compare(old: RiskLimits, new: RiskLimits) -> tuple[Change, ...]:
    """Return every value that differs, in the order of the document."""
    return tuple(_of_model("", old, new))


def loosening(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Return the changes that need the operator's signature."""
    return tuple([change for change in changes if change.needs_signature])


def _of_model(prefix: str, old: SectionModel, new: SectionModel) -> Iterable[Change]:
    directions = DIRECTIONS.get(type(new), {})
    if isinstance(old, QuorumLimits) and isinstance(new, QuorumLimits):
        yield from _of_threshold(prefix, old, new)
    for name in type(new).model_fields:
        direction = directions.get(name, Direction.EITHER)
        if direction is not Direction.RATIO:
            yield from _of_value(f"{prefix}{name}", direction, getattr(old, name), getattr(new, name))


def _of_value(path: str, direction: Direction, old: object, new: object) -> Iterable[Change]:
    if old == new:
        return
    if direction is Direction.PART and isinstance(old, SectionModel) and isinstance(new, SectionModel):
        yield from _of_model(f"{path}.", old, new)
    elif direction in (Direction.GRANTS, Direction.BOUNDS):
        was, now = cast("dict[str, SectionModel]", old), cast("dict[str, SectionModel]", new)
        for key in dict.fromkeys((*was, *now)):
            yield from _of_key(f"{path}.{key}", direction, was.get(key), now.get(key))
    else:
        tightness = _judge(direction, old, new)
        if tightness is not None:
            yield Change(path, text_of(old), text_of(new), tightness)


def _of_key(path: str, direction: Direction, old: SectionModel | None, new: SectionModel | None) -> Iterable[Change]:
    if direction is Direction.BOUNDS:  # a scope that is not there says nothing
        yield from _of_model(f"{path}.", old or ScopeLimits(), new or ScopeLimits())
    elif old is None:
        yield Change(path, "none", "allowed", Tightness.LOOSER)
    elif new is None:
        yield Change(path, "allowed", "none", Tightness.TIGHTER)
    else:
        yield from _of_model(f"{path}.", old, new)


def _of_threshold(prefix: str, old: QuorumLimits, new: QuorumLimits) -> Iterable[Change]:
    was = Fraction(old.threshold_numerator, old.threshold_denominator)
    now = Fraction(new.threshold_numerator, new.threshold_denominator)
    if was != now:
        tightness = Tightness.TIGHTER if now > was else Tightness.LOOSER
        yield Change(f"{prefix}threshold", str(was), str(now), tightness)


def _judge(direction: Direction, old: object, new: object) -> Tightness | None:
    """Return what the change does; None when both mean the same."""
    if direction in _LISTS:
        return _LISTS[direction](_items(old), _items(new))
    if direction in (Direction.TRUE, Direction.FALSE):
        return Tightness.TIGHTER if new is (direction is Direction.TRUE) else Tightness.LOOSER
    if direction is Direction.STRICTER:
        was = cast("Needs", old or Needs.NONE)
        return Tightness.TIGHTER if strictest(was, cast("Needs", new or Needs.NONE)) is not was else Tightness.LOOSER
    if direction is Direction.SMALLER:
        tighter = old is None or (new is not None and cast("Decimal", new) < cast("Decimal", old))
        return Tightness.TIGHTER if tighter else Tightness.LOOSER
    if direction is Direction.LARGER and old is not None and new is not None:
        return Tightness.TIGHTER if cast("Decimal", new) > cast("Decimal", old) else Tightness.LOOSER
    return Tightness.UNDECIDABLE


Items = frozenset[object]


def _items(value: object) -> Items | None:
    return None if value is None else frozenset(cast("tuple[object, ...]", value))


def _subset(old: Items | None, new: Items | None) -> Tightness | None:
    if old == new:  # the same in another order
        return None
    tighter = new is not None and (old is None or new < old)
    return Tightness.TIGHTER if tighter else Tightness.LOOSER


def _exit_types(old: Items | None, new: Items | None) -> Tightness | None:
    found = _subset(old, new)
    trapped = new is not None and not new & _EXIT_TYPES
    return Tightness.UNDECIDABLE if found is Tightness.TIGHTER and trapped else found


def _consent(old: Items | None, new: Items | None) -> Tightness | None:
    return _subset(old, new) if old and new else Tightness.UNDECIDABLE


_LISTS: Final[Mapping[Direction, Callable[[Items | None, Items | None], Tightness | None]]] = {
    Direction.SUBSET: _subset,
    Direction.EXIT_TYPES: _exit_types,
    Direction.CONSENT: _consent,
}


def text_of(value: object) -> str:
    """Return a limit as a person and a model read it."""
    if value is None:
        return "none"
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, tuple):
        return ", ".join([str(item) for item in cast("tuple[object, ...]", value)])
    return str(value).lower() if isinstance(value, bool) else str(value)
