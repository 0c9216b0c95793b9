"""The desk's news: all sources together, each item once, newest first, in bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mcp_servers.market.cache import AnswerCache
from mcp_servers.market.news.items import NewsItem, NewsSource
from mcp_servers.market.news.rss import FeedParser, RssSource
from mcp_servers.market.not_configured import NotConfigured
from mcp_servers.market.settings import CacheSettings, NewsSettings
from trading.domain.errors import ConfigurationError, InvalidValue, TradingError, Unavailable
from trading.ports.clock import Clock

_HOUR_MS: Final = 3_600_000
#: One slow feed must not hold up the answer of the others for longer.
_PATIENCE_S: Final = 12.0


@dataclass(frozen=True, slots=True)
class Found:
    """News that match a question.

    Attributes:
        items: newest first; those of unknown age by when they were first seen here.
        failed: sources that could not be read now, and why; what was read of them before is among the items.
        now_ms: when the question was answered, for ages.
    """

    items: tuple[NewsItem, ...]
    failed: dict[str, str]
    now_ms: int


@dataclass(frozen=True, slots=True)
class _Seen:
    item: NewsItem
    seen_ms: int

    @property
    def at_ms(self) -> int:
        return self.seen_ms if self.item.published_ms is None else self.item.published_ms


class News:
    """All sources of news. Asks them when it is asked itself; close it in the end.

    Args:
        sources: where news come from.
        clock: for ages.
        keep: items in memory at most; the oldest go first.
        max_age_h: older items are left out.
    """

    def __init__(self, sources: Sequence[NewsSource], clock: Clock, *, keep: int = 500, max_age_h: int = 168) -> None:
        self._sources = tuple(sources)
        self._clock = clock
        self._keep = keep
        self._max_age_ms = max_age_h * _HOUR_MS
        self._seen: dict[str, _Seen] = {}

    async def find(self, query: str) -> Found:
        """Return the items that hold every word of ``query``, in any case; all of them when it is empty.

        Raises:
            NotConfigured: the desk has no source of news.
            Unavailable: no source can be read, and nothing is known from before.
        """
        if not self._sources:
            raise NotConfigured(
                "no news feed is configured",
                suggestion="the owner of the desk sets feeds under [market.news];"
                " a replay has none, today lies ahead of it",
            )
        since_ms = self._clock.now_ms() - self._max_age_ms
        answers = await asyncio.gather(*(self._read(source, since_ms) for source in self._sources))
        now_ms = self._clock.now_ms()
        problems: dict[str, TradingError] = {}
        for source, answer in zip(self._sources, answers, strict=True):
            if isinstance(answer, TradingError):
                problems[source.name] = answer
            else:
                self._take(answer, now_ms)
        self._forget(now_ms)
        if not self._seen and all(isinstance(answer, TradingError) for answer in answers):
            raise next(iter(problems.values()))
        words = query.casefold().split()
        newest = sorted(self._seen.values(), key=lambda seen: (seen.at_ms, seen.item.id), reverse=True)
        matching = [seen.item for seen in newest if _holds(seen.item, words)]
        return Found(_each_once(matching), {name: error.code for name, error in problems.items()}, now_ms)

    async def close(self) -> None:
        """Close every source."""
        for source in self._sources:
            await source.close()

    async def _read(self, source: NewsSource, since_ms: int) -> Sequence[NewsItem] | TradingError:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await source.items_since(since_ms)
        except TimeoutError:
            return Unavailable(f"{source.name} does not answer in time", code="NO_NETWORK")
        except TradingError as error:
            return error

    def _take(self, items: Sequence[NewsItem], now_ms: int) -> None:
        for item in items:
            known = self._seen.get(item.id)
            self._seen[item.id] = _Seen(item, known.seen_ms if known else now_ms)

    def _forget(self, now_ms: int) -> None:
        """Drop what is too old, then the oldest beyond the bound."""
        fresh = [seen for seen in self._seen.values() if seen.at_ms >= now_ms - self._max_age_ms]
        fresh.sort(key=lambda seen: seen.at_ms, reverse=True)
        self._seen = {seen.item.id: seen for seen in fresh[: self._keep]}


def open_news(settings: NewsSettings, cached: CacheSettings, clock: Clock, *, cache: AnswerCache | None = None) -> News:
    """Return the configured feeds; nothing is fetched before somebody asks.

    Args:
        settings: the feeds.
        cached: how long a feed's items are kept.
        clock: the desk's.
        cache: shared with the room's other parts; one of its own without.

    Raises:
        ConfigurationError: an address is of another form.
    """
    found, parser = cache or AnswerCache(cached, clock), FeedParser()
    try:
        sources = [
            RssSource(url, clock=clock, cache=found, ttl_s=cached.news_s, parser=parser)
            for url in dict.fromkeys(settings.feeds)
        ]
    except InvalidValue as error:
        raise ConfigurationError(f"[market.news]: {error}", suggestion=error.suggestion) from error
    return News(sources, clock, keep=settings.keep, max_age_h=settings.max_age_h)


def _holds(item: NewsItem, words: Sequence[str]) -> bool:
    text = f"{item.title} {item.summary}".casefold()
    return all(word in text for word in words)


def _each_once(items: Sequence[NewsItem]) -> tuple[NewsItem, ...]:
    """Return items without those whose link or headline came before: feeds carry each other's news."""
    found: list[NewsItem] = []
    known: set[str] = set()
    for item in items:
        keys = {key for key in (item.link, item.title.casefold()) if key}
        if not keys & known:
            found.append(item)
        known |= keys
    return tuple(found)
