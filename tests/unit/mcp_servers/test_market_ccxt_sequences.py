"""The sequence checks, on frames as the venues document them."""

from __future__ import annotations

from binascii import crc32
from typing import Any

import pytest

from mcp_servers.market.sources.ccxt.sequences import (
    BinanceSequence,
    BybitSequence,
    CoinbaseSequence,
    KrakenChecksum,
    OkxSequence,
    Seen,
    checksum_text,
    sequence_check,
)

FINE, OLD, GAP = Seen.FINE, Seen.OLD, Seen.GAP

#: The worked example of Kraken's "Book checksum (WebSocket v2)".
ASKS = [
    [45285.2, 0.001], [45286.4, 1.54571953], [45286.6, 1.54571109], [45289.6, 1.54560911], [45290.2, 0.15890660],
    [45291.8, 1.54553491], [45294.7, 0.04454749], [45296.1, 0.3538], [45297.5, 0.09945542], [45299.5, 0.18772827],
]  # fmt: skip
BIDS = [
    [45283.5, 0.1], [45283.4, 1.54582015], [45282.1, 0.1], [45281.0, 0.1], [45280.3, 1.54592586],
    [45279.0, 0.0799], [45277.6, 0.03310103], [45277.5, 0.3], [45277.3, 1.54602737], [45276.6, 0.15445238],
]  # fmt: skip
CHECKSUM = 3310070434


def coinbase(number: int, channel: str = "l2_data") -> dict[str, Any]:
    return {"channel": channel, "sequence_num": number, "events": []}


def test_coinbase_counts_every_message_of_a_connection_whatever_its_channel() -> None:
    check = CoinbaseSequence()
    seen = [check.arrived(coinbase(7)), check.arrived(coinbase(8, "heartbeats")), check.arrived(coinbase(10))]
    assert seen == [FINE, FINE, GAP]
    assert check.arrived({"type": "error"}) is FINE


def test_coinbase_drops_what_was_there_before() -> None:
    check = CoinbaseSequence()
    assert [check.arrived(coinbase(number)) for number in (3, 4, 4, 3, 5)] == [FINE, FINE, OLD, OLD, FINE]


def binance(first: int, last: int, symbol: str = "BTCUSDT") -> dict[str, Any]:
    return {"e": "depthUpdate", "s": symbol, "U": first, "u": last}


def test_binance_ranges_follow_each_other_per_symbol() -> None:
    check = BinanceSequence()
    frames = [
        binance(5, 9),
        binance(100, 100, "ETHUSDT"),
        binance(10, 10),
        binance(12, 13),
        binance(101, 101, "ETHUSDT"),
    ]
    assert [check.arrived(frame) for frame in frames] == [FINE, FINE, FINE, GAP, FINE]
    assert check.arrived({"stream": "btcusdt@depth", "data": binance(16, 17)}) is GAP
    assert check.arrived(binance(14, 15)) is OLD
    assert check.arrived({"e": "trade"}) is FINE


def okx(action: str, *ids: tuple[int, int]) -> dict[str, Any]:
    data = [{"prevSeqId": before, "seqId": number} for before, number in ids]
    return {"arg": {"channel": "books", "instId": "BTC-USDT"}, "action": action, "data": data}


def test_okx_changes_name_the_one_before() -> None:
    check = OkxSequence()
    assert check.arrived(okx("update", (4, 5))) is OLD  # of a subscription that is over
    frames = [
        okx("snapshot", (-1, 10)),
        okx("update", (10, 15), (15, 15)),
        okx("update", (15, 3)),
        okx("update", (4, 5)),
    ]
    assert [check.arrived(frame) for frame in frames] == [FINE, FINE, FINE, GAP]
    assert check.arrived({"event": "subscribe"}) is FINE


def bybit(kind: str, number: int) -> dict[str, Any]:
    return {"topic": "orderbook.50.BTCUSDT", "type": kind, "data": {"u": number}}


def test_bybit_counts_the_messages_of_a_topic_and_starts_anew_with_a_snapshot() -> None:
    check = BybitSequence()
    frames = [bybit("delta", 4), bybit("snapshot", 9), bybit("delta", 10), bybit("snapshot", 1), bybit("delta", 2)]
    assert [check.arrived(frame) for frame in frames] == [OLD, FINE, FINE, FINE, FINE]
    assert [check.arrived(bybit("delta", number)) for number in (2, 4)] == [OLD, GAP]
    assert check.arrived({"topic": "publicTrade.BTCUSDT", "data": []}) is FINE


def kraken(kind: str, checksum: int) -> dict[str, Any]:
    return {"channel": "book", "type": kind, "data": [{"symbol": "BTC/USD", "checksum": checksum}]}


def test_krakens_worked_example_gives_its_checksum() -> None:
    text = checksum_text(ASKS, BIDS, (1, 8))
    assert text is not None
    assert crc32(text.encode()) == CHECKSUM


def test_kraken_books_are_compared_with_the_venues_checksum_after_every_change() -> None:
    check = KrakenChecksum(lambda _: (1, 8))
    books: dict[str, Any] = {"BTC/USD": {"asks": ASKS, "bids": BIDS}}
    assert check.arrived(kraken("update", CHECKSUM)) is OLD  # ccxt fails on a change before its snapshot
    assert check.arrived(kraken("snapshot", CHECKSUM)) is FINE
    assert check.applied(kraken("snapshot", CHECKSUM), books) is FINE
    books["BTC/USD"]["bids"] = [[45283.5, 0.2], *BIDS[1:]]
    assert check.applied(kraken("update", CHECKSUM), books) is GAP
    assert check.arrived({"channel": "heartbeat"}) is FINE


def test_a_number_that_a_float_cannot_hold_leaves_a_kraken_book_unverified_rather_than_wrong() -> None:
    check = KrakenChecksum(lambda _: (1, 8))
    books = {"BTC/USD": {"asks": [[0.5, 123456789012.12345678]], "bids": []}}
    assert check.applied(kraken("update", 1), books) is FINE
    assert check.unverified == 1
    assert KrakenChecksum(lambda _: None).applied(kraken("update", 1), books) is FINE


@pytest.mark.parametrize("frame", [{"channel": "book"}, {"channel": "book", "data": [], "type": "update"}])
def test_a_malformed_frame_is_an_error_and_no_verdict(frame: dict[str, Any]) -> None:
    with pytest.raises(LookupError):
        KrakenChecksum(lambda _: None).arrived(frame)


def test_krakens_decimals_come_from_its_markets() -> None:
    markets = {"BTC/USD": {"info": {"pair_decimals": 1, "lot_decimals": "8"}}, "X/Y": {"info": {}}}
    check = sequence_check("kraken", lambda: markets)()
    books: dict[str, Any] = {"BTC/USD": {"asks": ASKS, "bids": BIDS}}
    assert check.applied(kraken("update", CHECKSUM), books) is FINE
    assert check.applied(kraken("update", CHECKSUM + 1), books) is GAP


@pytest.mark.parametrize("venue", ["coinbase", "binance", "kraken", "okx", "bybit"])
def test_the_large_venues_are_checked_and_each_connection_begins_anew(venue: str) -> None:
    make = sequence_check(venue, dict)
    assert make().checks
    assert make() is not make()


def test_other_venues_are_not() -> None:
    check = sequence_check("kucoin", dict)()
    assert not check.checks
    assert check.arrived({"anything": 1}) is FINE
    assert check.applied({}, {}) is FINE
