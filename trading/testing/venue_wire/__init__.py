"""A venue's public wire on a loopback port: recorded data in the dialects of Coinbase, Binance and Kraken.

A test points a real client library at ``VenueServer.rest_url`` and ``ws_url``, plays events one by one and asks the
server what the book truly is.
"""

from trading.testing.venue_wire.binance import BinanceDialect
from trading.testing.venue_wire.coinbase import CoinbaseDialect
from trading.testing.venue_wire.faults import Faults, HttpFault
from trading.testing.venue_wire.kraken import KrakenDialect
from trading.testing.venue_wire.market import Top, WireMarket
from trading.testing.venue_wire.recorded import (
    BookChange,
    Event,
    Print,
    StartingBook,
    Tape,
    load_binance,
    load_coinbase,
    load_rest,
)
from trading.testing.venue_wire.server import VenueServer

__all__ = [
    "BinanceDialect",
    "BookChange",
    "CoinbaseDialect",
    "Event",
    "Faults",
    "HttpFault",
    "KrakenDialect",
    "Print",
    "StartingBook",
    "Tape",
    "Top",
    "VenueServer",
    "WireMarket",
    "load_binance",
    "load_coinbase",
    "load_rest",
]
