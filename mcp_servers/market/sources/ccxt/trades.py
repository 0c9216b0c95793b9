"""ccxt's trades as ours, each once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from mcp_servers.market.sources.ccxt.instruments import number_text
from trading.adapters.market_wire import TradeUpdate
from trading.domain.errors import InvalidValue
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side

REMEMBERED: Final = 10_000  # trade ids of one symbol
#: Venues that name the maker's side, which ccxt hands on as it is; the aggressor is the other one.
_NAMES_MAKER: Final = frozenset({"coinbase"})


class TradeReader:
    """Normalises trades and drops those that were given before.

    Args:
        symbols: what is subscribed; a trade of one of them is given as such, whoever's batch it came in.
        counts: ``garbage`` and ``trades_repeated`` are added up here.
    """

    def __init__(self, venue: Venue, symbols: Sequence[Symbol], counts: dict[str, int]) -> None:
        self._venue = venue
        self._counts = counts
        self._given: dict[Symbol, dict[str, None]] = {symbol: {} for symbol in symbols}
        self._unnamed = 0

    def read(self, symbol: Symbol, batch: Sequence[Mapping[str, Any]], received_ms: int) -> Iterator[TradeUpdate]:
        """Yield the trades of a batch that are new, in its order; malformed ones are counted."""
        for trade in batch:
            try:
                update = self._update(symbol, trade, received_ms)
            except (InvalidValue, KeyError, TypeError, ValueError):
                self._counts["garbage"] += 1
                continue
            if self._is_new(update):
                yield update

    def _update(self, symbol: Symbol, trade: Mapping[str, Any], received_ms: int) -> TradeUpdate:
        price, quantity, side = number_text(trade["price"]), number_text(trade["amount"]), Side(str(trade["side"]))
        if self._venue in _NAMES_MAKER:
            side = side.opposite
        # Real world: Coinbase answers for a USDC market with the trades of its USD alias, so an unknown name is ours.
        named = trade.get("symbol")
        owner = Symbol(str(named)) if named in self._given and f"{named}C" != symbol else symbol
        identity = trade.get("id")
        if identity is None:  # some venues name no trades; theirs cannot be told from a repetition
            self._unnamed += 1
            identity = f"{received_ms}-{self._unnamed}"
        # A trade without a venue time is placed where it arrived: a candle has to hold it.
        venue_ts_ms = int(trade.get("timestamp") or received_ms)
        instrument_id = InstrumentId(self._venue, owner)
        return TradeUpdate(instrument_id, str(identity), price, quantity, side, venue_ts_ms, received_ms)

    def _is_new(self, update: TradeUpdate) -> bool:
        given = self._given.setdefault(update.instrument_id.symbol, {})
        if update.trade_id in given:
            self._counts["trades_repeated"] += 1
            return False
        given[update.trade_id] = None
        if len(given) > REMEMBERED:
            del given[next(iter(given))]
        return True
