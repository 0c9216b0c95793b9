"""Finds a lost change in a venue's raw frames, one message after it was lost.

=========  =====================================================================================================
Coinbase   ``sequence_num`` counts every message of a connection, whatever its channel. ccxt does not look at it.
Binance    the first update of a depth event follows the last of the one before (``U == u + 1``). ccxt checks it
           too, but only once its snapshot is there.
Kraken     CRC-32 of the best ten levels after every change. ccxt's own check cannot work on its floats.
OKX        ``prevSeqId`` names the update before.
Bybit      ``u`` counts the messages of a topic; a snapshot starts anew, and ``u`` is 1 after a restart.
=========  =====================================================================================================

Limits: Kraken's checksum covers ten levels, so a change lost further down shows when it comes among these. OKX's free
channel of trades adds up the fills of one order at one price, so their number is less than the venue's; volume is not.

Any other venue is not checked here: what ccxt checks is all there is, and the source says so.

Sources: docs.cdp.coinbase.com "WebSocket overview, sequence numbers"; Binance "How to manage a local order book
correctly"; docs.kraken.com "Book checksum (WebSocket v2)"; OKX API v5 "Order book channel"; Bybit v5 "Orderbook".
"""

from __future__ import annotations

from binascii import crc32
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, Protocol, cast

_CHECKSUM_LEVELS: Final = 10
_EXACT_DIGITS: Final = 15  # a float holds any number of so many digits; a longer one may have been changed


class Seen(Enum):
    """What a frame says about the series it belongs to."""

    FINE = "fine"
    OLD = "old"  # it was there before, or nothing can be done with it: to be dropped
    GAP = "gap"


class SequenceCheck(Protocol):
    """Follows the frames of one connection."""

    #: Whether a lost change is found at all.
    checks: bool

    def arrived(self, frame: Mapping[str, Any]) -> Seen:
        """Judge a frame before ccxt takes it.

        Raises:
            KeyError, TypeError, ValueError: the frame is not what the venue documents.
        """
        ...

    def applied(self, frame: Mapping[str, Any], books: Mapping[str, Any]) -> Seen:
        """Judge ccxt's books after it took the frame; raises as ``arrived`` does."""
        ...


class Unchecked:
    """Believes everything."""

    checks = False

    def arrived(self, frame: Mapping[str, Any]) -> Seen:  # noqa: ARG002  the protocol's
        """Judge nothing."""
        return Seen.FINE

    def applied(self, frame: Mapping[str, Any], books: Mapping[str, Any]) -> Seen:  # noqa: ARG002
        """Judge nothing."""
        return Seen.FINE


class CoinbaseSequence(Unchecked):
    """One count for the whole connection; it begins with the first frame seen."""

    checks = True

    def __init__(self) -> None:
        self._last: int | None = None

    def arrived(self, frame: Mapping[str, Any]) -> Seen:
        """Compare the count with the last one."""
        if "sequence_num" not in frame:
            return Seen.FINE
        number, last = int(frame["sequence_num"]), self._last
        if last is not None and number <= last:
            return Seen.OLD
        self._last = number
        return Seen.FINE if last is None or number == last + 1 else Seen.GAP


class BinanceSequence(Unchecked):
    """Ranges of update ids, per symbol; they follow each other from the first depth event on."""

    checks = True

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def arrived(self, frame: Mapping[str, Any]) -> Seen:
        """Compare the range with the last one."""
        data = cast("Mapping[str, Any]", frame.get("data") or frame)
        if data.get("e") != "depthUpdate":
            return Seen.FINE
        symbol, first, last = str(data["s"]), int(data["U"]), int(data["u"])
        before = self._last.get(symbol)
        if before is not None and last <= before:
            return Seen.OLD
        self._last[symbol] = last
        return Seen.FINE if before is None or first <= before + 1 else Seen.GAP


class OkxSequence(Unchecked):
    """Each change names the one before it, per instrument. A count that starts anew keeps the chain."""

    checks = True

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def arrived(self, frame: Mapping[str, Any]) -> Seen:
        """Compare the predecessor with the last change."""
        action = frame.get("action")
        if action not in ("snapshot", "update"):
            return Seen.FINE
        name = str(frame["arg"]["instId"])
        for change in frame["data"]:
            if action == "update" and int(change["prevSeqId"]) != self._last.get(name):
                # A change before any snapshot belongs to a subscription that is over.
                return Seen.GAP if name in self._last else Seen.OLD
            self._last[name] = int(change["seqId"])
        return Seen.FINE


