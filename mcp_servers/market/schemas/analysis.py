"""Indicators and statistics of closed bars, as columns; figures have 8 significant digits."""

from __future__ import annotations

from pydantic import Field

from mcp_servers.envelope import DecimalText, Row


class Indicators(Row):
    """One value per closed bar; null: not known yet, or undefined."""

    symbol: str
    venue: str
    timeframe: str
    open_ts_ms: list[int]
    lines: dict[str, list[DecimalText | None]]
    definitions: dict[str, str]
    unsettled: list[str] = Field(description="Depend on the first bar read")
    bars_read: int
    notes: list[str]


class Statistics(Row):
    """Columns with one value per symbol."""

    symbols: list[str]
    benchmark: str | None
    returns: list[int]
    figures: dict[str, list[DecimalText | None]] = Field(description="Null: undefined")
    definition: str
    notes: list[str]
