"""News items and the port that sources of them have."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

TITLE_MAX: Final = 200
SUMMARY_MAX: Final = 400
LINK_MAX: Final = 200

#: Marks that may follow one letter; more is a way of writing over the lines above and below.
_MARKS_MAX: Final = 2
#: Letters and marks that show nothing, of categories that are kept otherwise.
_INVISIBLE: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_SELECTORS: Final = (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0), range(0x180B, 0x1810))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewsItem:
    """One item; every text was written by strangers.

    Attributes:
        id: the same for the same item of the same feed.
        source: the feed's host, as configured, which is not outside text.
        title, summary, link: cleaned and cut; may be empty, but not title and summary both.
        published_ms: as the feed says, wall time; None when it does not, or lies in the future.
    """

    id: str
    source: str
    title: str
    summary: str
    link: str
    published_ms: int | None


class NewsSource(Protocol):
    """One place that news come from."""

    @property
    def name(self) -> str:
        """How it is called in answers; not outside text."""
        ...

    async def items_since(self, since_ms: int) -> Sequence[NewsItem]:
        """Return its items that are not older than ``since_ms``; those of unknown age as well.

        Raises:
            TradingError: it cannot be read now; ``code`` says why.
        """
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


def clean_text(text: str, max_chars: int) -> str:
    """Return text without what is not seen, on one line, cut.

    Look-alikes are folded (NFKC), so that no other spelling of a bracket or letter gets past later checks; control,
    format, private and unassigned characters are dropped, which includes bidirectional overrides, zero-width
    characters and tags.
    """
    kept: list[str] = []
    marks = 0
    for letter in unicodedata.normalize("NFKC", text[: 4 * max_chars]):
        category = unicodedata.category(letter)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if category == "Cc" or category[0] == "Z":
            kept.append(" ")
        elif category[0] != "C" and marks <= _MARKS_MAX and not _is_invisible(letter):
            kept.append(letter)
    found = " ".join("".join(kept).split())
    return found if len(found) <= max_chars else found[: max_chars - 1].rstrip() + "…"


def _is_invisible(letter: str) -> bool:
    return letter in _INVISIBLE or any(ord(letter) in span for span in _SELECTORS)
