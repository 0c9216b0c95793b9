"""Binance's combined-stream messages as normalised updates (``@depth``, ``@bookTicker``, ``@trade`` and REST depth).

Source: Binance spot API, "Web Socket Streams" and "Order book" (REST).
"""

from __future__ import annotations

from typing import Any, cast

import orjson

from mcp_servers.market.sources.base import BestQuote, Difference, Snapshot, SourceUpdate
from trading.adapters.market_wire import TradeUpdate
from trading.domain.errors import InvalidValue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import parse_decimal, plain


def parse_message(instrument_id: InstrumentId, message: bytes, received_ts_ms: int) -> SourceUpdate | None:
    """Return the update that a message carries; None for kinds that are not used here.

    Raises:
        InvalidValue: not JSON, or a field is missing or malformed.
    """
    try:
        frame = cast("dict[str, Any]", orjson.loads(message))
        if "lastUpdateId" in frame:
            # The REST answer carries no time of the venue's.
            return Snapshot(instrument_id, int(frame["lastUpdateId"]), frame["bids"], frame["asks"], 0, received_ts_ms)
        data = cast("dict[str, Any]", frame["data"])
        kind = str(frame["stream"]).partition("@")[2].partition("@")[0]
        return _parse_kind(kind, instrument_id, data, received_ts_ms)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InvalidValue):
            raise
        raise InvalidValue("a frame is not what the venue documents", code="MALFORMED") from error


def _parse_kind(
    kind: str, instrument_id: InstrumentId, data: dict[str, Any], received_ts_ms: int
) -> SourceUpdate | None:
    match kind:
        case "depth":
            return Difference(
                instrument_id, int(data["U"]), int(data["u"]), data["b"], data["a"], int(data["E"]), received_ts_ms
            )
        case "bookTicker":
            bid, ask = (str(data["b"]), str(data["B"])), (str(data["a"]), str(data["A"]))
            return BestQuote(instrument_id, int(data["u"]), bid, ask, received_ts_ms)
        case "trade":
            # m: the buyer was the maker, so the seller took liquidity.
            side = Side.SELL if data["m"] else Side.BUY
            price, quantity = _number(data["p"]), _number(data["q"])
            return TradeUpdate(instrument_id, str(data["t"]), price, quantity, side, int(data["T"]), received_ts_ms)
        case _:
            return None


def _number(text: str) -> str:
    value = parse_decimal(text)
    if value <= 0:
        raise InvalidValue("a trade has no positive price or quantity", code="MALFORMED")
    return plain(value)
