"""The scores of the running desk: worked out beside the event loop when an hour has closed, looked up for each order.

Rules kept here:

- An order costs one look-up; candles are read and numbers worked out by ``refresh``, in the background.
- Whatever is not known is 1: no archive, no answer, too few bars, an old bar, a missing or drifted feature, a score
  grown old, a model file that cannot be read or is not the one that the limits name.
- Importing this is cheap; numpy is loaded, off the event loop, when there are first enough bars.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from trading.domain.errors import ConfigurationError, LedgerError
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed
from trading.domain.money import ONE

if TYPE_CHECKING:
    from mcp_servers.risk.context import Frame

    from .model import ScoreModel

log = logging.getLogger("grekko.risk")

HOUR_MS: Final = 3_600_000
#: How often it is looked whether another hour has closed.
SCORE_EVERY_S: Final = 20
#: A bar that closed longer ago than this says nothing of now.
MAX_AGE_MS: Final = 2 * HOUR_MS
_PLACES: Final = Decimal("0.0001")
# As in ``features``, which a test holds against them: importing that would load numpy.
LOOKBACK: Final = 721
BARS_MIN: Final = 700


class PastBar(NamedTuple):
    """One closed candle: opening time, prices in quote, volume in base."""

    open_ms: int
    close: float
    low: float
    high: float
    volume: float


class BarsSource(Protocol):
    """Closed candles, read only."""

    async def bars(
        self, feed: Feed, instrument_id: InstrumentId, interval_ms: int, from_ms: int, until_ms: int
    ) -> Sequence[PastBar]:
        """Return the whole candles that open within [from_ms, until_ms), oldest first.

        Raises:
            LedgerUnavailable: the archive does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Score:
    """One market's score.

    Attributes:
        value: within [0, 1], four digits, rounded up.
        reason: why it is 1 without having been worked out; empty when it was.
        until_ms: the desk's time after which it says nothing any more.
        bars: closed hourly bars behind it.
    """

    value: Decimal
    reason: str
    until_ms: int
    bars: int = 0


_NEVER: Final = Score(ONE, "no score has been worked out yet", 0)
_OLD: Final = Score(ONE, "the newest score is too old", 0)


class LiveScores:
    """Scores by instrument, 1 unless they are known.

    Args:
        source: the archive of closed candles; None leaves every score at 1.
        data_of: whose market data prices an instrument.
        path: a model file of the operator's; None for the one that ships with the room.
    """

    def __init__(
        self,
        source: BarsSource | None,
        data_of: Callable[[InstrumentId], InstrumentId],
        path: Path | None = None,
    ) -> None:
        self._source = source
        self._data_of = data_of
        self._path = path
        self._model: ScoreModel | None = None
        self._scores: dict[InstrumentId, Score] = {}
        self._done: dict[InstrumentId, tuple[Feed, int]] = {}  # the hour whose bar is in the score

    def of(self, instrument_id: InstrumentId, now_ms: int) -> Score:
        """Return the score that holds now."""
        score = self._scores.get(instrument_id, _NEVER)
        return score if score.reason or now_ms <= score.until_ms else _OLD

    def words(self, instrument_id: InstrumentId, now_ms: int) -> str:
        """Return what must be known beside the number: the event, the model, and why it is 1 if it is unknown."""
        reason = self.of(instrument_id, now_ms).reason
        model = self._model
        said = "no model" if model is None else f"probability that {model.event}; model {model.version}"
        return f"{said}; 1 because {reason}" if reason else said

    async def refresh(self, frame: Frame) -> None:
        """Work out every score whose hour is over; what cannot be worked out is 1."""
        problem = await self._model_problem(frame.limits.score_model_digest)
        for instrument_id, market in frame.markets.items():
            if problem or self._model is None or market.book is None:
                self._set(instrument_id, Score(ONE, problem or "there is no market data", 0))
                continue
            feed = market.book.feed
            feed_ms = frame.now_ms if feed is Feed.LIVE else market.book.venue_ts_ms
            if self._done.get(instrument_id) != (feed, feed_ms // HOUR_MS):
                score = await self._score(self._model, instrument_id, feed, feed_ms, frame.now_ms)
                self._set(instrument_id, score)
                if score.until_ms >= frame.now_ms + HOUR_MS:  # else its newest bar is yet to come
                    self._done[instrument_id] = (feed, feed_ms // HOUR_MS)

    async def _model_problem(self, pinned: str | None) -> str:
        if self._model is None:
            try:
                self._model = await asyncio.to_thread(_read, self._path)
            except ConfigurationError as error:
                return str(error)
        if pinned is None and self._path is not None:
            return f"the limits do not name the model file: score_model_digest {self._model.digest}"
        if pinned is not None and pinned != self._model.digest:
            return f"the limits name another model file: {pinned[:8]}, not {self._model.digest[:8]}"
        return ""

    def _set(self, instrument_id: InstrumentId, score: Score) -> None:
        if score.reason:
            self._done.pop(instrument_id, None)
            if self._scores.get(instrument_id, _NEVER).reason != score.reason:
                log.info("risk score of %s is 1: %s", instrument_id.symbol, score.reason)
        self._scores[instrument_id] = score

    async def _score(
        self, model: ScoreModel, instrument_id: InstrumentId, feed: Feed, feed_ms: int, now_ms: int
    ) -> Score:
        if self._source is None:
            return Score(ONE, "there is no archive of closed candles", 0)
        until = feed_ms // HOUR_MS * HOUR_MS
        first = until - LOOKBACK * HOUR_MS
        try:
            read = await self._source.bars(feed, self._data_of(instrument_id), HOUR_MS, first, until)
        except LedgerError as error:
            return Score(ONE, f"the market archive does not answer ({error.code})", 0)
        bars = [bar for bar in read if min(bar.close, bar.low, bar.high) > 0]
        if len(bars) < BARS_MIN:
            return Score(ONE, f"the archive has {len(bars)} of the last {LOOKBACK} hourly candles", 0)
        age_ms = feed_ms - bars[-1].open_ms - HOUR_MS
        if age_ms > MAX_AGE_MS:
            return Score(ONE, f"the newest hourly candle closed {age_ms // 60_000} minutes ago", 0)
        value, problem = await asyncio.to_thread(score_bars, model, bars)
        return Score(value, problem, now_ms + MAX_AGE_MS - age_ms, len(bars))


#: Every score unknown.
NO_SCORES: Final = LiveScores(None, lambda instrument_id: instrument_id)


def score_bars(model: ScoreModel, bars: Sequence[PastBar]) -> tuple[Decimal, str]:
    """Return the score at the newest close, and why it is 1 if it cannot be worked out; bars are rising whole hours."""
    values = features_of(bars)
    problem = model.problem(values)
    if problem:
        return ONE, problem
    exact = Decimal(repr(model.probability(values)))
    return min(ONE, exact.quantize(_PLACES, ROUND_CEILING)), ""


def features_of(bars: Sequence[PastBar]) -> Mapping[str, float]:
    """Return the features at the newest close, NaN for those that are not known."""
    import numpy as np

    from .bars import on_grid
    from .features import FEATURES, past_of

    columns = np.asarray([bar[1:] for bar in bars], dtype=np.float64)
    grid = on_grid("", [bar.open_ms // HOUR_MS for bar in bars], columns)
    newest: list[float] = past_of(grid).matrix[-1].tolist()
    return dict(zip(FEATURES, newest, strict=True))


def _read(path: Path | None) -> ScoreModel:
    from .model import load_model, shipped_model

    return shipped_model() if path is None else load_model(path)
