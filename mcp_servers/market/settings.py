"""The ``[market]`` section: which market the desk sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import Field

from trading.adapters.config import DeskHome, DeskSettings, SectionModel, default_home, load_section, read_config
from trading.domain.errors import ConfigurationError
from trading.domain.proposals import Mode


class MarketSettings(SectionModel):
    """How the market server gets its data.

    Attributes:
        source: ``replay`` plays a recording; ``live`` reads the exchange's public feeds.
        speed: recorded seconds per second, 0 for as fast as possible (replay only).
        loop: play the recording again at its end.
        recording: a gzipped recording to play instead of the bundled one.
        max_age_ms: older books and tickers are marked stale, and no fill is estimated from them.
    """

    source: Literal["replay", "live"] = "replay"
    speed: float = Field(default=1.0, ge=0, le=10_000, allow_inf_nan=False)
    loop: bool = False
    recording: Path | None = None
    max_age_ms: int = Field(default=3_000, ge=100, le=60_000)


class VenueAddresses(SectionModel):
    """``[venues.<name>]``: other addresses of a venue, for tests and testnets.

    Attributes:
        rest_url, ws_url: base addresses; plain ``http`` and ``ws`` on this machine only.
    """

    rest_url: str | None = None
    ws_url: str | None = None


def load_market_settings() -> MarketSettings:
    """Read the section.

    Raises:
        ConfigurationError: unknown key or illegal value.
    """
    return load_section(MarketSettings, "market")


def load_addresses(venue: str) -> VenueAddresses:
    """Read a venue's addresses from the config file.

    Raises:
        ConfigurationError: an address of another form, or unencrypted to another machine.
    """
    venues: Any = read_config(DeskHome(default_home()).config_file).get("venues", {})
    table: Any = cast("Mapping[str, Any]", venues).get(venue, {}) if isinstance(venues, Mapping) else {}
    fields: dict[str, Any] = {name: table[name] for name in ("rest_url", "ws_url") if name in table}
    for name, url in fields.items():
        parts = urlsplit(str(url))
        if parts.scheme not in ("https", "wss") and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise ConfigurationError(f"[venues.{venue}] {name} must be https or wss unless it is on this machine")
    return VenueAddresses(**fields)


def check_allowed(desk: DeskSettings, market: MarketSettings) -> None:
    """Refuse a market that the desk's mode must not trade on.

    Raises:
        ConfigurationError: testnet or live with anything but live data.
    """
    if desk.mode is not Mode.PAPER and market.source != "live":
        raise ConfigurationError(
            f"mode {desk.mode.value} accepts live market data only",
            suggestion='set source = "live" in [market], or mode = "paper"',
        )
