"""The book against the exchange's own best prices, and against everything that can go wrong with a feed."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_servers.market.order_book import Applied, BookState, DepthBook
from mcp_servers.market.sources.base import BestQuote, Difference, Snapshot
from tests.market_support import recorded_updates
from trading.domain.errors import InvalidValue
from trading.domain.money import plain


def trimmed(level: tuple[str, str]) -> list[str]:
    return [plain(Decimal(text)) for text in level]


def small_book() -> DepthBook:
    book = DepthBook()
    book.snapshot(10, [["100", "1"], ["99", "2"]], [["101", "1"], ["102", "2"]])
    return book


def test_the_book_equals_the_recorded_best_prices_wherever_update_ids_match() -> None:
    quotes = {update.update_id: update for update in recorded_updates() if isinstance(update, BestQuote)}
    book, compared, depth = DepthBook(), 0, 50
    for update in recorded_updates():
        if isinstance(update, Snapshot):
            book.snapshot(update.last_id, update.bids, update.asks)
        elif isinstance(update, Difference):
            book.difference(update.first_id, update.last_id, update.bids, update.asks)
        if isinstance(update, Difference) and book.state is BookState.OK:
            bids, asks = book.top()
            depth = min(depth, len(bids), len(asks))
            if (quote := quotes.get(update.last_id)) is not None:
                compared += 1
                assert book.best() == (trimmed(quote.bid), trimmed(quote.ask))
    # 564 of 3,451 differences end exactly where a quote was sent; every one of them must agree.
    assert compared == 564
    assert depth == 50
    assert book.counters["gaps"] == 0
    assert book.counters["crossed"] == 0


def test_with_quotes_the_best_prices_are_the_quotes_at_every_message() -> None:
    book, compared = DepthBook(), 0
    for update in recorded_updates():
        if isinstance(update, Snapshot):
            book.snapshot(update.last_id, update.bids, update.asks)
        elif isinstance(update, Difference):
            book.difference(update.first_id, update.last_id, update.bids, update.asks)
        elif isinstance(update, BestQuote):
            if not book.quote(update.update_id, update.bid, update.ask) or book.state is not BookState.OK:
                continue
            compared += 1
            bids, asks = book.top()
            assert [bids[0], asks[0]] == [trimmed(update.bid), trimmed(update.ask)]
            assert len(bids) == len(asks) == 50
            if compared % 50 == 0:
                prices = [Decimal(price) for price, _ in bids]
                assert prices == sorted(set(prices), reverse=True)
    assert compared > 27_000


def test_differences_that_came_before_the_snapshot_are_applied_after_it() -> None:
    book = DepthBook()
    assert book.difference(9, 10, [["100", "5"]], []) is Applied.BUFFERED
    assert book.difference(11, 12, [["100", "7"]], []) is Applied.BUFFERED
    assert book.top() == ([], [])
    book.snapshot(10, [["100", "1"]], [["101", "1"]])
    assert book.last_id == 12
    assert book.best() == (["100", "7"], ["101", "1"])
    assert book.counters["old"] == 1


def test_a_difference_that_is_not_newer_is_dropped() -> None:
    book = small_book()
    assert book.difference(5, 10, [["100", "9"]], []) is Applied.OLD
    assert book.best() == (["100", "1"], ["101", "1"])


def test_a_gap_empties_the_book_until_the_next_snapshot() -> None:
    book = small_book()
    assert book.difference(12, 13, [["100", "9"]], []) is Applied.GAP
    assert book.state is BookState.GAP
    assert book.top() == ([], [])
    assert book.difference(14, 15, [["100", "3"]], []) is Applied.BUFFERED
    book.snapshot(13, [["100", "1"]], [["101", "1"]])
    assert book.state is BookState.OK
    assert book.best() == (["100", "3"], ["101", "1"])
    assert book.counters["gaps"] == 1


def test_a_message_dropped_from_the_recording_is_noticed_at_the_next_one() -> None:
    book, seen = DepthBook(), 0
    for update in recorded_updates():
        if isinstance(update, Snapshot):
            book.snapshot(update.last_id, update.bids, update.asks)
        if isinstance(update, Difference):
            seen += 1
            if seen == 1_000:
                continue
            book.difference(update.first_id, update.last_id, update.bids, update.asks)
            if seen >= 1_001:
                assert book.state is BookState.GAP
                break
    assert book.best() is None


def test_a_crossed_book_is_flagged_and_shows_nothing() -> None:
    book = small_book()
    book.difference(11, 11, [["101", "1"]], [])
    assert book.state is BookState.CROSSED
    assert book.top() == ([], [])
    book.difference(12, 12, [["101", "0"]], [])
    assert book.state is BookState.OK
    assert book.best() == (["100", "1"], ["101", "1"])
    assert book.counters["crossed"] == 1


def test_a_newer_quote_cuts_away_better_levels_and_an_older_one_does_nothing() -> None:
    book = small_book()
    assert not book.quote(10, ("98", "1"), ("99", "1"))
    assert book.quote(12, ("99.50", "4"), ("101.0", "3"))
    assert book.top() == ([["99.5", "4"], ["99", "2"]], [["101", "3"], ["102", "2"]])
    book.difference(11, 12, [["100", "0"], ["99.5", "4"]], [["101", "3"]])
    assert book.top() == ([["99.5", "4"], ["99", "2"]], [["101", "3"], ["102", "2"]])


@pytest.mark.parametrize(
    "row",
    [
        ["x", "1"],
        ["NaN", "1"],
        ["-1", "1"],
        ["0", "1"],
        ["1", "-1"],
        ["1"],
        ["1", "2", "3"],
        [1, 2],
        None,
        ["1e99", "1"],
    ],
)
def test_a_malformed_level_changes_nothing(row: list[str]) -> None:
    book = small_book()
    with pytest.raises(InvalidValue):
        book.difference(11, 11, [["100", "9"], row], [])
    assert book.best() == (["100", "1"], ["101", "1"])
    assert book.last_id == 10


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), max_size=6),
        min_size=1,
        max_size=30,
    )
)
def test_a_side_is_always_the_sorted_map_of_what_was_applied(batches: list[list[tuple[int, int]]]) -> None:
    book, model = DepthBook(), dict[int, int]()
    book.snapshot(1, [], [["1000", "1"]])
    for number, batch in enumerate(batches, start=2):
        book.difference(number, number, [[str(price), str(size)] for price, size in batch], [])
        for price, size in batch:
            model.pop(price, None)
            if size:
                model[price] = size
    expected = [[plain(Decimal(price)), str(model[price])] for price in sorted(model, reverse=True)]
    assert book.top() == (expected, [["1000", "1"]])
