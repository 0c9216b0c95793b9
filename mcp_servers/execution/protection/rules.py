"""How the stop-loss manager goes about it; fixed for the life of the process."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectionRules:
    """Rhythm, bands and patience.

    Attributes:
        native: whether a stop order rests at the venue where it takes one.
        step_bps: a resting stop is replaced once the level lies so far from its trigger, basis points.
        bands_bps: how far beyond the price the slices of a close reach, one after the other; the floor comes last.
        stop_band_bps: how far beyond its trigger a resting stop may trade.
        window_ms: a slice is sent within this time of its claim or never.
        withdraw_s: how long the cancel of a resting stop is waited for.
        quote_timeout_s: how long the venue's own price is waited for.
        check_every_s: longest time between two looks at a position.
        pace_s: shortest time between two looks, so that a burst of fills is looked at together.
        fit_every_ms: least time between two replacements that only move the stop or let it grow.
        refused_ms: how long nothing rests at the venue after it has refused a stop.
        retry_ms: least time between two rounds of slices that do not get the position closed.
        save_every_ms: least time between two writes of a stop that only moves.
        close_blind_ms: without any price for so long, close at the floor; None waits for a price.
    """

    native: bool = True
    step_bps: Decimal = Decimal(5)
    bands_bps: tuple[Decimal, ...] = (Decimal(100), Decimal(300), Decimal(1_000))
    stop_band_bps: Decimal = Decimal(1_000)
    window_ms: int = 5_000
    withdraw_s: float = 1.0
    quote_timeout_s: float = 1.0
    check_every_s: float = 0.25
    pace_s: float = 0.01
    fit_every_ms: int = 2_000
    refused_ms: int = 30_000
    retry_ms: int = 1_000
    save_every_ms: int = 1_000
    close_blind_ms: int | None = None
