"""What is promised and not yet over: every approval counts against the limits from the moment it is given.

Rules kept here:

- A reservation starts in the same step that checked the limits, before the signature exists.
- It ends only by its fate (lapsed, voided) or by a terminal order whose fills are applied; never by risk's clock.
  A grace period would break the limit: execution's clock may differ and the order may still be on its way.
- A fill moves quantity from the reservation to the position in one step, so the worst case never shrinks in between.
- Sums are kept by exact addition and subtraction; when nothing is open they are zero again.

Source: EU RTS 6 Art. 15(2), "immediately include all orders sent"; docs/model (release by clock: limit broken).
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from trading.domain.accounts import split_symbol
from trading.domain.approvals import ApprovedOrder, Effect
from trading.domain.identifiers import AgentId, ApprovalId, Currency, OrderId, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side, is_worse
from trading.domain.money import ONE, ZERO, add, multiply, subtract
from trading.domain.proposals import OrderType, TimeInForce


class RestingPrices:
    """Prices of one side at which orders may rest; knows the best of them without looking at all each time."""

    __slots__ = ("_best", "_counts", "_side")

    def __init__(self, side: Side) -> None:
        self._side = side
        self._counts: dict[Decimal, int] = {}
        self._best: Decimal | None = None

    def best(self) -> Decimal | None:
        """Return the price the opposite side would meet first; None when nothing rests."""
        if self._best is None and self._counts:
            self._best = max(self._counts) if self._side is Side.BUY else min(self._counts)
        return self._best

    def add(self, price: Decimal) -> None:
        """Count one more order at that price."""
        self._counts[price] = self._counts.get(price, 0) + 1
        if len(self._counts) == 1 or (self._best is not None and is_worse(price, self._best, self._side)):
            self._best = price  # the worst for its owner is first in line

    def remove(self, price: Decimal) -> None:
        """Count one less."""
        left = self._counts[price] - 1
        if left:
            self._counts[price] = left
            return
        del self._counts[price]
        if price == self._best:
            self._best = None


class Exposure:
    """Open promises in one instrument.

    Attributes:
        buy_open, sell_open: base that may still be bought or sold.
        protected: base that stops may still sell; not in ``sell_open``, because execution withdraws a stop before it
            sends a reduce that needs the quantity.
        buy_cost: quote that the buys may still cost, fees included.
        orders: how many promises are open.
        changes: how often any of it has changed.
        resting_buys, resting_sells: limit prices of promises that may come to rest in the venue's book; None while
            there never was one.
    """

    __slots__ = ("buy_cost", "buy_open", "changes", "orders", "protected", "resting_buys", "resting_sells", "sell_open")

    def __init__(self) -> None:
        self.changes = 0
        self.orders = 0
        self.resting_buys: RestingPrices | None = None
        self.resting_sells: RestingPrices | None = None
        self.buy_open = ZERO
        self.sell_open = ZERO
        self.protected = ZERO
        self.buy_cost = ZERO

    def best_resting(self, side: Side) -> Decimal | None:
        """Return the price of our own that an order against ``side`` would meet first; None when nothing rests."""
        prices = self.resting_buys if side is Side.BUY else self.resting_sells
        return None if prices is None else prices.best()

    def list_resting(self, side: Side, price: Decimal, step: int) -> None:
        """Count a resting order that begins (+1) or is over (-1)."""
        if side is Side.BUY:
            prices = self.resting_buys = self.resting_buys or RestingPrices(side)
        else:
            prices = self.resting_sells = self.resting_sells or RestingPrices(side)
        (prices.add if step > 0 else prices.remove)(price)


class AgentUse:
    """What one agent holds open.

    Attributes:
        unused: approvals that no order has consumed yet.
        notional: quote reserved.
    """

    __slots__ = ("notional", "unused")

    def __init__(self) -> None:
        self.unused = 0
        self.notional = ZERO


class Reservation:
    """One approval, or one order that risk does not know, counted until it is over.

    Attributes:
        unit_cost: quote that one base may cost or bring at worst, fees included.
        leaves: base that may still trade.
        rests_at: limit price at which it may come to rest in the book, quote per base; None when it cannot, or not yet.
        order_id: the order that consumed the approval, None before.
        protective: an order of a standing exit; a sale of this kind takes nothing from what others may still close.
        foreign: execution has this order but risk has no approval for it; it counts all the same.
        uncertain: its commit failed and nobody knows yet whether it is in the ledger.
    """

    __slots__ = (
        "agent_id",
        "approval_id",
        "effect",
        "foreign",
        "instrument_id",
        "leaves",
        "order_id",
        "protective",
        "rests_at",
        "side",
        "uncertain",
        "unit_cost",
    )

    def __init__(
        self,
        *,
        approval_id: ApprovalId,
        agent_id: AgentId,
        instrument_id: InstrumentId,
        side: Side,
        effect: Effect,
        quantity: Decimal,
        unit_cost: Decimal,
        rests_at: Decimal | None = None,
        foreign: bool = False,
        protective: bool = False,
    ) -> None:
        self.approval_id = approval_id
        self.agent_id = agent_id
        self.instrument_id = instrument_id
        self.side = side
        self.effect = effect
        self.leaves = quantity
        self.unit_cost = unit_cost
        self.rests_at = rests_at
        self.order_id: OrderId | None = None
        self.foreign = foreign
        self.protective = protective
        self.uncertain = False


def unit_cost_of(order: ApprovedOrder, fee_rate: Decimal, *, price: Decimal | None = None) -> Decimal:
    """Return what one base of this order may cost at worst, in quote with fees.

    Args:
        order: its limit price bounds it; a stop without one is taken at its trigger.
        fee_rate: the dearer of the instrument's fees, a rate of notional.
        price: overrides the order's own worst price.
    """
    worst = price or order.limit_price or order.stop_price or ZERO
    return multiply(worst, add(ONE, fee_rate))


def resting_price(order: ApprovedOrder) -> Decimal | None:
    """Return the price at which the order may rest; None for what trades at once or waits for a trigger."""
    if order.order_type is OrderType.LIMIT and order.time_in_force is TimeInForce.GTC:
        return order.limit_price
    return None


class ReservationBook:
    """All reservations of the account, with the sums that the rules read. Owned by one task at a time."""

    def __init__(self) -> None:
        self._open: dict[ApprovalId, Reservation] = {}
        self._by_instrument: dict[InstrumentId, Exposure] = {}
        self._by_agent: dict[AgentId, AgentUse] = {}
        self._promised: dict[Currency, Decimal] = {}
        self._at_venue: dict[Venue, int] = {}
        self._protective: dict[ApprovalId, Reservation] = {}
        self.changes = 0  # of all instruments together

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Reservation]:
        return iter(self._open.values())

    def get(self, approval_id: ApprovalId) -> Reservation | None:
        """Return an open reservation, None when there is none."""
        return self._open.get(approval_id)

    def exposure(self, instrument_id: InstrumentId) -> Exposure:
        """Return the live sums of one instrument; zeros, which are not kept, when it never had a reservation."""
        return self._by_instrument.get(instrument_id) or Exposure()

    def exposures(self) -> dict[InstrumentId, Exposure]:
        """Return the live sums of every instrument that ever had a reservation."""
        return self._by_instrument

    def agent(self, agent_id: AgentId) -> AgentUse:
        """Return the live sums of one agent; zeros, which are not kept, when it never had a reservation."""
        return self._by_agent.get(agent_id) or AgentUse()

    def agents(self) -> dict[AgentId, AgentUse]:
        """Return the live sums of every agent that ever had a reservation."""
        return self._by_agent

    def at_venue(self, venue: Venue) -> int:
        """Return how many promises are open at one venue."""
        return self._at_venue.get(venue, 0)

    def promised(self, currency: Currency) -> Decimal:
        """Return what open orders may still take out of one currency: the cost of buys in it, and sells of it."""
        return self._promised.get(currency, ZERO)

    def protective(self) -> list[Reservation]:
        """Return the open orders of standing exits."""
        return list(self._protective.values())

    def expose(self, approval_id: ApprovalId) -> None:
        """Count an order of a standing exit as any other from now on: it may do more than it should."""
        reservation = self._protective.pop(approval_id, None)
        if reservation is not None:
            self._count(reservation, -reservation.leaves)
            reservation.protective, reservation.foreign = False, True
            self._count(reservation, reservation.leaves)

    def add(self, reservation: Reservation) -> None:
        """Count a reservation; adding the same approval twice counts it once."""
        if reservation.approval_id in self._open:
            return
        self._open[reservation.approval_id] = reservation
        if reservation.protective:
            self._protective[reservation.approval_id] = reservation
        use = self._by_agent.get(reservation.agent_id)
        if use is None:
            use = self._by_agent[reservation.agent_id] = AgentUse()
        if reservation.order_id is None:
            use.unused += 1
        self._count(reservation, reservation.leaves)
        self._list(reservation, 1)

    def consume(self, approval_id: ApprovalId, order_id: OrderId) -> None:
        """Note that an order now stands for the approval; the quantity goes on counting."""
        reservation = self._open.get(approval_id)
        if reservation is not None and reservation.order_id is None:
            reservation.order_id = order_id
            self.agent(reservation.agent_id).unused -= 1

    def shrink(self, approval_id: ApprovalId, leaves: Decimal) -> None:
        """Let the reservation count for ``leaves`` (base, >= 0) from now on, after a fill was applied."""
        reservation = self._open.get(approval_id)
        if reservation is not None:
            self._count(reservation, subtract(leaves, reservation.leaves))
            reservation.leaves = leaves

    def remove(self, approval_id: ApprovalId) -> Reservation | None:
        """Stop counting an approval; the caller has the evidence. Return what was removed."""
        reservation = self._open.pop(approval_id, None)
        if reservation is None:
            return None
        self._protective.pop(approval_id, None)
        self._count(reservation, -reservation.leaves)
        self._list(reservation, -1)
        if reservation.order_id is None:
            self.agent(reservation.agent_id).unused -= 1
        return reservation

    def _list(self, reservation: Reservation, step: int) -> None:
        """Count a promise that begins (+1) or is over (-1)."""
        exposure, venue = self._by_instrument[reservation.instrument_id], reservation.instrument_id.venue
        exposure.orders += step
        self._at_venue[venue] = self._at_venue.get(venue, 0) + step
        if reservation.rests_at is not None:
            exposure.list_resting(reservation.side, reservation.rests_at, step)

    def _count(self, reservation: Reservation, change: Decimal) -> None:
        cost = multiply(change, reservation.unit_cost)
        exposure = self._by_instrument.get(reservation.instrument_id)
        if exposure is None:
            exposure = self._by_instrument[reservation.instrument_id] = Exposure()
        currency, quote = split_symbol(reservation.instrument_id)
        amount = change
        if reservation.side is Side.BUY:
            currency, amount = quote, cost
            exposure.buy_open = add(exposure.buy_open, change)
            exposure.buy_cost = add(exposure.buy_cost, cost)
        elif reservation.protective:
            exposure.protected = add(exposure.protected, change)
            amount = ZERO
        else:
            exposure.sell_open = add(exposure.sell_open, change)
        exposure.changes += 1
        self.changes += 1
        self._promised[currency] = add(self._promised.get(currency, ZERO), amount)
        use = self.agent(reservation.agent_id)
        use.notional = add(use.notional, cost)
