"""Many venues as one: best prices, one book, and what an order spread over them would get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_servers.market.consolidated import consolidate, fee_factor, merge, spread_after_fees_bps
from mcp_servers.market.fill_estimate import Outlet, base_for, break_even_bps, estimate
from mcp_servers.market.quality import Judged, Mark
from trading.domain.errors import InvalidValue
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import is_multiple
from trading.testing.builders import build_book, build_instrument

Rows = list[tuple[str, str]]


def judged(venue: str, bids: Rows, asks: Rows, *marks: Mark) -> Judged:
    return Judged(build_book(bids, asks, venue=venue), marks, 5, None)


def outlet(venue: str, bids: Rows, asks: Rows, *, fee: str = "0", step: str = "0.001", least: str = "0") -> Outlet:
    rules = replace(
        build_instrument(venue=venue),
        quantity_step=Decimal(step),
        quantity_min=Decimal(least),
        notional_min=Decimal(0),
    )
    return Outlet(judged(venue, bids, asks), rules, Decimal(fee), assumed=False)


A = judged("a", [("100", "1"), ("98", "5")], [("102", "2"), ("103", "5")])
B = judged("b", [("101", "3")], [("102", "3"), ("104", "1")])
C = judged("c", [("99", "1")], [("101.5", "1")])


def test_the_best_of_all_venues_is_named_with_its_venue() -> None:
    found = consolidate([A, B, C])
    assert found.bid == (101, 3, "b")
    assert found.ask == (Decimal("101.5"), 1, "c")
    assert (found.mid, found.index) == (Decimal("101.25"), 101)
    assert found.mark == 101
    assert found.spread_bps is not None
    assert round(found.spread_bps, 2) == Decimal("49.38")
    assert {row.venue: row.mid for row in found.rows} == {"a": 101, "b": Decimal("101.5"), "c": Decimal("100.25")}
    assert [round(row.deviation_bps or 0, 1) for row in found.rows] == [0, Decimal("49.5"), Decimal("-74.3")]
    assert found.left_out == {}


def test_of_two_equal_prices_the_larger_quantity_comes_first() -> None:
    assert consolidate([A, B]).ask == (102, 3, "b")


def test_the_mark_is_the_index_kept_within_what_can_be_traded() -> None:
    far = judged("far", [("50", "1")], [("150", "1")])
    found = consolidate([far, judged("low", [("89", "1")], [("91", "1")]), judged("x", [("94", "1")], [("96", "1")])])
    assert (found.index, found.bid, found.ask) == (95, (94, 1, "x"), (91, 1, "low"))
    assert found.mark == 94


def test_a_venue_that_bids_above_another_ones_ask_makes_the_spread_negative() -> None:
    low, high = judged("low", [("99", "1")], [("100", "1")]), judged("high", [("101", "1")], [("102", "1")])
    found = consolidate([low, high])
    assert found.spread_bps is not None
    assert found.spread_bps < 0
    free = spread_after_fees_bps([low, high], {Venue("low"): Decimal(0), Venue("high"): Decimal(0)})
    assert free == found.spread_bps
    paid = spread_after_fees_bps([low, high], {Venue("low"): Decimal("0.006"), Venue("high"): Decimal("0.006")})
    assert paid is not None
    assert paid > 0


def test_only_usable_books_take_part_and_the_others_are_named_with_their_marks() -> None:
    stale = replace(C, marks=(Mark.STALE, Mark.CLOCK_SKEW))
    found = consolidate([A, B, stale])
    assert found.ask == (102, 3, "b")
    assert found.index == Decimal("101.25")
    assert found.left_out == {"c": (Mark.STALE, Mark.CLOCK_SKEW)}
    assert len(found.rows) == 3
    assert all(level.venue != "c" for side in Side for level in merge([A, B, stale], side))


def test_without_a_usable_book_there_is_no_price() -> None:
    for books in ([], [replace(A, marks=(Mark.STALE,))]):
        found = consolidate(books)
        assert (found.bid, found.ask, found.mid, found.index, found.mark, found.spread_bps) == (None,) * 6
        assert spread_after_fees_bps(books, {Venue("a"): Decimal(0)}) is None


def test_dollars_and_tethers_are_never_put_together() -> None:
    usd = replace(B.book, instrument_id=InstrumentId(Venue("b"), Symbol("BTC/USD")))
    with pytest.raises(InvalidValue) as caught:
        consolidate([A, replace(B, book=usd)])
    assert (caught.value.code, caught.value.allowed) == ("MIXED_SYMBOLS", ("BTC/USD", "BTC/USDT"))
    with pytest.raises(InvalidValue):
        consolidate([A, A])


def test_the_merged_book_is_ordered_and_each_level_keeps_its_venue() -> None:
    assert merge([A, B, C], Side.BUY) == [
        (Decimal("101.5"), 1, "c"), (102, 3, "b"), (102, 2, "a"), (103, 5, "a"), (104, 1, "b"),
    ]  # fmt: skip
    assert [level.price for level in merge([A, B, C], Side.SELL)] == [101, 100, 99, 98]


def test_fees_change_who_is_best() -> None:
    rates = {Venue("a"): Decimal(0), Venue("b"): Decimal("0.001"), Venue("c"): Decimal("0.01")}
    assert merge([A, B, C], Side.BUY, rates)[0] == (102, 2, "a")
    assert merge([A, B, C], Side.BUY, rates)[1] == (Decimal("102.102"), 3, "b")
    assert merge([A, B, C], Side.SELL, rates)[0] == (Decimal("100.899"), 3, "b")
    assert fee_factor(Side.SELL, Decimal("0.01")) == Decimal("0.99")


def test_an_estimate_on_one_venue_is_its_book_walked() -> None:
    only = outlet("a", [("100", "1"), ("98", "5")], [("102", "2"), ("103", "5")], fee="0.01")
    found = estimate([only], Side.BUY, Decimal("3.0009"))
    assert (found.requested, found.filled, found.unfilled) == (3, 3, 0)
    assert (found.notional, found.fee, found.cash) == (307, Decimal("3.07"), Decimal("310.07"))
    assert (found.worst_price, found.fee_rate) == (103, Decimal("0.01"))
    assert round(found.vwap or 0, 4) == Decimal("102.3333")
    assert round(found.impact_bps(Decimal(101)) or 0, 2) == Decimal("132.01")
    sold = estimate([only], Side.SELL, Decimal(2))
    assert (sold.notional, sold.cash) == (198, Decimal("196.02"))
    assert round(sold.impact_bps(Decimal(101)) or 0, 2) == Decimal("198.02")
    # Buying 2 costs 206.04, selling 2 gives 196.02.
    assert round(break_even_bps([only], estimate([only], Side.BUY, Decimal(2))) or 0, 2) == Decimal("511.17")
    assert round(break_even_bps([only], sold) or 0, 2) == Decimal("486.31")


def test_what_the_book_cannot_give_stays_unfilled_and_has_no_break_even() -> None:
    only = outlet("a", [("100", "1")], [("102", "2")])
    found = estimate([only], Side.BUY, Decimal(5))
    assert (found.filled, found.unfilled) == (2, 3)
    assert break_even_bps([only], found) is None


def test_an_order_is_spread_by_price_with_the_fee() -> None:
    cheap_but_dear = outlet("fee", [("90", "9")], [("100", "9")], fee="0.01")
    outlets = [cheap_but_dear, outlet("x", [("90", "9")], [("100.5", "1"), ("102", "9")], fee="0")]
    found = estimate(outlets, Side.BUY, Decimal(4))
    assert {venue: part.walked.filled for venue, part in found.parts.items()} == {"x": 1, "fee": 3}
    assert found.cash == Decimal("100.5") + 300 * Decimal("1.01")
    assert found.fee == 3


def test_each_share_keeps_its_venues_step_and_the_finer_one_takes_the_rest() -> None:
    coarse = outlet("coarse", [("90", "9")], [("100", "1.5")], step="1")
    fine = outlet("fine", [("90", "9")], [("101", "9")], step="0.1")
    found = estimate([coarse, fine], Side.BUY, Decimal("2.75"))
    assert {venue: part.walked.filled for venue, part in found.parts.items()} == {"coarse": 1, "fine": Decimal("1.7")}
    assert found.unfilled == 0


def test_a_share_below_a_venues_minimum_goes_elsewhere() -> None:
    big = outlet("big", [("90", "9")], [("100", "0.4")], least="1")
    rest = outlet("rest", [("90", "9")], [("101", "9")])
    found = estimate([big, rest], Side.BUY, Decimal("2"))
    assert list(found.parts) == ["rest"]
    assert found.filled == 2


def test_an_order_that_no_venue_takes_is_refused_with_the_least_that_one_does() -> None:
    outlets = [
        outlet("a", [("90", "9")], [("100", "9")], least="2"),
        outlet("b", [("90", "9")], [("100", "9")], least="1"),
    ]
    with pytest.raises(InvalidValue) as caught:
        estimate(outlets, Side.BUY, Decimal("0.5"))
    assert (caught.value.code, caught.value.suggestion) == ("QUANTITY_TOO_SMALL", "at least 1 base")


def test_an_amount_of_quote_becomes_base_along_the_books() -> None:
    outlets = [outlet("a", [("90", "9")], [("100", "1")]), outlet("b", [("90", "9")], [("110", "1")])]
    assert base_for(outlets, Side.BUY, Decimal(155)) == Decimal("1.5")
    assert base_for(outlets, Side.BUY, Decimal(320)) == 3
    assert base_for(outlets, Side.SELL, Decimal(45)) == Decimal("0.5")
    assert 0 <= base_for(outlets, Side.BUY, Decimal("1E-18")) < Decimal("1E-18")


def test_a_rate_that_is_not_the_accounts_own_is_said_to_be_assumed() -> None:
    outlets = [
        replace(outlet("a", [("90", "9")], [("100", "1")]), assumed=True),
        outlet("b", [("90", "9")], [("110", "1")]),
    ]
    assert estimate(outlets, Side.BUY, Decimal("0.5")).fee_assumed is True
    assert estimate(outlets[1:], Side.BUY, Decimal("0.5")).fee_assumed is False


prices = st.integers(100, 120)
levels = st.lists(st.tuples(prices, st.integers(1, 4)), min_size=1, max_size=3, unique_by=lambda level: level[0])
venues = st.lists(
    st.tuples(levels, st.sampled_from(["0", "0.001", "0.05"]), st.sampled_from(["1", "2"]), st.integers(0, 3)),
    min_size=1,
    max_size=3,
)


def outlets_of(rows: Sequence[tuple[list[tuple[int, int]], str, str, int]]) -> list[Outlet]:
    return [
        outlet(
            f"v{i}", [("99", "100")], [(str(p), str(q)) for p, q in sorted(asks)], fee=fee, step=step, least=str(least)
        )
        for i, (asks, fee, step, least) in enumerate(rows)
    ]  # fmt: skip


@given(venues, st.integers(1, 12))
@settings(deadline=None)
def test_a_spread_order_is_legal_everywhere_and_no_single_venue_is_better(
    rows: list[tuple[list[tuple[int, int]], str, str, int]], amount: int
) -> None:
    outlets, quantity = outlets_of(rows), Decimal(amount)
    try:
        found = estimate(outlets, Side.BUY, quantity)
    except InvalidValue:
        rules_of = [o.instrument for o in outlets]
        assert all(i.quantity_floor(quantity) < max(i.quantity_min, i.quantity_step) for i in rules_of)
        return
    assert found.filled + found.unfilled == found.requested <= quantity
    rules = {o.venue: o.instrument for o in outlets}
    if len(found.parts) > 1:
        for venue, part in found.parts.items():
            assert is_multiple(part.walked.filled, rules[venue].quantity_step)
            assert part.walked.filled >= rules[venue].quantity_min
    for single in outlets:
        try:
            alone = estimate([single], Side.BUY, quantity)
        except InvalidValue:
            continue
        assert (found.filled, -found.cash) >= (alone.filled, -alone.cash)


@given(venues, st.integers(1, 8))
@settings(deadline=None)
def test_without_steps_and_minimums_no_other_spread_is_cheaper(
    rows: list[tuple[list[tuple[int, int]], str, str, int]], amount: int
) -> None:
    outlets = outlets_of([(asks, fee, "1", 0) for asks, fee, _, _ in rows])
    found = estimate(outlets, Side.BUY, Decimal(amount))
    for shares in product(range(amount + 1), repeat=len(outlets)):
        if sum(shares) != found.filled:
            continue
        alone = [estimate([o], Side.BUY, Decimal(s)) for o, s in zip(outlets, shares, strict=True) if s]
        if sum(item.filled for item in alone) == found.filled:
            assert found.cash <= sum(item.cash for item in alone)


def test_more_than_the_largest_order_of_a_venue_stays_unfilled() -> None:
    one, other = (outlet(name, [("99", "9")], [(price, "9")]) for name, price in (("a", "100"), ("b", "101")))
    small = replace(one, instrument=replace(one.instrument, quantity_max=Decimal("2.5")))
    alone = estimate([small], Side.BUY, Decimal(4))
    assert (alone.filled, alone.unfilled, alone.notional) == (Decimal("2.5"), Decimal("1.5"), 250)
    both = estimate([small, other], Side.BUY, Decimal(4))
    assert {venue: part.walked.filled for venue, part in both.parts.items()} == {
        "a": Decimal("2.5"),
        "b": Decimal("1.5"),
    }
    assert both.unfilled == 0
