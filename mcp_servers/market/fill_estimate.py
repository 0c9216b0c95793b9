"""What a market order of a size would get: on one venue, or spread over several.

Rules kept here:

1. A level's price counts with the taker fee of its venue. Over several venues the best levels are taken first, which
   is the best there is while fees are proportional to notional and nothing else costs.
2. What each venue would be sent is a multiple of its step and reaches its least quantity and least notional. A venue
   whose share is too small is dropped and the rest is spread again; the result is never worse than the best single
   venue. Maximum sizes are left out: a larger order can be sent in parts.
3. Break-even is the move of the price, in the direction the order hopes for, after which closing the position by a
   market order on the same books would have cost nothing: both spreads, both impacts and both taker fees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from mcp_servers.market.consolidated import fee_factor
from mcp_servers.market.quality import Judged
from trading.domain.errors import InvalidValue
from trading.domain.identifiers import Venue
from trading.domain.instruments import Instrument
from trading.domain.market_data import Level, Side, WalkedBook, walk_levels
from trading.domain.money import (
    BPS,
    MAX_SCALE,
    ONE,
    ZERO,
    add,
    difference_bps,
    divide,
    multiply,
    plain,
    quantize_down,
    subtract,
    total,
)


@dataclass(frozen=True, slots=True)
class Outlet:
    """A venue where the order could go.

    Attributes:
        taker: fee rate of notional.
        assumed: the rate is a public one and not this account's own.
    """

    judged: Judged
    instrument: Instrument
    taker: Decimal
    assumed: bool

    @property
    def venue(self) -> Venue:
        """The venue's name."""
        return self.instrument.venue


class Part(NamedTuple):
    """What one venue would give: what was taken out of its book, and the fee in quote."""

    walked: WalkedBook
    fee: Decimal


@dataclass(frozen=True, slots=True)
class FillEstimate:
    """What an order would get from the books as they are.

    Attributes:
        requested: base, in whole steps.
        parts: by venue; only venues that give something.
        fee_assumed: at least one of the rates is not this account's own.
    """

    side: Side
    requested: Decimal
    parts: Mapping[Venue, Part]
    fee_assumed: bool

    @property
    def filled(self) -> Decimal:
        """Base that the books can give."""
        return total([part.walked.filled for part in self.parts.values()])

    @property
    def unfilled(self) -> Decimal:
        """Base that they cannot give."""
        return subtract(self.requested, self.filled)

    @property
    def notional(self) -> Decimal:
        """Quote exchanged, without fees."""
        return total([part.walked.notional for part in self.parts.values()])

    @property
    def fee(self) -> Decimal:
        """Taker fees in quote."""
        return total([part.fee for part in self.parts.values()])

    @property
    def cash(self) -> Decimal:
        """Quote paid by a buyer or got by a seller, fees included."""
        return add(self.notional, multiply(self.fee, Decimal(self.side.sign)))

    @property
    def fee_rate(self) -> Decimal:
        """Fees over notional; zero when nothing is filled."""
        return divide(self.fee, self.notional) if self.notional else ZERO

    @property
    def vwap(self) -> Decimal | None:
        """Average price without fees, to 34 digits; None when nothing is filled."""
        return divide(self.notional, self.filled) if self.filled else None

    @property
    def worst_price(self) -> Decimal | None:
        """The worst price touched; None when nothing is filled."""
        prices = [part.walked.worst_price for part in self.parts.values() if part.walked.worst_price is not None]
        return None if not prices else max(prices) if self.side is Side.BUY else min(prices)

    def impact_bps(self, mid: Decimal) -> Decimal | None:
        """Return how much worse than ``mid`` the average price is, fees not counted; None when nothing is filled."""
        vwap = self.vwap
        return None if vwap is None else multiply(difference_bps(vwap, mid), Decimal(self.side.sign))


def estimate(outlets: Sequence[Outlet], side: Side, quantity: Decimal) -> FillEstimate:
    """Return what a market order would get.

    Args:
        outlets: usable books of one symbol; at least one.
        quantity: base, > 0; cut to the finest step of the outlets, and beyond that to each venue's own step and
            largest order; what one order cannot be stays unfilled.

    Raises:
        InvalidValue: less than the least that any of the venues takes.
    """
    requested = max(outlet.instrument.quantity_floor(quantity) for outlet in outlets)
    best: FillEstimate | None = None
    ways = [{index: requested} for index in range(len(outlets))]
    if len(outlets) > 1:
        ways.insert(0, _spread(outlets, side, requested))  # of equal ways the first one counts
    for shares in ways:
        found = _filled(outlets, side, requested, shares)
        if found is not None and (best is None or _is_better(found, best)):
            best = found
    if best is None:
        least = min(o.instrument.smallest_quantity(_levels(o, side)[0].price) for o in outlets)
        raise InvalidValue(
            "the amount is smaller than the least that can be ordered",
            code="QUANTITY_TOO_SMALL",
            suggestion=f"at least {plain(least)} base",
        )
    return best


