"""What may be believed of a book, and why not.

Rules kept here:

1. Age counts from publication. A live book also ages by the venue's clock, corrected by its measured skew.
2. Skew is the least of receive time minus venue time within the last 30 to 60 s: what is left when nothing queued. It
   cannot tell a clock that is behind from a feed that always comes late, so a live venue beyond ``max_skew_ms`` is
   refused and not corrected away. A frame that runs ahead of the known skew by more than that comes from the future and
   is kept out of the measurement, unless the venue goes on so for 10 s: then its clock was set.
3. A mid is an outlier when it moved by more than ``outlier_bps`` and by more than ``outlier_sigmas`` recent standard
   deviations since the last accepted one, and

   - other venues have fresh mids of the same symbol and fewer than half of them lie within ``outlier_bps`` of it. When
     they arrive at the new level, it is accepted: a move of the whole market is refused on the first venue only; or
   - there are no such venues. Then it is accepted once it has held for 5 s without another jump, or after 30 s of
     jumps, counted from when there was nobody to ask.

   A mid that did not jump is an outlier only when at least two other venues are fresh and fewer than half agree with
   it; a single other venue may be the one that is wrong. A first mid counts as a jump when others are there.
4. Only accepted mids make volatility: absolute log returns over a second or more, per root of a second, clipped, as an
   exponential average over 60 s of the source's time, times sqrt(pi/2), which is what a normal law asks.

Limits: with one venue a wrong level that holds for 5 s is believed, and a smaller error than ``outlier_bps`` always is;
with two that disagree from the start the first one is. A symbol is compared with exactly the same symbol: USD is not
USDT. Statistics use floats; no float becomes a price.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from math import exp, log, pi, sqrt
from typing import Final

from mcp_servers.market.settings import QualitySettings
from trading.adapters.market_wire import BookUpdate
from trading.domain.identifiers import Symbol, Venue
from trading.domain.market_data import Feed, OrderBook
from trading.domain.money import add, multiply
from trading.ports.clock import Clock

HOLD_MS: Final = 5_000  # without another jump, and a lone venue's new level is accepted
REFUSE_MS: Final = 30_000  # a lone venue is not refused for longer
SKEW_WINDOW_MS: Final = 60_000
FUTURE_HOLD_MS: Final = 10_000
VOLATILITY_MS: Final = 60_000  # time constant of the average
SAMPLE_MS: Final = 1_000
FORGET_MS: Final = 600_000  # after such a silence a venue starts anew
_CLIP: Final = 10.0  # a sample counts for at most so many times the average
_NORMAL: Final = sqrt(pi / 2)
_HALF: Final = Decimal("0.5")


class Mark(StrEnum):
    """Why a book must not price an order; every one of them forbids it."""

    STALE = "stale"
    EMPTY = "empty"
    ONE_SIDED = "one_sided"
    CROSSED = "crossed"  # or locked
    GAPPED = "gapped"
    OUTLIER = "outlier"
    CLOCK_SKEW = "clock_skew"
    FROM_FUTURE = "from_future"


#: A pipeline's state and the mark that says so.
_STATES: Final = {"gap": Mark.GAPPED, "resync": Mark.GAPPED, "crossed": Mark.CROSSED, "outlier": Mark.OUTLIER}


@dataclass(frozen=True, slots=True)
class Judged:
    """A book and what speaks against it.

    Attributes:
        marks: in the order of :class:`Mark`; empty when nothing does.
        age_ms: since publication, or by the venue's corrected clock when that is more (live).
        skew_ms: receive time minus venue time as measured for the venue; None before a measurement.
    """

    book: OrderBook
    marks: tuple[Mark, ...]
    age_ms: int
    skew_ms: int | None

    @property
    def usable(self) -> bool:
        """Whether an order may be priced from it."""
        return not self.marks


class _Skew:
    """The least difference between two clocks, over this half of the window and the one before it."""

    __slots__ = ("_before", "_ends_ms", "_future_ms", "_least", "_limit")

    def __init__(self, limit_ms: int) -> None:
        self._limit = limit_ms
        self._least: int | None = None
        self._before: int | None = None
        self._ends_ms = 0
        self._future_ms: int | None = None

    @property
    def value(self) -> int | None:
        least, before = self._least, self._before
        return least if before is None else before if least is None else min(before, least)

    def add(self, venue_ts_ms: int, received_ts_ms: int) -> None:
        sample = received_ts_ms - venue_ts_ms
        half = SKEW_WINDOW_MS // 2
        if not -half <= self._ends_ms - received_ts_ms <= half:  # silence, or a recording that starts again
            self._least = self._before = None
            self._ends_ms = received_ts_ms + half
        elif received_ts_ms >= self._ends_ms:
            self._before, self._least = self._least, None
            self._ends_ms = received_ts_ms + half
        if sample < (self.value or 0) - self._limit:
            if self._future_ms is None or received_ts_ms < self._future_ms:
                self._future_ms = received_ts_ms
            if received_ts_ms - self._future_ms < FUTURE_HOLD_MS:
                return
            self._before = self._least = None
        self._future_ms = None
        if self._least is None or sample < self._least:
            self._least = sample


class _Series:
    """The mids of one symbol on one venue."""

    __slots__ = (
        "ask", "average", "bid", "candidate", "candidate_ms", "mid", "mid_ms", "outlier", "refused_ms", "sampled",
        "sampled_ms", "seen", "seen_ms",
    )  # fmt: skip

    def __init__(self) -> None:
        self.bid, self.ask = "", ""  # of the newest accepted book
        self.mid, self.mid_ms = 0.0, 0  # accepted
        self.seen, self.seen_ms = 0.0, 0  # whether accepted or not
        self.sampled, self.sampled_ms = 0.0, 0
        self.average = 0.0  # absolute log return per root of a second
        self.candidate, self.candidate_ms, self.refused_ms = 0.0, 0, 0
        self.outlier = False

    def jumps(self, level: float, level_ms: int, mid: float, now_ms: int, bps: float, sigmas: float) -> bool:
        """Return whether going from ``level`` to ``mid`` is more than recent volatility explains."""
        move = abs(mid - level)
        if move <= level * bps:  # the floor, which nearly every book stays under
            return False
        elapsed_s = max(now_ms - level_ms, SAMPLE_MS) / 1_000
        floor = bps * sqrt(max(1.0, elapsed_s / 60))
        return abs(log(mid / level)) > max(floor, sigmas * _NORMAL * self.average * sqrt(elapsed_s))

    def accept(self, mid: float, now_ms: int, bid: str, ask: str) -> None:
        self.mid, self.mid_ms, self.bid, self.ask = mid, now_ms, bid, ask
        self.outlier, self.candidate = False, 0.0
        elapsed_ms = now_ms - self.sampled_ms
        if elapsed_ms < SAMPLE_MS:
            return
        if self.sampled:
            weight = 1 - exp(-elapsed_ms / VOLATILITY_MS)
            sample = abs(log(mid / self.sampled)) / sqrt(elapsed_ms / 1_000)
            if self.average:
                sample = min(sample, _CLIP * self.average)
            self.average += weight * (sample - self.average)
        self.sampled, self.sampled_ms = mid, now_ms

    def refuse(self, mid: float, now_ms: int, *, alone: bool, jumped_again: bool) -> None:
        if not self.candidate or not alone:
            self.refused_ms = self.candidate_ms = now_ms
        elif jumped_again:
            self.candidate_ms = now_ms
        self.candidate, self.outlier = mid, True

    def clear(self) -> None:
        self.__init__()


class QualityJudge:
    """Measures every published book and says what speaks against one.

    Args:
        settings: how far is too far.
        clock: the desk's.
        max_age_ms: older books are stale.
    """

    def __init__(self, settings: QualitySettings, clock: Clock, max_age_ms: int) -> None:
        self._bps = settings.outlier_bps / 10_000
        self._sigmas = settings.outlier_sigmas
        self._max_skew = settings.max_skew_ms
        self._clock = clock
        self._max_age = max_age_ms
        self._symbols: dict[Symbol, dict[Venue, _Series]] = {}
        self._skews: dict[Venue, _Skew] = {}

    def observe(self, update: BookUpdate) -> Mark | None:
        """Measure a book about to be published; return OUTLIER when it must not be, else None.

        Books that are not two-sided are no measurement. Costs 2 to 3 µs.
        """
        venue, symbol = update.instrument_id
        now_ms = update.received_ts_ms
        if update.venue_ts_ms:
            skew = self._skews.get(venue)
            if skew is None:
                skew = self._skews[venue] = _Skew(self._max_skew)
            skew.add(update.venue_ts_ms, now_ms)
        if not update.bids or not update.asks:
            return None
        bid, ask = update.bids[0][0], update.asks[0][0]
        low, high = float(bid), float(ask)
        if low >= high:
            return None
        mid = (low + high) / 2
        venues = self._symbols.get(symbol)
        if venues is None:
            venues = self._symbols[symbol] = {}
        series = venues.get(venue)
        if series is None:
            series = venues[venue] = _Series()
        elif not 0 <= now_ms - series.seen_ms <= FORGET_MS and abs(now_ms - series.seen_ms) > self._max_age:
            series.clear()  # silent for long, or a recording that starts again
        series.seen, series.seen_ms = mid, max(now_ms, series.seen_ms)
        if self._is_outlier(series, venues, mid, now_ms):
            return Mark.OUTLIER
        series.accept(mid, now_ms, bid, ask)
        return None

    def judge(self, book: OrderBook, *, state: str | None) -> Judged:
        """Return a published book with every mark that holds now.

        Args:
            state: the pipeline's word on the book (``ok``, ``gap``, ``resync``, ``crossed``, ``outlier``), or None in a
                process that does not build it.
        """
        venue, symbol = book.instrument_id
        now_ms = self._clock.now_ms()
        skew_ms = self.skew_ms(venue)
        age_ms = book.age_ms(now_ms)
        found: set[Mark] = set()
        if (named := _STATES.get(state or "")) is not None:
            found.add(named)
        if book.published_ts_ms > now_ms + self._max_skew:
            found.add(Mark.FROM_FUTURE)
        if book.feed is Feed.LIVE and book.venue_ts_ms:
            age_ms = max(age_ms, self.venue_age_ms(venue, book.venue_ts_ms))
            if skew_ms is not None and abs(skew_ms) > self._max_skew:
                found.add(Mark.CLOCK_SKEW)
            if book.venue_ts_ms + (skew_ms or 0) > book.received_ts_ms + self._max_skew:
                found.add(Mark.FROM_FUTURE)
        if age_ms > self._max_age:
            found.add(Mark.STALE)
        found.update(_sides(book))
        series = self._symbols.get(symbol, {}).get(venue)
        if Mark.EMPTY in found and series is not None and series.outlier:
            found.add(Mark.OUTLIER)
        return Judged(book, tuple([mark for mark in Mark if mark in found]) if found else (), age_ms, skew_ms)

    def skew_ms(self, venue: str) -> int | None:
        """Return how far receive time runs ahead of a venue's clock at best; None before a measurement."""
        skew = self._skews.get(Venue(venue))
        return None if skew is None else skew.value

    def venue_age_ms(self, venue: str, venue_ts_ms: int) -> int:
        """Return how long ago a venue's time was; without a measurement the tolerated skew is allowed for."""
        known = self.skew_ms(venue)
        skew = self._max_skew if known is None else max(-self._max_skew, min(known, self._max_skew))
        return max(0, self._clock.now_ms() - venue_ts_ms - skew)

    def reference_mid(self, symbol: str, excluding: str | None = None) -> Decimal | None:
        """Return the median of the fresh accepted mids of a symbol, without one venue's; None when there are none."""
        venues = self._symbols.get(Symbol(symbol), {})
        newest_ms = max((series.seen_ms for series in venues.values()), default=0)
        return median(
            multiply(add(Decimal(series.bid), Decimal(series.ask)), _HALF)
            for venue, series in venues.items()
            if venue != excluding and series.mid and not series.outlier and newest_ms - series.mid_ms <= self._max_age
        )

    def _is_outlier(self, series: _Series, venues: dict[Venue, _Series], mid: float, now_ms: int) -> bool:
        bps, sigmas = self._bps, self._sigmas
        peers = agreeing = 0
        if len(venues) > 1:
            recent, reach = self._max_age, mid * bps
            for other in venues.values():
                if other is not series and abs(now_ms - other.seen_ms) <= recent:
                    peers += 1
                    agreeing += abs(other.seen - mid) <= reach
        if peers and 2 * agreeing >= peers:
            return False
        jumped = not series.mid or series.jumps(series.mid, series.mid_ms, mid, now_ms, bps, sigmas)
        if peers:
            if not jumped and peers < 2:
                return False
        elif not series.mid or not jumped or self._has_held(series, mid, now_ms):
            return False
        again = bool(series.candidate) and series.jumps(series.candidate, now_ms, mid, now_ms, bps, sigmas)
        series.refuse(mid, now_ms, alone=not peers, jumped_again=again)
        return True

    def _has_held(self, series: _Series, mid: float, now_ms: int) -> bool:
        if not series.candidate:
            return False
        if now_ms - series.refused_ms >= REFUSE_MS:
            return True
        return now_ms - series.candidate_ms >= HOLD_MS and not series.jumps(
            series.candidate, now_ms, mid, now_ms, self._bps, self._sigmas
        )


def median(values: Iterable[Decimal]) -> Decimal | None:
    """Return the middle value, of an even number the exact mean of the two middle ones; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return multiply(add(ordered[middle - 1], ordered[middle]), _HALF)


def _sides(book: OrderBook) -> tuple[Mark, ...]:
    if not book.bids and not book.asks:
        return (Mark.EMPTY,)
    if not book.bids or not book.asks:
        return (Mark.ONE_SIDED,)
    return () if book.bids[0].price < book.asks[0].price else (Mark.CROSSED,)