class BybitSequence(Unchecked):
    """One count per topic."""

    checks = True

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def arrived(self, frame: Mapping[str, Any]) -> Seen:
        """Compare the count with the last one."""
        topic = str(frame.get("topic", ""))
        if not topic.startswith("orderbook."):
            return Seen.FINE
        number, last = int(frame["data"]["u"]), self._last.get(topic)
        if frame["type"] == "snapshot":
            self._last[topic] = number
            return Seen.FINE
        if last is None or number <= last:
            return Seen.OLD  # ccxt would start a book from nothing but this change
        self._last[topic] = number
        return Seen.FINE if number == last + 1 else Seen.GAP


class KrakenChecksum(Unchecked):
    """Compares the venue's checksum with that of the book that ccxt made.

    Args:
        decimals: a symbol's decimal places of price and quantity; None when they are not known.
    """

    checks = True

    def __init__(self, decimals: Callable[[str], tuple[int, int] | None]) -> None:
        self._decimals = decimals
        self._begun: set[str] = set()
        self.unverified = 0  # frames with a number too long for a float to keep, and of unknown decimals

    def arrived(self, frame: Mapping[str, Any]) -> Seen:
        """Let no change through before its snapshot: ccxt fails on it."""
        if frame.get("channel") != "book":
            return Seen.FINE
        symbol = str(frame["data"][0]["symbol"])
        if frame["type"] == "snapshot":
            self._begun.add(symbol)
        return Seen.FINE if symbol in self._begun else Seen.OLD

    def applied(self, frame: Mapping[str, Any], books: Mapping[str, Any]) -> Seen:
        """Compare the checksum."""
        if frame.get("channel") != "book" or "checksum" not in frame["data"][0]:
            return Seen.FINE
        symbol = str(frame["data"][0]["symbol"])
        book, decimals = books.get(symbol), self._decimals(symbol)
        if book is None:
            return Seen.FINE
        text = None if decimals is None else checksum_text(book["asks"], book["bids"], decimals)
        if text is None:
            self.unverified += 1
            return Seen.FINE
        return Seen.FINE if crc32(text.encode()) == int(frame["data"][0]["checksum"]) else Seen.GAP


def checksum_text(
    asks: Sequence[Sequence[float]], bids: Sequence[Sequence[float]], decimals: tuple[int, int]
) -> str | None:
    """Return what Kraken's checksum is taken of: asks then bids, best first, digits without point and leading zeros.

    Returns None when a number has more digits than a float keeps, so that the text cannot be known.
    """
    parts: list[str] = []
    for side in (asks, bids):
        for level in side[:_CHECKSUM_LEVELS]:
            for value, places in zip(level, decimals, strict=False):
                digits = f"{value:.{places}f}".replace(".", "").lstrip("0")
                if len(digits) > _EXACT_DIGITS:
                    return None
                parts.append(digits)
    return "".join(parts)


def sequence_check(venue: str, markets: Callable[[], Mapping[str, Any]]) -> Callable[[], SequenceCheck]:
    """Return what makes a fresh check for each connection to a venue.

    Args:
        venue: ccxt's id; regional sisters of a venue speak its dialect.
        markets: the venue's markets by symbol, as they are known when a frame arrives.
    """

    def decimals(symbol: str) -> tuple[int, int] | None:
        info: Mapping[str, Any] = markets().get(symbol, {}).get("info") or {}
        try:
            return int(info["pair_decimals"]), int(info["lot_decimals"])
        except (KeyError, TypeError, ValueError):
            return None

    makers: dict[str, Callable[[], SequenceCheck]] = {
        "coinbase": CoinbaseSequence,
        "binance": BinanceSequence,
        "binanceus": BinanceSequence,
        "kraken": lambda: KrakenChecksum(decimals),
        "okx": OkxSequence,
        "okxus": OkxSequence,
        "myokx": OkxSequence,
        "bybit": BybitSequence,
        "bybiteu": BybitSequence,
    }
    return makers.get(venue, Unchecked)
