"""Instruments and their trading rules."""

from __future__ import annotations

from mcp_servers.envelope import DecimalText, Row


class Rules(Row):
    """A venue's rules for one instrument; fees are rates of notional."""

    symbol: str
    venue: str
    base: str
    quote: str
    price_tick: DecimalText
    quantity_step: DecimalText
    quantity_min: DecimalText
    quantity_max: DecimalText | None
    notional_min: DecimalText
    notional_max: DecimalText | None
    maker_fee: DecimalText
    taker_fee: DecimalText


class Found(Row):
    """Instruments that match, best match first."""

    instruments: list[Rules]
