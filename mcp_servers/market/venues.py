"""Which venue answers for a symbol, and how the venues are.

Rules kept here:

- The desk's own venue answers while its book is usable. When it is not, the first other venue with a usable book does,
  in the configured order. The answer says so and why.
- Going back takes some seconds of a usable book without a break, so that a feed that flutters does not drag every
  answer with it. A venue that was never good before is taken at once: the others only stood in until it started.
- When no venue is usable the desk's own is named: its book is what explains the refusal.
- A venue is reported lost once, and restored once it has been good for the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mcp_servers.market.health import Events, FeedHealth
from mcp_servers.market.quality import Judged, QualityJudge
from mcp_servers.market.sources.base import SourceState
from trading.adapters.market_stream import MarketFeed
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.ports.clock import Clock

SETTLE_MS: Final = 5_000  # a venue that failed must be good for this long before it is taken for well again
_REFRESH_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Choice:
    """The venue that answers.

    Attributes:
        failed_over_from: the desk's own venue when another one stands in for it, else None.
        reason: why it does; empty otherwise.
    """

    venue: Venue
    failed_over_from: Venue | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class VenueHealth:
    """How one venue's feed is.

    Attributes:
        code, message: why there is no data; empty while there is.
        age_ms: since anything arrived from it; None before that.
        reconnects: connections that ended.
        gaps: breaks in the sequence of a book.
        skew_ms: receive time less venue time at best, None before a measurement.
        usable: the symbols whose book may price an order now.
    """

    venue: Venue
    state: SourceState
    code: str
    message: str
    age_ms: int | None
    reconnects: int
    gaps: int
    skew_ms: int | None
    usable: tuple[Symbol, ...]


class _Lane:
    """What is remembered of one book between two looks at it."""

    __slots__ = ("good_since_ms", "was_good")

    def __init__(self) -> None:
        self.good_since_ms: int | None = None
        self.was_good = False

    def settled(self, now_ms: int, settle_ms: int) -> bool:
        return self.good_since_ms is not None and now_ms - self.good_since_ms >= settle_ms


class VenueBoard:
    """Judges the venues' books and chooses between them.

    Args:
        feed: the books and rules of every venue.
        venues: the desk's own first, then the others by preference; venues that only appear in the feed come last.
        symbols: what the desk trades; watched even when nobody asks.
        judge: says whether a book may price an order.
        clock: the desk's.
        health: how each venue's feed is, as far as this process knows.
        settle_ms: how long a venue must be good before it is taken for well again.
        events: told when a venue is lost, restored or replaced; set it later through ``events``.
    """

    def __init__(
        self,
        feed: MarketFeed,
        venues: Sequence[Venue],
        symbols: Sequence[Symbol],
        *,
        judge: QualityJudge,
        clock: Clock,
        health: Callable[[Venue], FeedHealth | None],
        settle_ms: int = SETTLE_MS,
        events: Events | None = None,
    ) -> None:
        self._feed = feed
        self._configured = tuple(dict.fromkeys(venues))
        self._symbols = tuple(symbols)
        self._judge = judge
        self._clock = clock
        self._health = health
        self._settle_ms = settle_ms
        self.events = events
        self._lanes: dict[InstrumentId, _Lane] = {}
        self._stand_in: dict[Symbol, Venue] = {}
        self._lost: dict[Venue, int] = {}
        self._seen_good: set[Venue] = set()

    @property
    def primary(self) -> Venue:
        """The desk's own venue."""
        return self._configured[0]

    @property
    def venues(self) -> tuple[Venue, ...]:
        """Every venue, best first."""
        return tuple(dict.fromkeys((*self._configured, *(item.venue for item in self._feed.instruments()))))

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """What the desk trades; without a list, what the venues have."""
        return self._symbols or tuple(dict.fromkeys(item.symbol for item in self._feed.instruments()))

    def judged(self, instrument_id: InstrumentId) -> Judged | None:
        """Return the newest book with what speaks against it, None before the first."""
        book = self._feed.book(instrument_id)
        return None if book is None else self._judge.judge(book, state=self._feed.book_state(instrument_id))

    def why_not(self, instrument_id: InstrumentId) -> str:
        """Return why an order must not be priced from a venue's book; empty when it may be."""
        judged, known = self.judged(instrument_id), self._health(instrument_id.venue)
        reason = "no book yet" if judged is None else describe(judged)
        code = known.status.code if known is not None else ""
        return f"{reason} ({code})" if reason and code else reason

    def choose(self, symbol: Symbol) -> Choice:
        """Return the venue that answers for a symbol when the caller named none."""
        primary = InstrumentId(self.primary, symbol)
        if symbol not in self._symbols and not any(
            self._feed.instrument(InstrumentId(venue, symbol)) for venue in self.venues
        ):
            return Choice(self.primary)  # nobody has it: nothing is remembered of a name that somebody made up
        lane = self._look(primary)
        current = self._stand_in.get(symbol)
        if lane.good_since_ms is not None and (current is None or self._is_back(lane, symbol, current)):
            lane.was_good = True
            if current is not None:
                self._replaced(symbol, None, "its book is usable")
            return Choice(self.primary)
        found = self._first_usable(symbol, current)
        if found is None:
            return Choice(self.primary)
        reason = self.why_not(primary) or f"usable again, but not yet for {self._settle_ms // 1_000} s"
        if found != current:
            self._replaced(symbol, found, reason)
        return Choice(found, self.primary, f"{self.primary}: {reason}")

    def health(self, venue: Venue) -> VenueHealth:
        """Return how a venue's feed is."""
        known = self._health(venue) or FeedHealth.unknown()
        heard = known.heard_ts_ms
        age = self._published_age_ms(venue) if heard is None else max(0, self._clock.now_ms() - heard)
        return VenueHealth(
            venue,
            known.status.state,
            known.status.code,
            known.status.message,
            age,
            known.reconnects,
            known.gaps,
            self._judge.skew_ms(venue),
            tuple(symbol for symbol in self.symbols if self._is_usable(InstrumentId(venue, symbol))),
        )

    def failovers(self) -> dict[Symbol, Choice]:
        """Return the symbols of the desk for which another venue stands in now."""
        chosen = {symbol: self.choose(symbol) for symbol in self.symbols}
        return {symbol: choice for symbol, choice in chosen.items() if choice.failed_over_from is not None}

    def refresh(self) -> None:
        """Look at every book of the desk's symbols: what changed is remembered and reported."""
        for symbol in self.symbols:
            self.choose(symbol)
        for venue in self.venues:
            self._watch(venue)

    async def run(self) -> None:
        """Refresh several times a second, for ever."""
        while True:
            self.refresh()
            await asyncio.sleep(_REFRESH_S)

    def _published_age_ms(self, venue: Venue) -> int | None:
        """Return the age of the newest book or trade of a venue that another process reads."""
        rows = [row for row in self._feed.status().instruments if row.instrument_id.venue == venue]
        ages = [age for row in rows for age in (row.book_age_ms, row.trade_age_ms) if age is not None]
        return min(ages, default=None)

    def _look(self, instrument_id: InstrumentId) -> _Lane:
        lane = self._lanes.get(instrument_id)
        if lane is None:
            lane = self._lanes[instrument_id] = _Lane()
        if not self._is_usable(instrument_id):
            lane.good_since_ms = None
        elif lane.good_since_ms is None:
            lane.good_since_ms = self._clock.now_ms()
        return lane

    def _is_usable(self, instrument_id: InstrumentId) -> bool:
        judged = self.judged(instrument_id)
        return judged is not None and judged.usable

    def _is_back(self, lane: _Lane, symbol: Symbol, current: Venue) -> bool:
        """Return whether the desk's own venue, usable now, takes over from the one that stands in."""
        if not lane.was_good or lane.settled(self._clock.now_ms(), self._settle_ms):
            return True
        return not self._is_usable(InstrumentId(current, symbol))

    def _first_usable(self, symbol: Symbol, current: Venue | None) -> Venue | None:
        """Return the venue that stands in: the one that does already, else the first that can."""
        others = [venue for venue in self.venues if venue != self.primary]
        ordered = others if current is None else [current, *(venue for venue in others if venue != current)]
        return next((venue for venue in ordered if self._is_usable(InstrumentId(venue, symbol))), None)

    def _replaced(self, symbol: Symbol, venue: Venue | None, reason: str) -> None:
        before = self._stand_in.get(symbol, self.primary)
        if venue is None:
            self._stand_in.pop(symbol, None)
        else:
            self._stand_in[symbol] = venue
        self._tell("market.venue_failed_over", symbol=symbol, before=before, venue=venue or self.primary, reason=reason)

    def _watch(self, venue: Venue) -> None:
        """Report a venue that was good and has no usable book any more, and its return."""
        now = self._clock.now_ms()
        lanes = [self._look(InstrumentId(venue, symbol)) for symbol in self.symbols]
        good = any(lane.good_since_ms is not None for lane in lanes)
        lost_ms = self._lost.get(venue)
        if lost_ms is not None:
            if any(lane.settled(now, self._settle_ms) for lane in lanes):
                del self._lost[venue]
                self._tell("market.feed_restored", venue=venue, lost_for_ms=now - lost_ms)
        elif good:
            self._seen_good.add(venue)
        elif venue in self._seen_good or self._has_failed(venue):
            self._lost[venue] = now
            known = self._health(venue)
            code = known.status.code if known is not None else ""
            reasons = "; ".join(f"{s}: {self.why_not(InstrumentId(venue, s))}" for s in self.symbols[:5])
            self._tell("market.feed_lost", venue=venue, code=code or "STALE_DATA", reason=reasons)

    def _has_failed(self, venue: Venue) -> bool:
        known = self._health(venue)
        return known is not None and bool(known.status.code)

    def _tell(self, event_type: str, **payload: object) -> None:
        if self.events is not None:
            self.events.publish(event_type, payload)


def describe(judged: Judged) -> str:
    """Return the marks of a book as words; empty when there are none."""
    words = [mark.value.replace("_", " ") for mark in judged.marks]
    if "stale" in words:
        words[words.index("stale")] = f"stale ({judged.age_ms} ms old)"
    return ", ".join(words)
