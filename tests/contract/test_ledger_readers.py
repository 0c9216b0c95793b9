"""How readers of a SQLite ledger open, ask and let go of the file, and what they ask of both databases."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.contract.conftest import ROOM, SqlDesk, SqliteDesk
from trading.adapters.sql import open_reader, selects
from trading.adapters.sql.reader import SqliteSource
from trading.adapters.sql.tables import shape_of
from trading.domain.errors import InvalidValue, LedgerUnavailable
from trading.domain.events import AlarmRaised
from trading.ports.ledger import EventDraft, Insert, Unit


def unit(name: str, order_id: str | None = None) -> Unit:
    fate = {"approval_id": name, "fate": "consumed", "order_id": order_id, "at_ms": 1}
    alarm = AlarmRaised(code="TEST", message="a test", subject=name)
    return Unit(events=(EventDraft(alarm),), claims=(Insert("approval_fates", fate),))


def threads_of_readers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name}


def assert_ended(threads: set[threading.Thread]) -> None:
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


async def test_a_reader_opens_the_file_once_it_is_there_and_ends_its_thread(sqlite_desk: SqliteDesk) -> None:
    before = threads_of_readers()
    async with open_reader(ROOM, sqlite_desk.location) as reader:
        assert await reader.last_seq() == 0
        assert threads_of_readers() == before
        async with sqlite_desk.writer() as ledger:
            await ledger.commit(unit("one"))
            assert await asyncio.gather(*(reader.last_seq() for _ in range(20))) == [1] * 20
            started = threads_of_readers() - before
            assert len(started) == 1  # however many asked first
    assert_ended(started)


async def test_a_file_whose_tables_are_not_made_yet_reads_as_empty(sqlite_desk: SqliteDesk) -> None:
    sqlite_desk.path.parent.mkdir()
    sqlite_desk.path.touch()
    async with open_reader(ROOM, sqlite_desk.location) as reader:
        assert (await reader.last_seq(), await reader.events_after(0), await reader.rows("orders")) == (0, [], [])
        async with sqlite_desk.writer() as ledger:
            await ledger.commit(unit("one"))
            assert await reader.last_seq() == 1


async def test_a_reader_cannot_change_a_sqlite_ledger(sqlite_desk: SqliteDesk) -> None:
    async with sqlite_desk.writer() as ledger:
        await ledger.commit(unit("one"))
    source = SqliteSource(sqlite_desk.path)
    with pytest.raises(LedgerUnavailable, match="readonly"):
        await source.fetch("DELETE FROM approval_fates", ())
    await source.close()


async def test_a_closed_reader_answers_what_was_asked_and_nothing_more(sqlite_desk: SqliteDesk) -> None:
    async with sqlite_desk.writer() as ledger:
        await ledger.commit(unit("one"))
    async with open_reader(ROOM, sqlite_desk.location) as reader:
        asked = [asyncio.create_task(reader.last_seq()) for _ in range(5)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*asked) == [1] * 5
    with pytest.raises(LedgerUnavailable) as refusal:
        await reader.last_seq()
    assert refusal.value.code == "LEDGER_CLOSED"
    await reader.close()  # a second time is harmless


async def test_a_file_that_is_no_database_is_unavailable(sqlite_desk: SqliteDesk) -> None:
    sqlite_desk.path.parent.mkdir()
    sqlite_desk.path.write_bytes(b"no database at all" * 100)
    before = threads_of_readers()
    async with open_reader(ROOM, sqlite_desk.location) as reader:
        with pytest.raises(LedgerUnavailable, match="not a database"):
            await reader.last_seq()
        started = threads_of_readers() - before
        assert len(started) == 1
    assert_ended(started)


async def test_rows_are_found_by_one_several_no_and_null_values(sql_desk: SqlDesk) -> None:
    async with sql_desk.writer() as ledger, sql_desk.reader() as reader:
        for name, order_id in (("a", "1"), ("b", "2"), ("c", None), ("d", "4")):
            await ledger.commit(unit(name, order_id))

        async def found(order_id: object, **more: object) -> str:
            rows = await reader.rows("approval_fates", {"order_id": order_id, **more})
            return "".join(str(row["approval_id"]) for row in rows)

        assert await found("2") == "b"
        assert await found(["4", "1"]) == "ad"
        assert await found(None) == "c"
        assert await found(["4", None]) == "cd"
        assert await found(("4", "2", None)) == "bcd"
        assert await found([]) == ""
        assert await found(["1", "2"], at_ms=[1, 2]) == "ab"
        assert await found(["1", "2"], at_ms=2) == ""
        rows = await reader.rows("approval_fates", {"fate": "consumed"}, limit=3)
        assert [row["approval_id"] for row in rows] == ["a", "b", "c"]


def test_a_statement_is_compiled_once_for_each_form_not_for_each_value() -> None:
    shape = shape_of(ROOM, "orders")
    for postgres in (False, True):
        first, _ = selects.rows_where(shape, [(0, ("x",)), (7, ("buy", "sell"))], None, postgres=postgres)
        again, parameters = selects.rows_where(shape, [(0, ("y",)), (7, ("a", "b", "c"))], None, postgres=postgres)
        assert again is first
        assert parameters[0] == "y"
        limited, _ = selects.rows_where(shape, [(0, ("x",))], 5, postgres=postgres)
        assert "LIMIT" in limited
        assert "LIMIT" not in first


async def test_rows_of_a_span_come_newest_first_and_bounded(sql_desk: SqlDesk) -> None:
    async with sql_desk.writer() as ledger, sql_desk.reader() as reader:
        for at_ms, name in ((10, "a"), (20, "b"), (20, "c"), (30, "d"), (40, "e")):
            fate = {
                "approval_id": name,
                "fate": "voided" if name == "d" else "consumed",
                "order_id": None,
                "at_ms": at_ms,
            }
            alarm = AlarmRaised(code="TEST", message="a test", subject=name)
            await ledger.commit(Unit(events=(EventDraft(alarm),), claims=(Insert("approval_fates", fate),)))

        async def found(low: int, high: int, limit: int = 9, **where: object) -> str:
            rows = await reader.rows_between("approval_fates", "at_ms", low, high, where, limit=limit)
            return "".join(str(row["approval_id"]) for row in rows)

        assert await found(10, 30) == "dbca"
        assert await found(11, 29) == "bc"
        assert await found(0, 99, limit=2) == "ed"
        assert await found(0, 99, fate="consumed", order_id=None) == "ebca"
        assert await found(0, 99, fate=["voided", "other"]) == "d"
        assert await found(50, 99) == ""
        with pytest.raises(InvalidValue):
            await found(0, 99, no_such_column=1)
        with pytest.raises(InvalidValue):
            await reader.rows_between("approval_fates", "fate", 0, 1, limit=1)
