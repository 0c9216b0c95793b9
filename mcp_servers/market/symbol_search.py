"""Finds instruments by what people write: ``BTCUSDT``, ``btc-usd``, ``XBT``, ``bitcoin``, half a name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from mcp_servers.tool_errors import did_you_mean
from trading.domain.identifiers import Symbol
from trading.domain.instruments import Instrument, InstrumentId

#: Kraken's old names.
_RENAMED: Final = {"XBT": "BTC", "XDG": "DOGE"}
#: What people call the assets that they ask for most; venues give no names.
_CALLED: Final = {
    "BITCOIN": "BTC",
    "ETHER": "ETH",
    "ETHEREUM": "ETH",
    "SOLANA": "SOL",
    "RIPPLE": "XRP",
    "CARDANO": "ADA",
    "DOGECOIN": "DOGE",
    "LITECOIN": "LTC",
    "POLKADOT": "DOT",
    "CHAINLINK": "LINK",
    "AVALANCHE": "AVAX",
    "TETHER": "USDT",
}
#: What most people mean when they name no quote.
_QUOTES: Final = ("USDT", "USD", "USDC", "EUR", "BTC")


def compact(text: str) -> str:
    """Return the letters and digits of a symbol in capitals, by the names that are used today."""
    found = re.sub(r"[^A-Z0-9]", "", text.upper())
    for old, new in _RENAMED.items():
        found = found.replace(old, new)
    return found


def search(query: str, instruments: Iterable[Instrument], *, first: frozenset[InstrumentId]) -> list[Instrument]:
    """Return the instruments whose symbol contains ``query``, best match first.

    An exact symbol comes before an exact base, before the beginning of a symbol, before any other part; among equals
    those of ``first``, then by how common the quote is.

    Args:
        query: empty for all.
        first: preferred among equally good matches, such as those with a live feed.
    """
    wanted = compact(query)
    wanted = _CALLED.get(wanted, wanted)
    if query and not wanted:
        return []

    def rank(item: Instrument) -> tuple[int, bool, int, str]:
        whole = compact(item.symbol)
        kind = 0 if whole == wanted else 1 if compact(item.base) == wanted else 2 if whole.startswith(wanted) else 3
        quote = _QUOTES.index(item.quote) if item.quote in _QUOTES else len(_QUOTES)
        return kind, item.id not in first, quote, item.symbol

    return sorted((item for item in instruments if wanted in compact(item.symbol)), key=rank)


def spelled(text: str, symbols: Sequence[Symbol]) -> Symbol | None:
    """Return the one symbol that ``text`` is another spelling of, None when there is none or more than one."""
    wanted = compact(text)
    found = [symbol for symbol in symbols if compact(symbol) == wanted]
    return found[0] if len(found) == 1 else None


def nearest(text: str, instruments: Iterable[Instrument]) -> list[str]:
    """Return the symbols whose names are most like ``text``, for a query that nothing contains."""
    return list(did_you_mean(compact(text), (item.symbol for item in instruments), limit=5))
