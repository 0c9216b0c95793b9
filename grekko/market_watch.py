"""Prices for the screen and the report, asked from the market server as any client would."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, cast

import httpx2

from grekko.live_view import Quote
from mcp_servers.hosting import call, open_client
from trading.adapters.config import DeskSettings
from trading.domain.errors import TradingError
from trading.domain.identifiers import Symbol
from trading.domain.instruments import InstrumentId

_PAUSE_S = 0.25
_READ_TIMEOUT_S = 2.0


class MarketWatch:
    """The newest quotes of the desk's symbols; keeps the last ones while the market server is away.

    Attributes:
        problem: why there is no newer quote, empty when there is one.
        opening: the first mid price seen of each instrument.
    """

    def __init__(self, settings: DeskSettings) -> None:
        self._settings = settings
        self._target = f"unix:{settings.desk_home.socket('market')}"
        self.quotes: dict[InstrumentId, Quote] = {}
        self.opening: dict[InstrumentId, Decimal] = {}
        self.problem = ""

    @property
    def marks(self) -> Mapping[InstrumentId, Decimal]:
        """Mid price by instrument."""
        return {instrument_id: (q.bid + q.ask) / 2 for instrument_id, q in self.quotes.items()}

    async def run(self) -> None:
        """Ask again and again until cancelled."""
        while True:
            try:
                await self._follow()
            except (TradingError, OSError, httpx2.HTTPError, ExceptionGroup) as error:
                # The server says what is wrong with its feed, or it restarts, which the supervisor sees to.
                self.problem = f"{error.code}: {error}" if isinstance(error, TradingError) else "no answer"
                await asyncio.sleep(_PAUSE_S)

    async def _follow(self) -> None:
        async with open_client(self._target, read_timeout_s=_READ_TIMEOUT_S) as market:
            while True:
                data = await call(market, "market_get_tickers", symbols=list(self._settings.symbols))
                self.problem = ""
                self._take(cast("Sequence[Mapping[str, Any]]", data["tickers"]))
                await asyncio.sleep(_PAUSE_S)

    def _take(self, tickers: Sequence[Mapping[str, Any]]) -> None:
        for ticker in tickers:
            if ticker.get("bid") is None or ticker.get("ask") is None:
                continue
            instrument_id = InstrumentId(self._settings.venue, Symbol(str(ticker["symbol"])))
            quote = Quote(
                instrument_id=instrument_id,
                bid=Decimal(ticker["bid"]),
                ask=Decimal(ticker["ask"]),
                age_ms=int(ticker["age_ms"]),
                feed=str(ticker["source"]),
            )
            self.quotes[instrument_id] = quote
            self.opening.setdefault(instrument_id, (quote.bid + quote.ask) / 2)
