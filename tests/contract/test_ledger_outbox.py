"""What the relay is given says the same as the events, wherever it comes from and wherever one begins."""

from __future__ import annotations

import pytest

from tests.contract.conftest import ROOM
from trading.adapters.codec import decode_envelope
from trading.adapters.sql import writer as sql_writer
from trading.domain.errors import LeaseLost
from trading.domain.events import AlarmRaised, EventMetadata
from trading.ports.ledger import EventDraft, Ledger, LedgerReader, Unit

AWKWARD = 'quotes " and \\ and \n, and 中文 \U0001f600'


async def _commit(ledger: Ledger, *numbers: int) -> None:
    metadata = EventMetadata(correlation_id=AWKWARD, schema=3)
    for number in numbers:
        alarm = AlarmRaised(code="TEST", message=AWKWARD, subject=str(number))
        await ledger.commit(Unit(events=(EventDraft(alarm, metadata), EventDraft(alarm))))


async def _assert_same(ledger: Ledger, reader: LedgerReader, last: int) -> None:
    for seq in range(-1, last + 2):
        for limit in (1, 3, 100):
            wire = await ledger.wire_after(seq, limit=limit)
            events = await reader.events_after(seq, limit=limit)
            assert [decode_envelope(each.data) for each in wire] == events
            assert [(each.seq, each.event_type) for each in wire] == [(each.seq, each.event_type) for each in events]


async def test_wire_forms_read_as_the_events_from_every_place_on(desk) -> None:
    async with desk.writer() as ledger:
        assert await ledger.wire_after(0, limit=10) == []
        await _commit(ledger, 1, 2, 3)
        await _assert_same(ledger, ledger, 6)
    async with desk.writer() as ledger:  # which remembers nothing of the writer before
        await _assert_same(ledger, ledger, 6)
        await _commit(ledger, 4)
        await _assert_same(ledger, ledger, 8)
        assert {each.source_service for each in await ledger.events_after(0)} == {ROOM}


async def test_a_writer_that_remembers_less_than_is_asked_for_reads_the_rest(
    desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_writer, "_NEWEST_KEPT", 3)
    async with desk.writer() as ledger:
        await _commit(ledger, 1, 2, 3, 4)
        await _assert_same(ledger, ledger, 8)


async def test_what_was_refused_is_never_relayed(desk) -> None:
    async with desk.writer() as ledger:
        await _commit(ledger, 1)
        await desk.usurp()
        with pytest.raises(LeaseLost):
            await _commit(ledger, 2)
        assert [each.seq for each in await ledger.wire_after(0, limit=10)] == [1, 2]
