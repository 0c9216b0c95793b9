"""The books that a question about one venue, or about all of them, is answered from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mcp_servers.market.prices import Priced, Prices
from mcp_servers.market.quality import Judged
from trading.domain.errors import StaleData
from trading.domain.identifiers import Symbol
from trading.domain.instruments import InstrumentId

#: The venue that stands for all of them together.
ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class Gathered:
    """Books of one symbol.

    Attributes:
        label: the venue, or ``all``.
        books: never empty; of several venues also those that are not usable.
        left_out: venues whose book is missing or not usable, and why.
    """

    label: str
    books: Sequence[Priced]
    left_out: Mapping[str, str]

    @property
    def judged(self) -> list[Judged]:
        """The books with their marks."""
        return [item.judged for item in self.books]

    @property
    def usable(self) -> list[Priced]:
        """Those that may price an order."""
        return [item for item in self.books if item.judged.usable]


def gather(prices: Prices, symbol: str, venue: str | None) -> Gathered:
    """Return the newest book of one venue, however old, or the books of all.

    Raises:
        UnknownInstrument, InvalidValue, StaleData, Unavailable: as :meth:`Prices.priced`.
    """
    if venue != ALL:
        found = prices.priced(symbol, venue)
        stood_in_for: dict[str, str] = {} if found.failed_over_from is None else {found.failed_over_from: found.reason}
        return Gathered(found.instrument.venue, [found], stood_in_for)
    rules = {item.id: item for item in prices.search("") if item.symbol == symbol}
    books: list[Priced] = []
    left_out: dict[str, str] = {}
    for name in prices.venues:
        instrument_id = InstrumentId(name, Symbol(symbol))
        instrument, judged = rules.get(instrument_id), prices.judged(instrument_id)
        if instrument is not None and judged is not None:
            books.append(Priced(instrument, judged))
        if instrument is None or judged is None or not judged.usable:
            left_out[name] = prices.board.why_not(instrument_id)
    if not books:
        books.append(prices.priced(symbol))  # says what is wrong with the name, or that nothing has come yet
    return Gathered(ALL, books, left_out)


def gather_usable(prices: Prices, symbol: str, venue: str | None) -> Gathered:
    """Return only books that may price an order, at least one.

    Raises:
        StaleData: there is none, and why. Otherwise as ``gather``.
    """
    if venue != ALL:
        prices.usable(symbol, venue)
    found = gather(prices, symbol, venue)
    if not found.usable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.left_out.items())
        raise StaleData(f"no venue has a usable book of {symbol}: {reasons}", suggestion="ask market_get_status")
    return Gathered(found.label, found.usable, found.left_out)
