"""What venues say when asked: instruments, rules, fees, funding, past candles and tickers, all over public REST.

Rules kept here:

- Nothing is asked with a key. Fee rates are therefore not those of an account: they are marked as assumed, and their
  source is named.
- Answers that may be kept are kept in the desk's cache; without one they are asked for again, but a venue's list of
  instruments, which is long and seldom changes, is always kept for an hour.
- A malformed row of an answer is left out and counted; an answer that is no list of rows at all is GARBAGE.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from mcp_servers.market.cache import AnswerCache
from mcp_servers.market.settings import CacheSettings, load_addresses
from mcp_servers.market.sources.ccxt.answers import (
    FeeRates,
    Funding,
    RestTicker,
    check_known,
    contract_of,
    fee_rates,
    funding_of,
    ticker_of,
)
from mcp_servers.market.sources.ccxt.candles import MAX_CANDLES, CandlePages
from mcp_servers.market.sources.ccxt.exchange import TICK_SIZE, Kind, RestExchange, open_exchange
from mcp_servers.market.sources.ccxt.failures import VenueUnavailable
from mcp_servers.market.sources.ccxt.instruments import spot_instruments
from mcp_servers.market.sources.ccxt.rest import DEADLINE_S, RestVenue
from mcp_servers.tool_errors import did_you_mean
from trading.adapters.codec import decode, encode
from trading.domain.errors import InvalidValue, UnknownInstrument, UnsupportedFeature
from trading.domain.identifiers import Venue, parse_symbol
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Candle
from trading.ports.clock import Clock

#: Where a spot venue's perpetual contracts are, when ccxt keeps them under another name.
_DERIVATIVES: Final = {"kraken": "krakenfutures"}
_WITH_FUNDING: Final = ("binance", "bybit", "kraken", "okx")

Opener = Callable[[str, Kind], RestExchange]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listing:
    """A venue's active spot instruments.

    Attributes:
        instruments: in order of symbol.
        age_ms: since the venue was asked.
    """

    instruments: tuple[Instrument, ...]
    age_ms: int


def open_configured(venue: str, kind: Kind) -> RestExchange:
    """Open a venue at the addresses of ``[venues.<name>]``, or at its own."""
    addresses = load_addresses(venue)
    return open_exchange(venue, rest_url=addresses.rest_url, ws_url=addresses.ws_url, kind=kind)


class Reference:
    """Asks venues; every method may wait for the network, at most its deadline.

    Args:
        venues: who may be asked, the desk's own first.
        open_: makes an exchange of a venue.
        cache: keeps answers for all processes of the desk.
        settings: for how long.
        deadline_s: longest wait for one request; candles may take several.

    Attributes:
        counters: ``garbage`` rows left out.
    """

    def __init__(
        self,
        venues: Sequence[Venue],
        clock: Clock,
        *,
        open_: Opener = open_configured,
        cache: AnswerCache | None = None,
        settings: CacheSettings | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.venues = tuple(venues)
        self.counters: dict[str, int] = {"garbage": 0}
        self._clock = clock
        self._open = open_
        self._cache = cache
        self._settings = settings or CacheSettings()
        self._deadline_s = deadline_s
        self._rests: dict[tuple[str, Kind], RestVenue] = {}
        self._listings: dict[str, tuple[int, tuple[Instrument, ...]]] = {}
        self._loading: dict[str, asyncio.Lock] = {}

    async def instruments(self, venue: str) -> tuple[Instrument, ...]:
        """Return a venue's active spot instruments; raises as ``listing`` does."""
        return (await self.listing(venue)).instruments

    async def listing(self, venue: str) -> Listing:
        """Return a venue's active spot instruments and how old that knowledge is.

        Raises:
            InvalidValue: UNKNOWN_VENUE. VenueUnavailable, TradingError: as :meth:`RestVenue.ask`.
        """
        self._check(venue)
        async with self._loading.setdefault(venue, asyncio.Lock()):
            now_ns = self._clock.monotonic_ns()
            known = self._listings.get(venue)
            if known is None or now_ns - known[0] >= self._settings.rules_s * 1e9:
                age_ms, found = await self._load_listing(venue)
                known = self._listings[venue] = (self._clock.monotonic_ns() - age_ms * 1_000_000, found)
            return Listing(known[1], (self._clock.monotonic_ns() - known[0]) // 1_000_000)

    async def instrument(self, instrument_id: InstrumentId) -> tuple[Instrument, int]:
        """Return an instrument's rules and their age in milliseconds.

        Raises:
            UnknownInstrument: with the nearest names. Otherwise as ``listing``.
        """
        listing = await self.listing(instrument_id.venue)
        found = next((item for item in listing.instruments if item.id == instrument_id), None)
        if found is None:
            near = did_you_mean(instrument_id.symbol, (item.symbol for item in listing.instruments))
            raise UnknownInstrument(
                f"{instrument_id.venue} has no {instrument_id.symbol[:41]!r}",
                suggestion="use market_search_instruments",
                allowed=near,
            )
        return found, listing.age_ms

    async def fees(self, instrument_id: InstrumentId) -> FeeRates:
        """Return fee rates of an instrument; raises as ``instrument`` does."""
        rules, age_ms = await self.instrument(instrument_id)
        return fee_rates(rules, age_ms)

    async def funding(self, symbol: str, venue: str) -> Funding:
        """Return the funding rate of the linear perpetual that belongs to a spot symbol.

        Raises:
            UnsupportedFeature: the venue has no perpetual contracts that can be asked without a key.
            UnknownInstrument: it has none of this symbol; ``allowed`` names those of the same base.
            InvalidValue: UNKNOWN_VENUE, or no spot symbol. Otherwise as :meth:`RestVenue.ask`.
        """
        self._check(venue)
        base, quote = parse_symbol(symbol).split("/")
        elsewhere = _DERIVATIVES.get(venue, venue)
        rest = self._rest(elsewhere, "perpetual")
        if not (await rest.exchange()).has.get("fetchFundingRate"):
            raise UnsupportedFeature(
                f"{venue} has no public funding rate", suggestion="ask another venue", allowed=_WITH_FUNDING
            )

        async def load() -> Funding:
            async def question(exchange: RestExchange, markets: Mapping[str, Any]) -> Funding:
                contract = contract_of(markets, base, quote, elsewhere)
                found = await exchange.fetch_funding_rate(contract)
                return funding_of(contract, elsewhere, found, self._clock.now_ms())

            return await rest.ask(question)

        return await self._kept("funding", f"{venue}:{symbol}", self._settings.quote_s, Funding, load)

    async def ticker(self, instrument_id: InstrumentId) -> RestTicker:
        """Return a ticker over REST, for when there is no live feed; raises as :meth:`RestVenue.ask`."""
        self._check(instrument_id.venue)
        rest = self._rest(instrument_id.venue, "spot")

        async def load() -> RestTicker:
            async def question(exchange: RestExchange, markets: Mapping[str, Any]) -> RestTicker:
                check_known(markets, instrument_id)
                return ticker_of(instrument_id, await exchange.fetch_ticker(instrument_id.symbol), self._clock.now_ms())

            return await rest.ask(question)

        key = f"{instrument_id.venue}:{instrument_id.symbol}"
        return await self._kept("ticker", key, self._settings.quote_s, RestTicker, load)

    async def candles(self, instrument_id: InstrumentId, timeframe: str, since_ms: int, until_ms: int) -> list[Candle]:
        """Return the venue's candles that open within [since_ms, until_ms), oldest first.

        Intervals without trades may be absent, and a venue may not reach back so far. The number of trades is not
        told by venues and is 0. Not cached: whoever asks keeps them.

        Raises:
            InvalidValue: INVALID_TIMEFRAME, or more than 20,000 candles. Otherwise as :meth:`RestVenue.ask`.
        """
        self._check(instrument_id.venue)
        rest = self._rest(instrument_id.venue, "spot")
        pages = CandlePages(instrument_id, timeframe, since_ms, until_ms, now_ms=self._clock.now_ms())
        if pages.count > MAX_CANDLES:
            raise InvalidValue(f"more than {MAX_CANDLES} candles at once", suggestion="ask for a shorter time")

        async def question(exchange: RestExchange, markets: Mapping[str, Any]) -> bool:
            check_known(markets, instrument_id)
            return await pages.take(exchange)

        while await rest.ask(question):
            pass
        self.counters["garbage"] += pages.garbage
        return pages.candles

    async def server_time_ms(self, venue: str) -> int:
        """Return the venue's clock.

        Raises:
            UnsupportedFeature: it does not tell. Otherwise as :meth:`RestVenue.ask`.
        """
        self._check(venue)

        async def question(exchange: RestExchange, _: Mapping[str, Any]) -> int:
            if not exchange.has.get("fetchTime"):
                raise UnsupportedFeature(f"{venue} does not tell its time")
            return int(await exchange.fetch_time() or 0)

        return await self._rest(venue, "spot").ask(question)

    def age_ms(self, received_ts_ms: int) -> int:
        """Return milliseconds since an answer arrived; never negative."""
        return max(0, self._clock.now_ms() - received_ts_ms)

    async def aclose(self) -> None:
        """Close every exchange."""
        await asyncio.gather(*(rest.close() for rest in self._rests.values()))

    def _check(self, venue: str) -> None:
        if venue not in self.venues:
            raise InvalidValue(
                "this desk does not ask that venue", code="UNKNOWN_VENUE", allowed=tuple(sorted(self.venues))
            )

    def _rest(self, venue: str, kind: Kind) -> RestVenue:
        key = (venue, kind)
        if key not in self._rests:
            self._rests[key] = RestVenue(
                venue, lambda: self._open(venue, kind), self._clock, deadline_s=self._deadline_s
            )
        return self._rests[key]

    async def _load_listing(self, venue: str) -> tuple[int, tuple[Instrument, ...]]:
        """Return age and instruments."""

        async def question(exchange: RestExchange, markets: Mapping[str, Any]) -> tuple[Instrument, ...]:
            found = spot_instruments(Venue(venue), markets, tick_size=exchange.precisionMode == TICK_SIZE)
            if not found:
                raise VenueUnavailable(f"{venue} lists no spot instruments", code="GARBAGE", after_ms=1_000)
            return found

        rest = self._rest(venue, "spot")
        if self._cache is None:
            return 0, await rest.ask(question)

        async def load() -> bytes:
            return encode(await rest.ask(question))

        answer = await self._cache.get("rules", venue, self._settings.rules_s, load)
        return answer.age_ms, await asyncio.to_thread(decode, tuple[Instrument, ...], answer.data)

    async def _kept(self, kind: str, key: str, ttl_s: float, shape: type[T], load: Callable[[], Awaitable[T]]) -> T:
        if self._cache is None:
            return await load()

        async def load_bytes() -> bytes:
            return encode(await load())

        return decode(shape, (await self._cache.get(kind, key, ttl_s, load_bytes)).data)
