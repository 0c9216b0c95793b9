"""What a venue's REST answers mean: fee rates, funding, tickers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from mcp_servers.market.sources.ccxt.instruments import decimal_of
from mcp_servers.tool_errors import did_you_mean
from trading.domain.errors import InvalidValue, UnknownInstrument
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.money import check_decimal, quantize_nearest

#: Venues that publish their entry fee rates with their instruments; ccxt's own table stands for the others.
_PUBLISHES_FEES: Final = frozenset({"kraken"})


@dataclass(frozen=True, slots=True)
class FeeRates:
    """Rates of notional.

    Attributes:
        assumed: True while no account's own rates are known.
        source: where they are from.
        age_ms: since the venue was asked; None for rules of a live feed, which has them anew with every connection.
    """

    maker: Decimal
    taker: Decimal
    assumed: bool
    source: str
    age_ms: int | None


@dataclass(frozen=True, slots=True)
class Funding:
    """What holders of a perpetual contract pay one another.

    Attributes:
        contract: the contract's symbol, such as ``BTC/USDT:USDT``.
        venue: ccxt's id of where it trades.
        rate: of the position's value for one interval; positive: longs pay shorts.
        interval_ms: None when the venue does not say.
        next_ts_ms: when it is paid next, None when the venue does not say.
        mark, index: the venue's prices in quote per base, None when it gives none.
        received_ts_ms: when the answer arrived.
    """

    contract: str
    venue: str
    rate: Decimal
    interval_ms: int | None
    next_ts_ms: int | None
    mark: Decimal | None
    index: Decimal | None
    venue_ts_ms: int | None
    received_ts_ms: int


@dataclass(frozen=True, slots=True)
class RestTicker:
    """Best prices and last trade as one REST answer gave them; a fallback, never for pricing an order."""

    instrument_id: InstrumentId
    bid: Decimal | None
    ask: Decimal | None
    last: Decimal | None
    volume: Decimal | None
    venue_ts_ms: int | None
    received_ts_ms: int


def fee_rates(rules: Instrument, age_ms: int | None) -> FeeRates:
    """Return the fee rates in an instrument's rules, with where they are from."""
    if not rules.maker_fee and not rules.taker_fee:
        source = "none published: taken as 0"
    elif rules.venue in _PUBLISHES_FEES:
        source = f"{rules.venue}'s public schedule, lowest volume"
    else:
        source = "ccxt's table, lowest volume"
    return FeeRates(rules.maker_fee, rules.taker_fee, assumed=True, source=source, age_ms=age_ms)


def check_known(markets: Mapping[str, Any], instrument_id: InstrumentId) -> None:
    """Refuse a symbol that the venue does not have.

    Raises:
        UnknownInstrument: with the nearest names.
    """
    if instrument_id.symbol not in markets:
        near = did_you_mean(instrument_id.symbol, markets)
        raise UnknownInstrument(f"{instrument_id.venue} has no {instrument_id.symbol[:41]!r}", allowed=near)


def contract_of(markets: Mapping[str, Any], base: str, quote: str, venue: str) -> str:
    """Return the symbol of the linear perpetual contract on a spot symbol.

    Raises:
        UnknownInstrument: there is none; ``allowed`` names those of the same base.
    """
    wanted = f"{base}/{quote}:{quote}"
    found: Any = markets.get(wanted)
    if found is not None and found.get("swap"):
        return wanted
    others = sorted(
        f"{market['base']}/{market['quote']}"
        for market in markets.values()
        if market.get("swap") and market.get("linear") and market.get("base") == base
    )
    raise UnknownInstrument(
        f"{venue} has no perpetual contract of {base}/{quote}",
        suggestion="ask for one of the allowed symbols" if others else "ask another venue",
        allowed=tuple(others[:5]),
    )


def funding_of(contract: str, venue: str, found: Mapping[str, Any], received_ts_ms: int) -> Funding:
    """Return what ccxt's funding rate structure says.

    Raises:
        InvalidValue, KeyError: it holds no rate.
    """
    interval = str(found.get("interval") or "")
    hours = int(interval[:-1]) if interval[:-1].isdecimal() and interval.endswith("h") else None
    # Real world: OKX names the payment of this rate and the one after it, Binance and Bybit only the first, others the
    # last one that was made.
    times = (found.get("fundingTimestamp"), found.get("nextFundingTimestamp"))
    next_ts_ms = min((int(ts) for ts in times if ts is not None and int(ts) > received_ts_ms), default=None)
    return Funding(
        contract=contract,
        venue=venue,
        rate=_rate(found["fundingRate"]),
        interval_ms=None if hours is None else hours * 3_600_000,
        next_ts_ms=next_ts_ms,
        mark=_optional(found.get("markPrice")),
        index=_optional(found.get("indexPrice")),
        venue_ts_ms=None if found.get("timestamp") is None else int(found["timestamp"]),
        received_ts_ms=received_ts_ms,
    )


def ticker_of(instrument_id: InstrumentId, found: Mapping[str, Any], received_ts_ms: int) -> RestTicker:
    """Return what ccxt's ticker structure says.

    Raises:
        InvalidValue: GARBAGE: it holds no price.
    """
    if all(found.get(name) is None for name in ("bid", "ask", "last")):
        raise InvalidValue("a ticker without any price", code="GARBAGE")
    return RestTicker(
        instrument_id,
        bid=_optional(found.get("bid")),
        ask=_optional(found.get("ask")),
        last=_optional(found.get("last")),
        volume=_optional(found.get("baseVolume")),
        venue_ts_ms=None if found.get("timestamp") is None else int(found["timestamp"]),
        received_ts_ms=received_ts_ms,
    )


def _optional(value: object) -> Decimal | None:
    return None if value is None else decimal_of(value)


def _rate(value: object) -> Decimal:
    """Return a rate to twelve digits: Kraken's is a quotient that ccxt computes, with more than mean anything."""
    try:
        return check_decimal(quantize_nearest(Decimal(str(value)), 12))
    except ArithmeticError as error:
        raise InvalidValue("no funding rate", code="GARBAGE") from error
