"""What a mode would do, and what it thinks of what another would do.

Monotone by construction, and tested so: on the same snapshot whatever a cautious mode proposes every bolder one votes
for, and votes only move from no towards yes as the mode gets bolder.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from trading.domain.market_data import Side
from trading.domain.proposals import OrderIntent, OrderType, TimeInForce
from trading.domain.voting import Choice
from trading.strategy.modes import ModeNumbers
from trading.strategy.signals import Signal, read, volatility_bps
from trading.strategy.sizing import order_cap, order_size
from trading.strategy.snapshot import MarketSnapshot

#: What is held is sold on strong evidence only, in every mode: each sale pays the round trip's second fee.
EXIT_STRENGTH_MIN: Final = 0.8

#: Older market data or account figures are not traded on, by any mode.
BOOK_AGE_MAX_MS: Final = 2_000
ACCOUNT_AGE_MAX_MS: Final = 5_000

_BPS: Final = 10_000.0


@dataclass(frozen=True, slots=True)
class Propose:
    """An order worth putting to the vote, with the reason shown to people (at most 280 characters)."""

    order: OrderIntent
    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing to do, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stance:
    """A ballot's content and its reason."""

    choice: Choice
    reason: str


def round_trip_cost_bps(snapshot: MarketSnapshot) -> float:
    """Return what buying and selling again costs: two taker fees and the spread, in basis points."""
    spread = snapshot.book.spread_bps
    return 2 * float(snapshot.instrument.taker_fee) * _BPS + (float(spread) if spread is not None else 0.0)


def admitted(snapshot: MarketSnapshot, mode: ModeNumbers) -> tuple[Signal, ...]:
    """Return the signals the mode would act upon, strongest first; a subset of every bolder mode's."""
    if _unfit(snapshot, mode):
        return ()
    cost = round_trip_cost_bps(snapshot)
    return tuple(
        signal
        for signal in read(snapshot)
        if signal.strength >= _strength_min(signal.side, mode) and signal.edge_bps >= mode.edge_to_cost_min * cost
    )


def _strength_min(side: Side, mode: ModeNumbers) -> float:
    return mode.strength_min if side is Side.BUY else max(mode.strength_min, EXIT_STRENGTH_MIN)


def propose(snapshot: MarketSnapshot, mode: ModeNumbers) -> Propose | Hold:
    """Return the order this mode wants now, or why it wants none.

    Market orders are sized in base; a sell only reduces what is held (spot has no short).
    """
    if reason := _unfit(snapshot, mode):
        return Hold(reason)
    wanted = admitted(snapshot, mode)
    if not wanted:
        return Hold("no signal is strong enough for its cost")
    for signal in wanted:
        quantity = order_size(snapshot, mode, signal.side, signal.strength)
        if quantity <= 0:
            continue
        order = _order(snapshot, signal.side, quantity)
        if stance(snapshot, order, mode).choice is Choice.YES:
            return Propose(order, f"{signal.kind} {signal.strength:.2f}, expected {signal.edge_bps:.1f} bps")
    return Hold("no room for an order on the side of the signals, or a contrary signal is too strong")


def stance(snapshot: MarketSnapshot, order: OrderIntent, mode: ModeNumbers) -> Stance:
    """Return the mode's ballot on an order.

    No: the market is unfit for the mode or a contrary signal reaches its objection strength. Yes: it has a signal of
    its own on that side and the order is within its size. Otherwise it abstains: it would not do this, and has
    nothing against it.
    """
    if reason := _unfit(snapshot, mode):
        return Stance(Choice.NO, reason)
    for signal in read(snapshot):
        if signal.side is not order.side and signal.strength >= mode.objection_strength:
            return Stance(Choice.NO, f"contrary {signal.kind} {signal.strength:.2f}")
    own = next((signal for signal in admitted(snapshot, mode) if signal.side is order.side), None)
    if own is None:
        return Stance(Choice.ABSTAIN, "no signal of its own on that side")
    if order.quantity > order_cap(snapshot, mode, order.side):
        return Stance(Choice.ABSTAIN, "larger than this mode would trade")
    return Stance(Choice.YES, f"{own.kind} {own.strength:.2f}")


def _unfit(snapshot: MarketSnapshot, mode: ModeNumbers) -> str:
    """Return why the mode would not trade in this market at all, or an empty string."""
    if snapshot.book_age_ms > BOOK_AGE_MAX_MS:
        return f"the book is {snapshot.book_age_ms} ms old"
    if snapshot.account_age_ms > ACCOUNT_AGE_MAX_MS:
        return f"the account figures are {snapshot.account_age_ms} ms old"
    spread = snapshot.book.spread_bps
    if spread is None:
        return "the book is not two-sided"
    if float(spread) > mode.spread_bps_max:
        return f"spread of {float(spread):.2f} bps is too wide"
    volatility = volatility_bps(snapshot)
    if volatility is not None and volatility > mode.volatility_bps_max:
        return f"range of {volatility:.1f} bps is too large"
    return ""


def _order(snapshot: MarketSnapshot, side: Side, quantity: Decimal) -> OrderIntent:
    return OrderIntent(
        account_id=snapshot.account_id,
        venue=snapshot.instrument.venue,
        symbol=snapshot.instrument.symbol,
        side=side,
        order_type=OrderType.MARKET,
        quantity=quantity,
        time_in_force=TimeInForce.IOC,
        reduce_only=side is Side.SELL,
    )
