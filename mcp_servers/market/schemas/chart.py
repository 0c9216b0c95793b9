"""The chart as numbers: prices in quote per base, quantities in base."""

from __future__ import annotations

from typing import Annotated

from pydantic import WithJsonSchema

from mcp_servers.envelope import Row


def _table(columns: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "object", "description": columns})


#: Columns of equal length by name; all of a table are described in one line, which every list of tools repeats.
Columns = dict[str, list[str]]
CandleColumns = Annotated[Columns, _table("open, high, low, close, volume")]
OrderColumns = Annotated[Columns, _table("side, price, quantity, status, since, until, reason")]
FillColumns = Annotated[Columns, _table("side, price, quantity, at")]


class Chart(Row):
    """Candle i opens at[i] timeframes after start."""

    symbol: str
    timeframe: str
    start: str
    at: list[int]
    candles: CandleColumns
    orders: OrderColumns
    fills: FillColumns
    notes: list[str]
