"""A program of its own: reads one feed from standard input and writes its entries as JSON.

Strangers write feeds. Parsing them takes as long and as much memory as they like it to, so it happens in a process that
may take neither, opens nothing and is ended when it is late. It is started by its path, with the interpreter's isolated
mode, and imports nothing of the desk.
"""

from __future__ import annotations

import calendar
import html.parser
import importlib
import io
import json
import sys
from typing import Any

ENTRIES_MAX = 200
RAW_MAX = 20_000  # characters of one text before its markup is removed
TEXT_MAX = 2_000
CPU_S = 5
MEMORY_BYTES = 512 << 20
_OLDEST_S = 631_152_000  # 1990
_NEWEST_S = 4_102_444_800  # 2100


class _TextOnly(html.parser.HTMLParser):
    """Collects what a reader would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002  the base's
        self._hidden += tag in ("script", "style", "template")
        self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style", "template") and self._hidden:
            self._hidden -= 1
        self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def without_markup(text: str) -> str:
    """Return what a reader would see of HTML."""
    parser = _TextOnly()
    parser.feed(text[:RAW_MAX])
    parser.close()
    return "".join(parser.parts)[:TEXT_MAX]


def limit_this_process() -> None:
    """Give up the right to more time, memory, files and processes than parsing needs, where the system knows that."""
    try:
        import resource
    except ImportError:
        return
    for kind, limit in (
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def entries_of(data: bytes) -> list[dict[str, object]] | None:
    """Return the entries of an RSS or Atom feed, texts without markup; None when it is no feed."""
    feedparser: Any = importlib.import_module("feedparser")  # it has no types
    # As a stream: what is no stream is taken for an address or a file's name.
    found = feedparser.parse(io.BytesIO(data), sanitize_html=False, resolve_relative_uris=False)
    if not found.get("version"):
        return None
    return [_entry(row) for row in found.entries[:ENTRIES_MAX]]


def _entry(row: Any) -> dict[str, object]:
    return {
        "id": str(row.get("id", ""))[:TEXT_MAX],
        "title": without_markup(str(row.get("title", ""))),
        "summary": without_markup(str(row.get("summary", ""))),
        "link": str(row.get("link", ""))[:TEXT_MAX],
        "published_s": _seconds(row.get("published_parsed") or row.get("updated_parsed")),
    }


def _seconds(moment: Any) -> int | None:
    if moment is None:
        return None
    try:
        found = calendar.timegm(moment)
    except (ValueError, OverflowError, TypeError):
        return None
    return found if _OLDEST_S <= found <= _NEWEST_S else None


def main() -> int:
    """Read a feed, write its entries; exit status 3 when it is none."""
    limit_this_process()
    found = entries_of(sys.stdin.buffer.read())
    if found is None:
        return 3
    sys.stdout.write(json.dumps(found))  # ASCII: lone surrogates survive as escapes
    return 0


if __name__ == "__main__":
    sys.exit(main())
