"""The tool that estimates what an order would get."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, Literal, Protocol

from mcp_servers.envelope import Meta, PositiveDecimalText, Reply, ok, timestamp
from mcp_servers.hosting import Context, state
from mcp_servers.market.consolidated import consolidate
from mcp_servers.market.fill_estimate import FillEstimate, Outlet, base_for, break_even_bps, estimate
from mcp_servers.market.prices import Prices
from mcp_servers.market.reference import fee_rates
from mcp_servers.market.schemas import prices as schemas
from mcp_servers.market.tools.arguments import Register, SymbolText, VenueText
from mcp_servers.market.tools.gathering import Gathered, gather_usable
from mcp_servers.market.tools.rows import times_of
from trading.domain.market_data import Side
from trading.domain.money import quantize_nearest

_BPS_DIGITS: Final = 4


class HasPrices(Protocol):
    """What this tool needs of the room."""

    @property
    def prices(self) -> Prices:
        """The newest books and trades."""
        ...


def register(read: Register) -> None:
    """Add the tool."""

    @read(title="Estimate a fill")
    async def market_estimate_fill(
        ctx: Context[HasPrices],
        symbol: SymbolText,
        side: Literal["buy", "sell", "both"],
        amount: PositiveDecimalText,
        unit: Literal["base", "quote"] = "base",
        venue: VenueText = None,
    ) -> Reply[schemas.FillEstimate]:
        """Estimate what a market order would get now: average price, impact, fees, break-even, unfilled rest.

        Venue "all" spreads it over all usable venues, `parts` says how. Side "both" puts the sell in `opposite`.
        Nothing is reserved; unusable books are refused. Example: side "buy", amount "0.5".
        """
        found = gather_usable(state(ctx).prices, symbol, venue)
        first = Side.SELL if side == "sell" else Side.BUY
        opposite = fill_row(found, first.opposite, amount, unit, None) if side == "both" else None
        row, times = fill_row(found, first, amount, unit, opposite), times_of(found.judged)
        as_of = timestamp(times.received_ts_ms)
        return ok(row, Meta(venue=found.label, age_ms=row.age_ms, as_of=as_of, source=times.source))


def fill_row(
    found: Gathered,
    side: Side,
    amount: Decimal,
    unit: Literal["base", "quote"],
    opposite: schemas.FillEstimate | None,
) -> schemas.FillEstimate:
    """Return the estimate of one side.

    Raises:
        InvalidValue: less than any of the venues takes.
    """
    outlets = [_outlet(found, index) for index in range(len(found.books))]
    quantity = amount if unit == "base" else base_for(outlets, side, amount)
    filled = estimate(outlets, side, quantity)
    times = times_of(found.judged)
    return schemas.FillEstimate(
        symbol=found.books[0].instrument.symbol,
        venue=found.label,
        side=side.value,
        requested=filled.requested,
        filled=filled.filled,
        unfilled=filled.unfilled,
        vwap=_rounded(filled.vwap, _price_digits(outlets)),
        worst_price=filled.worst_price,
        notional=filled.notional,
        fee=filled.fee,
        fee_rate=quantize_nearest(filled.fee_rate, 8),
        fee_assumed=filled.fee_assumed,
        impact_bps=_impact_bps(found, filled),
        break_even_bps=_rounded(break_even_bps(outlets, filled), _BPS_DIGITS),
        venue_ts_ms=times.venue_ts_ms,
        received_ts_ms=times.received_ts_ms,
        age_ms=times.age_ms,
        parts={venue: part.walked.filled for venue, part in filled.parts.items()},
        left_out=dict(found.left_out),
        opposite=opposite,
    )


def _outlet(found: Gathered, index: int) -> Outlet:
    item = found.books[index]
    fees = fee_rates(item.instrument, None)
    return Outlet(item.judged, item.instrument, fees.taker, fees.assumed)


def _impact_bps(found: Gathered, filled: FillEstimate) -> Decimal | None:
    """Return the impact against the mid of the best bid and ask of all books that take part."""
    mid = consolidate(found.judged).mid
    return None if mid is None else _rounded(filled.impact_bps(mid), _BPS_DIGITS)


def _price_digits(outlets: list[Outlet]) -> int:
    """Return fractional digits of an average price: four more than the finest tick has, at least eight."""
    return max(8, *(4 - outlet.instrument.price_tick.adjusted() for outlet in outlets))


def _rounded(value: Decimal | None, digits: int) -> Decimal | None:
    return None if value is None else quantize_nearest(value, min(digits, 18))
