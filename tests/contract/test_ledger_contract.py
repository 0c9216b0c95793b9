"""What every ledger does, in memory and on both databases."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from trading.domain.approvals import Fate, TradingState
from trading.domain.errors import AlreadyClaimed, InvalidValue, LeaseLost
from trading.domain.events import (
    AccountFunded,
    AlarmRaised,
    ApprovalEnded,
    DomainEvent,
    EventMetadata,
    HeadWitnessed,
    OrderAccepted,
    OrderExpired,
    OrderFoundAbsent,
    OrderNotSent,
    OrderSubmitted,
    ReconciliationCompleted,
    ServiceStarted,
    ServiceStopped,
)
from trading.domain.identifiers import AccountId, ApprovalId, Currency, OrderId, VenueOrderId
from trading.ports.ledger import EventDraft, Insert, Ledger, Row, Unit, Upsert

EVENTS: tuple[DomainEvent, ...] = (
    ServiceStarted(generation=1, mode="paper", release="0.1.0", clean=True),
    AccountFunded(account_id=AccountId("paper-main"), currency=Currency("USDT"), amount=Decimal("100000.00000001")),
    OrderSubmitted(order_id=OrderId("o1")),
    OrderAccepted(order_id=OrderId("o1"), venue_order_id=VenueOrderId("v-1")),
    OrderNotSent(order_id=OrderId("o2"), code="PRICE_BAND"),
    OrderExpired(order_id=OrderId("o1"), reason="zeit — 時間 \u2028 \\ \" '"),
    OrderFoundAbsent(order_id=OrderId("o3"), evidence="the venue's answer was\n'not found'"),
    ApprovalEnded(approval_id=ApprovalId("a9"), fate=Fate.LAPSED, reason=""),
    ReconciliationCompleted(
        account_id=AccountId("paper-main"), orders_checked=3, resolved=2, unresolved=1, differences=("x", "y")
    ),
    HeadWitnessed(service="risk", size=2**40, root="00" * 32),
    AlarmRaised(code="LATE_FILL", message=TradingState.HALTED, subject="o1"),
    ServiceStopped(generation=1, reason="asked to"),
)


def draft(text: str = "x", **metadata: str) -> EventDraft:
    return EventDraft(OrderSubmitted(order_id=OrderId(text)), EventMetadata(**metadata))  # type: ignore[arg-type]


def fate(approval: str, order: str | None = None) -> Insert:
    return Insert("approval_fates", {"approval_id": approval, "fate": "consumed", "order_id": order, "at_ms": 5})


def order(order_id: str, approval: str, status: str = "initialized") -> Row:
    columns = ["client_order_id", "venue", "symbol", "account_id", "agent_id", "side", "order_json"]
    return dict.fromkeys(columns, "t") | {
        "order_id": order_id,
        "approval_id": approval,
        "status": status,
        "created_ms": 1,
        "updated_ms": 2**41,
    }


async def commit_all(ledger: Ledger, units: list[Unit]) -> list[Any]:
    return await asyncio.gather(*(ledger.commit(unit) for unit in units), return_exceptions=True)


async def test_events_come_back_as_they_were_written(desk) -> None:
    metadata = EventMetadata(correlation_id="p1", causation_id="r1", trace_id="ab" * 16)
    async with desk.writer() as ledger:
        committed = await ledger.commit(Unit(events=tuple(EventDraft(event, metadata) for event in EVENTS)))
        assert [event.payload for event in committed] == list(EVENTS)
        assert [event.seq for event in committed] == list(range(1, len(EVENTS) + 1))
        assert {event.source_service for event in committed} == {"execution"}
        assert len({event.event_id for event in committed}) == len(EVENTS)
        assert await ledger.events_after(0) == list(committed)
        assert await ledger.events_after(3, limit=2) == list(committed[3:5])
        assert await ledger.events_after(len(EVENTS)) == []
        async with desk.reader() as reader:
            assert await reader.events_after(0) == list(committed)
            assert await reader.last_seq() == len(EVENTS)


async def test_facts_outlive_their_writer_and_the_generation_rises(desk) -> None:
    async with desk.writer() as first:
        await first.commit(Unit(events=(draft("one"),), claims=(fate("a1"),)))
        generation = first.generation
    async with desk.writer() as second:
        assert second.generation > generation
        committed = await second.commit(Unit(events=(draft("two"),)))
        assert [event.seq for event in committed] == [2]
        assert len(await second.events_after(0)) == 2
        with pytest.raises(AlreadyClaimed):
            await second.commit(Unit(claims=(fate("a1"),)))


async def test_an_empty_or_absent_ledger_reads_as_empty(desk) -> None:
    async with desk.reader() as reader:
        assert await reader.last_seq() == 0
        assert await reader.events_after(0) == []
        assert await reader.rows("orders") == []
        async with desk.writer() as ledger:
            await ledger.commit(Unit(events=(draft(),)))
            async with desk.reader() as later:
                assert await later.last_seq() == 1


async def test_fifty_units_want_one_approval_and_exactly_one_gets_it(desk) -> None:
    async with desk.writer() as ledger:
        units = [
            Unit(
                events=(draft(f"o{i}"),),
                claims=(fate("wanted" if i % 2 else f"own{i}", f"o{i}"),),
                writes=(Insert("orders", order(f"o{i}", "wanted" if i % 2 else f"own{i}")),),
            )
            for i in range(100)
        ]
        outcomes = await commit_all(ledger, units)
        rivals, neighbours = outcomes[1::2], outcomes[0::2]
        assert not [outcome for outcome in neighbours if isinstance(outcome, BaseException)]
        refusals = [outcome for outcome in rivals if isinstance(outcome, AlreadyClaimed)]
        assert len(refusals) == 49
        winner = next(outcome for outcome in rivals if not isinstance(outcome, BaseException))
        existing = {"approval_id": "wanted", "fate": "consumed", "order_id": winner[0].payload.order_id, "at_ms": 5}
        assert all(refusal.existing == existing and refusal.table == "approval_fates" for refusal in refusals)
        events = await ledger.events_after(0)
        assert [event.seq for event in events] == list(range(1, 52))
        assert len(await ledger.rows("orders")) == 51
        assert await ledger.rows("approval_fates", {"approval_id": "wanted"}) == [existing]


async def test_a_refused_unit_leaves_nothing_behind(desk) -> None:
    async with desk.writer() as ledger:
        await ledger.commit(Unit(claims=(fate("a1"),)))
        position = {"account_id": "m", "venue": "v", "symbol": "s", "position_json": "{}"}
        with pytest.raises(AlreadyClaimed):
            await ledger.commit(
                Unit(events=(draft(),), claims=(fate("free"), fate("a1")), writes=(Upsert("positions", position),))
            )
        assert await ledger.last_seq() == 0
        assert await ledger.rows("positions") == []
        assert [row["approval_id"] for row in await ledger.rows("approval_fates")] == ["a1"]
        await ledger.commit(Unit(claims=(fate("free"),)))


async def test_a_unique_column_is_a_key_too(desk) -> None:
    async with desk.writer() as ledger:
        first = order("o1", "a1")
        await ledger.commit(Unit(claims=(Insert("orders", first),)))
        with pytest.raises(AlreadyClaimed) as caught:
            await ledger.commit(Unit(events=(draft(),), claims=(Insert("orders", order("o2", "a1")),)))
        assert caught.value.existing == first
        await ledger.commit(Unit(claims=(Insert("orders", order("o3", "a3")),)))
        with pytest.raises(AlreadyClaimed):
            await ledger.commit(Unit(writes=(Upsert("orders", order("o3", "a1")),)))
        assert await ledger.rows("orders", {"order_id": "o3"}) == [order("o3", "a3")]


async def test_two_claims_of_one_unit_on_one_key_refuse_it(desk) -> None:
    async with desk.writer() as ledger:
        with pytest.raises(AlreadyClaimed):
            await ledger.commit(Unit(events=(draft(),), claims=(fate("a1"), fate("a1"))))
        assert await ledger.last_seq() == 0
        assert await ledger.rows("approval_fates") == []


async def test_the_last_of_several_replacements_stays(desk) -> None:
    async with desk.writer() as ledger:
        states = ["initialized", "submitted", "accepted", "filled"]
        outcomes = await commit_all(
            ledger, [Unit(events=(draft(s),), writes=(Upsert("orders", order("o1", "a1", s)),)) for s in states]
        )
        assert [type(outcome) for outcome in outcomes] == [list] * 4
        assert await ledger.rows("orders") == [order("o1", "a1", "filled")]
        await ledger.commit(Unit(writes=(Upsert("orders", order("o1", "a1", "closed")),)))
        assert await ledger.rows("orders") == [order("o1", "a1", "closed")]


async def test_an_insert_after_a_replacement_of_the_same_row_is_refused(desk) -> None:
    async with desk.writer() as ledger:
        outcomes = await commit_all(
            ledger,
            [Unit(writes=(Upsert("orders", order("o1", "a1")),)), Unit(claims=(Insert("orders", order("o1", "a1")),))],
        )
        assert isinstance(outcomes[1], AlreadyClaimed)
        assert not isinstance(outcomes[0], BaseException)


async def test_rows_are_found_by_columns_in_key_order(desk) -> None:
    async with desk.writer() as ledger:
        for name in ("b", "a", "Z", "ä"):
            await ledger.commit(Unit(claims=(fate(name, None if name == "a" else f"o-{name}"),)))

        async def found(**where: object) -> list[object]:
            return [row["approval_id"] for row in await ledger.rows("approval_fates", where)]

        assert await found() == ["Z", "a", "b", "ä"]
        assert await found(approval_id="b") == ["b"]
        assert await found(approval_id=["b", "a", "none"]) == ["a", "b"]
        assert await found(approval_id=()) == []
        assert await found(order_id=None) == ["a"]
        assert await found(order_id=["o-b", None]) == ["a", "b"]
        assert await found(at_ms=5, approval_id=["Z"]) == ["Z"]
        assert await found(at_ms=[6, 7]) == []
        assert len(await ledger.rows("approval_fates", limit=2)) == 2


@pytest.mark.parametrize(
    "write",
    [
        Insert("nowhere", {}),
        Insert("events", {"seq": 1}),
        Insert("approval_fates", {"approval_id": "a"}),
        Insert("approval_fates", {"approval_id": "a", "fate": "f", "order_id": None, "at_ms": 1, "more": 1}),
        Insert("approval_fates", {"approval_id": "a", "fate": "f", "order_id": None, "at_ms": "1"}),
        Insert("approval_fates", {"approval_id": 7, "fate": "f", "order_id": None, "at_ms": 1}),
        Insert("approval_fates", {"approval_id": "a", "fate": "f", "order_id": None, "at_ms": 1.5}),
    ],
)
async def test_a_row_that_does_not_fit_its_table_fails_only_its_unit(desk, write: Insert) -> None:
    async with desk.writer() as ledger:
        outcomes = await commit_all(ledger, [Unit(events=(draft(),), writes=(write,)), Unit(events=(draft(),))])
        assert isinstance(outcomes[0], InvalidValue)
        assert not isinstance(outcomes[1], BaseException)
        assert await ledger.last_seq() == 1


async def test_decimals_and_enums_are_stored_as_text(desk) -> None:
    async with desk.writer() as ledger:
        row = {"account_id": "m", "currency": "BTC", "total": Decimal("1E-8"), "locked": Fate.VOIDED}
        await ledger.commit(Unit(writes=(Upsert("balances", row),)))
        assert await ledger.rows("balances", {"total": Decimal("0.00000001")}) == [
            {"account_id": "m", "currency": "BTC", "total": "0.00000001", "locked": Fate.VOIDED.value}
        ]


async def test_sequences_have_no_gap_when_many_write_at_once(desk) -> None:
    async with desk.writer() as ledger:

        async def writer(name: int) -> list[int]:
            seqs: list[int] = []
            for _ in range(10):
                committed = await ledger.commit(Unit(events=(draft(f"{name}a"), draft(f"{name}b"))))
                assert committed[1].seq == committed[0].seq + 1
                seqs += [event.seq for event in committed]
            assert seqs == sorted(seqs)
            return seqs

        everything = await asyncio.gather(*(writer(name) for name in range(20)))
        assert sorted(seq for seqs in everything for seq in seqs) == list(range(1, 401))
        assert [event.seq for event in await ledger.events_after(0)] == list(range(1, 401))


async def test_a_cancelled_caller_does_not_cancel_the_commit(desk) -> None:
    async with desk.writer() as ledger:
        impatient = asyncio.create_task(ledger.commit(Unit(events=(draft("impatient"),), claims=(fate("a1"),))))
        patient = asyncio.create_task(ledger.commit(Unit(events=(draft("patient"),))))
        await asyncio.sleep(0)
        impatient.cancel()
        assert [event.seq for event in await patient] == [2]
        assert [event.payload.order_id for event in await ledger.events_after(0)] == ["impatient", "patient"]
        assert len(await ledger.rows("approval_fates")) == 1


async def test_a_writer_that_was_replaced_writes_nothing_more(desk) -> None:
    async with desk.writer() as ledger:
        await ledger.commit(Unit(events=(draft("before"),)))
        await desk.usurp()
        outcomes = await commit_all(ledger, [Unit(events=(draft(),)), Unit(claims=(fate("a1"),))])
        assert [type(outcome) for outcome in outcomes] == [LeaseLost, LeaseLost]
        with pytest.raises(LeaseLost):
            await ledger.commit(Unit(events=(draft(),)))
        async with desk.reader() as reader:
            assert await reader.last_seq() == 1
            assert await reader.rows("approval_fates") == []
