"""ccxt's markets and numbers as ours: exact decimals, legal names, nothing guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

from trading.adapters.market_wire import MAX_LEVELS
from trading.domain.errors import InvalidValue
from trading.domain.identifiers import Currency, Symbol, Venue, parse_symbol
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.money import check_decimal, plain


def instrument_of(venue: Venue, market: Mapping[str, Any], *, tick_size: bool) -> Instrument:
    """Return the rules in a unified ccxt market.

    Args:
        market: ccxt's market structure.
        tick_size: whether its precisions are steps; otherwise they are numbers of decimal places.

    Raises:
        InvalidValue: tick or step is missing, or the symbol is none.
    """
    precision, limits = market["precision"], market["limits"]

    def step(value: object) -> Decimal:
        if value is None:
            raise InvalidValue(f"{venue} does not say tick and step of {market['symbol']}", code="INVALID_INSTRUMENT")
        return decimal_of(value) if tick_size else Decimal(1).scaleb(-int(decimal_of(value)))

    def bound(kind: str, end: str) -> Decimal | None:
        range_: dict[str, object] = limits.get(kind) or {}
        value = range_.get(end)
        return None if value is None else decimal_of(value)

    return Instrument(
        id=InstrumentId(venue, Symbol(market["symbol"])),
        base=Currency(market["base"]),
        quote=Currency(market["quote"]),
        price_tick=step(precision.get("price")),
        quantity_step=step(precision.get("amount")),
        quantity_min=bound("amount", "min") or Decimal(0),
        quantity_max=bound("amount", "max"),
        notional_min=bound("cost", "min") or Decimal(0),
        notional_max=bound("cost", "max"),
        maker_fee=decimal_of(market.get("maker") or 0),
        taker_fee=decimal_of(market.get("taker") or 0),
    )


def spot_instruments(venue: Venue, markets: Mapping[str, Any], *, tick_size: bool) -> tuple[Instrument, ...]:
    """Return the rules of every active spot market whose symbol and rules make sense here, in order of symbol."""
    found: list[Instrument] = []
    for symbol in sorted(markets):
        market: Mapping[str, Any] = markets[symbol]
        if not market.get("spot") or market.get("active") is False:
            continue
        try:
            parse_symbol(symbol)
            found.append(instrument_of(venue, market, tick_size=tick_size))
        except (InvalidValue, KeyError, TypeError):  # a name in another script, or no step: not tradable through us
            continue
    return tuple(found)


def levels_of(rows: Sequence[Sequence[object]]) -> list[tuple[str, str]]:
    """Return the best levels of one side of a ccxt book as decimal text.

    Raises:
        InvalidValue: a price or quantity is no positive number.
    """
    return [(number_text(row[0]), number_text(row[1])) for row in rows[:MAX_LEVELS]]


def number_text(value: object) -> str:
    """Return a positive number of ccxt's as plain decimal text.

    ccxt gives floats; their shortest text is the venue's text for any number of up to 15 digits.

    Raises:
        InvalidValue: not a finite number greater than zero.
    """
    try:
        return _positive(value)
    except TypeError as error:  # not even hashable
        raise InvalidValue("not a number", code="MALFORMED") from error


@lru_cache(maxsize=65_536, typed=True)  # a book gives the same hundred numbers again with every change
def _positive(value: object) -> str:
    number = decimal_of(value)
    if number <= 0:
        raise InvalidValue("a price or quantity is not positive", code="MALFORMED")
    return plain(number)


def decimal_of(value: object) -> Decimal:
    """Return a number of ccxt's, of any sign.

    Raises:
        InvalidValue: not a finite number within the bounds of ``trading.domain.money``.
    """
    try:
        return check_decimal(Decimal(str(value)))
    except ArithmeticError as error:
        raise InvalidValue("not a number", code="MALFORMED") from error
