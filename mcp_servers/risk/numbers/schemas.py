"""What risk_get_risk gives, as a model sees it."""

from __future__ import annotations

from pydantic import Field

from mcp_servers.envelope import DecimalText, Row


class TailRow(Row):
    """VaR and ES, quote, of the next interval."""

    method: str
    horizon: str
    confidence: DecimalText
    var: DecimalText | None
    es: DecimalText | None
    n: int
    window: str
    problem: str


class FigureRow(Row):
    """One number and what it rests on."""

    name: str
    value: DecimalText | None
    unit: str
    horizon: str
    n: int
    window: str
    note: str


class Risk(Row):
    """What the book may lose; informs, never permits."""

    quote: str
    basis: str
    history: dict[str, str] = Field(description="What returns rest on, by horizon")
    tails: list[TailRow]
    figures: list[FigureRow]
    notes: list[str]