def break_even_bps(outlets: Sequence[Outlet], entry: FillEstimate) -> Decimal | None:
    """Return how far the price must move before closing an estimated position costs nothing.

    None when the books cannot take back what they gave, or the venues would not take an order of that size.
    """
    if not entry.filled:
        return None
    try:
        back = estimate(outlets, entry.side.opposite, entry.filled)
    except InvalidValue:
        return None
    if back.filled != entry.filled:
        return None
    bought, sold = (entry, back) if entry.side is Side.BUY else (back, entry)
    if entry.side is Side.BUY:
        return multiply(subtract(divide(bought.cash, sold.cash), ONE), BPS)
    return multiply(subtract(ONE, divide(sold.cash, bought.cash)), BPS)


def base_for(outlets: Sequence[Outlet], side: Side, amount: Decimal) -> Decimal:
    """Return how much base ``amount`` of quote, fees not counted, buys or must be sold for.

    What the books cannot give is counted at the last price, so that it shows as unfilled.
    """
    remaining, base, last = amount, ZERO, ZERO
    for offer in _offers(outlets, side):
        value, last = multiply(offer.price, offer.quantity), offer.price
        if value >= remaining:
            break
        remaining, base = subtract(remaining, value), add(base, offer.quantity)
    return add(base, quantize_down(divide(remaining, last), MAX_SCALE))


class _Offer(NamedTuple):
    order: Decimal  # the price with its fee, negative for a sell, so that the best comes first
    price: Decimal
    quantity: Decimal
    outlet: int


def _offers(outlets: Sequence[Outlet], side: Side) -> list[_Offer]:
    """Return the levels of all outlets, the best with its fee first."""
    offers: list[_Offer] = []
    for index, outlet in enumerate(outlets):
        factor = fee_factor(side, outlet.taker)
        for price, quantity in _levels(outlet, side):
            priced = multiply(price, factor)
            offers.append(_Offer(priced if side is Side.BUY else priced.copy_negate(), price, quantity, index))
    offers.sort(key=lambda offer: (offer.order, offer.quantity.copy_negate(), offer.outlet))
    return offers


def _spread(outlets: Sequence[Outlet], side: Side, quantity: Decimal) -> dict[int, Decimal]:
    """Return each outlet's share by its index; an outlet whose share would be too small gets none."""
    offers = _offers(outlets, side)
    active = set(range(len(outlets)))
    while active:
        shares = _shares(outlets, offers, active, quantity)
        small = [index for index, share in shares.items() if not _takes(outlets[index], side, share)]
        if not small:
            return shares
        active.discard(min(small, key=lambda index: shares[index]))
    return {}


def _shares(
    outlets: Sequence[Outlet], offers: Sequence[_Offer], active: Set[int], quantity: Decimal
) -> dict[int, Decimal]:
    """Take the best offers first, cut each share to whole steps, and give what the cuts left over to whoever can."""
    shares = dict.fromkeys(sorted(active), ZERO)
    remaining = quantity
    for offer in offers:
        if offer.outlet in active and remaining > 0:
            taken = _at_most(outlets[offer.outlet], shares[offer.outlet], min(remaining, offer.quantity))
            shares[offer.outlet] = add(shares[offer.outlet], taken)
            remaining = subtract(remaining, taken)
    shares = {index: outlets[index].instrument.quantity_floor(share) for index, share in shares.items()}
    left = subtract(quantity, total(list(shares.values())))
    reached = dict.fromkeys(active, ZERO)
    for offer in offers:
        if offer.outlet not in active:
            continue
        reached[offer.outlet] = add(reached[offer.outlet], offer.quantity)
        room = min(left, subtract(reached[offer.outlet], shares[offer.outlet]))
        room = _at_most(outlets[offer.outlet], shares[offer.outlet], room)
        more = outlets[offer.outlet].instrument.quantity_floor(room)
        shares[offer.outlet] = add(shares[offer.outlet], more)
        left = subtract(left, more)
    return {index: share for index, share in shares.items() if share}


def _at_most(outlet: Outlet, share: Decimal, more: Decimal) -> Decimal:
    """Return how much of ``more`` a share may grow by before the venue would refuse the order as too large."""
    limit = outlet.instrument.quantity_max
    return more if limit is None else min(more, max(ZERO, subtract(limit, share)))


def _takes(outlet: Outlet, side: Side, quantity: Decimal) -> bool:
    return quantity >= outlet.instrument.smallest_quantity(_levels(outlet, side)[0].price)


def _filled(
    outlets: Sequence[Outlet], side: Side, requested: Decimal, shares: Mapping[int, Decimal]
) -> FillEstimate | None:
    """Return what these shares would get; None when there are none or a venue would not take its share."""
    parts: dict[Venue, Part] = {}
    assumed = False
    for index, share in shares.items():
        outlet = outlets[index]
        quantity = outlet.instrument.quantity_floor(_at_most(outlet, ZERO, share))
        if not _takes(outlet, side, quantity):
            return None
        walked = walk_levels(_levels(outlet, side), side, quantity)
        parts[outlet.venue] = Part(walked, multiply(walked.notional, outlet.taker))
        assumed = assumed or outlet.assumed
    return FillEstimate(side, requested, parts, assumed) if parts else None


def _is_better(found: FillEstimate, than: FillEstimate) -> bool:
    if found.filled != than.filled:
        return found.filled > than.filled
    return found.cash < than.cash if found.side is Side.BUY else found.cash > than.cash


def _levels(outlet: Outlet, side: Side) -> tuple[Level, ...]:
    return outlet.judged.book.asks if side is Side.BUY else outlet.judged.book.bids
