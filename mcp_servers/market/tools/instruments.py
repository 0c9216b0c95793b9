"""Tools that find instruments and show their rules and funding."""

from __future__ import annotations

import logging
from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Final, Protocol

from pydantic import Field

from mcp_servers.envelope import Meta, Reply, fit, ok, timestamp
from mcp_servers.hosting import Context, state
from mcp_servers.market.prices import Prices
from mcp_servers.market.reference import Reference
from mcp_servers.market.schemas import instruments as schemas
from mcp_servers.market.sources.ccxt.answers import FeeRates, Funding, fee_rates
from mcp_servers.market.symbol_search import nearest, search, spelled
from mcp_servers.market.tools.arguments import Register, SymbolText, VenueText
from trading.domain.errors import TradingError, Unavailable, UnknownInstrument, UnsupportedFeature
from trading.domain.identifiers import Symbol
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.money import divide, multiply, quantize_nearest

Limit = Annotated[int, Field(ge=1, le=20)]

_YEAR_MS: Final = Decimal(365 * 86_400_000)
_log = logging.getLogger(__name__)


class HasReference(Protocol):
    """What these tools need of the room."""

    @property
    def prices(self) -> Prices:
        """The newest books and trades."""
        ...

    @property
    def reference(self) -> Reference | None:
        """Who asks the venues; None in a replay, which has no network."""
        ...


def register(read: Register) -> None:
    """Add the tools."""

    @read(title="Search instruments")
    async def market_search_instruments(
        ctx: Context[HasReference],
        query: Annotated[str, Field(max_length=41)] = "",
        limit: Limit = 10,
        venue: VenueText = None,
    ) -> Reply[schemas.Found]:
        """Find spot instruments by a part of their symbol; an empty query lists all. Example: query "btcusd".

        Use it when you do not know how a symbol is written. It has rules, no prices.
        """
        prices, reference = state(ctx).prices, state(ctx).reference
        asked, complete = prices.venue if venue is None else prices.choose("", venue).venue, True
        live = [item for item in prices.search("") if venue is None or item.venue == asked]
        known = {item.id: item for item in live}
        if reference is not None:
            try:
                known = {**{item.id: item for item in await reference.instruments(asked)}, **known}
            except TradingError as error:
                _log.info("searching live instruments only: %s", error)
                complete = False
        found = search(query, known.values(), first=frozenset(item.id for item in live))
        page = fit([rules_row(item) for item in found[: limit + 1]], cursor_of=lambda row: row.symbol, limit=limit)
        data = schemas.Found(
            instruments=page.rows,
            total=len(found),
            complete=complete,
            did_you_mean=[] if found else nearest(query, known.values()),
        )
        return ok(data, Meta(venue=asked, truncated=page.truncated))

    @read(title="Get instrument rules")
    async def market_get_instrument(
        ctx: Context[HasReference], symbol: SymbolText, venue: VenueText = None
    ) -> Reply[schemas.RulesWithFees]:
        """Get the venue's rules for a symbol: price tick, quantity step, minimums, maximums and fee rates.

        Example: symbol "BTC/USDT". fees_assumed: the rates are public ones, not your account's own.
        """
        prices, reference = state(ctx).prices, state(ctx).reference
        rules, fees = await _rules(prices, reference, symbol, venue)
        live = any(item.id == rules.id for item in prices.search(""))
        data = schemas.RulesWithFees(
            **rules_row(rules).model_dump(), fees_assumed=fees.assumed, fee_source=fees.source, live=live
        )
        return ok(data, Meta(venue=rules.venue, age_ms=fees.age_ms))

    @read(title="Get funding rate")
    async def market_get_funding(
        ctx: Context[HasReference], symbol: SymbolText, venue: VenueText = None
    ) -> Reply[schemas.Funding]:
        """Get the funding rate of the perpetual contract on a spot symbol. Example: symbol "BTC/USDT".

        Without a venue, the first of this desk's venues that has such a contract.
        """
        reference = state(ctx).reference
        if reference is None:
            raise UnsupportedFeature(
                "a recording has no funding rates", code="NOT_CONFIGURED", suggestion="use --market live"
            )
        found = await _funding(reference, symbol, venue)
        as_of = timestamp(found.venue_ts_ms or found.received_ts_ms)
        age_ms = reference.age_ms(found.received_ts_ms)
        return ok(funding_row(symbol, found), Meta(venue=found.venue, as_of=as_of, age_ms=age_ms))


async def _rules(
    prices: Prices, reference: Reference | None, symbol: str, venue: str | None
) -> tuple[Instrument, FeeRates]:
    """Return rules from the feed if it has them, else from the venue.

    Raises:
        UnknownInstrument: neither has it. Otherwise as the feed says, or the venue.
    """
    try:
        rules = prices.instrument(symbol, venue)
    except (UnknownInstrument, Unavailable):
        if reference is None:
            raise
    else:
        fees = fee_rates(rules, None)
        return rules, fees if reference is not None else replace(fees, source="the recording")
    asked = prices.choose(symbol, venue).venue
    symbols = [item.symbol for item in await reference.instruments(asked)]
    rules, age_ms = await reference.instrument(InstrumentId(asked, spelled(symbol, symbols) or Symbol(symbol)))
    return rules, fee_rates(rules, age_ms)


async def _funding(reference: Reference, symbol: str, venue: str | None) -> Funding:
    """Return a venue's funding rate; without one, that of the first venue that has it.

    Raises:
        TradingError: what the venue says, the first one when none was named.
    """
    if venue is not None:
        return await reference.funding(symbol, venue)
    refusal: TradingError | None = None
    for candidate in reference.venues:
        try:
            return await reference.funding(symbol, candidate)
        except (UnknownInstrument, UnsupportedFeature) as error:
            refusal = refusal or error
    assert refusal is not None  # a desk has a venue
    raise refusal


def rules_row(instrument: Instrument) -> schemas.Rules:
    """Return an instrument's rules."""
    return schemas.Rules(
        symbol=instrument.symbol,
        venue=instrument.venue,
        base=instrument.base,
        quote=instrument.quote,
        price_tick=instrument.price_tick,
        quantity_step=instrument.quantity_step,
        quantity_min=instrument.quantity_min,
        quantity_max=instrument.quantity_max,
        notional_min=instrument.notional_min,
        notional_max=instrument.notional_max,
        maker_fee=instrument.maker_fee,
        taker_fee=instrument.taker_fee,
    )


def funding_row(symbol: str, found: Funding) -> schemas.Funding:
    """Return a funding rate's row; a year holds 365 days, payments are not compounded."""
    interval_ms = found.interval_ms
    per_year = None if interval_ms is None else multiply(found.rate, divide(_YEAR_MS, Decimal(interval_ms)))
    return schemas.Funding(
        symbol=symbol,
        venue=found.venue,
        contract=found.contract,
        rate=found.rate,
        interval_h=None if interval_ms is None else interval_ms // 3_600_000,
        rate_per_year=None if per_year is None else quantize_nearest(per_year, 6),
        next_ts_ms=found.next_ts_ms,
        mark=found.mark,
        index=found.index,
    )
