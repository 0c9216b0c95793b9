"""A flood of market updates makes the breaker late at most: it starves nobody and hides no wick."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

from tests.risk_support import DATA_ID
from tests.unit.test_risk_surveillance import BTC, REDUCING, state_of, watched
from trading.adapters.market_feed import EVERY_BOOK_PATIENCE, Fanout
from trading.testing.builders import build_book


async def test_a_flood_of_updates_gives_others_their_turn_and_hides_no_wick() -> None:
    desk = await watched(range_bps=Decimal(500))
    now_ms = desk.clock.now_ms()
    fanout, turns = Fanout(), 0
    updates = fanout.open(books=True, trades=True, every_book=True)
    for number in range(EVERY_BOOK_PATIENCE):
        price = 70_000 if number == 100 else 60_000
        book = replace(build_book([(f"{price}", "1")], [(f"{price + 1}", "1")], now_ms=now_ms), instrument_id=DATA_ID)
        fanout.book(DATA_ID, lambda book=book: book)
    updates.close()

    async def somebody_else() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(somebody_else())
    await desk.risk.live.surveillance.run(updates)
    other.cancel()
    assert turns >= EVERY_BOOK_PATIENCE // 16 - 1
    assert state_of(desk, BTC) is REDUCING


async def test_books_replace_each_other_once_hundreds_wait() -> None:
    fanout = Fanout()
    patient, usual = (fanout.open(books=True, trades=False, every_book=each) for each in (True, False))
    book = build_book()
    for _ in range(EVERY_BOOK_PATIENCE * 3):
        fanout.book(DATA_ID, lambda: book)
    assert len(patient.drain()) == EVERY_BOOK_PATIENCE + 1
    assert len(usual.drain()) == 1
