"""What an agent may ask of a stop: to be nearer, never to be farther. Asking for what holds already changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

from mcp_servers.execution.protection.guards import Guard
from mcp_servers.execution.protection.stops import Tightening, deadline_ms, is_hit, is_nearer
from trading.domain.errors import GateRefused, InvalidValue
from trading.domain.instruments import Instrument
from trading.domain.money import plain
from trading.domain.standing_exits import StopPlan

LOOSENED = "PROTECTION_LOOSENED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked for; at least one of the three.

    Attributes:
        stop_price: quote per base, on the tick.
        trailing_bps: behind the best price since the entry, basis points, > 0.
        hold_max_s: seconds from the entry on, > 0.
    """

    stop_price: Decimal | None = None
    trailing_bps: Decimal | None = None
    hold_max_s: int | None = None


def tighten(guard: Guard, plan: StopPlan, wish: Wish, *, price: Decimal | None) -> Guard:
    """Return the guard with what was asked for on top of what holds.

    Args:
        guard: of an open position.
        plan: of its exit.
        wish: see :class:`Wish`.
        price: at which the position could be closed now, None when unknown.

    Raises:
        GateRefused: PROTECTION_LOOSENED, it is farther than what holds, with the present level;
            PROTECTION_WOULD_TRIGGER, the market is at or beyond it already; PRICE_STALE, nobody knows whether it is.
    """
    asked = guard.asked
    if price is None and (wish.stop_price is not None or wish.trailing_bps is not None):
        raise GateRefused("there is no fresh price to set a stop by", code="PRICE_STALE", suggestion="try again")
    if wish.stop_price is not None:
        _check_price(guard, wish.stop_price, price)
        asked = replace(asked, stop_price=wish.stop_price)
    if wish.trailing_bps is not None:
        known = [each for each in (plan.trailing_bps, asked.trailing_bps) if each is not None]
        if known and wish.trailing_bps > min(known):
            _refuse("the trailing distance", plain(min(known)), unit=" bps")
        asked = replace(asked, trailing_bps=wish.trailing_bps)
    if wish.hold_max_s is not None:
        asked = _hold(guard, plan, asked, wish.hold_max_s)
    return replace(guard, asked=asked)


def check_tick(wish: Wish, instrument: Instrument) -> None:
    """Return if the price that is asked for is on the tick.

    Raises:
        InvalidValue: PRICE_TICK, with the nearest prices; NOTHING_ASKED, none of the three is given.
    """
    price = wish.stop_price
    if price is None and wish.trailing_bps is None and wish.hold_max_s is None:
        raise InvalidValue("give stop_price, trailing_bps or hold_max_s", code="NOTHING_ASKED")
    if price is not None and not instrument.is_price(price):
        near = (instrument.price_floor(price), instrument.price_ceiling(price))
        raise InvalidValue(
            f"stop_price is not on the tick of {plain(instrument.price_tick)}",
            code="PRICE_TICK",
            suggestion="use one of the allowed prices",
            allowed=tuple([plain(each) for each in near]),
        )


def _check_price(guard: Guard, wanted: Decimal, price: Decimal | None) -> None:
    stop = guard.stop
    if stop is not None and is_nearer(guard.side, stop.price, wanted):
        _refuse("the stop", plain(stop.price))
    if price is not None and is_hit(guard.side, wanted, price):
        raise would_trigger(f"the market is at {plain(price)}: a stop at {plain(wanted)}")


def _hold(guard: Guard, plan: StopPlan, asked: Tightening, hold_max_s: int) -> Tightening:
    wanted_ms, known_ms = guard.opened_ms + hold_max_s * 1_000, deadline_ms(guard.opened_ms, plan.hold_max_ms, asked)
    if known_ms is not None and wanted_ms > known_ms:
        _refuse("the longest time", str((known_ms - guard.opened_ms) // 1_000), unit=" s from the entry")
    return replace(asked, hold_until_ms=wanted_ms)


def would_trigger(what: str) -> GateRefused:
    """Return the refusal of a wish that is a sale in disguise, which needs an approval and has its bounds."""
    return GateRefused(
        f"{what} would close the position at once",
        code="PROTECTION_WOULD_TRIGGER",
        suggestion="to close now, ask risk to approve a reduce-only order",
    )


def _refuse(what: str, present: str, *, unit: str = "") -> None:
    raise GateRefused(
        f"{what} would be looser than it is: now {present}{unit}",
        code=LOOSENED,
        suggestion="a stop may only be tightened",
        allowed=(present,),
    )
