"""Past returns of what the desk holds: its own archive of closed candles where that reaches, else the bundled years.

Rules kept here:

- All returns of an answer come from one place, so that assets move together as they did.
- Candles whose interval was not seen whole are left out, and so is a return that spans a gap.
- An asset that is not in the bundled history moves there as the most volatile of those that are, and is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from trading.domain.identifiers import Currency
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed

from .bundled import ASSETS, HOUR_MS, LABEL, bundled
from .tails import Column, Method, needed

#: Length of an interval in hours, and how many of them back the own archive is read.
HORIZONS: Final = {"1h": (1, 1_000), "1d": (24, 500)}
OWN: Final = "own: closed candles of the market archive"
BENCHMARK: Final = Currency("BTC")
#: Returns with which every method and confidence has an answer.
ENOUGH: Final = needed(Method.FILTERED, 0.99)


class ClosesSource(Protocol):
    """Closed candles, read only."""

    async def closes(
        self, feed: Feed, instrument_id: InstrumentId, interval_ms: int, from_ms: int, until_ms: int
    ) -> Sequence[tuple[int, float]]:
        """Return (open time, close) of the whole candles that open within [from_ms, until_ms), oldest first.

        Raises:
            LedgerUnavailable: the archive does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Returns:
    """Simple returns of one interval length.

    Attributes:
        matrix: shape (n, columns).  column: which column an asset takes.
        benchmark: BTC's returns of the same intervals, shape (n,); None without any.
        label: what they rest on.  window: first and last day.
        proxied: assets that have no history and were given another's.
    """

    matrix: Column
    column: Mapping[Currency, int]
    benchmark: Column | None
    label: str
    window: str
    proxied: tuple[Currency, ...] = ()

    def profits(self, values: Mapping[Currency, float]) -> Column:
        """Return what the book (quote by asset) would have earned in each interval, shape (n,)."""
        weights = np.zeros(self.matrix.shape[1])
        for asset, value in values.items():
            weights[self.column[asset]] += value
        return self.matrix @ weights


def assumed(horizon: str, assets: Sequence[Currency]) -> Returns:
    """Return the bundled years' returns for any assets."""
    matrix, wildest, window = _bundled_returns(HORIZONS[horizon][0])
    known = {asset: ASSETS.index(asset) for asset in assets if asset in ASSETS}
    proxied = tuple(asset for asset in assets if asset not in known)
    column = known | dict.fromkeys(proxied, wildest)
    return Returns(matrix, column, matrix[:, ASSETS.index(BENCHMARK)], LABEL, window, proxied)


@lru_cache(maxsize=4)
def _bundled_returns(hours: int) -> tuple[Column, int, str]:
    closes = bundled()
    matrix = closes.returns(hours)
    first, last = int(closes.open_hours[0]) * HOUR_MS, int(closes.open_hours[-1]) * HOUR_MS
    return matrix, int(matrix.std(axis=0).argmax()), _window(first, last)


class OwnHistory:
    """Reads the desk's own returns and remembers them until another candle has closed."""

    def __init__(self, source: ClosesSource) -> None:
        self._source = source
        self._known: dict[tuple[Feed, InstrumentId, int], tuple[int, dict[int, float]]] = {}

    async def returns(
        self, horizon: str, assets: Mapping[Currency, InstrumentId], feed: Feed, now_ms: int
    ) -> Returns | None:
        """Return what all assets have in common; None when that is nothing.

        Args:
            horizon: a key of ``HORIZONS``.
            assets: held assets, and BTC if the desk trades it, with the instrument that prices each.
            feed: live or recorded; they are never mixed.
            now_ms: the present on the feed's clock; only candles that closed by then count.

        Raises:
            LedgerUnavailable: the archive does not answer.
        """
        if not assets:
            return None
        hours, length = HORIZONS[horizon]
        interval = hours * HOUR_MS
        columns = [await self._closes(feed, item, interval, length, now_ms) for item in assets.values()]
        times = np.asarray(sorted(set(columns[0]).intersection(*columns[1:])), dtype=np.int64)
        if len(times) < 2:
            return None
        levels = np.asarray([[column[int(time)] for column in columns] for time in times])
        whole: npt.NDArray[np.bool_] = np.diff(times) == interval
        matrix = (levels[1:] / levels[:-1] - 1)[whole]
        column = {asset: number for number, asset in enumerate(assets)}
        benchmark = matrix[:, column[BENCHMARK]] if BENCHMARK in column else None
        return Returns(matrix, column, benchmark, f"{OWN} ({feed.value})", _window(int(times[0]), int(times[-1])))

    async def _closes(
        self, feed: Feed, instrument_id: InstrumentId, interval: int, length: int, now_ms: int
    ) -> dict[int, float]:
        until = now_ms // interval * interval
        known = self._known.get((feed, instrument_id, interval))
        if known is None or known[0] != until:
            first = until - (length + 1) * interval
            read = await self._source.closes(feed, instrument_id, interval, first, until)
            known = until, {time: close for time, close in read if close > 0}
            self._known[feed, instrument_id, interval] = known
        return known[1]


def _window(first_ms: int, last_ms: int) -> str:
    first, last = (datetime.fromtimestamp(ms // 1_000, UTC) for ms in (first_ms, last_ms))
    return f"{first:%Y-%m-%d}..{last:%Y-%m-%d}"
