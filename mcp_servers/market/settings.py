"""The ``[market]`` section: which market the desk sees."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError

from mcp_servers.tool_errors import did_you_mean
from trading.adapters.config import DeskHome, DeskSettings, SectionModel, default_home, load_section, read_config
from trading.domain.errors import ConfigurationError
from trading.domain.proposals import Mode


class QualitySettings(SectionModel):
    """``[market.quality]``: what is refused for pricing.

    Attributes:
        max_skew_ms: a venue whose clock is further from ours is marked (live only).
        outlier_bps: a mid further than this from the other venues' median is an outlier.
        outlier_sigmas: so is one further than this many recent standard deviations from the venue's own last mids.
    """

    max_skew_ms: int = Field(default=2_000, ge=10, le=60_000)
    outlier_bps: int = Field(default=200, ge=5, le=5_000)
    outlier_sigmas: float = Field(default=12.0, ge=3, le=1_000, allow_inf_nan=False)


class CacheSettings(SectionModel):
    """``[market.cache]``: how long answers fetched from outside are kept, in seconds.

    Attributes:
        quote_s: tickers, funding rates and on-chain quotes.
        candles_s: candles fetched from a venue.
        rules_s: instruments and fee rates.
        news_s: news feeds.
        entries: answers kept in this process at most.
    """

    quote_s: float = Field(default=1.0, gt=0, le=60)
    candles_s: float = Field(default=60.0, gt=0, le=3_600)
    rules_s: float = Field(default=3_600.0, gt=0, le=86_400)
    news_s: float = Field(default=300.0, gt=0, le=86_400)
    entries: int = Field(default=10_000, ge=10, le=1_000_000)


class InfluxSettings(SectionModel):
    """``[market.influx]``: where ticks and candles are written as line protocol; nowhere without ``url``.

    Attributes:
        url: base address of a server that accepts InfluxDB v2 writes; ``http`` on this machine only.
        token: sent as ``Authorization: Token``; better from ``GREKKO_INFLUX_TOKEN`` than from the file.
        buffer: points that may wait; when it is full the oldest are dropped and counted.
    """

    url: str | None = None
    org: str = "grekko"
    bucket: str = "grekko"
    token: SecretStr = SecretStr("")
    buffer: int = Field(default=50_000, ge=100, le=1_000_000)


class ChainSettings(SectionModel):
    """``[market.chain]``: Uniswap pools read from a node; none without ``rpc_url``.

    Attributes:
        rpc_url: an Ethereum JSON-RPC node; ``http`` on this machine only. Secret: it often carries an access key.
        chain_id: the chain that the node must be on, EIP-155.
        subgraph_url: a Uniswap v3 subgraph's GraphQL endpoint, or None; secret for the same reason.
        pools: addresses of the v2 and v3 pools that may be asked for by symbol.
        quoter: a QuoterV2 contract to ask for v3 quotes; without it they are computed here, with the same result.
        confirmations: blocks behind the head at which prices are read.
        twap_s: seconds over which prices are averaged.
        max_age_s: no price is given from an older block.
    """

    rpc_url: SecretStr | None = None
    chain_id: int = Field(default=1, ge=1)
    subgraph_url: SecretStr | None = None
    pools: tuple[str, ...] = Field(default=(), max_length=32)
    quoter: str | None = None
    confirmations: int = Field(default=0, ge=0, le=64)
    twap_s: int = Field(default=600, ge=10, le=86_400)
    max_age_s: int = Field(default=120, ge=5, le=3_600)


class NewsSettings(SectionModel):
    """``[market.news]``: RSS and Atom feeds, read but never believed.

    Attributes:
        feeds: addresses; ``http`` on this machine only.
        keep: items kept in memory at most.
        max_age_h: older items are left out.
    """

    feeds: tuple[str, ...] = Field(default=(), max_length=16)
    keep: int = Field(default=500, ge=10, le=5_000)
    max_age_h: int = Field(default=168, ge=1, le=8_760)


class MarketSettings(SectionModel):
    """How the market server gets its data.

    Attributes:
        source: ``replay`` plays a recording; ``live`` reads the exchanges' public feeds.
        venues: exchanges read beside the desk's ``market_venue``, best first: when it fails, tools fall back on them.
        speed: recorded seconds per second, 0 for as fast as possible (replay only).
        loop: play the recording again at its end.
        recording: a gzipped recording to play instead of the bundled one; hourly or minute candles when it is a CSV.
        max_age_ms: older books and tickers are marked stale, and no fill is estimated from them.
        archive: keep candles in the ledger database.
        backfill: ask the venue for candles from before this server's start (live only).
    """

    source: Literal["replay", "live"] = "replay"
    venues: tuple[str, ...] = ()
    speed: float = Field(default=1.0, ge=0, le=10_000, allow_inf_nan=False)
    loop: bool = False
    recording: Path | None = None
    max_age_ms: int = Field(default=3_000, ge=100, le=60_000)
    archive: bool = True
    backfill: bool = True
    quality: QualitySettings = QualitySettings()
    cache: CacheSettings = CacheSettings()
    influx: InfluxSettings = InfluxSettings()
    chain: ChainSettings = ChainSettings()
    news: NewsSettings = NewsSettings()


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
        ConfigurationError: an unknown key, an address of another form, or unencrypted to another machine.
    """
    table = _venue_tables().get(venue, {})
    try:
        addresses = VenueAddresses.model_validate(table)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ConfigurationError(
            f"[venues.{venue}] {key} is not understood", suggestion="give rest_url or ws_url, an address each"
        ) from error
    for name, url in (("rest_url", addresses.rest_url), ("ws_url", addresses.ws_url)):
        parts = urlsplit(url or "https:")
        if parts.scheme not in ("https", "wss") and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise ConfigurationError(f"[venues.{venue}] {name} must be https or wss unless it is on this machine")
    return addresses


def _venue_tables() -> Mapping[str, Any]:
    tables: Any = read_config(DeskHome(default_home()).config_file).get("venues", {})
    return cast("Mapping[str, Any]", tables) if isinstance(tables, Mapping) else {}


def check_allowed(desk: DeskSettings, market: MarketSettings) -> None:
    """Refuse a venue that nobody can read, and a market that the desk's mode must not trade on.

    Raises:
        ConfigurationError: UNKNOWN_VENUE, with the nearest names; or testnet or live with anything but live data.
    """
    if market.source == "live":
        # A misspelt table of addresses would leave its venue at its real ones.
        for venue in (desk.market_venue, *market.venues, *_venue_tables()):
            _check_known(venue)
    if desk.mode is not Mode.PAPER and market.source != "live":
        raise ConfigurationError(
            f"mode {desk.mode.value} accepts live market data only",
            suggestion='set source = "live" in [market], or mode = "paper"',
        )


def _check_known(venue: str) -> None:
    known = live_venues()
    if venue in known:
        return
    near = did_you_mean(venue, known)
    raise ConfigurationError(
        f"there is no live market data of a venue {venue[:40]!r}",
        code="UNKNOWN_VENUE",
        suggestion=f"did you mean {near[0]}?" if near else "name it as ccxt does, such as binance, coinbase or kraken",
        allowed=near,
    )


def live_venues() -> tuple[str, ...]:
    """Return the venues with public streams by ccxt's ids, in order.

    They are read from the names of its files: importing it takes a second.
    """
    found = find_spec("ccxt")
    folders = found.submodule_search_locations or () if found is not None else ()
    names = {path.stem for folder in folders for path in (Path(folder) / "pro").glob("*.py")}
    return tuple(sorted(names - {"__init__"}))
