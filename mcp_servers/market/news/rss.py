"""RSS and Atom feeds: fetched with care, parsed in a process of its own, cleaned.

Rules kept here:

- A feed is asked at most once per time to live, with its own ETag and date; one that failed is left alone for a while.
- The body is bounded before it is parsed, and so is what comes back from parsing, in time, memory and size.
- Redirects lead to the same origin or to public addresses; the address never appears in an error, only its host.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import orjson

from mcp_servers.market.cache import AnswerCache
from mcp_servers.market.news import parse_feed
from mcp_servers.market.news.items import LINK_MAX, SUMMARY_MAX, TITLE_MAX, NewsItem, clean_text
from trading.adapters.bounded_http import BoundedHttp, HttpFailed, check_url
from trading.domain.errors import Unavailable
from trading.ports.clock import Clock

_MAX_BYTES: Final = 2 << 20
_MAX_PARSED: Final = 16 << 20
_FETCH_S: Final = 8.0
_PARSE_S: Final = 10.0
_REDIRECTS: Final = 3
_PAUSE_MS: Final = 60_000
#: A feed's clock may be ahead by this much before its times count as unknown.
_AHEAD_MS: Final = 3_600_000
#: Two cores serve the whole desk; feeds are parsed one after the other.
_PARSING: Final = 1
_CODES: Final = {"unreachable": "NO_NETWORK", "timeout": "NO_NETWORK", "rate_limited": "RATE_LIMITED"}


class FeedFailed(Unavailable):
    """A feed cannot be read now.

    Attributes:
        after_ms: when it will be asked again.
    """

    code = "NO_NETWORK"

    def __init__(self, message: str, *, code: str, after_ms: int = _PAUSE_MS) -> None:
        super().__init__(message, code=code, suggestion="try again later")
        self.after_ms = after_ms


class FeedParser:
    """Parses feeds in processes of their own, one at a time.

    Args:
        timeout_s: after which such a process is ended.
    """

    def __init__(self, *, timeout_s: float = _PARSE_S) -> None:
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(_PARSING)

    async def parse(self, data: bytes) -> list[dict[str, Any]]:
        """Return a feed's entries as :mod:`parse_feed` writes them.

        Raises:
            ValueError: it is no feed, or one that cannot be parsed within the limits.
        """
        async with self._slots:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(Path(parse_feed.__file__)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ},
            )
            try:
                async with asyncio.timeout(self._timeout_s):
                    out, _ = await process.communicate(data)
            except TimeoutError:
                raise ValueError("parsing takes too long") from None
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode != 0 or len(out) > _MAX_PARSED:
            raise ValueError("no feed, or one beyond the limits")
        return cast("list[dict[str, Any]]", orjson.loads(out))


class RssSource:
    """One feed.

    Args:
        url: ``https``, or ``http`` on this machine.
        clock: for pauses and ages.
        cache: keeps its items for ``ttl_s`` seconds.
        parser: shared by all feeds.
        http: instead of a client of its own, for tests.

    Raises:
        InvalidValue: the URL is of another form.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        cache: AnswerCache,
        ttl_s: float,
        parser: FeedParser,
        http: BoundedHttp | None = None,
    ) -> None:
        self._url = check_url(url, what="a feed")
        self._host = (urlsplit(url).hostname or "")[:64]
        self._clock = clock
        self._cache = cache
        self._ttl_s = ttl_s
        self._parser = parser
        self._http = http or BoundedHttp(
            max_bytes=_MAX_BYTES, timeout_s=_FETCH_S, max_redirects=_REDIRECTS, connections=2
        )
        self._key = f"feed:{hashlib.sha256(url.encode()).hexdigest()}"
        self._validators: dict[str, str] = {}
        self._last: bytes = b""
        self._failure: FeedFailed | None = None
        self._failed_ns = 0

    @property
    def name(self) -> str:
        """Return the feed's host."""
        return self._host

    async def items_since(self, since_ms: int) -> Sequence[NewsItem]:
        """Return the feed's items; those of unknown age as well.

        Raises:
            FeedFailed: it cannot be read now: NO_NETWORK, RATE_LIMITED, VENUE_REFUSED or GARBAGE.
        """
        answer = await self._cache.get("news", self._key, self._ttl_s, self._load)
        items = [self._item(row) for row in cast("list[list[Any]]", orjson.loads(answer.data))]
        return [item for item in items if item.published_ms is None or item.published_ms >= since_ms]

    async def close(self) -> None:
        """Close every connection."""
        await self._http.close()

    async def _load(self) -> bytes:
        """Return the feed's items as JSON rows, asked from the feed now."""
        self._refuse_during_pause()
        try:
            return await self._fetch()
        except HttpFailed as error:
            code = _CODES.get(
                error.failure, "GARBAGE" if error.failure in ("too_large", "garbage") else "VENUE_REFUSED"
            )
            raise self._failed(f"{self._host}: {error}", code, error.after_ms) from None
        except ValueError as error:
            raise self._failed(f"{self._host} does not give a feed: {error}", "GARBAGE", None) from None

    async def _fetch(self) -> bytes:
        answer = await self._http.get(self._url, self._validators)
        if answer.status == 304 and self._last:
            return self._last
        entries = await self._parser.parse(answer.body)
        self._validators = {
            header: answer.headers[name]
            for header, name in (("If-None-Match", "etag"), ("If-Modified-Since", "last-modified"))
            if len(answer.headers.get(name, "")) in range(1, 513)
        }
        self._last = orjson.dumps([row for entry in entries if (row := self._row(entry)) is not None])
        return self._last

    def _row(self, entry: dict[str, Any]) -> list[object] | None:
        """Return id, title, summary, link and time of an entry, cleaned; None when nothing can be read in it."""
        title = clean_text(str(entry.get("title", "")), TITLE_MAX)
        summary = clean_text(str(entry.get("summary", "")), SUMMARY_MAX)
        link = clean_text(str(entry.get("link", "")), LINK_MAX)
        if not title and not summary:
            return None
        identity = str(entry.get("id") or link or f"{title}\n{summary}")
        digest = hashlib.sha256(f"{self._key}\n{identity}".encode(errors="replace")).hexdigest()[:32]
        seconds: object = entry.get("published_s")
        known = isinstance(seconds, int) and seconds * 1_000 <= self._clock.now_ms() + _AHEAD_MS
        return [digest, title, summary, link if link.startswith("https://") else "", seconds if known else None]

    def _item(self, row: list[Any]) -> NewsItem:
        digest, title, summary, link, seconds = row
        return NewsItem(
            id=str(digest),
            source=self._host,
            title=str(title),
            summary=str(summary) if summary != title else "",
            link=str(link),
            published_ms=int(seconds) * 1_000 if seconds is not None else None,
        )

    def _failed(self, message: str, code: str, after_ms: int | None) -> FeedFailed:
        self._failure = FeedFailed(message, code=code, after_ms=_PAUSE_MS if after_ms is None else after_ms)
        self._failed_ns = self._clock.monotonic_ns()
        return self._failure

    def _refuse_during_pause(self) -> None:
        if self._failure is None:
            return
        left_ms = self._failure.after_ms - (self._clock.monotonic_ns() - self._failed_ns) // 1_000_000
        if left_ms > 0:
            raise FeedFailed(str(self._failure), code=self._failure.code, after_ms=left_ms)
        self._failure = None
